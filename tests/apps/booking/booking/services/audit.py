"""The audit trail, which a trigger writes for bookings, invoices and payments."""

from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from booking.models import AuditEntry


def acting_as(session: Session, who: str) -> None:
    """Names the person behind what this transaction does from now on."""
    session.execute(select(func.set_config("booking.actor", who, True)))


def trail(session: Session, table_name: str, row_id: int) -> Sequence[AuditEntry]:
    """What happened to one row, in order; ids alone don't tell, since each connection takes them in blocks."""
    return session.scalars(
        select(AuditEntry)
        .where(AuditEntry.table_name == table_name, AuditEntry.row_id == row_id)
        .order_by(AuditEntry.at, AuditEntry.id)
    ).all()
