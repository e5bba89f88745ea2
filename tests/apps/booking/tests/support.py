"""Helpers that several test files use; none of them cleans anything up."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime
from threading import Barrier
from typing import TypeVar

import psycopg
from psycopg.rows import TupleRow
from sqlalchemy import func, select

from booking import db
from booking.errors import BookingError
from booking.models import Base

Result = TypeVar("Result")

MONDAY = date(2030, 6, 3)
SATURDAY = date(2030, 6, 8)


def at(hour: int, minute: int = 0, *, day: date = MONDAY) -> datetime:
    return datetime(day.year, day.month, day.day, hour, minute, tzinfo=UTC)


def count(model: type[Base]) -> int:
    """How many rows the table has, as a new transaction sees it."""
    with db.Session() as session:
        return session.scalars(select(func.count()).select_from(model)).one()


def race(*calls: Callable[[], Result]) -> list[Result | BookingError]:
    """What each call returned, or was refused with, when all started at once on threads of their own."""
    barrier = Barrier(len(calls), timeout=5)

    def run(call: Callable[[], Result]) -> Result | BookingError:
        barrier.wait()
        try:
            return call()
        except BookingError as refusal:
            return refusal

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


def wait_until_blocked(connection: psycopg.Connection[TupleRow], *, seconds: float = 5) -> None:
    """Returns once another connection keeps this one's statement waiting."""
    deadline = time.monotonic() + seconds
    with db.connect(autocommit=True) as observer:
        query = "SELECT cardinality(pg_blocking_pids(%s)) > 0"
        while observer.execute(query, [connection.info.backend_pid]).fetchone() != (True,):
            assert time.monotonic() < deadline, "nothing blocks the connection"
            time.sleep(0.001)
