"""When a room can be had; the calendar arithmetic is PostgreSQL's, in the venue's own time zone."""

from datetime import date, datetime

from sqlalchemy import text
from sqlalchemy.orm import Session

IS_OPEN = text("""
    SELECT EXISTS (
        SELECT FROM venues
        JOIN opening_hours ON opening_hours.venue_id = venues.id
        CROSS JOIN LATERAL (SELECT :start AT TIME ZONE time_zone AS first, :end AT TIME ZONE time_zone AS last) AS here
        WHERE venues.id = :venue_id
          AND weekday = extract(isodow FROM first)
          AND first >= first::date + opens AND last <= first::date + closes
          AND NOT EXISTS (SELECT FROM closures WHERE closures.venue_id = venues.id AND day = first::date)
    )
""")

FREE_SLOTS = text("""
    SELECT lower(slot) AS "from", upper(slot) AS "to"
    FROM rooms
    JOIN venues ON venues.id = rooms.venue_id
    JOIN opening_hours ON opening_hours.venue_id = venues.id AND weekday = extract(isodow FROM cast(:day AS date))
    CROSS JOIN LATERAL (
        SELECT tstzrange((:day + opens) AT TIME ZONE time_zone, (:day + closes) AT TIME ZONE time_zone) AS span
    ) AS open
    CROSS JOIN LATERAL (
        SELECT coalesce(range_agg(during), '{}') AS taken
        FROM bookings WHERE bookings.room_id = rooms.id AND status <> 'cancelled' AND during && span
    ) AS busy
    CROSS JOIN LATERAL unnest(tstzmultirange(span) - taken) AS slot
    WHERE rooms.id = :room_id
      AND NOT EXISTS (SELECT FROM closures WHERE closures.venue_id = venues.id AND day = :day)
    ORDER BY slot
""")


def is_open(session: Session, *, venue_id: int, start: datetime, end: datetime) -> bool:
    """Whether the venue is open from start to end, on one day."""
    return bool(session.scalar(IS_OPEN, {"venue_id": venue_id, "start": start, "end": end}))


def free_slots(session: Session, *, room_id: int, day: date) -> list[tuple[datetime, datetime]]:
    """What is left of the room's opening hours on that day, in order."""
    rows = session.execute(FREE_SLOTS, {"room_id": room_id, "day": day})
    return [(start, end) for start, end in rows]
