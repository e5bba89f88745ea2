"""One way to bring a database back after each test, timed test by test: run in the benchmark's own environment.

python -m benchmarks.contender HOW --work WORK --tables N --tests N --image IMAGE     prints JSON: ms of each test
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from benchmarks import schema

LARGE = 100_000
"""Rows of the table of which the work `one row` changes one."""

_LARGE = f"""
CREATE TABLE large (id int PRIMARY KEY, word text NOT NULL, number int NOT NULL);
INSERT INTO large SELECT n, 'word ' || n, n FROM generate_series(1, {LARGE}) n;
"""  # noqa: S608 -- a number


@dataclass
class Contender:
    """A database that is there, and the way back to its baseline."""

    conninfo: str
    isolate: Callable[[], Any]


def main() -> int:
    """Time one contender."""
    parser = argparse.ArgumentParser()
    parser.add_argument("how", choices=HOW)
    parser.add_argument("--work", choices=WORK, default="three tables")
    parser.add_argument("--tables", type=int, default=50)
    parser.add_argument("--tests", type=int, default=60)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between tests")
    parser.add_argument("--image", default="")
    parser.add_argument("--run", default="")
    parser.add_argument("--worker", default="main")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--scope", default="auto")
    given = parser.parse_args()
    with HOW[given.how](given) as contender:
        work = WORK[given.work]
        whole, isolation = [], []
        for turn in range(given.tests + 5):
            time.sleep(given.pause)
            begun = time.perf_counter()
            work(contender)
            between = time.perf_counter()
            contender.isolate()
            ended = time.perf_counter()
            if turn >= 5:
                whole.append((ended - begun) * 1000)
                isolation.append((ended - between) * 1000)
    json.dump({"whole": whole, "isolation": isolation}, sys.stdout)
    return 0


# What a test does -----------------------------------------------------------------------------------------------------


def _three(contender: Contender) -> None:
    with psycopg.connect(contender.conninfo, autocommit=True) as connection:
        for table in ("table_1", "table_2", "table_3"):
            connection.execute(f"INSERT INTO {table} (slug, title, parent) VALUES ('new', 'new', 1)")  # noqa: S608


def _nothing(contender: Contender) -> None:
    with psycopg.connect(contender.conninfo, autocommit=True) as connection:
        connection.execute("SELECT count(*) FROM table_1")


def _one_row(contender: Contender) -> None:
    with psycopg.connect(contender.conninfo, autocommit=True) as connection:
        connection.execute("UPDATE large SET word = 'changed' WHERE id = %s", [LARGE // 2])


def _in_memory(_contender: Contender) -> None:
    """Nothing: only the isolation is compared with SQLite's."""


WORK = {"three tables": _three, "nothing": _nothing, "one row of many": _one_row, "in memory": _in_memory}

# Ways back ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _ours(given: argparse.Namespace, *, engine: str, how: str) -> Iterator[Contender]:
    from pgsandbox import Sandbox

    settings: dict[str, Any] = {"engine": engine, "isolation": "clone" if how == "clone" else "reset", "version": 15}
    if engine == "docker":
        settings["image"] = given.image
    file = Path.cwd() / f"schema-{given.tables}.sql"
    if not file.exists():
        temporary = file.with_suffix(f".{os.getpid()}")
        temporary.write_text(schema.sql(given.tables) + _LARGE)
        temporary.replace(file)
    settings["init"] = [str(file)]
    run = {"run": given.run} if given.run else {}
    who = {"worker": given.worker, "workers": given.workers}
    with Sandbox(**settings, **run, **who, scope=given.scope) as sandbox:
        database = sandbox.database()
        if how != "floor":
            yield Contender(database.conninfo, database.reset)
            return
        with sandbox.server.inside(database.name) as connection:
            connection.prepare_threshold = 0
            yield Contender(database.conninfo, lambda: _undo_what_is_known(connection, given.work))


def _undo_what_is_known(connection: psycopg.Connection[Any], work: str) -> None:
    """The floor: exactly what this work did is taken back, by somebody who knows what it did."""
    if work == "three tables":
        with connection.pipeline():
            for number in (1, 2, 3):
                connection.execute(f"DELETE FROM table_{number} WHERE slug = 'new'")  # noqa: S608
                connection.execute(f"SELECT setval('table_{number}_id_seq', {schema.ROWS})")
    elif work == "one row of many":
        row = LARGE // 2
        connection.execute("UPDATE large SET word = %s WHERE id = %s", [f"word {row}", row])


@contextlib.contextmanager
def _pytest_pg(given: argparse.Namespace) -> Iterator[Contender]:
    """What its users write: a template, and a clone of it for each test, on its tuned server in memory."""
    from pytest_pg import run_pg

    with run_pg(given.image) as server:
        where = {"host": server.host, "port": server.port, "user": server.user, "password": server.password}
        with psycopg.connect(**where, dbname=server.database, autocommit=True) as admin:
            admin.execute("CREATE DATABASE template")
            with psycopg.connect(**where, dbname="template", autocommit=True) as template:
                template.execute((schema.sql(given.tables) + _LARGE).encode())
            admin.execute("CREATE DATABASE test TEMPLATE template")

            def clone() -> None:
                admin.execute("DROP DATABASE test")
                admin.execute("CREATE DATABASE test TEMPLATE template")

            yield Contender(psycopg.conninfo.make_conninfo(**where, dbname="test"), clone)


@contextlib.contextmanager
def _sqlite(given: argparse.Namespace) -> Iterator[Contender]:
    """SQLite in memory: SQLAlchemy makes the same tables with the same rows for each test."""
    import sqlalchemy as sa

    metadata = sa.MetaData()
    rows = [{"slug": f"entry-{n}", "title": f"entry {n}", "amount": n, "parent": n} for n in range(1, schema.ROWS + 1)]
    for number in range(1, given.tables + 1):
        sa.Table(
            f"table_{number}",
            metadata,
            sa.Column("id", sa.Integer, primary_key=True),
            sa.Column("slug", sa.String(80), nullable=False, unique=True),
            sa.Column("title", sa.Text, nullable=False),
            sa.Column("amount", sa.Numeric(12, 2, asdecimal=False), nullable=False, default=0),
            sa.Column("active", sa.Boolean, nullable=False, default=True),
            sa.Column("created", sa.DateTime, server_default=sa.func.now()),
            sa.Column("parent", sa.ForeignKey(f"table_{max(1, number - 1)}.id"), index=True),
            sa.Index(f"table_{number}_created", "created", "active"),
        )

    def make() -> None:
        engine = sa.create_engine("sqlite://")
        metadata.create_all(engine)
        with engine.begin() as connection:
            for table in metadata.sorted_tables:
                connection.execute(sa.insert(table), rows)
        engine.dispose()

    yield Contender("", make)


HOW: dict[str, Callable[[argparse.Namespace], Any]] = {
    "floor, local": lambda given: _ours(given, engine="local", how="floor"),
    "floor, docker": lambda given: _ours(given, engine="docker", how="floor"),
    "pgsandbox reset, local": lambda given: _ours(given, engine="local", how="reset"),
    "pgsandbox reset, docker": lambda given: _ours(given, engine="docker", how="reset"),
    "pgsandbox clone, local": lambda given: _ours(given, engine="local", how="clone"),
    "pgsandbox clone, docker": lambda given: _ours(given, engine="docker", how="clone"),
    "pytest-pg, clone by hand": _pytest_pg,
    "SQLite in memory, create_all": _sqlite,
}

if __name__ == "__main__":
    sys.exit(main())
