"""The materialized view of revenue."""

from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import text
from support import at, wait_until_blocked

from booking import db
from booking.db import Session
from booking.models import Booking, Guest, Invoice, Room
from booking.services import bookings, reports
from booking.services.reports import VenueRevenue


def read() -> list[VenueRevenue]:
    with Session() as session:
        return reports.venue_revenue(session)


def refresh(*, concurrently: bool = False) -> None:
    with Session.begin() as session:
        reports.refresh(session, concurrently=concurrently)


def test_the_report_is_empty_at_first() -> None:
    assert read() == []


def test_the_report_is_as_old_as_its_refresh(confirmed: Booking) -> None:
    assert read() == []
    refresh()
    assert [venue.revenue for venue in read()] == [100]


def test_a_stale_report_stays_when_its_bookings_are_gone(confirmed: Booking) -> None:
    refresh()
    with Session.begin() as session:
        bookings.cancel(session, confirmed.id)
    assert len(read()) == 1
    refresh()
    assert read() == []


def test_pending_bookings_are_no_revenue(booking: Booking) -> None:
    refresh()
    assert read() == []


def test_rooms_of_a_venue_are_added_up(confirmed: Booking, red_room: Room, gina: Guest) -> None:
    with Session.begin() as session:
        other = bookings.book(session, room_id=red_room.id, guest_id=gina.id, start=at(10), end=at(11))
        bookings.confirm(session, other.id)
    refresh()
    (venue,) = read()
    assert (venue.venue_id, venue.bookings, venue.hours, venue.revenue) == (1, 2, 3, 180)


def test_a_concurrent_refresh_gives_the_same(confirmed: Booking) -> None:
    refresh(concurrently=True)
    assert [venue.revenue for venue in read()] == [100]


def test_a_concurrent_refresh_lets_others_read(confirmed: Booking) -> None:
    with Session() as refreshing:
        reports.refresh(refreshing, concurrently=True)
        assert read() == []
        refreshing.commit()
    assert len(read()) == 1


def test_a_plain_refresh_makes_others_wait(invoice: Invoice) -> None:
    with ThreadPoolExecutor(1) as pool, db.connect() as reader, Session() as refreshing:
        reports.refresh(refreshing)
        waiting = pool.submit(reader.execute, "SELECT count(*) FROM reporting.venue_revenue")
        wait_until_blocked(reader)
        refreshing.commit()
        assert waiting.result(timeout=5).fetchone() == (1,)


def test_a_refresh_that_is_rolled_back_never_was(confirmed: Booking) -> None:
    with Session() as session:
        reports.refresh(session)
        session.rollback()
        assert session.scalar(text("SELECT count(*) FROM reporting.venue_revenue")) == 0
