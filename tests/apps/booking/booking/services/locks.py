"""Named locks that PostgreSQL keeps for as long as a connection, or a transaction, lives."""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg.rows import TupleRow
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from booking.errors import Taken


@contextmanager
def exclusive(connection: psycopg.Connection[TupleRow], name: str) -> Iterator[None]:
    """Hold the lock for the block, or raise Taken at once if somebody else does."""
    if not _call(connection, "pg_try_advisory_lock", name):
        raise Taken(f"somebody else holds {name}")
    try:
        yield
    finally:
        _call(connection, "pg_advisory_unlock", name)


def try_in_transaction(session: Session, name: str) -> bool:
    """Whether the lock is this transaction's now, until it ends."""
    return bool(session.scalar(select(func.pg_try_advisory_xact_lock(func.hashtextextended(name, 0)))))


def _call(connection: psycopg.Connection[TupleRow], function: str, name: str) -> bool:
    query = psycopg.sql.SQL("SELECT {}(hashtextextended(%s, 0))").format(psycopg.sql.Identifier(function))
    row = connection.execute(query, [name]).fetchone()
    return row is not None and bool(row[0])
