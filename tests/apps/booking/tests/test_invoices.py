"""Invoices and their numbers, which start at INV-000001."""

from decimal import Decimal
from functools import partial

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from support import MONDAY, at, count, race

from booking.db import Session, engine, fetch
from booking.errors import Taken, WrongState
from booking.models import Booking, Guest, Invoice, InvoiceLine, Resource, Room, Tenant
from booking.services import bookings, invoices


def draft_for(room: Room, guest: Guest, hour: int) -> int:
    with Session.begin() as session:
        booking = bookings.book(session, room_id=room.id, guest_id=guest.id, start=at(hour), end=at(hour + 1))
        bookings.confirm(session, booking.id)
        return invoices.draft(session, booking.id).id


def issue(invoice_id: int) -> str:
    with Session.begin() as session:
        return invoices.issue(session, invoice_id, on=MONDAY)


def test_the_first_invoice_is_number_one(invoice: Invoice) -> None:
    assert (invoice.id, invoice.number, invoice.status) == (1, "INV-000001", "issued")


def test_numbers_follow_each_other(blue_room: Room, gina: Guest) -> None:
    numbers = [issue(draft_for(blue_room, gina, hour)) for hour in (8, 9, 10)]
    assert numbers == ["INV-000001", "INV-000002", "INV-000003"]


def test_numbers_follow_the_issue_not_the_draft(blue_room: Room, gina: Guest) -> None:
    first, second = (draft_for(blue_room, gina, hour) for hour in (8, 9))
    assert (issue(second), issue(first)) == ("INV-000001", "INV-000002")


def test_concurrent_issues_leave_no_gap(blue_room: Room, gina: Guest) -> None:
    drafts = [draft_for(blue_room, gina, hour) for hour in range(8, 12)]
    numbers = race(*(partial(issue, draft) for draft in drafts))
    assert sorted(map(str, numbers)) == [f"INV-00000{number}" for number in range(1, 5)]
    with Session() as session:
        assert invoices.missing(session) == []


def test_a_rolled_back_issue_leaves_a_gap_that_is_reported(blue_room: Room, gina: Guest) -> None:
    draft = draft_for(blue_room, gina, 8)
    with Session() as session:
        invoices.issue(session, draft, on=MONDAY)
        session.rollback()
    assert issue(draft) == "INV-000002"
    with Session() as session:
        assert invoices.missing(session) == ["INV-000001"]


def test_before_the_first_issue_nothing_is_missing() -> None:
    with Session() as session:
        assert invoices.missing(session) == []


def test_a_draft_has_no_number(confirmed: Booking) -> None:
    with Session.begin() as session:
        draft = invoices.draft(session, confirmed.id)
    assert (draft.number, draft.status, draft.issued_on) == (None, "draft", None)


def test_a_pending_booking_is_not_invoiced(booking: Booking) -> None:
    with Session() as session, pytest.raises(WrongState, match="only confirmed"):
        invoices.draft(session, booking.id)


def test_a_booking_is_invoiced_once(invoice: Invoice, confirmed: Booking) -> None:
    with Session() as session, pytest.raises(Taken, match="has an invoice"):
        invoices.draft(session, confirmed.id)


def test_of_three_drafts_made_at_once_one_stays(confirmed: Booking) -> None:
    def draft() -> None:
        with Session.begin() as session:
            invoices.draft(session, confirmed.id)

    outcomes = race(draft, draft, draft)
    assert sum(isinstance(outcome, Taken) for outcome in outcomes) == 2
    assert count(Invoice) == 1


def test_an_invoice_is_issued_once(invoice: Invoice) -> None:
    with pytest.raises(WrongState, match="is issued"):
        issue(invoice.id)


def test_a_void_invoice_makes_room_for_a_new_one(invoice: Invoice, confirmed: Booking) -> None:
    with Session.begin() as session:
        invoices.void(session, invoice.id)
        again = invoices.draft(session, confirmed.id)
        assert invoices.issue(session, again.id, on=MONDAY) == "INV-000002"


def test_a_draft_is_not_voided(confirmed: Booking) -> None:
    with Session() as session:
        draft = invoices.draft(session, confirmed.id)
        with pytest.raises(WrongState, match="is draft"):
            invoices.void(session, draft.id)


def test_the_sum_includes_tax(invoice: Invoice) -> None:
    with Session() as session:
        assert invoices.gross(session, invoice.id) == 119


def test_the_tax_is_the_tenants_countrys(confirmed: Booking, acme: Tenant) -> None:
    with Session.begin() as session:
        fetch(session, Tenant, acme.id).country_code = "CH"
        draft = invoices.draft(session, confirmed.id)
        assert invoices.gross(session, draft.id) == Decimal("108.10")


def test_lines_name_the_room_and_the_items(blue_room: Room, gina: Guest, projector: Resource) -> None:
    with Session.begin() as session:
        booking = bookings.book(
            session, room_id=blue_room.id, guest_id=gina.id, start=at(8), end=at(10), items={projector.id: 2}
        )
        bookings.confirm(session, booking.id)
        draft = invoices.draft(session, booking.id)
        lines = [(line.position, line.text, line.quantity, line.net) for line in draft.lines]
    assert lines == [(1, "Blue room, 2 h", 1, 100), (2, "Projector", 2, 30)]


def test_an_invoice_keeps_the_tax_of_its_day(invoice: Invoice) -> None:
    with Session.begin() as session:
        session.execute(text("UPDATE tax_rates SET percent = 25"))
        assert invoices.gross(session, invoice.id) == 119


def test_deleting_a_draft_deletes_its_lines(confirmed: Booking) -> None:
    with Session.begin() as session:
        invoices.draft(session, confirmed.id)
        session.execute(text("DELETE FROM invoices"))
    assert count(InvoiceLine) == 0


@pytest.mark.parametrize(
    "change", ["number = NULL", "issued_on = NULL", "status = 'draft'"], ids=["number", "date", "status"]
)
def test_only_drafts_are_without_number_and_date(invoice: Invoice, change: str) -> None:
    with engine.connect() as connection, pytest.raises(IntegrityError, match="invoices_check"):
        connection.execute(text(f"UPDATE invoices SET {change}"))


def test_the_sequence_can_be_moved_to_a_new_years_first_number(confirmed: Booking) -> None:
    with Session.begin() as session:
        session.execute(text("SELECT setval('invoice_numbers', 300000)"))
        draft = invoices.draft(session, confirmed.id)
        assert invoices.issue(session, draft.id, on=MONDAY) == "INV-300001"
