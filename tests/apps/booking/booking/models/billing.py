"""Invoices, payments and refunds."""

from datetime import date
from decimal import Decimal

from sqlalchemy import Computed, ForeignKey, Index, Sequence, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from booking.models.base import Base, Id, Now

INVOICE_NUMBERS = Sequence("invoice_numbers", metadata=Base.metadata)


class Invoice(Base):
    __tablename__ = "invoices"
    __table_args__ = (
        Index("invoices_one_per_booking", "booking_id", unique=True, postgresql_where=text("status <> 'void'")),
    )

    id: Mapped[Id]
    tenant_id: Mapped[int] = mapped_column(ForeignKey("tenants.id"))
    booking_id: Mapped[int] = mapped_column(ForeignKey("bookings.id"))
    currency_code: Mapped[str] = mapped_column(ForeignKey("currencies.code"))
    number: Mapped[str | None] = mapped_column(unique=True)
    status: Mapped[str] = mapped_column(server_default=text("'draft'"))
    issued_on: Mapped[date | None]

    lines: Mapped[list["InvoiceLine"]] = relationship(order_by="InvoiceLine.position")


class InvoiceLine(Base):
    __tablename__ = "invoice_lines"
    __table_args__ = (UniqueConstraint("invoice_id", "position"),)

    id: Mapped[Id]
    invoice_id: Mapped[int] = mapped_column(ForeignKey("invoices.id", ondelete="CASCADE"))
    position: Mapped[int]
    text: Mapped[str]
    quantity: Mapped[Decimal]
    unit_price: Mapped[Decimal]
    tax_percent: Mapped[Decimal]
    net: Mapped[Decimal] = mapped_column(Computed("quantity * unit_price"))
    tax: Mapped[Decimal] = mapped_column(Computed("quantity * unit_price * tax_percent / 100"))


class Payment(Base):
    __tablename__ = "payments"

    id: Mapped[Id]
    invoice_id: Mapped[int] = mapped_column(ForeignKey("invoices.id"))
    amount: Mapped[Decimal]
    reference: Mapped[str] = mapped_column(unique=True)
    received_at: Mapped[Now]


class NumberSeries(Base):
    __tablename__ = "number_series"

    tenant_id: Mapped[int] = mapped_column(ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True)
    kind: Mapped[str] = mapped_column(primary_key=True)
    last: Mapped[int]


class Refund(Base):
    __tablename__ = "refunds"

    id: Mapped[Id]
    payment_id: Mapped[int] = mapped_column(ForeignKey("payments.id"))
    number: Mapped[str]
    amount: Mapped[Decimal]
    reason: Mapped[str]
