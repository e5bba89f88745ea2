"""Coupons: each takes a percentage off a booking, so many times and no more."""

from datetime import date
from decimal import Decimal

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from booking.db import fetch
from booking.errors import CouponRefused, Taken, refusing
from booking.models import Booking, Coupon, CouponRedemption
from booking.services import pricing


def create(
    session: Session,
    *,
    tenant_id: int,
    code: str,
    percent: Decimal,
    max_redemptions: int = 1,
    expires_on: date | None = None,
) -> Coupon:
    coupon = Coupon(
        tenant_id=tenant_id, code=code, percent=percent, max_redemptions=max_redemptions, expires_on=expires_on
    )
    refusals = {
        "coupons_tenant_id_code_key": Taken(f"there is a coupon {code}"),
        "coupons_percent_check": CouponRefused("a coupon takes off more than 0 and at most 100 percent"),
    }
    with refusing(session, refusals):
        session.add(coupon)
    return coupon


def redeem(session: Session, *, tenant_id: int, code: str, booking_id: int, on: date) -> CouponRedemption:
    """Lowers the booking's price; a booking takes one coupon, and a coupon as many bookings as it says."""
    coupon = session.scalar(select(Coupon).where(Coupon.tenant_id == tenant_id, Coupon.code == code))
    if coupon is None:
        raise CouponRefused(f"no coupon {code}")
    if coupon.expires_on is not None and coupon.expires_on < on:
        raise CouponRefused(f"{code} expired on {coupon.expires_on}")
    _count(session, coupon)
    booking = fetch(session, Booking, booking_id, lock=True)
    unit = pricing.smallest_unit(session, booking.room_id)
    discount = pricing.rounded(booking.price * coupon.percent / 100, unit)
    redemption = CouponRedemption(coupon_id=coupon.id, booking_id=booking_id, discount=discount)
    with refusing(session, {"coupon_redemptions_booking_id_key": CouponRefused("the booking has a coupon")}):
        session.add(redemption)
    booking.price -= discount
    session.flush()
    return redemption


def _count(session: Session, coupon: Coupon) -> None:
    with refusing(session, {"coupons_not_exhausted": CouponRefused(f"{coupon.code} is used up")}):
        session.execute(update(Coupon).where(Coupon.id == coupon.id).values(redeemed=Coupon.redeemed + 1))
