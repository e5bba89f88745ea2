"""Quotes: hours, surcharges, items, and rounding."""

from datetime import datetime
from decimal import Decimal

import pytest
from sqlalchemy import update
from support import SATURDAY, at, count

from booking.db import Session
from booking.models import PriceRule, Room, Tenant, User, Venue
from booking.services import pricing, tenants, venues


@pytest.mark.parametrize(
    ("end", "total"), [(at(11), "50"), (at(12), "100"), (at(10, 30), "25"), (at(10, 20), "16.67"), (at(10, 1), "0.83")]
)
def test_the_price_is_by_the_hour(blue_room: Room, end: datetime, total: str) -> None:
    with Session() as session:
        quote = pricing.quote(session, room_id=blue_room.id, start=at(10), end=end)
    assert quote.total == Decimal(total)


def test_a_rule_raises_the_price_of_its_weekday(blue_room: Room) -> None:
    with Session.begin() as session:
        pricing.set_rule(session, room_id=blue_room.id, weekday=6, percent=Decimal(25))
    with Session() as session:
        quote = pricing.quote(session, room_id=blue_room.id, start=at(10, day=SATURDAY), end=at(12, day=SATURDAY))
    assert (quote.base, quote.surcharge, quote.total) == (100, 25, 125)


def test_a_rule_leaves_other_weekdays_alone(blue_room: Room) -> None:
    with Session.begin() as session:
        pricing.set_rule(session, room_id=blue_room.id, weekday=6, percent=Decimal(25))
        assert pricing.quote(session, room_id=blue_room.id, start=at(10), end=at(12)).surcharge == 0


def test_a_rule_can_lower_the_price(blue_room: Room) -> None:
    with Session.begin() as session:
        pricing.set_rule(session, room_id=blue_room.id, weekday=1, percent=Decimal(-10))
        assert pricing.quote(session, room_id=blue_room.id, start=at(10), end=at(12)).total == 90


def test_a_new_rule_replaces_the_weekdays_old_one(blue_room: Room) -> None:
    with Session.begin() as session:
        pricing.set_rule(session, room_id=blue_room.id, weekday=1, percent=Decimal(10))
        pricing.set_rule(session, room_id=blue_room.id, weekday=1, percent=Decimal(20))
        assert pricing.surcharge_percent(session, blue_room.id, at(10)) == 20
    assert count(PriceRule) == 1


def test_a_rules_weekday_is_the_venues(acme: Tenant) -> None:
    with Session() as session:
        venue = venues.create(session, tenant_id=acme.id, slug="kaikan", name="Kaikan", time_zone="Asia/Tokyo")
        room = venues.add_room(session, venue_id=venue.id, slug="blue-room", name="Blue room")
        pricing.set_rule(session, room_id=room.id, weekday=2, percent=Decimal(30))
        assert pricing.surcharge_percent(session, room.id, at(14)) == 0
        assert pricing.surcharge_percent(session, room.id, at(15)) == 30


def test_items_are_added(blue_room: Room) -> None:
    with Session() as session:
        quote = pricing.quote(
            session, room_id=blue_room.id, start=at(10), end=at(12), items=[Decimal(15), Decimal("2.50")]
        )
    assert (quote.items, quote.total) == (Decimal("17.50"), Decimal("117.50"))


def test_a_free_room_costs_nothing(town_hall: Venue) -> None:
    with Session() as session:
        attic = venues.add_room(session, venue_id=town_hall.id, slug="attic", name="Attic", hourly_price=Decimal(0))
        assert pricing.quote(session, room_id=attic.id, start=at(10), end=at(12)).total == 0


def test_half_a_cent_is_rounded_up(town_hall: Venue) -> None:
    with Session() as session:
        room = venues.add_room(session, venue_id=town_hall.id, slug="attic", name="Attic", hourly_price=Decimal("0.01"))
        assert pricing.quote(session, room_id=room.id, start=at(10), end=at(10, 30)).total == Decimal("0.01")


def test_yen_have_no_fractions(bob: User) -> None:
    with Session() as session:
        tenant = tenants.create(
            session, slug="kaisha", name="Kaisha", owner_id=bob.id, country_code="JP", currency_code="JPY"
        )
        venue = venues.create(session, tenant_id=tenant.id, slug="kaikan", name="Kaikan")
        room = venues.add_room(session, venue_id=venue.id, slug="ao", name="Ao", hourly_price=Decimal(1000))
        assert str(pricing.quote(session, room_id=room.id, start=at(10), end=at(10, 20)).total) == "333"


def test_a_price_change_counts_from_its_commit(blue_room: Room) -> None:
    with Session() as session, Session.begin() as manager:
        manager.execute(update(Room).values(hourly_price=60))
        assert pricing.quote(session, room_id=blue_room.id, start=at(10), end=at(11)).total == 50
        manager.commit()
        session.expire_all()
        assert pricing.quote(session, room_id=blue_room.id, start=at(10), end=at(11)).total == 60


@pytest.mark.parametrize(("currency", "unit"), [("EUR", "0.01"), ("CHF", "0.01"), ("JPY", "1")])
def test_the_smallest_unit_is_the_currencys(blue_room: Room, currency: str, unit: str) -> None:
    with Session.begin() as session:
        session.execute(update(Tenant).where(Tenant.slug == "acme").values(currency_code=currency))
        assert pricing.smallest_unit(session, blue_room.id) == Decimal(unit)
