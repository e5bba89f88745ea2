"""Opening hours and free slots."""

from datetime import date, datetime, time

import pytest
from support import MONDAY, SATURDAY, at

from booking.db import Session
from booking.models import Booking, Guest, Room, Tenant, Venue
from booking.services import availability, bookings, venues


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (at(8), at(18), True),
        (at(7, 59), at(9), False),
        (at(17), at(18, 1), False),
        (at(10, day=SATURDAY), at(11, day=SATURDAY), False),
        (at(17), at(9, day=date(2030, 6, 4)), False),
    ],
    ids=["all day", "too early", "too late", "weekend", "over night"],
)
def test_a_venue_is_open_within_one_days_hours(
    town_hall: Venue, start: datetime, end: datetime, expected: bool
) -> None:
    with Session() as session:
        assert availability.is_open(session, venue_id=town_hall.id, start=start, end=end) is expected


@pytest.mark.parametrize(
    ("day", "first_hour"), [(date(2030, 1, 7), 7), (MONDAY, 6)], ids=["winter time", "summer time"]
)
def test_hours_are_the_venues_local_time(acme: Tenant, day: date, first_hour: int) -> None:
    with Session() as session:
        venue = venues.create(session, tenant_id=acme.id, slug="rathaus", name="Rathaus", time_zone="Europe/Berlin")
        for hour, expected in [(first_hour - 1, False), (first_hour, True)]:
            start, end = at(hour, day=day), at(12, day=day)
            assert availability.is_open(session, venue_id=venue.id, start=start, end=end) is expected


def test_a_closed_venue_is_not_open(town_hall: Venue) -> None:
    with Session.begin() as session:
        venues.close_on(session, venue_id=town_hall.id, day=MONDAY, reason="Elections")
    with Session() as session:
        assert not availability.is_open(session, venue_id=town_hall.id, start=at(10), end=at(11))


def test_a_room_without_bookings_is_free_all_day(blue_room: Room) -> None:
    with Session() as session:
        assert availability.free_slots(session, room_id=blue_room.id, day=MONDAY) == [(at(8), at(18))]


def test_a_booking_splits_the_day(booking: Booking) -> None:
    with Session() as session:
        slots = availability.free_slots(session, room_id=booking.room_id, day=MONDAY)
    assert slots == [(at(8), at(10)), (at(12), at(18))]


def test_adjacent_bookings_leave_no_slot_between(booking: Booking, gina: Guest) -> None:
    with Session.begin() as session:
        bookings.book(session, room_id=booking.room_id, guest_id=gina.id, start=at(12), end=at(14))
        slots = availability.free_slots(session, room_id=booking.room_id, day=MONDAY)
    assert slots == [(at(8), at(10)), (at(14), at(18))]


def test_a_cancelled_booking_frees_its_slot(booking: Booking) -> None:
    with Session.begin() as session:
        bookings.cancel(session, booking.id)
    with Session() as session:
        assert availability.free_slots(session, room_id=booking.room_id, day=MONDAY) == [(at(8), at(18))]


def test_another_rooms_bookings_do_not_matter(booking: Booking, red_room: Room) -> None:
    with Session() as session:
        assert availability.free_slots(session, room_id=red_room.id, day=MONDAY) == [(at(8), at(18))]


def test_a_room_booked_all_day_has_no_slot(blue_room: Room, gina: Guest) -> None:
    with Session.begin() as session:
        bookings.book(session, room_id=blue_room.id, guest_id=gina.id, start=at(8), end=at(18))
        assert availability.free_slots(session, room_id=blue_room.id, day=MONDAY) == []


def test_a_closed_day_has_no_slot(blue_room: Room, town_hall: Venue) -> None:
    with Session.begin() as session:
        venues.close_on(session, venue_id=town_hall.id, day=MONDAY, reason="Elections")
        assert availability.free_slots(session, room_id=blue_room.id, day=MONDAY) == []


def test_a_day_without_hours_has_no_slot(blue_room: Room) -> None:
    with Session() as session:
        assert availability.free_slots(session, room_id=blue_room.id, day=SATURDAY) == []


def test_new_hours_make_new_slots(blue_room: Room, town_hall: Venue) -> None:
    with Session.begin() as session:
        venues.set_hours(session, venue_id=town_hall.id, weekday=6, opens=time(10), closes=time(14))
        slots = availability.free_slots(session, room_id=blue_room.id, day=SATURDAY)
    assert slots == [(at(10, day=SATURDAY), at(14, day=SATURDAY))]
