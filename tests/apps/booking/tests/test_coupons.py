"""Coupons: limits, expiry, and one per booking."""

from datetime import date
from decimal import Decimal
from functools import partial

import pytest
from sqlalchemy.exc import IntegrityError
from support import MONDAY, at, count, race

from booking.db import Session, fetch
from booking.errors import CouponRefused, Taken
from booking.models import Booking, Coupon, CouponRedemption, Guest, Room, Tenant
from booking.services import bookings, coupons


@pytest.fixture
def spring(acme: Tenant) -> Coupon:
    """20 percent off, twice."""
    with Session.begin() as session:
        return coupons.create(
            session, tenant_id=acme.id, code="SPRING", percent=Decimal(20), max_redemptions=2, expires_on=MONDAY
        )


@pytest.fixture
def five_bookings(blue_room: Room, gina: Guest) -> list[int]:
    with Session.begin() as session:
        return [
            bookings.book(session, room_id=blue_room.id, guest_id=gina.id, start=at(hour), end=at(hour + 2)).id
            for hour in (8, 10, 12, 14, 16)
        ]


def redeem(tenant: Tenant, booking_id: int, on: date = MONDAY) -> CouponRedemption:
    with Session.begin() as session:
        return coupons.redeem(session, tenant_id=tenant.id, code="SPRING", booking_id=booking_id, on=on)


def test_a_coupon_lowers_the_price(acme: Tenant, spring: Coupon, booking: Booking) -> None:
    assert redeem(acme, booking.id).discount == 20
    with Session() as session:
        assert fetch(session, Booking, booking.id).price == 80


def test_a_coupon_counts_its_redemptions(acme: Tenant, spring: Coupon, booking: Booking) -> None:
    redeem(acme, booking.id)
    with Session() as session:
        assert fetch(session, Coupon, spring.id).redeemed == 1


def test_an_unknown_coupon_is_refused(acme: Tenant, booking: Booking) -> None:
    with pytest.raises(CouponRefused, match="no coupon SPRING"):
        redeem(acme, booking.id)


def test_another_tenants_coupon_is_unknown(globex: Tenant, spring: Coupon, booking: Booking) -> None:
    with pytest.raises(CouponRefused, match="no coupon"):
        redeem(globex, booking.id)


def test_a_coupon_is_good_on_its_last_day_only(acme: Tenant, spring: Coupon, booking: Booking) -> None:
    with pytest.raises(CouponRefused, match="expired on 2030-06-03"):
        redeem(acme, booking.id, on=date(2030, 6, 4))
    redeem(acme, booking.id, on=MONDAY)


def test_a_booking_takes_one_coupon(acme: Tenant, spring: Coupon, booking: Booking) -> None:
    redeem(acme, booking.id)
    with pytest.raises(CouponRefused, match="the booking has a coupon"):
        redeem(acme, booking.id)


def test_a_refused_redemption_is_not_counted(acme: Tenant, spring: Coupon, booking: Booking) -> None:
    redeem(acme, booking.id)
    with pytest.raises(CouponRefused):
        redeem(acme, booking.id)
    with Session() as session:
        assert fetch(session, Coupon, spring.id).redeemed == 1


def test_a_coupon_is_used_up(acme: Tenant, spring: Coupon, five_bookings: list[int]) -> None:
    redeem(acme, five_bookings[0])
    redeem(acme, five_bookings[1])
    with pytest.raises(CouponRefused, match="SPRING is used up"):
        redeem(acme, five_bookings[2])


def test_five_at_once_use_a_coupon_no_more_than_twice(acme: Tenant, spring: Coupon, five_bookings: list[int]) -> None:
    outcomes = race(*(partial(redeem, acme, booking_id) for booking_id in five_bookings))
    assert sum(isinstance(outcome, CouponRefused) for outcome in outcomes) == 3
    assert count(CouponRedemption) == 2


def test_a_code_is_used_once_per_tenant(acme: Tenant, spring: Coupon) -> None:
    with Session() as session, pytest.raises(Taken, match="SPRING"):
        coupons.create(session, tenant_id=acme.id, code="SPRING", percent=Decimal(5))


def test_two_tenants_can_use_one_code(globex: Tenant, spring: Coupon) -> None:
    with Session.begin() as session:
        coupons.create(session, tenant_id=globex.id, code="SPRING", percent=Decimal(5))
    assert count(Coupon) == 2


@pytest.mark.parametrize("percent", [-5, 0, 101])
def test_a_discount_is_more_than_nothing_and_at_most_all(acme: Tenant, percent: int) -> None:
    with Session() as session, pytest.raises(CouponRefused, match="at most 100"):
        coupons.create(session, tenant_id=acme.id, code="SPRING", percent=Decimal(percent))


def test_a_code_is_in_capitals(acme: Tenant) -> None:
    with Session() as session, pytest.raises(IntegrityError, match="coupons_code_check"):
        coupons.create(session, tenant_id=acme.id, code="spring", percent=Decimal(5))
