"""Keys for machines."""

import pytest
from sqlalchemy import select
from support import race

from booking.db import Session
from booking.errors import Taken, Unauthorized
from booking.models import ApiKey, Tenant
from booking.services import api_keys


@pytest.fixture
def token(acme: Tenant) -> str:
    with Session.begin() as session:
        return api_keys.issue(session, tenant_id=acme.id, name="backend", token="s3cret")


def test_a_key_opens_its_tenant(token: str, globex: Tenant) -> None:
    with Session() as session:
        assert api_keys.authenticate(session, "s3cret").slug == "acme"


def test_an_unknown_key_opens_nothing(acme: Tenant) -> None:
    with Session() as session, pytest.raises(Unauthorized):
        api_keys.authenticate(session, "s3cret")


def test_a_revoked_key_opens_nothing(token: str, acme: Tenant) -> None:
    with Session.begin() as session:
        api_keys.revoke(session, tenant_id=acme.id, name="backend")
    with Session() as session, pytest.raises(Unauthorized):
        api_keys.authenticate(session, token)


def test_revoking_spares_other_keys(token: str, acme: Tenant) -> None:
    with Session.begin() as session:
        other = api_keys.issue(session, tenant_id=acme.id, name="frontend")
        api_keys.revoke(session, tenant_id=acme.id, name="backend")
        assert api_keys.authenticate(session, other).id == acme.id


def test_the_database_does_not_know_the_token(token: str) -> None:
    with Session() as session:
        digest = session.scalars(select(ApiKey.digest)).one()
    assert len(digest) == 32
    assert token.encode() not in digest


def test_a_name_is_used_once_per_tenant(token: str, acme: Tenant) -> None:
    with Session() as session, pytest.raises(Taken, match="backend"):
        api_keys.issue(session, tenant_id=acme.id, name="backend")


def test_two_tenants_can_use_one_name(token: str, globex: Tenant) -> None:
    with Session.begin() as session:
        other = api_keys.issue(session, tenant_id=globex.id, name="backend")
        assert api_keys.authenticate(session, other).slug == "globex"


def test_two_keys_never_share_a_token(token: str, globex: Tenant) -> None:
    with Session() as session, pytest.raises(Taken, match="token"):
        api_keys.issue(session, tenant_id=globex.id, name="backend", token="s3cret")


def test_uses_are_counted_when_committed(token: str, acme: Tenant) -> None:
    with Session.begin() as session:
        api_keys.authenticate(session, token)
    with Session() as session:
        api_keys.authenticate(session, token)
        session.rollback()
        assert api_keys.uses(session, tenant_id=acme.id) == {"backend": 1}


def test_no_concurrent_use_is_lost(token: str, acme: Tenant) -> None:
    def use() -> None:
        with Session.begin() as session:
            api_keys.authenticate(session, token)

    race(*[use] * 5)
    with Session() as session:
        assert api_keys.uses(session, tenant_id=acme.id) == {"backend": 5}
