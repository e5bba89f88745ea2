"""Plans, and what they allow."""

from datetime import date

import pytest
from sqlalchemy.exc import IntegrityError

from booking.db import Session
from booking.errors import LimitReached, NotFound, WrongState
from booking.models import Subscription, Tenant, Venue
from booking.services import subscriptions, venues

JUNE = date(2030, 6, 1)
JULY = date(2030, 7, 1)


def test_a_new_tenant_is_on_the_free_plan(acme: Tenant) -> None:
    with Session() as session:
        assert subscriptions.current_plan(session, acme.id).code == "free"


def test_a_plan_can_be_changed(acme: Tenant) -> None:
    with Session.begin() as session:
        subscriptions.change_plan(session, tenant_id=acme.id, plan_code="team", on=JUNE)
    with Session() as session:
        assert subscriptions.current_plan(session, acme.id).name == "Team"


def test_the_old_subscription_ends_when_the_new_one_starts(acme: Tenant) -> None:
    with Session.begin() as session:
        subscriptions.change_plan(session, tenant_id=acme.id, plan_code="team", on=JUNE)
        subscriptions.change_plan(session, tenant_id=acme.id, plan_code="business", on=JULY)
        history = [(one.plan_code, one.ends_on) for one in subscriptions.history(session, acme.id)]
    assert history == [("free", JUNE), ("team", JULY), ("business", None)]


def test_a_plan_is_not_changed_to_itself(acme: Tenant) -> None:
    with Session() as session, pytest.raises(WrongState, match="already on free"):
        subscriptions.change_plan(session, tenant_id=acme.id, plan_code="free", on=JUNE)


def test_an_unknown_plan_is_not_found(acme: Tenant) -> None:
    with Session() as session, pytest.raises(NotFound, match="gold"):
        subscriptions.change_plan(session, tenant_id=acme.id, plan_code="gold", on=JUNE)


def test_a_tenant_has_one_running_subscription(acme: Tenant) -> None:
    with Session() as session:
        session.add(Subscription(tenant_id=acme.id, plan_code="team"))
        with pytest.raises(IntegrityError, match="subscriptions_one_running"):
            session.flush()


def test_the_free_plan_has_one_venue(town_hall: Venue, acme: Tenant) -> None:
    with Session() as session, pytest.raises(LimitReached, match="Free allows 1 venues"):
        venues.create(session, tenant_id=acme.id, slug="library", name="Library")


@pytest.mark.parametrize(("plan", "venue_count"), [("team", 3), ("business", 5)])
def test_a_bigger_plan_has_more_venues(acme: Tenant, plan: str, venue_count: int) -> None:
    with Session.begin() as session:
        subscriptions.change_plan(session, tenant_id=acme.id, plan_code=plan, on=JUNE)
        for number in range(venue_count):
            venues.create(session, tenant_id=acme.id, slug=f"venue-{number}", name="Venue")
    with Session() as session:
        assert subscriptions.venue_count(session, acme.id) == venue_count


def test_a_plan_too_small_for_the_venues_is_refused(acme: Tenant) -> None:
    with Session.begin() as session:
        subscriptions.change_plan(session, tenant_id=acme.id, plan_code="team", on=JUNE)
        for slug in ("town-hall", "library"):
            venues.create(session, tenant_id=acme.id, slug=slug, name=slug)
        with pytest.raises(LimitReached, match="Free allows 1"):
            subscriptions.change_plan(session, tenant_id=acme.id, plan_code="free", on=JULY)


def test_monthly_revenue_counts_running_subscriptions_only(acme: Tenant, globex: Tenant) -> None:
    with Session.begin() as session:
        subscriptions.change_plan(session, tenant_id=acme.id, plan_code="team", on=JUNE)
        subscriptions.change_plan(session, tenant_id=acme.id, plan_code="business", on=JULY)
        subscriptions.change_plan(session, tenant_id=globex.id, plan_code="team", on=JULY)
        assert subscriptions.monthly_revenue(session) == {"EUR": 128}


def test_without_tenants_there_is_no_revenue() -> None:
    with Session() as session:
        assert subscriptions.monthly_revenue(session) == {}
