"""The audit trail."""

from collections.abc import Sequence
from decimal import Decimal
from functools import partial

from sqlalchemy import select, text
from support import at, count, race

from booking.db import Session
from booking.models import AuditEntry, Booking, Guest, Invoice, Room
from booking.services import audit, bookings, payments


def trail(table: str = "bookings") -> Sequence[AuditEntry]:
    with Session() as session:
        return audit.trail(session, table, 1)


def test_a_new_booking_is_the_first_entry(booking: Booking) -> None:
    (entry,) = trail()
    assert (entry.id, entry.action, entry.before) == (1, "INSERT", None)


def test_entries_of_one_connection_are_numbered_without_gaps(blue_room: Room, gina: Guest) -> None:
    with Session.begin() as session:
        booking = bookings.book(session, room_id=blue_room.id, guest_id=gina.id, start=at(10), end=at(12))
        bookings.confirm(session, booking.id)
        bookings.cancel(session, booking.id)
    assert [entry.id for entry in trail()] == [1, 2, 3]


def test_an_entry_has_the_row_before_and_after(confirmed: Booking) -> None:
    entry = trail()[-1]
    assert entry.before is not None
    assert entry.after is not None
    assert (entry.before["status"], entry.after["status"]) == ("pending", "confirmed")


def test_an_entry_names_who_did_it(booking: Booking) -> None:
    with Session.begin() as session:
        audit.acting_as(session, "alice@example.com")
        bookings.cancel(session, booking.id)
    assert [entry.actor for entry in trail()] == [None, "alice@example.com"]


def test_the_actor_ends_with_the_transaction(booking: Booking) -> None:
    with Session() as session:
        audit.acting_as(session, "alice@example.com")
        bookings.confirm(session, booking.id)
        session.commit()
        bookings.cancel(session, booking.id)
        session.commit()
    assert [entry.actor for entry in trail()] == [None, "alice@example.com", None]


def test_what_was_rolled_back_leaves_no_entry(booking: Booking) -> None:
    with Session() as session:
        bookings.cancel(session, booking.id)
        session.rollback()
    assert len(trail()) == 1


def test_a_deleted_row_stays_in_the_trail(booking: Booking) -> None:
    with Session.begin() as session:
        session.execute(text("DELETE FROM bookings"))
    assert [(entry.action, entry.after is None) for entry in trail()] == [("INSERT", False), ("DELETE", True)]


def test_invoices_and_payments_are_audited(invoice: Invoice) -> None:
    with Session.begin() as session:
        payments.record(session, invoice_id=invoice.id, amount=Decimal(119), reference="stripe-1")
    assert [entry.action for entry in trail("invoices")] == ["INSERT", "UPDATE", "UPDATE"]
    assert [entry.action for entry in trail("payments")] == ["INSERT"]


def test_tables_without_a_trigger_leave_no_trail(gina: Guest, blue_room: Room) -> None:
    assert count(AuditEntry) == 0


def test_every_booking_of_a_race_is_audited_once(blue_room: Room, gina: Guest) -> None:
    def book(hour: int) -> None:
        with Session.begin() as session:
            audit.acting_as(session, f"guest-{hour}")
            bookings.book(session, room_id=blue_room.id, guest_id=gina.id, start=at(hour), end=at(hour + 1))

    race(*(partial(book, hour) for hour in (8, 9, 10, 11)))
    with Session() as session:
        assert set(session.scalars(select(AuditEntry.actor))) == {"guest-8", "guest-9", "guest-10", "guest-11"}
