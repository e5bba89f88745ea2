"""What runs beside the business: jobs, webhooks, notifications, rate limits and the audit trail."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Identity, Index, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from booking.models.base import Base, Id, Now


class Job(Base):
    __tablename__ = "jobs"
    __table_args__ = (Index("jobs_queued", "queue", "id", postgresql_where=text("status = 'queued'")),)

    id: Mapped[Id]
    queue: Mapped[str]
    payload: Mapped[dict[str, Any]]
    status: Mapped[str] = mapped_column(server_default=text("'queued'"))
    attempts: Mapped[int] = mapped_column(server_default=text("0"))
    done_by: Mapped[str | None]


class Webhook(Base):
    __tablename__ = "webhooks"
    __table_args__ = (UniqueConstraint("tenant_id", "url"),)

    id: Mapped[Id]
    tenant_id: Mapped[int] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"))
    url: Mapped[str]
    events: Mapped[list[str]]


class WebhookDelivery(Base):
    __tablename__ = "webhook_deliveries"

    id: Mapped[Id]
    webhook_id: Mapped[int] = mapped_column(ForeignKey("webhooks.id", ondelete="CASCADE"))
    event: Mapped[str]
    payload: Mapped[dict[str, Any]]
    status: Mapped[str] = mapped_column(server_default=text("'due'"))
    attempts: Mapped[int] = mapped_column(server_default=text("0"))


class Notification(Base):
    __tablename__ = "notifications"

    id: Mapped[Id]
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"))
    body: Mapped[str]
    read_at: Mapped[datetime | None]


class RateLimit(Base):
    __tablename__ = "rate_limits"

    key: Mapped[str] = mapped_column(primary_key=True)
    window_start: Mapped[datetime]
    hits: Mapped[int]


class AuditEntry(Base):
    __tablename__ = "audit_log"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True, cache=20), primary_key=True)
    table_name: Mapped[str]
    row_id: Mapped[int] = mapped_column(BigInteger)
    action: Mapped[str]
    actor: Mapped[str | None]
    before: Mapped[dict[str, Any] | None]
    after: Mapped[dict[str, Any] | None]
    at: Mapped[Now]
