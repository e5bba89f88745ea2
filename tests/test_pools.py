"""An application's pool, made once and left alone, never hands a test a connection that a reset has cut off."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from conftest import Inner, Target

APP = """
import os
import sqlalchemy

url = sqlalchemy.make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql+psycopg")
engine = sqlalchemy.create_engine(url, pool_size=5)
other = sqlalchemy.create_engine("sqlite://")
"""

TESTS = """
import threading
import app
import pytest
import sqlalchemy

with app.other.begin() as connection:
    connection.execute(sqlalchemy.text("CREATE TABLE kept (i int)"))


@pytest.mark.parametrize("number", range(6))
def test_it_commits(number):
    held = [app.engine.connect() for _ in range(3)]
    for connection in held:
        connection.execute(sqlalchemy.text("SELECT 1"))
        connection.close()
    with app.engine.begin() as connection:
        connection.execute(sqlalchemy.text("CREATE TABLE t (i int)"))


def test_another_databases_pool_is_left_alone():
    with app.other.begin() as connection:
        connection.execute(sqlalchemy.text("SELECT * FROM kept"))
"""


@pytest.mark.parametrize("workers", ["0", "2"])
def test_sqlalchemys_pools_reconnect_without_being_asked_to(project: Path, some_target: Target, workers: str) -> None:
    (project / "app.py").write_text(APP)
    (project / "test_app.py").write_text(TESTS)
    flags = ["-p", "pgsandbox", "--pgsandbox-autouse=true", "-q", "-W", "error", *some_target.flags, "-n", workers]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *flags], capture_output=True, text=True, timeout=100, check=False
    )
    assert "7 passed" in done.stdout, done.stdout


# Every pool we know ---------------------------------------------------------------------------------------------------

POOLS = {
    "psycopg_pool": """
        import psycopg_pool

        pool = psycopg_pool.ConnectionPool(URL, min_size=2, max_size=4, open=True, kwargs={"autocommit": True})
        pool.wait()
        close = pool.close

        def run(statement):
            with pool.connection() as connection:
                cursor = connection.execute(statement)
                return cursor.fetchone() if cursor.description else None
    """,
    "psycopg_pool, async": """
        import asyncio
        import psycopg_pool

        loop = asyncio.new_event_loop()
        pool = psycopg_pool.AsyncConnectionPool(URL, min_size=2, max_size=4, open=False, kwargs={"autocommit": True})
        loop.run_until_complete(pool.open(wait=True))

        def close():
            loop.run_until_complete(pool.close())
            loop.close()

        async def run_soon(statement):
            async with pool.connection() as connection:
                cursor = await connection.execute(statement)
                return await cursor.fetchone() if cursor.description else None

        def run(statement):
            return loop.run_until_complete(run_soon(statement))
    """,
    "asyncpg": """
        import asyncio
        import asyncpg

        loop = asyncio.new_event_loop()

        async def create():
            return await asyncpg.create_pool(URL, min_size=2, max_size=4)

        pool = loop.run_until_complete(create())

        def close():
            loop.run_until_complete(pool.close())
            loop.close()

        def run(statement):
            return loop.run_until_complete(pool.fetchrow(statement))
    """,
    "sqlalchemy": """
        import sqlalchemy

        engine = sqlalchemy.create_engine(URL.replace("postgresql:", "postgresql+psycopg:"), pool_size=2)
        close = engine.dispose

        def run(statement):
            with engine.begin() as connection:
                result = connection.execute(sqlalchemy.text(statement))
                return result.fetchone() if result.returns_rows else None
    """,
    "django": """
        import django
        from django.conf import settings

        one = {"ENGINE": "django.db.backends.postgresql", "CONN_MAX_AGE": None}
        names = {"NAME": "PGDATABASE", "USER": "PGUSER", "PASSWORD": "PGPASSWORD", "HOST": "PGHOST", "PORT": "PGPORT"}
        settings.configure(DATABASES={"default": one | {name: os.environ[key] for name, key in names.items()}})
        django.setup()
        from django.db import connection

        close = connection.close

        def run(statement):
            with connection.cursor() as cursor:
                cursor.execute(statement)
                return cursor.fetchone() if cursor.description else None
    """,
    "psycopg2": """
        import psycopg2.pool

        pool = psycopg2.pool.SimpleConnectionPool(2, 4, URL)
        close = pool.closeall

        def run(statement):
            connection = pool.getconn()
            connection.autocommit = True
            try:
                with connection.cursor() as cursor:
                    cursor.execute(statement)
                    return cursor.fetchone() if cursor.description else None
            except psycopg2.Error:
                connection.close()
                raise
            finally:
                pool.putconn(connection)
    """,
}

CLOSES = """
import app
import pytest


@pytest.fixture(scope="session", autouse=True)
def closing():
    yield
    app.close()
"""

USES = """
import app

first = []


def pids():
    return {app.run("SELECT pg_backend_pid()")[0] for _ in range(6)}


def count():
    return app.run("SELECT count(*) FROM t")[0]


def test_it_commits():
    first.append(pids())
    app.run("INSERT INTO t VALUES (1)")
    assert count() == 1


def test_it_was_not_cut():
    assert count() == 0
    assert pids() == first[0]
    app.run("DELETE FROM t")
    app.run("CREATE TABLE made (i int)")


def test_it_was_cut_and_does_not_notice():
    assert count() == 0
    assert pids().isdisjoint(first[0])
    app.run("INSERT INTO t VALUES (1)")
    first.append(pids())


def test_it_was_not_cut_again():
    assert count() == 0
    assert first[1] <= pids()  # a pool may grow
"""


@pytest.mark.parametrize("library", POOLS)
def test_a_pool_is_never_cut_by_a_reset_and_told_of_a_clone(
    pytester: pytest.Pytester, inner: Inner, library: str
) -> None:
    """But for psycopg2's, which can't be told anything: the summary names it."""
    (pytester.path / "init.sql").write_text("CREATE TABLE t (i int)")
    app = f"import os\n\nURL = os.environ['DATABASE_URL']\n{textwrap.dedent(POOLS[library])}"
    pytester.makepyfile(app=app, conftest=CLOSES, test_uses=USES)
    result = inner("-W", "error", "--pgsandbox-init=init.sql", "--pgsandbox-autouse=true")
    told = "trouble: after test_uses.py::test_it_was_not_cut: a psycopg2.pool.SimpleConnectionPool can't be told that"
    if library == "psycopg2":
        result.assert_outcomes(passed=2, failed=2)
        assert f"{told} its connections were cut off" in result.stdout.str()
    else:
        result.assert_outcomes(passed=4)
        assert "trouble" not in result.stdout.str()
    assert "test_uses.py::test_it_was_not_cut: the schema was changed (pg_attribute, " in result.stdout.str()
    assert "cloned: once a reset made the database anew" in result.stdout.str()
