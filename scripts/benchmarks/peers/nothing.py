"""No database at all: what pytest, the driver's import (which every test here has) and one test cost by themselves."""

import psycopg


def test_reads_nothing() -> None:
    """As long as a test that needs no database."""
    assert psycopg.__version__
