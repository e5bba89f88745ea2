"""Isolation by rollback: one connection whose transaction never commits, which isolates that connection alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import psycopg

    from pgsandbox.database import Database


@contextlib.contextmanager
def rolled_back(database: Database) -> Iterator[psycopg.Connection[Any]]:
    """An open connection inside a transaction that is rolled back, whatever the block does to it.

    `connection.commit()` is refused by psycopg inside the block; `with connection.transaction():` nests (savepoints).
    """
    import psycopg

    with (
        contextlib.suppress(psycopg.Rollback),  # it comes through where the block has closed the connection
        database.connect(autocommit=True) as connection,
        connection.transaction() as outer,
    ):
        yield connection
        raise psycopg.Rollback(outer)
