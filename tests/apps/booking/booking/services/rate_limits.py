"""Counts requests in windows of time, in an unlogged table."""

from datetime import datetime

from sqlalchemy import case
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from booking.errors import LimitReached
from booking.models import RateLimit


def hit(session: Session, *, key: str, limit: int, window_start: datetime) -> int:
    """How many hits of the window are left; LimitReached if this one is too many."""
    statement = insert(RateLimit).values(key=key, window_start=window_start, hits=1)
    same_window = RateLimit.window_start == statement.excluded.window_start
    hits = session.execute(
        statement.on_conflict_do_update(
            index_elements=["key"],
            set_={"hits": case((same_window, RateLimit.hits + 1), else_=1), "window_start": window_start},
        ).returning(RateLimit.hits)
    ).scalar_one()
    if hits > limit:
        raise LimitReached(f"more than {limit} requests by {key}")
    return limit - hits
