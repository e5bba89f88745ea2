"""pytest-mock-resources, as its documentation shows: actions that are run once fill the template of its databases.

Our image: its fixture pmr_postgres_config, overridden. A port of None has it look for a free one, where its usual one,
5532, would be shared with whoever else is there.
"""

import os
from pathlib import Path

import pytest
from pytest_mock_resources import PostgresConfig, StaticStatements, create_postgres_fixture
from sqlalchemy import Engine, text


@pytest.fixture(scope="session")
def pmr_postgres_config() -> PostgresConfig:
    """The container to start."""
    return PostgresConfig(image=os.environ["BENCH_IMAGE"], port=None)


database = create_postgres_fixture(StaticStatements(Path(__file__).with_name("schema.sql").read_text()))


def test_reads_a_table(database: Engine) -> None:
    """A test like everybody's."""
    with database.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM table_1")).fetchone() == (5,)
