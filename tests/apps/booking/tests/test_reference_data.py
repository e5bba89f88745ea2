"""What the migrations leave behind, and nothing else."""

from decimal import Decimal

import pytest
from sqlalchemy import delete, inspect, select, text, update
from sqlalchemy.exc import IntegrityError
from support import count

from booking.db import Session, engine
from booking.models import Base, Country, Currency, Plan, TaxRate, Tenant
from booking.services import pricing

SEEDED = {"currencies", "countries", "tax_rates", "plans", "tenants"}


@pytest.mark.parametrize(("model", "rows"), [(Currency, 5), (Country, 6), (TaxRate, 12), (Plan, 3), (Tenant, 1)])
def test_reference_tables_have_exactly_their_rows(model: type[Base], rows: int) -> None:
    assert count(model) == rows


@pytest.mark.parametrize("table", sorted(Base.metadata.tables.keys() - SEEDED))
def test_all_other_tables_are_empty(table: str) -> None:
    with engine.connect() as connection:
        assert connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one() == 0


def test_the_models_name_all_tables() -> None:
    assert set(inspect(engine).get_table_names()) == {*Base.metadata.tables, "alembic_version"}


def test_the_newest_migration_is_applied() -> None:
    with engine.connect() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one() == "0006"


def test_the_system_tenant_is_the_first() -> None:
    with Session() as session:
        system = session.scalars(select(Tenant)).one()
    assert (system.id, system.slug, system.is_system) == (1, "system", True)


def test_there_is_no_second_system_tenant() -> None:
    with Session() as session:
        session.add(Tenant(slug="system-2", name="System", country_code="DE", currency_code="EUR", is_system=True))
        with pytest.raises(IntegrityError, match="tenants_one_system"):
            session.flush()


@pytest.mark.parametrize(
    ("country", "kind", "percent"),
    [("DE", "standard", "19"), ("DE", "reduced", "7"), ("CH", "standard", "8.1"), ("FR", "reduced", "5.5")],
)
def test_tax_rates_are_known_by_country_and_kind(country: str, kind: str, percent: str) -> None:
    with Session() as session:
        assert pricing.tax_percent(session, country, kind) == Decimal(percent)


def test_a_country_in_use_stays() -> None:
    with Session() as session, pytest.raises(IntegrityError, match="still referenced"):
        session.execute(delete(Country).where(Country.code == "DE"))


def test_an_unused_plan_can_go() -> None:
    with Session.begin() as session:
        session.execute(delete(Plan).where(Plan.code == "business"))
    assert count(Plan) == 2


def test_a_currency_can_come() -> None:
    with Session.begin() as session:
        session.add(Currency(code="SEK", name="Swedish krona", minor_units=2))
    assert count(Currency) == 6


def test_a_new_tax_rate_takes_the_next_id() -> None:
    with Session.begin() as session:
        session.add(Country(code="SE", name="Sweden"))
        session.flush()
        rate = TaxRate(country_code="SE", kind="standard", percent=Decimal(25))
        session.add(rate)
    assert rate.id == 13


def test_a_tax_rate_changes_for_all_who_ask_afterwards() -> None:
    with Session.begin() as session:
        session.execute(update(TaxRate).where(TaxRate.country_code == "DE").values(percent=16))
    with Session() as session:
        assert pricing.tax_percent(session, "DE") == 16


def test_a_renamed_plan_keeps_its_price() -> None:
    with Session.begin() as session:
        session.execute(update(Plan).where(Plan.code == "team").values(name="Crew"))
    with Session() as session:
        plans = session.execute(select(Plan.name, Plan.monthly_price).order_by(Plan.monthly_price)).all()
    assert plans == [("Free", 0), ("Crew", 29), ("Business", 99)]


@pytest.mark.parametrize("code", ["eur", "EURO", ""])
def test_a_currency_code_is_three_capitals(code: str) -> None:
    with Session() as session:
        session.add(Currency(code=code, name="Nonsense", minor_units=2))
        with pytest.raises(IntegrityError, match="currencies_code_check"):
            session.flush()
