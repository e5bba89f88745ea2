"""News of bookings, by LISTEN and NOTIFY."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

from sqlalchemy import text
from support import at, race

from booking import db
from booking.db import Session
from booking.models import Booking, Guest, Room
from booking.services import bookings, events
from booking.services.events import BookingEvent

SOON = 2.0
NOTHING = 0.02


def book(room: Room, guest: Guest, hour: int = 10) -> None:
    with Session.begin() as session:
        bookings.book(session, room_id=room.id, guest_id=guest.id, start=at(hour), end=at(hour + 1))


def test_a_booking_is_announced(blue_room: Room, gina: Guest) -> None:
    with db.connect(autocommit=True) as listener:
        events.listen(listener)
        book(blue_room, gina)
        assert events.receive(listener, count=1, timeout=SOON) == [BookingEvent(1, "pending")]


def test_states_are_announced_in_order(booking: Booking) -> None:
    with db.connect(autocommit=True) as listener:
        events.listen(listener)
        for step in (bookings.confirm, bookings.cancel):
            with Session.begin() as session:
                step(session, booking.id)
        news = events.receive(listener, count=2, timeout=SOON)
    assert [event.status for event in news] == ["confirmed", "cancelled"]


def test_every_listener_hears_of_it(blue_room: Room, gina: Guest) -> None:
    with db.connect(autocommit=True) as one, db.connect(autocommit=True) as other:
        events.listen(one)
        events.listen(other)
        book(blue_room, gina)
        assert events.receive(one, count=1, timeout=SOON) == events.receive(other, count=1, timeout=SOON)


def test_nobody_hears_of_it_before_the_commit(blue_room: Room, gina: Guest) -> None:
    with db.connect(autocommit=True) as listener:
        events.listen(listener)
        with Session.begin() as session:
            bookings.book(session, room_id=blue_room.id, guest_id=gina.id, start=at(10), end=at(11))
            assert events.receive(listener, count=1, timeout=NOTHING) == []
        assert events.receive(listener, count=1, timeout=SOON) == [BookingEvent(1, "pending")]


def test_nobody_hears_of_what_was_rolled_back(blue_room: Room, gina: Guest) -> None:
    with db.connect(autocommit=True) as listener:
        events.listen(listener)
        with Session() as session:
            bookings.book(session, room_id=blue_room.id, guest_id=gina.id, start=at(10), end=at(11))
            session.rollback()
        assert events.receive(listener, count=1, timeout=NOTHING) == []


def test_who_does_not_listen_hears_nothing(blue_room: Room, gina: Guest) -> None:
    with db.connect(autocommit=True) as bystander:
        book(blue_room, gina)
        assert events.receive(bystander, count=1, timeout=NOTHING) == []


def test_a_change_of_time_is_no_news(booking: Booking) -> None:
    with db.connect(autocommit=True) as listener:
        events.listen(listener)
        with Session.begin() as session:
            bookings.reschedule(session, booking.id, start=at(14), end=at(16))
        assert events.receive(listener, count=1, timeout=NOTHING) == []


def test_a_listener_waits_for_news(blue_room: Room, gina: Guest) -> None:
    with ThreadPoolExecutor(1) as pool, db.connect(autocommit=True) as listener:
        events.listen(listener)
        waiting = pool.submit(events.receive, listener, count=1, timeout=SOON)
        book(blue_room, gina)
        assert waiting.result() == [BookingEvent(1, "pending")]


def test_news_from_four_threads_all_arrive(blue_room: Room, gina: Guest) -> None:
    with db.connect(autocommit=True) as listener:
        events.listen(listener)
        race(*(partial(book, blue_room, gina, hour) for hour in (8, 9, 10, 11)))
        news = events.receive(listener, count=4, timeout=SOON)
    assert sorted(event.booking_id for event in news) == [1, 2, 3, 4]


def test_any_connection_of_the_pool_can_notify() -> None:
    with db.connect(autocommit=True) as listener, db.engine.begin() as connection:
        events.listen(listener)
        connection.execute(text("""SELECT pg_notify('bookings', '{"id": 7, "status": "moved"}')"""))
        connection.commit()
        assert events.receive(listener, count=1, timeout=SOON) == [BookingEvent(7, "moved")]
