"""Who is connected to one database and in the middle of something: seen in one look, and ended where it must be."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, LiteralString

from pgsandbox.errors import NotReadyError

if TYPE_CHECKING:
    import psycopg

_GRACE = 0.05
"""Seconds for what is about to end by itself: the server hears of a client's last words a little later."""

_LOOK: LiteralString = """
SELECT (pg_current_wal_insert_lsn() - '0/0')::int8, (pg_current_wal_flush_lsn() - '0/0')::int8, statement_timestamp(),
       coalesce(array_agg(pid) FILTER (WHERE state <> 'idle'), '{}'), coalesce(max(state_change) > %(since)s, false),
       (SELECT coalesce(array_agg(concat_ws(' ', pid, classid, objid, objsubid)), '{}') FROM pg_lock_status()
        WHERE locktype = 'advisory' AND database = %(database)s::oid),
       coalesce(array_agg(pid), '{}'), pg_stat_get_db_sessions(%(database)s::oid)
FROM pg_stat_get_activity(NULL)
WHERE datid = %(database)s::oid AND backend_type = 'client backend' AND pid <> ALL (%(ours)s)
"""


@dataclass(frozen=True)
class Look:
    """What was seen in one moment."""

    written: int
    """The position in the log up to which it was written, in bytes."""
    flushed: int
    at: datetime
    """Whoever was idle in this look, and ran something since, has a later change of state (the server's clock)."""
    busy: frozenset[int]
    """The pids of sessions that run something, or have a transaction open."""
    moved: bool
    """Whether anybody who is still there ran anything after the moment that was asked about."""
    advisory: frozenset[str]
    """Advisory locks, each as the pid of its holder and what it is on."""
    there: frozenset[int]
    """The pids of all sessions."""
    sessions: int
    """How many there ever were, as far as that is counted: a session is when it ends."""

    def has_moved_since(self, earlier: Look) -> bool:
        """Whether anybody is at work, or has been since `earlier`, if only to come, write, and go.

        Or may have been: where somebody has set the clock back, what is later does not look so.
        """
        is_certain = self.at >= earlier.at and not (self.moved or self.busy)
        return not is_certain or bool(earlier.there - self.there) or self.sessions != earlier.sessions


def look(connection: psycopg.Connection[Any], database: int, *, ours: list[int], since: datetime | None = None) -> Look:
    """One look at the sessions of the database of that oid, leaving out the pids `ours`."""
    return seen(ask(connection, database, ours=ours, since=since))


def ask(
    connection: psycopg.Connection[Any], database: int, *, ours: list[int], since: datetime | None = None
) -> psycopg.Cursor[Any]:
    """The question of `look` without its answer, for a pipeline; `seen` reads that."""
    return connection.execute(_LOOK, {"database": database, "ours": ours, "since": since}, prepare=True)


def seen(answer: psycopg.Cursor[Any]) -> Look:
    """The answer to `ask`."""
    row = answer.fetchone()
    assert row is not None
    written, flushed, at, busy, moved, advisory, there, sessions = row
    return Look(written, flushed, at, frozenset(busy), moved, frozenset(advisory), frozenset(there), sessions)


def end(connection: psycopg.Connection[Any], pids: Iterable[int], *, timeout: float) -> None:
    """End the sessions `pids` and wait until they are gone. Raises NotReadyError after `timeout` seconds."""
    asked = list(pids)
    deadline = time.monotonic() + timeout
    while True:
        left = connection.execute(
            "SELECT pid, pg_terminate_backend(pid), query FROM pg_stat_get_activity(NULL) WHERE pid = ANY (%s)", [asked]
        ).fetchall()
        if not left:
            return
        if time.monotonic() > deadline:
            raise NotReadyError(
                f"{len(left)} busy connections did not end within {timeout:g}s",
                why="; ".join(f"pid {pid} runs {query[:80]}" for pid, _, query in left),
            )
        time.sleep(0.002)


def wait(look_again: Callable[[], Look]) -> Look:
    """Look until nobody is busy, or for as long as what ends by itself may take."""
    deadline = time.monotonic() + _GRACE
    found = look_again()
    while found.busy and time.monotonic() < deadline:
        time.sleep(0.002)
        found = look_again()
    return found
