"""No database, and not even its driver imported: pytest and one test."""


def test_reads_nothing() -> None:
    """As long as a test that needs no database."""
    assert __doc__
