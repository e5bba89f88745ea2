"""Venues and what is in them; weekdays count as in ISO 8601, from Monday 1 to Sunday 7."""

from datetime import date, time
from decimal import Decimal

from sqlalchemy import ForeignKey, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from booking.models.base import Base, Id


class Venue(Base):
    __tablename__ = "venues"
    __table_args__ = (UniqueConstraint("tenant_id", "slug"),)

    id: Mapped[Id]
    tenant_id: Mapped[int] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    slug: Mapped[str]
    name: Mapped[str]
    time_zone: Mapped[str] = mapped_column(server_default=text("'UTC'"))


class Room(Base):
    __tablename__ = "rooms"
    __table_args__ = (UniqueConstraint("venue_id", "slug"),)

    id: Mapped[Id]
    venue_id: Mapped[int] = mapped_column(ForeignKey("venues.id", ondelete="CASCADE"))
    slug: Mapped[str]
    name: Mapped[str]
    capacity: Mapped[int]
    hourly_price: Mapped[Decimal]


class Resource(Base):
    __tablename__ = "resources"
    __table_args__ = (UniqueConstraint("tenant_id", "slug"),)

    id: Mapped[Id]
    tenant_id: Mapped[int] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    slug: Mapped[str]
    name: Mapped[str]
    price: Mapped[Decimal]
    stock: Mapped[int]


class RoomResource(Base):
    __tablename__ = "room_resources"

    room_id: Mapped[int] = mapped_column(ForeignKey("rooms.id", ondelete="CASCADE"), primary_key=True)
    resource_id: Mapped[int] = mapped_column(ForeignKey("resources.id"), primary_key=True)
    quantity: Mapped[int]


class OpeningHours(Base):
    __tablename__ = "opening_hours"
    __table_args__ = (UniqueConstraint("venue_id", "weekday"),)

    id: Mapped[Id]
    venue_id: Mapped[int] = mapped_column(ForeignKey("venues.id", ondelete="CASCADE"))
    weekday: Mapped[int]
    opens: Mapped[time]
    closes: Mapped[time]


class Closure(Base):
    __tablename__ = "closures"
    __table_args__ = (UniqueConstraint("venue_id", "day"),)

    id: Mapped[Id]
    venue_id: Mapped[int] = mapped_column(ForeignKey("venues.id", ondelete="CASCADE"))
    day: Mapped[date]
    reason: Mapped[str]


class PriceRule(Base):
    __tablename__ = "price_rules"
    __table_args__ = (UniqueConstraint("room_id", "weekday"),)

    id: Mapped[Id]
    room_id: Mapped[int] = mapped_column(ForeignKey("rooms.id", ondelete="CASCADE"))
    weekday: Mapped[int]
    percent: Mapped[Decimal]
