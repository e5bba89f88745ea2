"""Venues, their rooms, and the things that a room has or a guest can order."""

from datetime import date, time
from decimal import Decimal

from sqlalchemy import update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from booking.db import fetch
from booking.errors import Invalid, LimitReached, SlugTaken, Taken, refusing
from booking.models import Closure, OpeningHours, Resource, Room, RoomResource, Tenant, Venue
from booking.services import subscriptions

WORKDAYS = range(1, 6)


def create(session: Session, *, tenant_id: int, slug: str, name: str, time_zone: str = "UTC") -> Venue:
    """A venue that is open from 8 to 18 on workdays, if the tenant's plan allows one more."""
    fetch(session, Tenant, tenant_id, lock=True)
    plan = subscriptions.current_plan(session, tenant_id)
    if plan.max_venues is not None and subscriptions.venue_count(session, tenant_id) >= plan.max_venues:
        raise LimitReached(f"{plan.name} allows {plan.max_venues} venues")
    venue = Venue(tenant_id=tenant_id, slug=slug, name=name, time_zone=time_zone)
    with refusing(session, {"venues_tenant_id_slug_key": SlugTaken(slug)}):
        session.add(venue)
    for weekday in WORKDAYS:
        session.add(OpeningHours(venue_id=venue.id, weekday=weekday, opens=time(8), closes=time(18)))
    session.flush()
    return venue


def add_room(
    session: Session, *, venue_id: int, slug: str, name: str, capacity: int = 10, hourly_price: Decimal = Decimal(50)
) -> Room:
    room = Room(venue_id=venue_id, slug=slug, name=name, capacity=capacity, hourly_price=hourly_price)
    refusals = {
        "rooms_venue_id_slug_key": SlugTaken(slug),
        "rooms_capacity_check": Invalid("a room holds at least one person"),
        "rooms_hourly_price_check": Invalid("a price can't be negative"),
    }
    with refusing(session, refusals):
        session.add(room)
    return room


def add_resource(session: Session, *, tenant_id: int, slug: str, name: str, price: Decimal, stock: int) -> Resource:
    resource = Resource(tenant_id=tenant_id, slug=slug, name=name, price=price, stock=stock)
    with refusing(session, {"resources_tenant_id_slug_key": SlugTaken(slug)}):
        session.add(resource)
    return resource


def equip(session: Session, *, room_id: int, resource_id: int, quantity: int) -> None:
    """Takes things out of stock, for good, and puts them into the room."""
    with refusing(session, {"resources_stock_check": LimitReached("not enough in stock")}):
        session.execute(update(Resource).where(Resource.id == resource_id).values(stock=Resource.stock - quantity))
    with refusing(session, {"room_resources_pkey": Taken("the room has it already")}):
        session.add(RoomResource(room_id=room_id, resource_id=resource_id, quantity=quantity))


def set_hours(session: Session, *, venue_id: int, weekday: int, opens: time, closes: time) -> None:
    statement = insert(OpeningHours).values(venue_id=venue_id, weekday=weekday, opens=opens, closes=closes)
    with refusing(session, {"opening_hours_check": Invalid("a venue closes after it opens")}):
        session.execute(
            statement.on_conflict_do_update(
                index_elements=["venue_id", "weekday"], set_={"opens": opens, "closes": closes}
            )
        )


def close_on(session: Session, *, venue_id: int, day: date, reason: str) -> None:
    with refusing(session, {"closures_venue_id_day_key": Taken(f"closed on {day} already")}):
        session.add(Closure(venue_id=venue_id, day=day, reason=reason))
