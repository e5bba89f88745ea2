"""Our two sessions inside one database, one in its past and one in its present, and from where on the log is read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from collections.abc import Set as AbstractSet
from datetime import datetime
from typing import TYPE_CHECKING, Any, LiteralString

import psycopg

from pgsandbox import pools
from pgsandbox.isolation.reset import quiet, wal
from pgsandbox.isolation.reset.errors import NotProvenError
from pgsandbox.isolation.reset.past import Past
from pgsandbox.isolation.reset.undo import Undo

if TYPE_CHECKING:
    from pgsandbox.isolation.reset.relations import Relation
    from pgsandbox.server import Server

ATTEMPTS = 5
"""How often to try what somebody may get in the way of."""

_END_TIMEOUT = 5.0

_FIRST: LiteralString = """
SELECT oid::int8, current_setting('max_prepared_transactions')::int > 0 FROM pg_database WHERE datname = %s
"""


class Watch:
    """Knows what happens in the database `name`, from `begin` until `leave`."""

    def __init__(self, server: Server, name: str) -> None:
        self._server = server
        self._name = name
        self._oid = 0
        self._since = 0
        """The log from this position on is what a reset has to undo, in bytes."""
        self._advisory: frozenset[str] = frozenset()
        """The advisory locks that were held at the baseline."""
        self._may_prepare = False
        self.has_unlogged = False
        """Whether there are tables or sequences that the log has nothing of: whoever knows says so."""
        self._past: Past | None = None
        self._undo: Undo | None = None

    @property
    def past(self) -> Past:
        """The session that sees the baseline."""
        assert self._past is not None
        return self._past

    @property
    def has_past(self) -> bool:
        """Whether the past is still there, as far as we have heard."""
        return self._past is not None and not self._past.connection.broken

    @property
    def undo(self) -> Undo:
        """The session that sees, and mends, the present."""
        assert self._undo is not None
        return self._undo

    def begin(self) -> None:
        """Take the present state for the baseline. Raises ServerError, psycopg.Error."""
        row = self._server.admin.execute(_FIRST, [self._name], prepare=True).fetchone()
        assert row is not None
        self._oid, self._may_prepare = row
        self._server.execute("SET stats_fetch_consistency = none")  # as our other sessions have it
        self._undo = Undo(self._server, self._name)
        self._past = Past(self._server, self._name, self._oid)
        self.begin_again()

    def begin_again(self) -> None:
        """Take what is there by now for the baseline; nobody else may be connected."""
        look = self.past.renew(ours=[self.undo.pid], since=None)
        self._since, self._advisory = look.before, look.advisory

    def leave(self) -> None:
        """End both sessions."""
        for session in (self._past, self._undo):
            if session is not None:
                session.close()
        self._past = self._undo = None

    def look(self, since: datetime | None = None) -> quiet.Look:
        """Who is doing what in the database, us left out."""
        return quiet.look(self._server.admin, self._oid, ours=[self.past.pid, self.undo.pid], since=since)

    def ask(self, since: datetime) -> psycopg.Cursor[Any]:
        """The question of `look` on the connection of `undo`, as a part of what that does at once."""
        return quiet.ask(self.undo.connection, self._oid, ours=[self.past.pid, self.undo.pid], since=since)

    def settle(self, *, keep_locks: bool = False) -> quiet.Look:
        """End whoever is in the middle of something: what began before a baseline must not end after it.

        So is who has taken an advisory lock since the baseline and kept it, but with `keep_locks`.
        Raises NotProvenError, NotReadyError.
        """
        for _ in range(ATTEMPTS):
            look = quiet.wait(self.look)
            taken = frozenset() if keep_locks else look.advisory - self._advisory
            holding = {int(lock.partition(" ")[0]) for lock in taken}
            if look.busy or holding:
                self.end(look.busy | holding)
            elif self._roll_back_prepared():
                continue
            else:
                return look
        raise NotProvenError("connections came back as fast as they were ended")

    def is_untouched(self, look: quiet.Look) -> bool:
        """Whether nothing at all was written in the server since the baseline."""
        return look.after == self._since

    def is_at_baseline(self, look: quiet.Look) -> bool:
        """Whether at `look` nobody had a transaction open, or had written to this database since the baseline."""
        if look.busy or self.has_unlogged:
            return False
        if self.is_untouched(look):
            return True
        try:
            return not self.read(look).files
        except (NotProvenError, psycopg.Error):
            return False

    def read(self, look: quiet.Look) -> wal.Touched:
        """What was written from the baseline until `look`. Raises NotProvenError, psycopg.Error."""
        admin = self._server.admin
        end = look.after if look.flushed >= look.after else wal.flush(admin)
        if end - self._since > wal.WORTH:
            raise NotProvenError(f"{(end - self._since) >> 20} MB were written in the server")
        return wal.read(admin, self._oid, self._since, end)

    def renew_at_once(self, put_back: Callable[[], None], *, since: quiet.Look) -> quiet.Look:
        """In one round trip call `put_back`, have a new past begin, and see who has moved since that look.

        Until `settle_on` that is believed the old past is there as well; `forget_new` ends the new one instead.
        """
        with self.undo.at_once() as pipeline:
            put_back()
            pipeline.sync()  # which commits
            answer = self.past.begin_on(self.undo.connection, ours=[self.past.pid, self.undo.pid], since=since.at)
        return quiet.seen(answer)

    def settle_on(self, look: quiet.Look) -> None:
        """The new past, seen at `look`, is the baseline; the session that held the old one acts from now on."""
        self.past.change_places(self.undo)
        self._since, self._advisory = look.before, look.advisory

    def forget_new(self) -> None:
        """The past stays the old one."""
        self.undo.connection.execute("COMMIT")

    def renew(self, look: quiet.Look, *, full: Iterable[Relation] = ()) -> None:
        """Vacuum `full`, have a new past, and the log read from there on.

        Raises NotProvenError if somebody has written since `look`.
        """
        if full:
            self.past.release()  # what it protects could not be vacuumed
            self.undo.vacuum(full)
        after = self.past.renew(ours=[self.undo.pid], since=look.at)
        if after.has_moved_since(look) and self.was_written(look, ours={wal.PAGE, wal.INPLACE}):
            raise NotProvenError("somebody went on writing")
        self._since, self._advisory = after.before, after.advisory

    def was_written(self, look: quiet.Look, *, ours: AbstractSet[str], but: Collection[int] = ()) -> bool:
        """Whether anything was written since `look` began but kinds of record that are `ours`, and to the files `but`.

        Or may have been, where there is what the log has nothing of.
        """
        if self.has_unlogged:
            return True
        admin = self._server.admin
        touched = wal.read(admin, self._oid, look.before, wal.flush(admin))
        others = (file for filenode, file in touched.files.items() if filenode not in but)
        return touched.shared or any(file.kinds - ours for file in others)

    def end(self, pids: Iterable[int]) -> None:
        """End these sessions, and tell this process's pools. Raises NotReadyError."""
        quiet.end(self._server.admin, pids, timeout=_END_TIMEOUT)
        pools.were_cut_off()

    def end_temporary(self, numbers: Iterable[int]) -> None:
        """End the sessions whose temporary schemas have these numbers: with a session goes what it has there."""
        query = "SELECT pg_stat_get_backend_pid(number) FROM unnest(%s::int4[]) number"
        pids = [pid for (pid,) in self._server.admin.execute(query, [list(numbers)]) if pid is not None]
        if not pids or not {self.past.pid, self.undo.pid}.isdisjoint(pids):
            raise NotProvenError("temporary tables were left")
        self.end(pids)

    def _roll_back_prepared(self) -> bool:
        """Roll back what was prepared and neither committed nor rolled back; whether there was any."""
        return self._may_prepare and self._server.roll_back_prepared(self._name)
