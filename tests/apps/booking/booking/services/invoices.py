"""Invoices: drafts have no number; issuing one draws the next, INV-000001 being the first."""

from collections.abc import Sequence
from datetime import date
from decimal import Decimal

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from booking.db import fetch
from booking.errors import Taken, WrongState, refusing
from booking.models import (
    INVOICE_NUMBERS,
    Booking,
    BookingItem,
    BookingStatus,
    Invoice,
    InvoiceLine,
    Resource,
    Room,
    Tenant,
    Venue,
)
from booking.services import pricing

MISSING = text("""
    SELECT 'INV-' || lpad(drawn::text, 6, '0')
    FROM invoice_numbers, generate_series(1, last_value) AS drawn
    WHERE is_called AND NOT EXISTS (SELECT FROM invoices WHERE number = 'INV-' || lpad(drawn::text, 6, '0'))
    ORDER BY drawn
""")


def draft(session: Session, booking_id: int) -> Invoice:
    """An invoice without a number, with a line for the room and one for each item."""
    booking = fetch(session, Booking, booking_id)
    if booking.status is not BookingStatus.CONFIRMED:
        raise WrongState("only confirmed bookings are invoiced")
    tenant = _tenant(session, booking)
    invoice = Invoice(tenant_id=tenant.id, booking_id=booking_id, currency_code=tenant.currency_code)
    with refusing(session, {"invoices_one_per_booking": Taken("the booking has an invoice")}):
        session.add(invoice)
    tax = pricing.tax_percent(session, tenant.country_code)
    for position, (what, quantity, price) in enumerate(_charges(session, booking), start=1):
        line = InvoiceLine(position=position, text=what, quantity=quantity, unit_price=price, tax_percent=tax)
        invoice.lines.append(line)
    session.flush()
    return invoice


def issue(session: Session, invoice_id: int, *, on: date) -> str:
    """The number that the draft now has. A transaction rolled back after this leaves a gap; see `missing`."""
    invoice = fetch(session, Invoice, invoice_id, lock=True)
    if invoice.status != "draft":
        raise WrongState(f"the invoice is {invoice.status}")
    invoice.number = number = f"INV-{session.scalars(select(INVOICE_NUMBERS.next_value())).one():06}"
    invoice.status = "issued"
    invoice.issued_on = on
    session.flush()
    return number


def void(session: Session, invoice_id: int) -> None:
    """Takes an unpaid invoice back, but not its number; the booking can be invoiced anew."""
    invoice = fetch(session, Invoice, invoice_id, lock=True)
    if invoice.status != "issued":
        raise WrongState(f"the invoice is {invoice.status}")
    invoice.status = "void"
    session.flush()


def gross(session: Session, invoice_id: int) -> Decimal:
    total = func.sum(InvoiceLine.net + InvoiceLine.tax)
    return session.scalars(select(total).where(InvoiceLine.invoice_id == invoice_id)).one()


def missing(session: Session) -> Sequence[str]:
    """Numbers drawn that no invoice has, for the tax office."""
    return session.scalars(MISSING).all()


def _charges(session: Session, booking: Booking) -> list[tuple[str, Decimal, Decimal]]:
    items = session.execute(
        select(Resource.name, BookingItem.quantity, BookingItem.unit_price, BookingItem.total)
        .join(Resource, Resource.id == BookingItem.resource_id)
        .where(BookingItem.booking_id == booking.id)
        .order_by(BookingItem.id)
    ).all()
    room = fetch(session, Room, booking.room_id)
    room_price = booking.price - sum((item.total for item in items), Decimal(0))
    charges = [(f"{room.name}, {booking.hours.normalize():f} h", Decimal(1), room_price)]
    return charges + [(item.name, Decimal(item.quantity), item.unit_price) for item in items]


def _tenant(session: Session, booking: Booking) -> Tenant:
    return session.scalars(
        select(Tenant)
        .join(Venue, Venue.tenant_id == Tenant.id)
        .join(Room, Room.venue_id == Venue.id)
        .where(Room.id == booking.room_id)
    ).one()
