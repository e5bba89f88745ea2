"""Users: an e-mail address belongs to one active user, whatever its case."""

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from booking.db import fetch
from booking.errors import EmailTaken, NotFound, WrongState, refusing
from booking.models import Membership, User


def register(session: Session, *, email: str, name: str) -> User:
    user = User(email=email, name=name)
    with refusing(session, {"users_active_email": EmailTaken(email)}):
        session.add(user)
    return user


def by_email(session: Session, email: str) -> User:
    """The active user with this address."""
    user = session.scalar(select(User).where(User.email_key == email.lower(), User.deactivated_at.is_(None)))
    if user is None:
        raise NotFound(f"no active user {email}")
    return user


def change_email(session: Session, user_id: int, email: str) -> None:
    user = fetch(session, User, user_id, lock=True)
    with refusing(session, {"users_active_email": EmailTaken(email)}):
        user.email = email


def deactivate(session: Session, user_id: int) -> None:
    """Frees the address for somebody else; an owner must hand over the tenant first."""
    user = fetch(session, User, user_id, lock=True)
    if session.scalar(select(Membership).where(Membership.user_id == user_id, Membership.role == "owner")):
        raise WrongState(f"{user.email} still owns a tenant")
    user.deactivated_at = func.now()
    session.flush()
