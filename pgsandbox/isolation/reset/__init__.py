"""Reset by undoing exactly what was done, with every connection alive; what can't be proven undone is cloned anew.

watch       our two sessions inside the database, and whether anybody else is in the middle of something (quiet)
wal         what was written, by block
judge       whether that is rows and sequences only, and of which tables (relations, shared)
past        what was there before
undo        putting it back
levels      the baselines, one on the other
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import psycopg

from pgsandbox.errors import NotReadyError, first_line
from pgsandbox.isolation import sequences
from pgsandbox.isolation.reset import quiet, relations, undo, wal
from pgsandbox.isolation.reset.errors import NotProvenError
from pgsandbox.isolation.reset.judge import Judge, Plan
from pgsandbox.isolation.reset.levels import Level, Levels
from pgsandbox.isolation.reset.relations import TABLE, VIEW, Relation
from pgsandbox.isolation.reset.watch import ATTEMPTS, Watch

if TYPE_CHECKING:
    from pgsandbox.isolation.clone import CloneIsolation
    from pgsandbox.isolation.reset.shared import Shared
    from pgsandbox.server import Server
    from pgsandbox.template import Facts

_WAITED = "something waited for older snapshots, as a concurrent index build does"
_UNFINISHED = NotProvenError("the last attempt to make it anew failed")
_INTERRUPTED = NotProvenError("the last reset did not come to its end")
_KEPT = 64 << 20
"""Bytes of rows that a moved baseline keeps in this process; what has more becomes a database of its own."""


class ResetIsolation:
    """One database that is put back to its baseline; `clones` makes it, and makes it anew where it must be."""

    def __init__(self, clones: CloneIsolation, server: Server, name: str, *, facts: Facts, shared: Shared) -> None:
        self.made_anew: list[str] = []
        self._clones = clones
        self._server = server
        self._name = name
        self._shared = shared
        self._watch = Watch(server, name)
        self._unwatched: NotProvenError | None = _UNFINISHED
        """Why a reset has to make the database anew; None while it is watched."""
        self._judge = Judge(self._watch, shared)
        self._levels = Levels(server, name, Level(clones.baseline, _by_oid(facts.sequences)))

    def create(self) -> None:
        """Make the database for the first time."""
        self._clones.create()
        self._shared.remember()
        self._unwatched = self._begin()

    def drop(self) -> None:
        """Drop the database, and what was copied from it."""
        self.close()
        self._levels.forget_copy()
        self._clones.drop()

    def close(self) -> None:
        """No longer watch over it."""
        self._watch.leave()

    # The way back ----------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Bring it to its baseline: by undoing, else by a clone. Raises PgsandboxError."""
        with self._whole_or_anew():
            try:
                if self._unwatched is not None:
                    raise self._unwatched
                _repeat(self._is_undone)
            except NotProvenError as reason:
                self._make_anew(str(reason))
            except (psycopg.Error, NotReadyError) as problem:
                self._make_anew(self._in_words(problem))

    @contextlib.contextmanager
    def _whole_or_anew(self) -> Iterator[None]:
        """Where the block is left in its middle, such as by Ctrl-C or a time-out, the next reset makes all anew."""
        try:
            yield
        except BaseException:
            self._unwatched = self._unwatched or _INTERRUPTED
            raise

    def remake(self) -> None:
        """Make it anew at its baseline. Whoever was connected is cut off. Raises PgsandboxError."""
        self._watch.leave()
        self._unwatched = _UNFINISHED  # until it is begun: whatever goes wrong before, the next reset starts here again
        with self._shared.shut():  # else who comes back at once has written before anybody watches
            self._clones.restore(self._levels.source)
            unwatched = self._begin()
            if above := self._levels.over_source:
                for level in above:
                    self._apply(level)
                self._watch.begin_again()
        self._unwatched = unwatched

    def _in_words(self, problem: Exception) -> str:
        """Why a reset was given up, of which this is the sign that we have."""
        if self._server.is_ours and self._server.has_crashed_again():
            return "PostgreSQL crashed, and recovered"
        return first_line(problem) if self._watch.has_past else _WAITED

    def _make_anew(self, reason: str) -> None:
        self.made_anew.append(reason)
        self.remake()

    def _is_undone(self) -> bool:
        """Whether it is at its baseline now; False where somebody got in the way. Raises NotProvenError."""
        look = self._watch.settle()
        if self._watch.is_untouched(look) and not self._watch.has_unlogged:
            return True
        plan = self._judge.plan(self._watch.read(look))
        if plan is None:
            return False
        rows = self._watch.undo.compare(self._watch.past.connection, plan.tables)
        values = self._values(plan.sequences)
        full = self._watch.undo.full(plan.written, rows)
        if not (full or plan.refills or plan.unlogged):
            return self._is_undone_at_once(plan, look, rows, values)
        now, refilled = self._carry_out(plan, look, rows, values)
        if now.has_moved_since(look) and not self._was_only_read(look, plan):
            return False
        self._watch.renew(now, full=dict.fromkeys([*full, *refilled]))
        return True

    def _is_undone_at_once(
        self, plan: Plan, look: quiet.Look, rows: undo.Changes, values: dict[Relation, undo.Value]
    ) -> bool:
        """The same where nothing has to be vacuumed or filled anew: the new past begins as soon as all is put back."""
        now = self._watch.renew_at_once(lambda: self._watch.undo.put_back(rows, values), since=look)
        if now.has_moved_since(look) and not self._was_only_read(look, plan):
            self._watch.forget_new()
            return False
        self._watch.settle_on(now)
        return True

    def _was_only_read(self, look: quiet.Look, plan: Plan) -> bool:
        """Whether whoever was at work while `plan` was carried out has written nothing: the log has but what we wrote.

        A sequence was set by us, and if its value is still that, by nobody else.
        """
        values = {sequence: self._levels.sequence(sequence.oid) for sequence in plan.sequences}
        if plan.refills or any(is_cached for _, _, is_cached in values.values()):
            return False
        ours = {sequence.filenode for sequence in plan.sequences}
        if self._watch.was_written(look, ours={wal.PAGE}, but=ours):
            return False
        # Not the session that may be the next past: it would hold locks on them while the next test runs.
        return self._watch.undo.is_rewound(values, asking=self._watch.past.connection)

    def _carry_out(
        self, plan: Plan, look: quiet.Look, rows: undo.Changes, values: dict[Relation, undo.Value]
    ) -> tuple[quiet.Look, list[Relation]]:
        """Put everything back; who has moved since `look`, and the tables that were filled anew."""
        tools, past = self._watch.undo, self._watch.past.connection
        with tools.at_once():
            tools.put_back(rows, values)
            answer = self._watch.ask(since=look.at)
        refills = [*plan.refills, *(tools.changed(past, plan.unlogged) if plan.unlogged else ())]
        refilled: list[Relation] = []
        if refills:
            if views := [one.name for one in refills if one.kind == VIEW]:
                raise NotProvenError(f"the materialized view {views[0]} was refreshed")
            refilled = tools.refill({table: self._levels.rows(table) for table in refills})
            self._levels.were_refilled(refills)
            answer = self._watch.ask(since=look.at)
        return quiet.seen(answer), refilled

    def _values(self, found: Iterable[Relation]) -> dict[Relation, undo.Value]:
        """What these sequences are at the baseline. No session can use what it has cached of them any more."""
        values = {sequence: self._levels.sequence(sequence.oid) for sequence in found}
        cached = [sequence for sequence, (_, _, is_cached) in values.items() if is_cached]
        self._watch.undo.invalidate(cached)
        self._judge.forget(sequence.oid for sequence in cached)
        return values

    def _begin(self) -> NotProvenError | None:
        """Watch over the database from its present state on, or say why that leaves a trace in it."""
        try:
            self._watch.begin()
            self._judge.begin()
        except NotProvenError as reason:
            self._watch.leave()
            return reason
        return None

    # Baselines -------------------------------------------------------------------------------------------------------

    def is_untouched(self) -> bool:
        """Whether nothing was written since the baseline, and nobody has a transaction open."""
        with contextlib.suppress(psycopg.Error):  # somebody has ended our session: the next reset sees to that
            return self._unwatched is None and self._watch.is_at_baseline(self._watch.look())
        return False

    def move_baseline(self, *, if_changed: bool = False) -> Level | None:
        """Make the present state the baseline. Rows and sequences are kept aside, anything else is a copy, which cuts.

        With `if_changed` None, and nothing done, where it is the baseline already or somebody has a transaction open.
        """
        if if_changed:
            if self._unwatched is not None:
                return None
            with contextlib.suppress(psycopg.Error):
                look = self._watch.look()
                if look.busy or self._watch.is_at_baseline(look):
                    return None
        with self._whole_or_anew():
            try:
                level = self._level_of_rows()
            except (NotProvenError, psycopg.Error, NotReadyError) as reason:
                self.made_anew.append(f"moving the baseline took a copy: {first_line(reason)}")
                level = self._level_of_its_own()
            if if_changed and level.is_empty:
                return None
            self._levels.push(level)
            return level

    def return_baseline(self, moved: Level | None) -> None:
        """Make the baseline what it was before `moved`, and be there."""
        if moved is None or moved not in self._levels:
            return
        with self._whole_or_anew():
            self.reset()
            self._remove(moved)
        if self._levels.top.is_over:
            self.return_baseline(self._levels.top)

    def _remove(self, moved: Level) -> None:
        """Take `moved` out of the baselines, and what it had out of the database, which is at the topmost one."""
        above = self._levels.remove(moved)
        if above is None:
            moved.is_over = True
            return
        if moved.source is not None:
            self._make_anew("the baseline below a copy was returned to")
            self._levels.forget_copy()
            self._clones.forget(moved.source)
        else:
            self._take_out(moved)
            for level in above:
                level.contents = {table: undo.contents(self._watch.undo.connection, table) for table in level.contents}

    def _level_of_rows(self) -> Level:
        """The present state as rows and sequences that differ from the baseline. Raises NotProvenError."""
        if self._unwatched is not None:
            raise self._unwatched
        found: list[Level] = []

        def is_taken() -> bool:
            look = self._watch.settle(keep_locks=True)
            plan = self._judge.plan(self._watch.read(look))
            if plan is None:
                return False
            level = self._level_of(plan)
            now = self._watch.look(since=look.at)
            if now.has_moved_since(look):
                return False
            self._watch.renew(now, full=level.contents)  # lest a later revival lose what points to its row
            found.append(level)
            return True

        _repeat(is_taken)
        return found[0]

    def _level_of(self, plan: Plan) -> Level:
        tools = self._watch.undo
        if plan.refills or tools.changed(self._watch.past.connection, plan.unlogged):
            raise NotProvenError("a table was rewritten")
        changes = tools.compare(self._watch.past.connection, plan.tables)
        level = Level()
        tools.refuse_lasting_triggers(changes)
        for table in changes:
            if table.kind == VIEW:
                raise NotProvenError("a materialized view was refreshed")
            if table.kind == TABLE:
                level.contents[table] = undo.contents(tools.connection, table)
        if sum(map(len, level.contents.values())) > _KEPT:
            raise NotProvenError("too much to be kept in memory")
        if not any(gone for _, gone in changes.values()):
            level.new = {table: new for table, (new, _) in changes.items()}
        level.sequences = _by_oid(sequences.settle(tools.connection, [one.oid for one in plan.sequences]))
        return level

    def _level_of_its_own(self) -> Level:
        self._watch.leave()
        self._unwatched = _UNFINISHED
        with self._shared.shut():
            self._server.disconnect(self._name)
            with self._server.inside(self._name) as connection:
                connection.execute("VACUUM")  # lest a later revival lose what points to its row
                values = sequences.settle(connection)
            source = self._clones.snapshot()
            unwatched = self._begin()
        self._unwatched = unwatched
        return Level(source, _by_oid(values))

    def _take_out(self, moved: Level) -> None:
        """Make the tables and sequences of `moved`, which is no level any more, what they are without it."""
        try:
            tools = self._watch.undo
            values = self._values(relations.by_oid(tools.connection, moved.sequences).values())
            if moved.new is not None:
                tools.put_back({table: (rows, undo.Rows()) for table, rows in moved.new.items()}, values)
                full = list(moved.new)
            else:
                full = tools.refill({table: self._levels.rows(table) for table in moved.contents})
                self._levels.were_refilled(moved.contents)
                tools.put_back({}, values)
            self._watch.renew(self._watch.look(), full=full)
        except (NotProvenError, psycopg.Error, NotReadyError) as reason:
            self._make_anew(f"the baseline below could not be put back: {first_line(reason)}")

    def _apply(self, level: Level) -> None:
        """Make a database that is at the level below be at `level`."""
        tools = self._watch.undo
        full = tools.refill(dict(level.contents))
        found = relations.by_oid(tools.connection, level.sequences).values()
        tools.put_back({}, self._values(found))
        if full:
            tools.vacuum(full)
        level.new = None  # its rows lie elsewhere now

    # Snapshots -------------------------------------------------------------------------------------------------------

    def snapshot(self) -> str:
        """A copy of the database as it is now. Whoever was connected is cut off."""
        self._watch.leave()
        try:
            return self._clones.snapshot()
        finally:
            self._begin_unknown()

    def restore(self, snapshot: str) -> None:
        """Make it anew from `snapshot`; the baseline stays what it is. Whoever was connected is cut off."""
        self._watch.leave()
        self._clones.restore(snapshot)
        self._begin_unknown()

    def _begin_unknown(self) -> None:
        """Watch over a state that is not the baseline: the next reset has to clone."""
        self._unwatched = _UNFINISHED
        self._unwatched = self._begin() or NotProvenError("a copy was made or restored (a snapshot, or keep = failed)")

    def forget(self, snapshot: str) -> None:
        """Drop the copy `snapshot`."""
        self._clones.forget(snapshot)


def _repeat(attempt: Callable[[], bool]) -> None:
    for _ in range(ATTEMPTS):
        if attempt():
            return
    raise NotProvenError("somebody went on writing")


def _by_oid(values: Iterable[tuple[int, int, bool, bool]]) -> dict[int, undo.Value]:
    return {oid: (last, called, is_cached) for oid, last, called, is_cached in values}
