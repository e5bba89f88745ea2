"""News of bookings, which a trigger sends to whoever listens when a transaction commits."""

import json
from dataclasses import dataclass

import psycopg
from psycopg.rows import TupleRow

CHANNEL = "bookings"


@dataclass(frozen=True)
class BookingEvent:
    booking_id: int
    status: str


def listen(connection: psycopg.Connection[TupleRow]) -> None:
    """From now on the connection, which must be in autocommit mode, hears of bookings."""
    connection.execute(psycopg.sql.SQL("LISTEN {}").format(psycopg.sql.Identifier(CHANNEL)))


def receive(connection: psycopg.Connection[TupleRow], *, count: int, timeout: float) -> list[BookingEvent]:
    """The next `count` events, or fewer when `timeout` seconds are over."""
    news = (json.loads(notify.payload) for notify in connection.notifies(timeout=timeout, stop_after=count))
    return [BookingEvent(one["id"], one["status"]) for one in news]
