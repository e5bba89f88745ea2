"""pytest-databases, as its README shows: its PostgreSQL plugin, and a session fixture around postgres_service.

Our image: its fixture postgres_image, overridden.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from pytest_databases.docker.postgres import PostgresService


@pytest.fixture(scope="session")
def postgres_image() -> str:
    """The image to start."""
    return os.environ["BENCH_IMAGE"]


@pytest.fixture(scope="session")
def database(postgres_service: PostgresService) -> Iterator[psycopg.Connection]:
    """A connection to the database with the schema in it."""
    with psycopg.connect(
        host=postgres_service.host,
        port=postgres_service.port,
        user=postgres_service.user,
        password=postgres_service.password,
        dbname=postgres_service.database,
        autocommit=True,
    ) as connection:
        connection.execute(Path(__file__).with_name("schema.sql").read_bytes())
        yield connection


def test_reads_a_table(database: psycopg.Connection) -> None:
    """A test like everybody's."""
    assert database.execute("SELECT count(*) FROM table_1").fetchone() == (5,)
