"""Bookings: prices, overlaps, states, items and tags."""

from datetime import datetime

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DataError, IntegrityError
from support import SATURDAY, at, count

from booking.db import Session, engine, fetch
from booking.errors import Closed, Invalid, LimitReached, NotFound, RoomTaken, WrongState
from booking.models import Booking, BookingItem, BookingStatus, Guest, Resource, Room, Tag, Tenant
from booking.services import bookings


def test_the_first_booking_is_number_one_and_pending(booking: Booking) -> None:
    assert (booking.id, booking.status) == (1, BookingStatus.PENDING)


def test_the_database_computes_the_hours(blue_room: Room, gina: Guest) -> None:
    with Session.begin() as session:
        half_day = bookings.book(session, room_id=blue_room.id, guest_id=gina.id, start=at(8), end=at(12, 30))
    assert float(half_day.hours) == 4.5


@pytest.mark.parametrize(
    ("start", "end"),
    [(at(10), at(12)), (at(9), at(11)), (at(11), at(13)), (at(10, 30), at(11)), (at(8), at(18))],
    ids=["same", "start before", "end after", "inside", "around"],
)
def test_overlapping_bookings_are_refused(booking: Booking, gina: Guest, start: datetime, end: datetime) -> None:
    with Session() as session, pytest.raises(RoomTaken, match="Blue room is taken"):
        bookings.book(session, room_id=booking.room_id, guest_id=gina.id, start=start, end=end)


@pytest.mark.parametrize(("start", "end"), [(at(8), at(10)), (at(12), at(13))], ids=["before", "after"])
def test_adjacent_bookings_are_no_overlap(booking: Booking, gina: Guest, start: datetime, end: datetime) -> None:
    with Session.begin() as session:
        bookings.book(session, room_id=booking.room_id, guest_id=gina.id, start=start, end=end)
    assert count(Booking) == 2


def test_two_rooms_can_be_booked_at_the_same_time(booking: Booking, red_room: Room, gina: Guest) -> None:
    with Session.begin() as session:
        other = bookings.book(session, room_id=red_room.id, guest_id=gina.id, start=at(10), end=at(12))
    assert (other.id, other.price) == (2, 160)


def test_the_constraint_holds_without_the_service(booking: Booking) -> None:
    copy = "INSERT INTO bookings (room_id, guest_id, during, price) SELECT room_id, guest_id, during, 0 FROM bookings"
    with engine.connect() as connection, pytest.raises(IntegrityError, match="bookings_no_overlap"):
        connection.execute(text(copy))


@pytest.mark.parametrize("during", ["empty", "(,2030-01-01)", "[2030-01-01,)"])
def test_a_booking_has_a_beginning_and_an_end(booking: Booking, during: str) -> None:
    with engine.connect() as connection, pytest.raises(IntegrityError, match="bookings_bounded"):
        connection.execute(text("UPDATE bookings SET during = :during"), {"during": during})


@pytest.mark.parametrize("end", [at(10), at(9)])
def test_a_booking_ends_after_it_starts(blue_room: Room, gina: Guest, end: datetime) -> None:
    with Session() as session, pytest.raises(Invalid, match="ends after"):
        bookings.book(session, room_id=blue_room.id, guest_id=gina.id, start=at(10), end=end)


def test_a_closed_venue_is_not_booked(blue_room: Room, gina: Guest) -> None:
    start, end = at(10, day=SATURDAY), at(12, day=SATURDAY)
    with Session() as session, pytest.raises(Closed, match="not open"):
        bookings.book(session, room_id=blue_room.id, guest_id=gina.id, start=start, end=end)


def test_an_unknown_room_is_not_found(gina: Guest) -> None:
    with Session() as session, pytest.raises(NotFound, match="rooms"):
        bookings.book(session, room_id=1, guest_id=gina.id, start=at(10), end=at(12))


def test_a_confirmed_booking_stays_confirmed(confirmed: Booking) -> None:
    with Session() as session:
        assert fetch(session, Booking, 1).status is BookingStatus.CONFIRMED


def test_a_booking_is_confirmed_once(confirmed: Booking) -> None:
    with Session() as session, pytest.raises(WrongState, match="booking 1 is confirmed"):
        bookings.confirm(session, confirmed.id)


def test_a_booking_is_cancelled_once(booking: Booking) -> None:
    with Session.begin() as session:
        bookings.cancel(session, booking.id)
    with Session() as session, pytest.raises(WrongState, match="booking 1 is cancelled"):
        bookings.cancel(session, booking.id)


def test_a_cancelled_room_can_be_booked_again(booking: Booking, gina: Guest) -> None:
    with Session.begin() as session:
        bookings.cancel(session, booking.id)
        again = bookings.book(session, room_id=booking.room_id, guest_id=gina.id, start=at(10), end=at(12))
    assert again.id == 2


def test_a_booking_can_be_moved_over_its_own_time(booking: Booking) -> None:
    with Session.begin() as session:
        moved = bookings.reschedule(session, booking.id, start=at(11), end=at(13))
        assert (moved.during.lower, moved.during.upper) == (at(11), at(13))


def test_a_booking_cannot_be_moved_over_another(booking: Booking, gina: Guest) -> None:
    with Session() as session:
        bookings.book(session, room_id=booking.room_id, guest_id=gina.id, start=at(14), end=at(16))
        with pytest.raises(RoomTaken):
            bookings.reschedule(session, booking.id, start=at(13), end=at(15))


def test_a_cancelled_booking_is_not_moved(booking: Booking) -> None:
    with Session() as session:
        bookings.cancel(session, booking.id)
        with pytest.raises(WrongState, match="cancelled"):
            bookings.reschedule(session, booking.id, start=at(14), end=at(16))


def test_a_booking_is_not_moved_to_closing_time(booking: Booking) -> None:
    with Session() as session, pytest.raises(Closed):
        bookings.reschedule(session, booking.id, start=at(17), end=at(19))


def test_items_are_part_of_the_price(blue_room: Room, gina: Guest, projector: Resource) -> None:
    with Session.begin() as session:
        booked = bookings.book(
            session, room_id=blue_room.id, guest_id=gina.id, start=at(10), end=at(12), items={projector.id: 2}
        )
        assert session.execute(select(BookingItem.quantity, BookingItem.total)).all() == [(2, 30)]
    assert booked.price == 130


def test_what_is_lent_out_at_that_time_cannot_be_ordered(
    blue_room: Room, red_room: Room, gina: Guest, projector: Resource
) -> None:
    with Session() as session:
        bookings.book(
            session, room_id=blue_room.id, guest_id=gina.id, start=at(10), end=at(12), items={projector.id: 1}
        )
        with pytest.raises(LimitReached, match="1 of Projector left"):
            bookings.book(
                session, room_id=red_room.id, guest_id=gina.id, start=at(11), end=at(13), items={projector.id: 2}
            )


def test_what_comes_back_in_time_can_be_ordered(blue_room: Room, gina: Guest, projector: Resource) -> None:
    with Session.begin() as session:
        for start, end in [(at(8), at(10)), (at(10), at(12)), (at(12), at(14))]:
            bookings.book(
                session, room_id=blue_room.id, guest_id=gina.id, start=start, end=end, items={projector.id: 2}
            )
    assert count(BookingItem) == 3


def test_tags_are_made_when_first_used(booking: Booking, acme: Tenant) -> None:
    with Session.begin() as session:
        bookings.tag(session, booking.id, "wedding")
        bookings.tag(session, booking.id, "wedding")
        assert [one.id for one in bookings.tagged(session, acme.id, "wedding")] == [1]
    assert count(Tag) == 1


def test_one_tag_finds_all_its_bookings(booking: Booking, red_room: Room, gina: Guest, acme: Tenant) -> None:
    with Session.begin() as session:
        other = bookings.book(session, room_id=red_room.id, guest_id=gina.id, start=at(10), end=at(12))
        for booking_id in (booking.id, other.id):
            bookings.tag(session, booking_id, "wedding")
        assert [one.id for one in bookings.tagged(session, acme.id, "wedding")] == [1, 2]


def test_a_guest_with_bookings_stays(booking: Booking) -> None:
    with engine.connect() as connection, pytest.raises(IntegrityError, match="bookings_guest_id_fkey"):
        connection.execute(text("DELETE FROM guests"))


def test_an_unknown_status_does_not_exist(booking: Booking) -> None:
    with engine.connect() as connection, pytest.raises(DataError, match="invalid input value for enum"):
        connection.execute(text("UPDATE bookings SET status = 'maybe'"))
