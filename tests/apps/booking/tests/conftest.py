"""A small world, made by the services and committed, the same names in every test."""

from decimal import Decimal

import pytest
from support import MONDAY, at

from booking.db import Session
from booking.models import Booking, Guest, Invoice, Resource, Room, Tenant, User, Venue
from booking.services import bookings, guests, invoices, tenants, users, venues


@pytest.fixture
def alice() -> User:
    with Session.begin() as session:
        return users.register(session, email="alice@example.com", name="Alice")


@pytest.fixture
def bob() -> User:
    with Session.begin() as session:
        return users.register(session, email="bob@example.com", name="Bob")


@pytest.fixture
def acme(alice: User) -> Tenant:
    with Session.begin() as session:
        return tenants.create(session, slug="acme", name="Acme", owner_id=alice.id)


@pytest.fixture
def globex(bob: User) -> Tenant:
    with Session.begin() as session:
        return tenants.create(session, slug="globex", name="Globex", owner_id=bob.id, country_code="AT")


@pytest.fixture
def town_hall(acme: Tenant) -> Venue:
    with Session.begin() as session:
        return venues.create(session, tenant_id=acme.id, slug="town-hall", name="Town hall")


@pytest.fixture
def blue_room(town_hall: Venue) -> Room:
    """50 an hour."""
    with Session.begin() as session:
        return venues.add_room(session, venue_id=town_hall.id, slug="blue-room", name="Blue room")


@pytest.fixture
def red_room(town_hall: Venue) -> Room:
    """80 an hour."""
    with Session.begin() as session:
        return venues.add_room(
            session, venue_id=town_hall.id, slug="red-room", name="Red room", hourly_price=Decimal(80)
        )


@pytest.fixture
def projector(acme: Tenant) -> Resource:
    """15 each, two in stock."""
    with Session.begin() as session:
        return venues.add_resource(
            session, tenant_id=acme.id, slug="projector", name="Projector", price=Decimal(15), stock=2
        )


@pytest.fixture
def gina(acme: Tenant) -> Guest:
    with Session.begin() as session:
        return guests.add(session, tenant_id=acme.id, email="gina@example.com", name="Gina")


@pytest.fixture
def booking(blue_room: Room, gina: Guest) -> Booking:
    """Pending, two hours on Monday for 100."""
    with Session.begin() as session:
        return bookings.book(session, room_id=blue_room.id, guest_id=gina.id, start=at(10), end=at(12))


@pytest.fixture
def confirmed(booking: Booking) -> Booking:
    with Session.begin() as session:
        return bookings.confirm(session, booking.id)


@pytest.fixture
def invoice(confirmed: Booking) -> Invoice:
    """Issued as INV-000001 for 100 and 19 percent tax."""
    with Session.begin() as session:
        draft = invoices.draft(session, confirmed.id)
        invoices.issue(session, draft.id, on=MONDAY)
        return draft
