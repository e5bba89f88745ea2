"""Reset by clone: the database is dropped and made anew, under the same name, from its baseline."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, LiteralString

import psycopg

from pgsandbox import pools
from pgsandbox.errors import ServerError
from pgsandbox.isolation import unlogged
from pgsandbox.isolation.reset import wal
from pgsandbox.isolation.reset.errors import NotProvenError
from pgsandbox.server import limit_with_ours

if TYPE_CHECKING:
    from pgsandbox.server import Server
    from pgsandbox.template import Facts

_VISITORS: LiteralString = """
SELECT sessions FROM pg_stat_database WHERE datname = %s AND NOT EXISTS (
    SELECT FROM pg_stat_activity WHERE datname = %s AND backend_type <> 'autovacuum worker'
)
"""


class CloneIsolation:
    """One database, entered by the role `login`, that is a clone of its baseline, and can be made so again."""

    def __init__(self, server: Server, name: str, *, login: str, template: str, facts: Facts, budget: int) -> None:
        self.made_anew: list[str] = []
        self._template = template
        self._moved: list[str] = []
        self._over: set[str] = set()
        self._server = server
        self._name = name
        self._login = login
        self._facts = facts
        self._budget = budget
        self._numbers = itertools.count(1)
        self._snapshots: set[str] = set()
        self._unlogged: dict[str, tuple[str, ...]] = {}
        self._written = 0
        self._visits: int | None = None

    @property
    def baseline(self) -> str:
        """The database, in the same server, that is the baseline's state."""
        return self._moved[-1] if self._moved else self._template

    def create(self) -> None:
        """Make the database for the first time."""
        if self._server.take_spare(self._name, limit=limit_with_ours(self._budget)):
            self._finish(self._template)
        else:
            self._clone(self.baseline)

    def reset(self) -> None:
        """Make it anew from its baseline. Whoever was connected is cut off."""
        self.restore(self.baseline)

    def remake(self) -> None:
        """The same."""
        self.reset()

    def is_untouched(self) -> bool:
        """Whether nothing was written in the database since the last clone.

        Where that can't be read: whether nothing was in the server, or nobody has been in the database.
        """
        if self._position() == self._written:
            return True
        if self._facts.why_clone is not None:
            return self._visits is not None and self._visits == self._visitors()
        try:
            admin = self._server.admin
            [(oid,)] = self._server.execute("SELECT oid::int8 FROM pg_database WHERE datname = %s", [self._name])
            end = wal.flush(admin)
            return end - self._written <= wal.WORTH and not wal.read(admin, oid, self._written, end).files
        except (psycopg.Error, NotProvenError):
            return False

    def move_baseline(self, *, if_changed: bool = False) -> str | None:
        """Make a copy of the database as it is now the baseline; what `return_baseline` takes. Cuts connections.

        With `if_changed` None, and nothing done, where it is untouched.
        """
        if if_changed and self.is_untouched():
            return None
        self._moved.append(self.snapshot())
        self._note()
        return self._moved[-1]

    def return_baseline(self, moved: str | None) -> None:
        """Make it anew from the baseline before `moved`. What others were moved on top of goes with the last."""
        if moved not in self._moved:
            return
        self._over.add(moved)
        over: list[str] = []
        while self._moved and self._moved[-1] in self._over:
            over.append(self._moved.pop())
        if over:
            self.reset()
        for copy in over:
            self.forget(copy)

    def snapshot(self) -> str:
        """A copy of the database as it is now. Whoever was connected is cut off: a copy needs it quiet."""
        name = f"{self._name}-at-{next(self._numbers)}"
        self._server.drop_database(name)
        self._server.allow_connections(self._name, False)  # else who is cut off reconnects before it is copied
        try:
            self._server.disconnect(self._name)
            pools.were_cut_off()
            self._server.create_database(name, template=self._name)
        finally:
            self._server.allow_connections(self._name, True)
        with self._server.inside(name) as connection:
            self._unlogged[name] = unlogged.filled(connection)
        self._server.allow_connections(name, False)
        self._snapshots.add(name)
        return name

    def restore(self, snapshot: str) -> None:
        """Make it anew from `snapshot`."""
        self._server.drop_database(self._name)
        pools.were_cut_off()
        self._clone(snapshot)

    def forget(self, snapshot: str) -> None:
        """Drop the copy `snapshot`."""
        self._server.drop_database(snapshot)
        self._snapshots.discard(snapshot)

    def drop(self) -> None:
        """Drop the database itself, and its snapshots."""
        for name in (*self._snapshots, self._name):
            self._server.drop_database(name)

    def close(self) -> None:
        """Nothing is held."""

    def _clone(self, source: str) -> None:
        self._server.create_database(self._name, template=source, limit=limit_with_ours(self._budget))
        self._finish(source)

    def _finish(self, source: str) -> None:
        """Give a copy of `source` what its files do not bring. Raises ServerError where they no longer bring all."""
        if (lost := self._lost_in(source)) and self._server.has_crashed:
            where = ", in the template, too" if source == self._template else ""
            raise ServerError(
                "PostgreSQL crashed, and the content of unlogged tables with it: tests can't start from their baseline",
                why=f"recovery empties them{where}: {', '.join(lost)}",
                hint="run again; who or what killed one of its processes?",
            )
        self._facts.apply(self._server, self._name, self._login)
        self._note()

    def _note(self) -> None:
        """Take what is there now for untouched."""
        self._written = self._position()
        self._visits = self._visitors() if self._facts.why_clone is not None else None

    def _visitors(self) -> int | None:
        """How many sessions the database has had, if none is there now; None where that can't be known.

        Before PostgreSQL 15 they were counted with a delay.
        """
        if self._server.version_num < 150000:
            return None
        found = self._server.execute(_VISITORS, [self._name, self._name])
        return int(found[0][0]) if found else None

    def _lost_in(self, source: str) -> tuple[str, ...]:
        """What was in `source` before a crash, and is no longer, as far as that can be told."""
        return self._facts.unlogged if source == self._template else self._unlogged.get(source, ())

    def _position(self) -> int:
        """How far the server's log is written, in bytes."""
        [(position,)] = self._server.execute("SELECT (pg_current_wal_insert_lsn() - '0/0')::int8", often=True)
        return int(position)
