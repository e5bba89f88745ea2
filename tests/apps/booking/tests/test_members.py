"""Membership: roles, invitations, and an admin at all times."""

from functools import partial
from threading import Barrier

import pytest
from sqlalchemy.orm import Session as OrmSession
from support import count, race

from booking.db import Session
from booking.errors import EmailTaken, NotFound, Taken, WrongState
from booking.models import Invitation, Membership, Tenant, User
from booking.retry import serializable
from booking.services import members, users


@pytest.fixture
def admins(acme: Tenant, bob: User) -> tuple[int, int]:
    """Bob and Carol, the two admins of Acme."""
    with Session.begin() as session:
        carol = users.register(session, email="carol@example.com", name="Carol")
        members.add(session, tenant_id=acme.id, user_id=bob.id, role="admin")
        members.add(session, tenant_id=acme.id, user_id=carol.id, role="admin")
        return bob.id, carol.id


def test_roles_are_listed_by_address(acme: Tenant, bob: User) -> None:
    with Session.begin() as session:
        members.add(session, tenant_id=acme.id, user_id=bob.id, role="member")
        assert members.roles(session, acme.id) == {"alice@example.com": "owner", "bob@example.com": "member"}


def test_nobody_is_a_member_twice(acme: Tenant, alice: User) -> None:
    with Session() as session, pytest.raises(Taken, match="already a member"):
        members.add(session, tenant_id=acme.id, user_id=alice.id, role="member")


def test_a_tenant_has_one_owner(acme: Tenant, bob: User) -> None:
    with Session() as session, pytest.raises(Taken, match="has an owner"):
        members.add(session, tenant_id=acme.id, user_id=bob.id, role="owner")


def test_one_person_can_be_in_two_tenants(acme: Tenant, globex: Tenant, alice: User) -> None:
    with Session.begin() as session:
        members.add(session, tenant_id=globex.id, user_id=alice.id, role="admin")
        assert members.roles(session, globex.id)["alice@example.com"] == "admin"
        assert members.roles(session, acme.id)["alice@example.com"] == "owner"


def test_ownership_is_handed_over(acme: Tenant, alice: User, bob: User) -> None:
    with Session.begin() as session:
        members.add(session, tenant_id=acme.id, user_id=bob.id, role="member")
        members.hand_over(session, tenant_id=acme.id, owner_id=alice.id, heir_id=bob.id)
        assert members.roles(session, acme.id) == {"alice@example.com": "admin", "bob@example.com": "owner"}


def test_a_former_owner_can_be_deactivated(acme: Tenant, alice: User, bob: User) -> None:
    with Session.begin() as session:
        members.add(session, tenant_id=acme.id, user_id=bob.id, role="member")
        members.hand_over(session, tenant_id=acme.id, owner_id=alice.id, heir_id=bob.id)
        users.deactivate(session, alice.id)


def test_the_owner_cannot_be_removed(acme: Tenant, alice: User) -> None:
    with Session() as session, pytest.raises(WrongState, match="owner"):
        members.remove(session, tenant_id=acme.id, user_id=alice.id)


def test_a_removed_member_is_gone(acme: Tenant, admins: tuple[int, int]) -> None:
    with Session.begin() as session:
        members.remove(session, tenant_id=acme.id, user_id=admins[0])
    assert count(Membership) == 2


def test_an_admin_steps_down_while_another_stays(acme: Tenant, admins: tuple[int, int]) -> None:
    with Session.begin() as session:
        members.step_down(session, tenant_id=acme.id, user_id=admins[0])
        assert [admin.user_id for admin in members.admins(session, acme.id)] == [admins[1]]


def test_the_last_admin_cannot_step_down(acme: Tenant, bob: User) -> None:
    with Session.begin() as session:
        members.add(session, tenant_id=acme.id, user_id=bob.id, role="admin")
        with pytest.raises(WrongState, match="needs an admin"):
            members.step_down(session, tenant_id=acme.id, user_id=bob.id)


def test_two_admins_who_step_down_at_once_leave_one(acme: Tenant, admins: tuple[int, int]) -> None:
    both_have_read = Barrier(2, timeout=5)
    attempts = []

    def step_down(user_id: int, session: OrmSession) -> None:
        members.admins(session, acme.id)
        attempts.append(user_id)
        if attempts.count(user_id) == 1:
            both_have_read.wait()
        members.step_down(session, tenant_id=acme.id, user_id=user_id)

    outcomes = race(*(partial(serializable, partial(step_down, user_id)) for user_id in admins))
    assert sum(isinstance(outcome, WrongState) for outcome in outcomes) == 1
    assert len(attempts) == 3
    with Session() as session:
        assert len(members.admins(session, acme.id)) == 1


def test_an_invitation_is_accepted(acme: Tenant, alice: User, bob: User) -> None:
    with Session.begin() as session:
        invitation = members.invite(session, tenant_id=acme.id, invited_by=alice.id, email="Bob@example.com")
        members.accept(session, invitation_id=invitation.id, user_id=bob.id)
        assert members.roles(session, acme.id)["bob@example.com"] == "member"


def test_an_invitation_is_accepted_once(acme: Tenant, alice: User, bob: User) -> None:
    with Session.begin() as session:
        invitation = members.invite(session, tenant_id=acme.id, invited_by=alice.id, email="bob@example.com")
        members.accept(session, invitation_id=invitation.id, user_id=bob.id)
    with Session() as session, pytest.raises(WrongState, match="accepted before"):
        members.accept(session, invitation_id=invitation.id, user_id=bob.id)


def test_an_invitation_is_for_its_address_only(acme: Tenant, alice: User, bob: User) -> None:
    with Session.begin() as session:
        invitation = members.invite(session, tenant_id=acme.id, invited_by=alice.id, email="carol@example.com")
        with pytest.raises(NotFound, match="for this address"):
            members.accept(session, invitation_id=invitation.id, user_id=bob.id)


def test_an_address_has_one_open_invitation(acme: Tenant, alice: User) -> None:
    with Session.begin() as session:
        members.invite(session, tenant_id=acme.id, invited_by=alice.id, email="bob@example.com")
        with pytest.raises(EmailTaken):
            members.invite(session, tenant_id=acme.id, invited_by=alice.id, email="bob@example.com")
    assert count(Invitation) == 1


def test_who_left_can_be_invited_again(acme: Tenant, alice: User, bob: User) -> None:
    with Session.begin() as session:
        first = members.invite(session, tenant_id=acme.id, invited_by=alice.id, email="bob@example.com")
        members.accept(session, invitation_id=first.id, user_id=bob.id)
        members.remove(session, tenant_id=acme.id, user_id=bob.id)
        second = members.invite(session, tenant_id=acme.id, invited_by=alice.id, email="bob@example.com")
    assert (first.id, second.id) == (1, 2)
