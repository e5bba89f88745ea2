"""Which plan a tenant is on, now and before."""

from collections.abc import Sequence
from datetime import date

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from booking.db import fetch
from booking.errors import LimitReached, WrongState
from booking.models import Plan, Subscription, Tenant, Venue


def current_plan(session: Session, tenant_id: int) -> Plan:
    return session.scalars(select(Plan).join(Subscription).where(_running(tenant_id))).one()


def history(session: Session, tenant_id: int) -> Sequence[Subscription]:
    return session.scalars(
        select(Subscription).where(Subscription.tenant_id == tenant_id).order_by(Subscription.id)
    ).all()


def change_plan(session: Session, *, tenant_id: int, plan_code: str, on: date) -> Subscription:
    """Ends the running subscription and starts the new one on the same day."""
    fetch(session, Tenant, tenant_id, lock=True)
    plan = fetch(session, Plan, plan_code)
    running = session.scalars(select(Subscription).where(_running(tenant_id))).one()
    if running.plan_code == plan_code:
        raise WrongState(f"already on {plan_code}")
    if plan.max_venues is not None and venue_count(session, tenant_id) > plan.max_venues:
        raise LimitReached(f"{plan.name} allows {plan.max_venues} venues")
    running.ends_on = on
    session.flush()
    subscription = Subscription(tenant_id=tenant_id, plan_code=plan_code, starts_on=on)
    session.add(subscription)
    session.flush()
    return subscription


def venue_count(session: Session, tenant_id: int) -> int:
    return session.scalars(select(func.count()).select_from(Venue).where(Venue.tenant_id == tenant_id)).one()


def monthly_revenue(session: Session) -> dict[str, int]:
    """What all running subscriptions bring in a month, by currency, in whole units."""
    rows = session.execute(
        select(Plan.currency_code, func.sum(Plan.monthly_price))
        .join(Subscription)
        .where(Subscription.ends_on.is_(None))
        .group_by(Plan.currency_code)
    )
    return {currency: int(total) for currency, total in rows}


def _running(tenant_id: int) -> ColumnElement[bool]:
    return (Subscription.tenant_id == tenant_id) & Subscription.ends_on.is_(None)
