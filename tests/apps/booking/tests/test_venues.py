"""Venues, rooms and their equipment."""

from datetime import date, time
from decimal import Decimal

import pytest
from sqlalchemy import select
from support import MONDAY, count

from booking.db import Session, fetch
from booking.errors import Invalid, LimitReached, SlugTaken, Taken
from booking.models import Closure, OpeningHours, Resource, Room, RoomResource, Tenant, Venue
from booking.services import subscriptions, venues


def test_the_first_venue_is_number_one(town_hall: Venue) -> None:
    assert town_hall.id == 1


def test_a_new_venue_is_open_on_workdays(town_hall: Venue) -> None:
    with Session() as session:
        hours = session.execute(select(OpeningHours.weekday, OpeningHours.opens, OpeningHours.closes)).all()
    assert hours == [(weekday, time(8), time(18)) for weekday in (1, 2, 3, 4, 5)]


def test_a_tenants_venues_have_different_slugs(town_hall: Venue, acme: Tenant) -> None:
    with Session() as session:
        subscriptions.change_plan(session, tenant_id=acme.id, plan_code="team", on=MONDAY)
        with pytest.raises(SlugTaken, match="town-hall"):
            venues.create(session, tenant_id=acme.id, slug="town-hall", name="Other hall")


def test_two_tenants_can_use_one_slug(town_hall: Venue, globex: Tenant) -> None:
    with Session.begin() as session:
        venues.create(session, tenant_id=globex.id, slug="town-hall", name="Rathaus", time_zone="Europe/Vienna")
    assert count(Venue) == 2


def test_a_venues_rooms_have_different_slugs(blue_room: Room, town_hall: Venue) -> None:
    with Session() as session, pytest.raises(SlugTaken, match="blue-room"):
        venues.add_room(session, venue_id=town_hall.id, slug="blue-room", name="Other blue room")


@pytest.mark.parametrize("capacity", [0, -1])
def test_a_room_holds_somebody(town_hall: Venue, capacity: int) -> None:
    with Session() as session, pytest.raises(Invalid, match="at least one person"):
        venues.add_room(session, venue_id=town_hall.id, slug="cupboard", name="Cupboard", capacity=capacity)


def test_a_room_can_be_free_but_not_cheaper(town_hall: Venue) -> None:
    with Session.begin() as session:
        venues.add_room(session, venue_id=town_hall.id, slug="attic", name="Attic", hourly_price=Decimal(0))
        with pytest.raises(Invalid, match="negative"):
            venues.add_room(session, venue_id=town_hall.id, slug="cellar", name="Cellar", hourly_price=Decimal(-1))
    assert count(Room) == 1


def test_opening_hours_are_changed_in_place(town_hall: Venue) -> None:
    with Session.begin() as session:
        venues.set_hours(session, venue_id=town_hall.id, weekday=1, opens=time(9), closes=time(12))
        monday = session.scalars(select(OpeningHours).where(OpeningHours.weekday == 1)).one()
        assert (monday.opens, monday.closes) == (time(9), time(12))
    assert count(OpeningHours) == 5


def test_a_day_can_be_added_to_the_opening_hours(town_hall: Venue) -> None:
    with Session.begin() as session:
        venues.set_hours(session, venue_id=town_hall.id, weekday=6, opens=time(10), closes=time(14))
    assert count(OpeningHours) == 6


def test_a_venue_closes_after_it_opens(town_hall: Venue) -> None:
    with Session() as session, pytest.raises(Invalid, match="closes after it opens"):
        venues.set_hours(session, venue_id=town_hall.id, weekday=6, opens=time(14), closes=time(10))


def test_a_closure_is_entered_once(town_hall: Venue) -> None:
    with Session.begin() as session:
        venues.close_on(session, venue_id=town_hall.id, day=date(2030, 12, 25), reason="Christmas")
        with pytest.raises(Taken, match="2030-12-25"):
            venues.close_on(session, venue_id=town_hall.id, day=date(2030, 12, 25), reason="Holiday")
    assert count(Closure) == 1


def test_equipping_a_room_takes_from_the_stock(blue_room: Room, projector: Resource) -> None:
    with Session.begin() as session:
        venues.equip(session, room_id=blue_room.id, resource_id=projector.id, quantity=1)
    with Session() as session:
        assert fetch(session, Resource, projector.id).stock == 1


def test_a_room_is_not_equipped_beyond_the_stock(blue_room: Room, projector: Resource) -> None:
    with Session.begin() as session, pytest.raises(LimitReached, match="not enough"):
        venues.equip(session, room_id=blue_room.id, resource_id=projector.id, quantity=3)
    assert count(RoomResource) == 0


def test_a_room_is_equipped_with_a_thing_once(blue_room: Room, projector: Resource) -> None:
    with Session() as session:
        venues.equip(session, room_id=blue_room.id, resource_id=projector.id, quantity=1)
        with pytest.raises(Taken, match="has it already"):
            venues.equip(session, room_id=blue_room.id, resource_id=projector.id, quantity=1)


def test_a_tenants_resources_have_different_slugs(projector: Resource, acme: Tenant) -> None:
    with Session() as session, pytest.raises(SlugTaken, match="projector"):
        venues.add_resource(session, tenant_id=acme.id, slug="projector", name="Projector", price=Decimal(1), stock=1)
