"""Runs a unit of work at isolation level SERIALIZABLE, again when PostgreSQL asks for it."""

from collections.abc import Callable
from typing import TypeVar

import psycopg
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session as OrmSession

from booking.db import Session

Result = TypeVar("Result")

TRANSIENT = (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected)


def serializable(work: Callable[[OrmSession], Result], *, attempts: int = 10) -> Result:
    """What `work` returns from the first attempt that commits; the last attempt's failure is raised."""
    for _ in range(attempts - 1):
        try:
            return _attempt(work)
        except DBAPIError as exc:
            if not isinstance(exc.orig, TRANSIENT):
                raise
    return _attempt(work)


def _attempt(work: Callable[[OrmSession], Result]) -> Result:
    with Session.begin() as session:
        session.connection(execution_options={"isolation_level": "SERIALIZABLE"})
        return work(session)
