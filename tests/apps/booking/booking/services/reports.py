"""Revenue by venue, from a materialized view that is as old as its last refresh."""

from dataclasses import dataclass
from decimal import Decimal

from sqlalchemy import text
from sqlalchemy.orm import Session


@dataclass(frozen=True)
class VenueRevenue:
    venue_id: int
    bookings: int
    hours: Decimal
    revenue: Decimal


def refresh(session: Session, *, concurrently: bool = False) -> None:
    """Concurrently means slower, and that others can read meanwhile."""
    session.execute(text(f"REFRESH MATERIALIZED VIEW {'CONCURRENTLY' if concurrently else ''} reporting.venue_revenue"))


def venue_revenue(session: Session) -> list[VenueRevenue]:
    """By venue, in the order in which venues were made."""
    rows = session.execute(
        text("SELECT venue_id, bookings, hours, revenue FROM reporting.venue_revenue ORDER BY venue_id")
    )
    return [VenueRevenue(*row) for row in rows]
