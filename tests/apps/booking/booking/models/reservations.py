"""Guests, bookings, and what is attached to a booking."""

import enum
from datetime import date, datetime
from decimal import Decimal

from sqlalchemy import Computed, Enum, ForeignKey, Index, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import TSTZRANGE, Range
from sqlalchemy.orm import Mapped, mapped_column

from booking.models.base import Base, Id, Now


class BookingStatus(enum.Enum):
    PENDING = "pending"
    CONFIRMED = "confirmed"
    CANCELLED = "cancelled"


STATUS = Enum(BookingStatus, name="booking_status", values_callable=lambda kind: [member.value for member in kind])


class Guest(Base):
    __tablename__ = "guests"
    __table_args__ = (UniqueConstraint("tenant_id", "email"),)

    id: Mapped[Id]
    tenant_id: Mapped[int] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    email: Mapped[str]
    name: Mapped[str]


class Booking(Base):
    __tablename__ = "bookings"
    __table_args__ = (Index("bookings_guest_id_idx", "guest_id"),)

    id: Mapped[Id]
    room_id: Mapped[int] = mapped_column(ForeignKey("rooms.id"))
    guest_id: Mapped[int] = mapped_column(ForeignKey("guests.id"))
    during: Mapped[Range[datetime]] = mapped_column(TSTZRANGE)
    hours: Mapped[Decimal] = mapped_column(
        Computed("extract(epoch FROM upper(during) - lower(during)) / 3600"), nullable=True
    )
    status: Mapped[BookingStatus] = mapped_column(STATUS, server_default=text("'pending'"))
    price: Mapped[Decimal]
    created_at: Mapped[Now]


class BookingItem(Base):
    __tablename__ = "booking_items"
    __table_args__ = (UniqueConstraint("booking_id", "resource_id"),)

    id: Mapped[Id]
    booking_id: Mapped[int] = mapped_column(ForeignKey("bookings.id", ondelete="CASCADE"))
    resource_id: Mapped[int] = mapped_column(ForeignKey("resources.id"))
    quantity: Mapped[int]
    unit_price: Mapped[Decimal]
    total: Mapped[Decimal] = mapped_column(Computed("quantity * unit_price"))


class Coupon(Base):
    __tablename__ = "coupons"
    __table_args__ = (UniqueConstraint("tenant_id", "code"),)

    id: Mapped[Id]
    tenant_id: Mapped[int] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    code: Mapped[str]
    percent: Mapped[Decimal]
    max_redemptions: Mapped[int]
    redeemed: Mapped[int] = mapped_column(server_default=text("0"))
    expires_on: Mapped[date | None]


class CouponRedemption(Base):
    __tablename__ = "coupon_redemptions"

    id: Mapped[Id]
    coupon_id: Mapped[int] = mapped_column(ForeignKey("coupons.id"))
    booking_id: Mapped[int] = mapped_column(ForeignKey("bookings.id"), unique=True)
    discount: Mapped[Decimal]


class Tag(Base):
    __tablename__ = "tags"
    __table_args__ = (UniqueConstraint("tenant_id", "name"),)

    id: Mapped[Id]
    tenant_id: Mapped[int] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    name: Mapped[str]


class BookingTag(Base):
    __tablename__ = "booking_tags"

    booking_id: Mapped[int] = mapped_column(ForeignKey("bookings.id", ondelete="CASCADE"), primary_key=True)
    tag_id: Mapped[int] = mapped_column(ForeignKey("tags.id", ondelete="CASCADE"), primary_key=True)
