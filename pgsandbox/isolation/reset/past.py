"""A session that sees its database as it was at the baseline, and keeps the server from forgetting it.

As long as it holds its snapshot, PostgreSQL removes no row that was there then, nor any index entry of one (manual,
chapter 25.1.2: a row must stay as long as anybody may see it): whatever a test deletes or updates is still in its
place. The snapshot belongs to no transaction that others could see.
"""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pgsandbox.guard import Guard
from pgsandbox.isolation.reset import quiet, undo

if TYPE_CHECKING:
    import psycopg

    from pgsandbox.server import Server

_YOUNG = 1.0
_POLL = 0.25

_WAITING = """
SELECT pg_terminate_backend(%(past)s) FROM pg_stat_get_activity(NULL)
WHERE wait_event_type = 'Lock' AND %(past)s = ANY (pg_blocking_pids(pid)) LIMIT 1
"""


class Past:
    """A snapshot of `database`, held in a session of its own: it changes places with the present's now and then."""

    def __init__(self, server: Server, database: str, oid: int) -> None:
        self._server = server
        self._oid = oid
        self.connection = server.connect_inspector(database)
        undo.equip(self.connection)  # it may have to act for the present one day
        self._since = time.monotonic()
        self._guard = Guard(server, self._give_way, poll=_POLL, is_due=lambda: time.monotonic() - self._since >= _YOUNG)

    @property
    def pid(self) -> int:
        """The server's process that works for it."""
        return self.connection.info.backend_pid

    def renew(self, *, ours: list[int], since: datetime | None) -> quiet.Look:
        """Let go of the snapshot and take a new one; who moved since, as seen right after. Raises psycopg.Error."""
        with self.connection.pipeline():
            self.connection.execute("COMMIT")
            answer = self.begin_on(self.connection, ours=[*ours, self.pid], since=since)
        self._since = time.monotonic()
        return quiet.seen(answer)

    def begin_on(
        self, connection: psycopg.Connection[Any], *, ours: list[int], since: datetime | None
    ) -> psycopg.Cursor[Any]:
        """Take a snapshot in that session, as the last part of a pipeline; who moved since, as `quiet.ask`."""
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        return quiet.ask(connection, self._oid, ours=ours, since=since)

    def change_places(self, present: undo.Undo) -> None:
        """Hold from now on the snapshot that was begun in the session of `present`, which acts in ours from now on."""
        self.release()
        self.connection, present.connection = present.connection, self.connection
        self._since = time.monotonic()

    def release(self) -> None:
        """Let go of the snapshot."""
        self.connection.execute("COMMIT")

    def close(self) -> None:
        """End the session."""
        self._guard.close()
        self.connection.close()

    def _give_way(self, connection: psycopg.Connection[Any]) -> bool:
        """End the session when somebody waits for it: a concurrent index build waits for every older snapshot.

        That is a case for a fresh clone anyway. Asked beside the test, and only for tests that last.
        """
        return connection.execute(_WAITING, {"past": self.pid}).fetchone() is None
