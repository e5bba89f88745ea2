"""pgsandbox, on either engine: the schema is its setting `init`, the image its setting `image`."""

import psycopg


def test_reads_a_table(pgsandbox_connection: psycopg.Connection) -> None:
    """A test like everybody's."""
    assert pgsandbox_connection.execute("SELECT count(*) FROM table_1").fetchone() == (5,)
