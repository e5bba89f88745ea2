"""Tenants: their slugs, their settings, and the system tenant that is nobody's."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from sqlalchemy import cast, select, update
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from booking.db import fetch
from booking.errors import Invalid, NotFound, SlugTaken, WrongState, refusing
from booking.models import Membership, Subscription, Tenant


def create(
    session: Session,
    *,
    slug: str,
    name: str,
    owner_id: int,
    country_code: str = "DE",
    currency_code: str = "EUR",
    plan_code: str = "free",
) -> Tenant:
    tenant = Tenant(slug=slug, name=name, country_code=country_code, currency_code=currency_code)
    with _slug_refusals(session, slug):
        session.add(tenant)
    session.add(Membership(tenant_id=tenant.id, user_id=owner_id, role="owner"))
    session.add(Subscription(tenant_id=tenant.id, plan_code=plan_code))
    session.flush()
    return tenant


def by_slug(session: Session, slug: str) -> Tenant:
    tenant = session.scalar(select(Tenant).where(Tenant.slug == slug))
    if tenant is None:
        raise NotFound(f"no tenant {slug}")
    return tenant


def customers(session: Session) -> Sequence[Tenant]:
    """All tenants but the system's, oldest first."""
    return session.scalars(select(Tenant).where(~Tenant.is_system).order_by(Tenant.id)).all()


def change_slug(session: Session, tenant_id: int, slug: str) -> None:
    tenant = fetch(session, Tenant, tenant_id, lock=True)
    with _slug_refusals(session, slug):
        tenant.slug = slug


def merge_settings(session: Session, tenant_id: int, changes: dict[str, Any]) -> dict[str, Any]:
    """Changes some settings in one statement, so that concurrent changes of others are kept."""
    merged = Tenant.settings.op("||")(cast(changes, JSONB))
    settings: dict[str, Any] = session.execute(
        update(Tenant).where(Tenant.id == tenant_id).values(settings=merged).returning(Tenant.settings)
    ).scalar_one()
    return settings


def close(session: Session, tenant_id: int) -> None:
    """Deletes the tenant and, by the foreign keys, what belongs to it alone."""
    tenant = fetch(session, Tenant, tenant_id, lock=True)
    if tenant.is_system:
        raise WrongState("the system tenant can't be closed")
    session.delete(tenant)
    session.flush()


def _slug_refusals(session: Session, slug: str) -> AbstractContextManager[None]:
    return refusing(
        session, {"tenants_slug_key": SlugTaken(slug), "tenants_slug_check": Invalid(f"{slug!r} is no slug")}
    )
