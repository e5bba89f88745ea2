"""testcontainers has no plugin: a session fixture around PostgresContainer, as its guide for pytest shows.

Our image: PostgresContainer takes any. The reaper, a container beside it whose image would have to be pulled, is
switched off by TESTCONTAINERS_RYUK_DISABLED; with it, a run would take longer than is shown here.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from testcontainers.postgres import PostgresContainer


@pytest.fixture(scope="session")
def database() -> Iterator[psycopg.Connection]:
    """A connection to the database with the schema in it."""
    with (
        PostgresContainer(os.environ["BENCH_IMAGE"], driver=None) as postgres,
        psycopg.connect(postgres.get_connection_url(), autocommit=True) as connection,
    ):
        connection.execute(Path(__file__).with_name("schema.sql").read_bytes())
        yield connection


def test_reads_a_table(database: psycopg.Connection) -> None:
    """A test like everybody's."""
    assert database.execute("SELECT count(*) FROM table_1").fetchone() == (5,)
