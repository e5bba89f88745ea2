"""Several guests want the same thing at the same time."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from support import at, count, race, wait_until_blocked

from booking import db
from booking.db import Session
from booking.errors import LimitReached, RoomTaken, WrongState
from booking.models import Booking, BookingItem, Guest, Job, Resource, Room
from booking.services import bookings

INSERT = """
    INSERT INTO bookings (room_id, guest_id, during, price)
    VALUES (1, 1, '[2030-06-03 10:00+00, 2030-06-03 12:00+00)', 0)
"""


def book(room_id: int, start: int = 10, items: dict[int, int] | None = None) -> Booking:
    with Session.begin() as session:
        return bookings.book(
            session, room_id=room_id, guest_id=1, start=at(start), end=at(start + 2), items=items or {}
        )


def test_of_eight_who_want_a_room_one_gets_it(blue_room: Room, gina: Guest) -> None:
    outcomes = race(*[partial(book, blue_room.id)] * 8)
    assert sum(isinstance(outcome, RoomTaken) for outcome in outcomes) == 7
    assert count(Booking) == 1


def test_different_hours_of_a_room_go_to_everybody(blue_room: Room, gina: Guest) -> None:
    outcomes = race(*(partial(book, blue_room.id, start) for start in (8, 10, 12, 14, 16)))
    assert sorted(outcome.id for outcome in outcomes if isinstance(outcome, Booking)) == [1, 2, 3, 4, 5]


def test_different_rooms_go_to_everybody(blue_room: Room, red_room: Room, gina: Guest) -> None:
    outcomes = race(partial(book, blue_room.id), partial(book, red_room.id))
    assert {outcome.room_id for outcome in outcomes if isinstance(outcome, Booking)} == {blue_room.id, red_room.id}


def test_no_projector_is_lent_twice_at_a_time(
    blue_room: Room, red_room: Room, gina: Guest, projector: Resource
) -> None:
    wishes = [(blue_room.id, 10), (red_room.id, 10), (blue_room.id, 12), (red_room.id, 11)]
    outcomes = race(*(partial(book, room_id, start, {projector.id: 2}) for room_id, start in wishes))
    booked = [outcome for outcome in outcomes if isinstance(outcome, Booking)]
    assert count(BookingItem) == len(booked) in (1, 2)
    assert all(isinstance(outcome, LimitReached | RoomTaken) for outcome in outcomes if outcome not in booked)


def test_a_booking_confirmed_by_four_at_once_is_confirmed_once(booking: Booking) -> None:
    def confirm() -> None:
        with Session.begin() as session:
            bookings.confirm(session, booking.id)

    outcomes = race(*[confirm] * 4)
    assert sum(isinstance(outcome, WrongState) for outcome in outcomes) == 3
    assert count(Job) == 1


def test_of_a_cancellation_and_a_move_the_order_decides(booking: Booking) -> None:
    def cancel() -> None:
        with Session.begin() as session:
            bookings.cancel(session, booking.id)

    def move() -> None:
        with Session.begin() as session:
            bookings.reschedule(session, booking.id, start=at(14), end=at(16))

    cancelled, moved = race(cancel, move)
    assert cancelled is None
    assert moved is None or isinstance(moved, WrongState)


def test_who_comes_second_waits_for_the_first_and_is_refused(blue_room: Room, gina: Guest) -> None:
    with ThreadPoolExecutor(1) as pool, db.connect() as second, db.connect() as first:
        first.execute(INSERT)
        waiting = pool.submit(second.execute, INSERT)
        wait_until_blocked(second)
        first.commit()
        with pytest.raises(psycopg.errors.ExclusionViolation):
            waiting.result(timeout=5)
    assert count(Booking) == 1


def test_who_comes_second_gets_the_room_if_the_first_gives_up(blue_room: Room, gina: Guest) -> None:
    with ThreadPoolExecutor(1) as pool, db.connect() as second, db.connect() as first:
        first.execute(INSERT)
        waiting = pool.submit(second.execute, INSERT)
        wait_until_blocked(second)
        first.rollback()
        waiting.result(timeout=5)
        second.commit()
        assert second.execute("SELECT id FROM bookings").fetchall() == [(2,)]


def test_a_room_locked_by_a_manager_is_not_waited_for_long(blue_room: Room, gina: Guest) -> None:
    with Session.begin() as manager, Session() as session:
        manager.execute(text("SELECT FROM rooms FOR UPDATE"))
        session.execute(text("SET LOCAL lock_timeout = '10ms'"))
        with pytest.raises(OperationalError, match="lock timeout"):
            bookings.book(session, room_id=blue_room.id, guest_id=gina.id, start=at(10), end=at(12))
