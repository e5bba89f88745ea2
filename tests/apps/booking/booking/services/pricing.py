"""What a booking costs, before tax."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from decimal import ROUND_HALF_UP, Decimal

from sqlalchemy import extract, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from booking.db import fetch
from booking.models import Currency, PriceRule, Room, TaxRate, Tenant, Venue


@dataclass(frozen=True)
class Quote:
    """Amounts in the tenant's currency, rounded to its smallest unit."""

    base: Decimal
    surcharge: Decimal
    items: Decimal

    @property
    def total(self) -> Decimal:
        return self.base + self.surcharge + self.items


def quote(session: Session, *, room_id: int, start: datetime, end: datetime, items: Iterable[Decimal] = ()) -> Quote:
    """The price of the room's hours, with the weekday's surcharge or reduction, and of the items."""
    room = fetch(session, Room, room_id)
    hours = Decimal((end - start).total_seconds()) / 3600
    base = hours * room.hourly_price
    unit = smallest_unit(session, room_id)
    return Quote(
        base=rounded(base, unit),
        surcharge=rounded(base * surcharge_percent(session, room_id, start) / 100, unit),
        items=rounded(sum(items, Decimal(0)), unit),
    )


def set_rule(session: Session, *, room_id: int, weekday: int, percent: Decimal) -> None:
    """On this weekday the room costs so much more, or less."""
    session.execute(
        insert(PriceRule)
        .values(room_id=room_id, weekday=weekday, percent=percent)
        .on_conflict_do_update(index_elements=["room_id", "weekday"], set_={"percent": percent})
    )


def surcharge_percent(session: Session, room_id: int, start: datetime) -> Decimal:
    """What the rule says for the weekday that it is at the venue."""
    weekday = extract("isodow", func.timezone(Venue.time_zone, start))
    percent = session.scalar(
        select(PriceRule.percent)
        .join(Room, Room.id == PriceRule.room_id)
        .join(Venue, Venue.id == Room.venue_id)
        .where(PriceRule.room_id == room_id, PriceRule.weekday == weekday)
    )
    return Decimal(0) if percent is None else percent


def smallest_unit(session: Session, room_id: int) -> Decimal:
    """0.01 for most currencies, 1 for the yen."""
    digits = session.scalars(
        select(Currency.minor_units)
        .join(Tenant, Tenant.currency_code == Currency.code)
        .join(Venue, Venue.tenant_id == Tenant.id)
        .join(Room, Room.venue_id == Venue.id)
        .where(Room.id == room_id)
    ).one()
    return Decimal(1).scaleb(-digits)


def tax_percent(session: Session, country_code: str, kind: str = "standard") -> Decimal:
    return session.scalars(
        select(TaxRate.percent).where(TaxRate.country_code == country_code, TaxRate.kind == kind)
    ).one()


def rounded(amount: Decimal, unit: Decimal) -> Decimal:
    return amount.quantize(unit, ROUND_HALF_UP)
