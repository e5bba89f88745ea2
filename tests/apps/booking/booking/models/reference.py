"""Tables that only migrations write."""

from decimal import Decimal

from sqlalchemy import ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from booking.models.base import Base, Id


class Currency(Base):
    __tablename__ = "currencies"

    code: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    minor_units: Mapped[int]


class Country(Base):
    __tablename__ = "countries"

    code: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)


class TaxRate(Base):
    __tablename__ = "tax_rates"
    __table_args__ = (UniqueConstraint("country_code", "kind"),)

    id: Mapped[Id]
    country_code: Mapped[str] = mapped_column(ForeignKey("countries.code"))
    kind: Mapped[str]
    percent: Mapped[Decimal]


class Plan(Base):
    __tablename__ = "plans"

    code: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    monthly_price: Mapped[Decimal]
    currency_code: Mapped[str] = mapped_column(ForeignKey("currencies.code"))
    max_venues: Mapped[int | None]
