"""pytest-pg, as its README shows: a session fixture around the fixture of the wanted version.

Our image: the ini key pg_docker_image_name has its name, to which the fixture pg_15 appends the tag `15`.
"""

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from pytest_pg import PG


@pytest.fixture(scope="session")
def database(pg_15: PG) -> Iterator[psycopg.Connection]:
    """A connection to the database with the schema in it."""
    with psycopg.connect(
        host=pg_15.host,
        port=pg_15.port,
        user=pg_15.user,
        password=pg_15.password,
        dbname=pg_15.database,
        autocommit=True,
    ) as connection:
        connection.execute(Path(__file__).with_name("schema.sql").read_bytes())
        yield connection


def test_reads_a_table(database: psycopg.Connection) -> None:
    """A test like everybody's."""
    assert database.execute("SELECT count(*) FROM table_1").fetchone() == (5,)
