"""Bookings: a room is one party's at a time, and what a party orders is in stock."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import Range, insert
from sqlalchemy.orm import Session

from booking.db import fetch
from booking.errors import Closed, Invalid, LimitReached, RoomTaken, WrongState, refusing
from booking.models import Booking, BookingItem, BookingStatus, BookingTag, Resource, Room, Tag, Venue
from booking.services import availability, jobs, pricing, webhooks

NO_ITEMS: Mapping[int, int] = {}


def book(
    session: Session,
    *,
    room_id: int,
    guest_id: int,
    start: datetime,
    end: datetime,
    items: Mapping[int, int] = NO_ITEMS,
) -> Booking:
    """A pending booking; `items` is the quantity ordered, by the resource's id.

    Raises Invalid, Closed, RoomTaken, or LimitReached where too little is in stock.
    """
    if start >= end:
        raise Invalid("a booking ends after it starts")
    room = fetch(session, Room, room_id, lock=True)
    if not availability.is_open(session, venue_id=room.venue_id, start=start, end=end):
        raise Closed(f"not open from {start} to {end}")
    orders = [_order(session, resource_id, items[resource_id], Range(start, end)) for resource_id in sorted(items)]
    totals = [order.quantity * order.unit_price for order in orders]
    price = pricing.quote(session, room_id=room_id, start=start, end=end, items=totals).total
    booking = Booking(room_id=room_id, guest_id=guest_id, during=Range(start, end), price=price)
    with _refusing_overlap(session, room):
        session.add(booking)
    for order in orders:
        order.booking_id = booking.id
    session.add_all(orders)
    session.flush()
    return booking


def confirm(session: Session, booking_id: int) -> Booking:
    """Makes a pending booking firm, and lets the guest and the tenant's webhooks know."""
    booking = fetch(session, Booking, booking_id, lock=True)
    if booking.status is not BookingStatus.PENDING:
        raise WrongState(f"booking {booking_id} is {booking.status.value}")
    booking.status = BookingStatus.CONFIRMED
    jobs.enqueue(session, queue="mail", payload={"template": "confirmation", "booking": booking_id})
    webhooks.publish(session, _tenant_id(session, booking), "booking.confirmed", {"booking": booking_id})
    session.flush()
    return booking


def cancel(session: Session, booking_id: int) -> Booking:
    """Frees the room; a booking is cancelled once."""
    booking = fetch(session, Booking, booking_id, lock=True)
    if booking.status is BookingStatus.CANCELLED:
        raise WrongState(f"booking {booking_id} is cancelled")
    booking.status = BookingStatus.CANCELLED
    webhooks.publish(session, _tenant_id(session, booking), "booking.cancelled", {"booking": booking_id})
    session.flush()
    return booking


def reschedule(session: Session, booking_id: int, *, start: datetime, end: datetime) -> Booking:
    """Moves a booking that isn't cancelled, at the price it had."""
    booking = fetch(session, Booking, booking_id, lock=True)
    room = fetch(session, Room, booking.room_id, lock=True)
    if booking.status is BookingStatus.CANCELLED:
        raise WrongState(f"booking {booking_id} is cancelled")
    if not availability.is_open(session, venue_id=room.venue_id, start=start, end=end):
        raise Closed(f"not open from {start} to {end}")
    with _refusing_overlap(session, room):
        booking.during = Range(start, end)
    return booking


def tag(session: Session, booking_id: int, name: str) -> None:
    """Attaches the tenant's tag of that name, made when it is first used."""
    tenant_id = _tenant_id(session, fetch(session, Booking, booking_id))
    session.execute(insert(Tag).values(tenant_id=tenant_id, name=name).on_conflict_do_nothing())
    tag_id = session.scalars(select(Tag.id).where(Tag.tenant_id == tenant_id, Tag.name == name)).one()
    session.execute(insert(BookingTag).values(booking_id=booking_id, tag_id=tag_id).on_conflict_do_nothing())


def tagged(session: Session, tenant_id: int, name: str) -> Sequence[Booking]:
    return session.scalars(
        select(Booking)
        .join(BookingTag, BookingTag.booking_id == Booking.id)
        .join(Tag, Tag.id == BookingTag.tag_id)
        .where(Tag.tenant_id == tenant_id, Tag.name == name)
        .order_by(Booking.id)
    ).all()


def _order(session: Session, resource_id: int, quantity: int, during: Range[datetime]) -> BookingItem:
    resource = fetch(session, Resource, resource_id, lock=True)
    lent = session.scalars(
        select(func.coalesce(func.sum(BookingItem.quantity), 0))
        .join(Booking, Booking.id == BookingItem.booking_id)
        .where(BookingItem.resource_id == resource_id)
        .where(Booking.status != BookingStatus.CANCELLED, Booking.during.overlaps(during))
    ).one()
    if lent + quantity > resource.stock:
        raise LimitReached(f"{resource.stock - lent} of {resource.name} left")
    return BookingItem(resource_id=resource_id, quantity=quantity, unit_price=resource.price)


def _refusing_overlap(session: Session, room: Room) -> AbstractContextManager[None]:
    return refusing(session, {"bookings_no_overlap": RoomTaken(f"{room.name} is taken")})


def _tenant_id(session: Session, booking: Booking) -> int:
    return session.scalars(select(Venue.tenant_id).join(Room).where(Room.id == booking.room_id)).one()
