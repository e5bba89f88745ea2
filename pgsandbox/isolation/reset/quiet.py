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
SELECT min(early.written), (pg_current_wal_flush_lsn() - '0/0')::int8, (pg_current_wal_insert_lsn() - '0/0')::int8,
       statement_timestamp(),
       coalesce(array_agg(pid) FILTER (WHERE state <> 'idle'), '{}'), coalesce(max(state_change) > %(since)s, false),
       (SELECT coalesce(array_agg(concat_ws(' ', pid, classid, objid, objsubid)), '{}') FROM pg_lock_status()
        WHERE locktype = 'advisory' AND database = %(database)s::oid),
       coalesce(array_agg(pid) FILTER (WHERE pid IS NOT NULL), '{}'),
       min(early.ended), pg_stat_get_db_sessions(%(database)s::oid)
FROM (SELECT (pg_current_wal_insert_lsn() - '0/0')::int8 AS written, pg_stat_get_db_sessions(%(database)s::oid) AS ended
      OFFSET 0) early
LEFT JOIN LATERAL (
    SELECT pid, state, state_change FROM pg_stat_get_activity(CASE WHEN early.written IS NULL THEN 0 END)
    WHERE datid = %(database)s::oid AND backend_type = 'client backend' AND pid <> ALL (%(ours)s)
) session ON true
"""
"""First what is counted beforehand, then the sessions, then what is counted afterwards: a look is no moment.

The sessions depend on what comes first, and so are looked up after it; what is not aggregated is taken at the end."""


@dataclass(frozen=True)
class Look:
    """What was seen in one look, which takes a while: somebody may write, come or go between its beginning and end."""

    before: int
    """The position in the log, in bytes, at its beginning: what a session that was seen idle writes later is behind."""
    flushed: int
    after: int
    """The position at its end: what a session that was seen idle had written is before that."""
    at: datetime
    """Its beginning. Whoever was idle in this look, and ran something since, has a later change of state (the server's
    clock)."""
    busy: frozenset[int]
    """The pids of sessions that run something, or have a transaction open."""
    moved: bool
    """Whether anybody who is still there ran anything after the moment that was asked about."""
    advisory: frozenset[str]
    """Advisory locks, each as the pid of its holder and what it is on."""
    there: frozenset[int]
    """The pids of all sessions."""
    ended_before: int
    """How many sessions there had ever been at its beginning, as far as that is counted: a session is when it ends."""
    ended_after: int
    """The same at its end: who is no longer there is counted already."""

    def has_moved_since(self, earlier: Look) -> bool:
        """Whether anybody is at work, or has been since `earlier`, if only to come, write, and go.

        Or may have been: where somebody has set the clock back, what is later does not look so.
        """
        is_certain = self.at >= earlier.at and not (self.moved or self.busy)
        return not is_certain or bool(earlier.there - self.there) or self.ended_after != earlier.ended_before


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
    before, flushed, after, at, busy, moved, advisory, there, ended_before, ended_after = row
    return Look(
        before=before,
        flushed=flushed,
        after=after,
        at=at,
        busy=frozenset(busy),
        moved=moved,
        advisory=frozenset(advisory),
        there=frozenset(there),
        ended_before=ended_before,
        ended_after=ended_after,
    )


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
