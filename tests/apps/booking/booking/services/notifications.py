"""Messages to users inside the application."""

from collections.abc import Sequence

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from booking.models import Membership, Notification


def notify_tenant(session: Session, tenant_id: int, body: str) -> int:
    """Tells every member; how many that were."""
    members = session.scalars(select(Membership.user_id).where(Membership.tenant_id == tenant_id)).all()
    session.add_all(Notification(user_id=user_id, body=body) for user_id in members)
    session.flush()
    return len(members)


def unread(session: Session, user_id: int) -> Sequence[str]:
    """What the user hasn't read yet, oldest first."""
    return session.scalars(
        select(Notification.body)
        .where(Notification.user_id == user_id, Notification.read_at.is_(None))
        .order_by(Notification.id)
    ).all()


def mark_read(session: Session, user_id: int) -> None:
    session.execute(
        update(Notification)
        .where(Notification.user_id == user_id, Notification.read_at.is_(None))
        .values(read_at=func.now())
    )
