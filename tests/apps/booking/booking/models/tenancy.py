"""Tenants, the people in them, and what they may do."""

from datetime import date, datetime
from typing import Any

from sqlalchemy import Computed, ForeignKey, Index, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from booking.models.base import Base, Id, Now


class Tenant(Base):
    __tablename__ = "tenants"
    __table_args__ = (Index("tenants_one_system", "is_system", unique=True, postgresql_where=text("is_system")),)

    id: Mapped[Id]
    slug: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str]
    country_code: Mapped[str] = mapped_column(ForeignKey("countries.code"))
    currency_code: Mapped[str] = mapped_column(ForeignKey("currencies.code"))
    is_system: Mapped[bool] = mapped_column(server_default=text("false"))
    settings: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
    created_at: Mapped[Now]


class User(Base):
    __tablename__ = "users"
    __table_args__ = (
        Index("users_active_email", "email_key", unique=True, postgresql_where=text("deactivated_at IS NULL")),
    )

    id: Mapped[Id]
    email: Mapped[str]
    email_key: Mapped[str] = mapped_column(Computed("lower(email)"))
    name: Mapped[str]
    deactivated_at: Mapped[datetime | None]
    created_at: Mapped[Now]


class Membership(Base):
    __tablename__ = "memberships"
    __table_args__ = (
        Index("memberships_one_owner", "tenant_id", unique=True, postgresql_where=text("role = 'owner'")),
    )

    tenant_id: Mapped[int] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"), primary_key=True)
    role: Mapped[str]


class Invitation(Base):
    __tablename__ = "invitations"
    __table_args__ = (
        Index("invitations_one_open", "tenant_id", "email", unique=True, postgresql_where=text("accepted_at IS NULL")),
    )

    id: Mapped[Id]
    tenant_id: Mapped[int] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    invited_by: Mapped[int] = mapped_column(ForeignKey("users.id"))
    email: Mapped[str]
    role: Mapped[str]
    accepted_at: Mapped[datetime | None]


class ApiKey(Base):
    __tablename__ = "api_keys"
    __table_args__ = (UniqueConstraint("tenant_id", "name"),)

    id: Mapped[Id]
    tenant_id: Mapped[int] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    name: Mapped[str]
    digest: Mapped[bytes] = mapped_column(unique=True)
    uses: Mapped[int] = mapped_column(server_default=text("0"))
    revoked_at: Mapped[datetime | None]


class Subscription(Base):
    __tablename__ = "subscriptions"
    __table_args__ = (
        Index("subscriptions_one_running", "tenant_id", unique=True, postgresql_where=text("ends_on IS NULL")),
    )

    id: Mapped[Id]
    tenant_id: Mapped[int] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    plan_code: Mapped[str] = mapped_column(ForeignKey("plans.code"))
    starts_on: Mapped[date] = mapped_column(server_default=text("current_date"))
    ends_on: Mapped[date | None]
