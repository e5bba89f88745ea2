"""Tenants: slugs, settings, closing."""

from functools import partial

import pytest
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from support import count, race

from booking.db import Session
from booking.errors import Invalid, NotFound, SlugTaken, WrongState
from booking.models import Booking, Guest, Membership, Subscription, Tenant, User, Venue
from booking.services import tenants


def test_the_first_customer_comes_after_the_system_tenant(acme: Tenant) -> None:
    assert acme.id == 2


def test_a_tenant_is_found_by_its_slug(acme: Tenant) -> None:
    with Session() as session:
        assert tenants.by_slug(session, "acme").name == "Acme"


def test_an_unknown_slug_is_not_found() -> None:
    with Session() as session, pytest.raises(NotFound, match="no tenant acme"):
        tenants.by_slug(session, "acme")


def test_a_slug_is_taken_once(acme: Tenant, bob: User) -> None:
    with Session() as session, pytest.raises(SlugTaken, match="acme"):
        tenants.create(session, slug="acme", name="Another Acme", owner_id=bob.id)


def test_a_refused_slug_leaves_the_transaction_usable(acme: Tenant, bob: User) -> None:
    with Session.begin() as session:
        with pytest.raises(SlugTaken):
            tenants.create(session, slug="acme", name="Another Acme", owner_id=bob.id)
        tenants.create(session, slug="globex", name="Globex", owner_id=bob.id)
    assert count(Tenant) == 3


@pytest.mark.parametrize("slug", ["", "Acme", "acme corp", "-acme", "acme-", "acme--corp", "ümlaut"])
def test_a_slug_is_lower_case_words_and_hyphens(alice: User, slug: str) -> None:
    with Session() as session, pytest.raises(Invalid, match="is no slug"):
        tenants.create(session, slug=slug, name="Acme", owner_id=alice.id)


def test_customers_are_listed_oldest_first(globex: Tenant, acme: Tenant) -> None:
    with Session() as session:
        assert [tenant.slug for tenant in tenants.customers(session)] == ["globex", "acme"]


def test_a_new_tenant_has_an_owner_and_the_free_plan(acme: Tenant, alice: User) -> None:
    with Session() as session:
        assert session.execute(select(Membership.user_id, Membership.role)).all() == [(alice.id, "owner")]
        assert session.scalars(select(Subscription.plan_code)).all() == ["free"]


def test_a_slug_can_be_changed_and_the_old_one_used_again(acme: Tenant, bob: User) -> None:
    with Session.begin() as session:
        tenants.change_slug(session, acme.id, "acme-corp")
        tenants.create(session, slug="acme", name="New Acme", owner_id=bob.id)
    with Session() as session:
        assert [tenant.slug for tenant in tenants.customers(session)] == ["acme-corp", "acme"]


def test_a_slug_cannot_be_changed_to_anothers(acme: Tenant, globex: Tenant) -> None:
    with Session() as session, pytest.raises(SlugTaken, match="globex"):
        tenants.change_slug(session, acme.id, "globex")


def test_settings_are_merged(acme: Tenant) -> None:
    with Session.begin() as session:
        tenants.merge_settings(session, acme.id, {"color": "blue", "language": "de"})
        merged = tenants.merge_settings(session, acme.id, {"color": "red"})
    assert merged == {"color": "red", "language": "de"}


def test_settings_of_concurrent_changes_are_all_kept(acme: Tenant) -> None:
    def set_one(key: str) -> None:
        with Session.begin() as session:
            tenants.merge_settings(session, acme.id, {key: True})

    race(*(partial(set_one, key) for key in "abcd"))
    with Session() as session:
        assert tenants.by_slug(session, "acme").settings == dict.fromkeys("abcd", True)


def test_closing_takes_along_what_belongs_to_the_tenant(gina: Guest, town_hall: Venue, acme: Tenant) -> None:
    with Session.begin() as session:
        tenants.close(session, acme.id)
    assert [count(model) for model in (Venue, Guest, Membership, Subscription)] == [0, 0, 0, 0]


def test_closing_leaves_people_and_other_tenants(acme: Tenant, globex: Tenant) -> None:
    with Session.begin() as session:
        tenants.close(session, acme.id)
        assert [tenant.slug for tenant in tenants.customers(session)] == ["globex"]
    assert count(User) == 2


def test_a_tenant_with_bookings_cannot_be_closed(booking: Booking, acme: Tenant) -> None:
    with Session() as session, pytest.raises(IntegrityError, match="bookings_.*_fkey"):
        tenants.close(session, acme.id)


def test_the_system_tenant_cannot_be_closed() -> None:
    with Session() as session, pytest.raises(WrongState, match="system tenant"):
        tenants.close(session, 1)


def test_of_four_who_want_a_slug_at_once_one_gets_it(alice: User) -> None:
    def create() -> Tenant:
        with Session.begin() as session:
            return tenants.create(session, slug="acme", name="Acme", owner_id=alice.id)

    outcomes = race(create, create, create, create)
    assert sum(isinstance(outcome, SlugTaken) for outcome in outcomes) == 3
    assert count(Tenant) == 2
