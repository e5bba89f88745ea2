"""pytest-postgresql, as its README shows: the server loads the schema into a template, a client clones it.

No image: the binaries of the folder that the bench was given. They refuse to run as root, so there another user does.
"""

import os
from pathlib import Path

import psycopg
from pytest_postgresql import factories

server = factories.postgresql_proc(
    executable=os.path.join(os.environ["BENCH_BINARIES"], "pg_ctl"),  # noqa: PTH118 -- it takes text
    load=[Path(__file__).with_name("schema.sql")],
)
database = factories.postgresql("server")


def test_reads_a_table(database: psycopg.Connection) -> None:
    """A test like everybody's."""
    assert database.execute("SELECT count(*) FROM table_1").fetchone() == (5,)
