"""Who belongs to a tenant, in which role, and how people come and go."""

from collections.abc import Sequence

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from booking.db import fetch
from booking.errors import EmailTaken, NotFound, Taken, WrongState, refusing
from booking.models import Invitation, Membership, User


def add(session: Session, *, tenant_id: int, user_id: int, role: str) -> Membership:
    member = Membership(tenant_id=tenant_id, user_id=user_id, role=role)
    refusals = {
        "memberships_pkey": Taken("already a member"),
        "memberships_one_owner": Taken("the tenant has an owner"),
    }
    with refusing(session, refusals):
        session.add(member)
    return member


def roles(session: Session, tenant_id: int) -> dict[str, str]:
    """Role by e-mail address."""
    rows = session.execute(
        select(User.email, Membership.role)
        .join(Membership, Membership.user_id == User.id)
        .where(Membership.tenant_id == tenant_id)
    )
    return {email: role for email, role in rows}


def admins(session: Session, tenant_id: int) -> Sequence[Membership]:
    return session.scalars(
        select(Membership).where(Membership.tenant_id == tenant_id, Membership.role == "admin")
    ).all()


def step_down(session: Session, *, tenant_id: int, user_id: int) -> None:
    """An admin becomes a member, unless nobody else is one.

    It reads rows that it doesn't write, and so needs a serializable transaction to be right among others.
    """
    others = [member for member in admins(session, tenant_id) if member.user_id != user_id]
    if not others:
        raise WrongState("a tenant needs an admin")
    fetch(session, Membership, (tenant_id, user_id)).role = "member"
    session.flush()


def hand_over(session: Session, *, tenant_id: int, owner_id: int, heir_id: int) -> None:
    """The owner becomes an admin, and the heir, a member already, the owner."""
    owner = fetch(session, Membership, (tenant_id, owner_id), lock=True)
    heir = fetch(session, Membership, (tenant_id, heir_id), lock=True)
    owner.role = "admin"
    session.flush()
    heir.role = "owner"
    session.flush()


def remove(session: Session, *, tenant_id: int, user_id: int) -> None:
    if fetch(session, Membership, (tenant_id, user_id), lock=True).role == "owner":
        raise WrongState("the owner can't be removed")
    session.execute(delete(Membership).where(Membership.tenant_id == tenant_id, Membership.user_id == user_id))


def invite(session: Session, *, tenant_id: int, invited_by: int, email: str, role: str = "member") -> Invitation:
    invitation = Invitation(tenant_id=tenant_id, invited_by=invited_by, email=email, role=role)
    with refusing(session, {"invitations_one_open": EmailTaken(email)}):
        session.add(invitation)
    return invitation


def accept(session: Session, *, invitation_id: int, user_id: int) -> Membership:
    invitation = fetch(session, Invitation, invitation_id, lock=True)
    if invitation.accepted_at is not None:
        raise WrongState("the invitation was accepted before")
    if fetch(session, User, user_id).email_key != invitation.email.lower():
        raise NotFound("no such invitation for this address")
    invitation.accepted_at = func.now()
    return add(session, tenant_id=invitation.tenant_id, user_id=user_id, role=invitation.role)
