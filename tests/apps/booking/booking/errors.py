"""Every refusal that a caller of the services can meet, and how a violated constraint becomes one of them.

BookingError
├── NotFound            no such row
├── Taken               a name that must be unique is in use
│   ├── SlugTaken
│   ├── EmailTaken
│   └── RoomTaken       somebody else has the room at that time
├── Invalid             a value that the rules don't allow
│   ├── Closed          the venue isn't open then
│   ├── CouponRefused
│   └── AmountRefused
├── WrongState          the row is past, or not yet at, the state that this needs
├── LimitReached        plan, stock or rate
└── Unauthorized
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import psycopg
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session


class BookingError(Exception):
    pass


class NotFound(BookingError):
    pass


class Taken(BookingError):
    pass


class SlugTaken(Taken):
    pass


class EmailTaken(Taken):
    pass


class RoomTaken(Taken):
    pass


class Invalid(BookingError):
    pass


class Closed(Invalid):
    pass


class CouponRefused(Invalid):
    pass


class AmountRefused(Invalid):
    pass


class WrongState(BookingError):
    pass


class LimitReached(BookingError):
    pass


class Unauthorized(BookingError):
    pass


@contextmanager
def refusing(session: Session, refusals: Mapping[str, BookingError]) -> Iterator[None]:
    """Flush what the block did inside a savepoint, and raise the refusal given for the constraint it violates."""
    try:
        with session.begin_nested():
            yield
    except IntegrityError as exc:
        refusal = refusals.get(violated_constraint(exc))
        if refusal is None:
            raise
        raise refusal from exc


def violated_constraint(exc: IntegrityError) -> str:
    return (exc.orig.diag.constraint_name or "") if isinstance(exc.orig, psycopg.Error) else ""
