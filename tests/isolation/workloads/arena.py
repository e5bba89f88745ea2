"""Where workloads are played: a database with everything in it, compared with its baseline after each reset."""

from __future__ import annotations

import contextlib
import select
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import psycopg
from psycopg.pq import TransactionStatus

from pgsandbox import Database, Sandbox
from pgsandbox.isolation.verify.differences import differences
from pgsandbox.isolation.verify.dump import Dump, dump
from workloads.workload import BACKGROUND, SESSIONS, SUPERUSER, Round, Step, Workload

FOLDER = Path(__file__).parent
_OPTIONS = "-c lock_timeout=30ms -c statement_timeout=5s -c client_min_messages=error"
"""Sessions that wait for each other in vain do not hold up a workload for long."""

_PROBE = """
    SELECT (SELECT array_agg((id, name, n, extract(epoch FROM at)) ORDER BY id)::text FROM public.plain),
           (SELECT count(*) FROM public.reference),
           (SELECT last_value FROM public.lone), (SELECT count(*) FROM public.unlogged)
"""
"""What a session asks for again and again, by a statement that it has prepared once."""

_NEXT = "SELECT {}".format(
    ", ".join(
        f"nextval('public.{name}')"
        for name in ("lone", "cached", "circle", "backwards", "used", "shared", "unlogged_sequence", "empty_id_seq")
    )
)


class LeftBehindError(AssertionError):
    """A reset did not bring back what was there."""


class Arena:
    """A database of `sandbox` and the proof for each of its resets. `tally` counts what happened."""

    def __init__(self, sandbox: Sandbox, *, alone: bool = True, order: bool = False) -> None:
        self._sandbox = sandbox
        self._alone = alone
        self._order = order
        self._stack = contextlib.ExitStack()
        self._admin: psycopg.Connection[Any] | None = None
        self.tally: Counter[str] = Counter()
        self.database = self._prepared(sandbox.database())
        try:
            self.baseline = self._dump()
            with self.database.connect(autocommit=True) as connection:
                self._probed = connection.execute(_PROBE).fetchone()
                self._next = connection.execute(_NEXT).fetchone()
            self.database.reset()
            self._prove()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give up the database."""
        self._stack.close()
        if self._admin is not None:
            self._admin.close()

    def play(self, workload: Workload) -> None:
        """Play `workload`, a reset and a comparison after each of its rounds. Raises LeftBehindError."""
        sessions = {name: _Session(self.database) for name in SESSIONS}
        try:
            for one in workload.rounds:
                self._play(one, sessions)
        except BaseException:
            for session in sessions.values():
                session.close()
            self._recover()
            raise
        finally:
            for session in sessions.values():
                session.close()

    def _play(self, one: Round, sessions: dict[str, _Session]) -> None:
        self.tally["rounds"] += 1
        if one.asks:
            asking = sessions[SESSIONS[0]]
            found = asking.ask(_NEXT)
            if found != self._next:
                raise LeftBehindError(f"nextval gives {found} after the reset, and {self._next} at the baseline")
        for step in one.steps:
            if step.session not in sessions:
                sessions[step.session] = _Session(self.database if step.session == BACKGROUND else self._superuser())
            self.tally["done" if sessions[step.session].run(step) else "refused"] += 1
            if step.session == BACKGROUND:
                self._wait_until_begun(step)
        if SUPERUSER in sessions:
            sessions.pop(SUPERUSER).close()
        idle = [name for name in SESSIONS if sessions[name].is_idle]
        began = time.perf_counter()
        self.database.reset()
        self.tally["reset µs"] += round((time.perf_counter() - began) * 1e6)
        self._prove()
        if BACKGROUND in sessions:
            sessions.pop(BACKGROUND).close()
        for name in SESSIONS:
            if sessions[name].is_cut:
                self.tally["cut while idle" if name in idle else "cut"] += 1
                sessions[name].close()
                sessions[name] = _Session(self.database)
            elif (found := sessions[name].probe()) != self._probed:
                raise LeftBehindError(f"session {name} goes on and finds {found}, not {self._probed}")
            else:
                self.tally["lives on"] += 1

    def _wait_until_begun(self, step: Step) -> None:
        """What is still on its way to the server at the reset is nobody's to undo."""
        query = "SELECT FROM pg_stat_activity WHERE datname = %s AND query = %s"
        deadline = time.monotonic() + 5
        while not self._sandbox.server.admin.execute(query, [self.database.name, step.sql]).fetchall():
            if time.monotonic() > deadline:
                break  # it could not even connect
            time.sleep(0.001)

    def _prove(self) -> None:
        found = differences(self.baseline, self._dump(self.baseline), order=self._order)
        if found:
            raise LeftBehindError("\n".join(found[:30]))

    def _dump(self, like: Dump | None = None) -> Dump:
        """By a connection that is kept as long as it is let live: that is three times as fast."""
        for again in (True, False):
            if self._admin is None or self._admin.closed:
                self._admin = self._sandbox.server.connect_admin(self.database.name)
            try:
                return dump(self._admin, self.database.address, like=like, whole_server=self._alone)
            except psycopg.OperationalError:
                self._admin.close()
                if not again:
                    raise
        raise AssertionError

    def _superuser(self) -> Database:
        """The database as the superuser enters it."""
        running = self._sandbox.server.running
        address = replace(self.database.address, user=running.user, password=running.password)
        return Database(replace(address, host=running.socket or address.host), cast("Any", None))

    def _prepared(self, database: Database) -> Database:
        """With what only a superuser can make, in a baseline that is moved."""
        with self._sandbox.server.inside(database.name) as connection:
            connection.execute((FOLDER / "event_trigger.sql").read_bytes())
            if connection.info.server_version >= 170000:  # before, a reset can't work beside it, and clones
                connection.execute("ALTER EVENT TRIGGER seen ENABLE ALWAYS")
            owner = psycopg.sql.Identifier(self._sandbox.server.names.owner)
            connection.execute(psycopg.sql.SQL("ALTER FUNCTION ddl_seen OWNER TO {}").format(owner))
        self._stack.enter_context(database.baseline())
        return database

    def _recover(self) -> None:
        """After a failure nothing is known: go on in a database made anew."""
        with contextlib.suppress(Exception):
            self._stack.close()
        self._stack = contextlib.ExitStack()
        if self._admin is not None:
            self._admin.close()
        self._sandbox.drop(self.database)
        self.tally["made anew"] += 1
        self.database = self._prepared(self._sandbox.database(f"{self._sandbox.worker}_{self.tally['made anew']}"))
        self.baseline = self._dump()


class _Session:
    """A connection of the application's."""

    def __init__(self, database: Database) -> None:
        self._connection: psycopg.Connection[Any] | None = None
        with contextlib.suppress(psycopg.OperationalError):  # a workload may have forbidden it
            self._connection = database.connect(autocommit=True, options=_OPTIONS, prepare_threshold=None)

    def run(self, step: Step) -> bool:
        """Whether it was done."""
        if self._connection is None:
            return False
        try:
            if step.session == BACKGROUND:
                self._connection.pgconn.send_query(step.sql.encode())
                while self._connection.pgconn.flush():
                    pass
            elif step.data is not None:
                with self._connection.cursor() as cursor, cursor.copy(step.sql.encode()) as copy:
                    copy.write(step.data)
            elif step.sql.startswith("COPY"):
                with self._connection.cursor() as cursor, cursor.copy(step.sql.encode()) as copy:
                    for _ in copy:
                        pass
            else:
                self._connection.execute(step.sql.encode())
        except psycopg.Error:
            return False
        return True

    @property
    def is_idle(self) -> bool:
        return self._connection is not None and self._connection.info.transaction_status == TransactionStatus.IDLE

    @property
    def is_cut(self) -> bool:
        """Whether the server has ended it: it would have said so."""
        if self._connection is None or self._connection.closed:
            return True
        if select.select([self._connection.fileno()], [], [], 0)[0]:  # notifications, or the end
            with contextlib.suppress(psycopg.OperationalError):
                self._connection.execute(b"")
            return self._connection.closed or self._connection.broken
        return False

    def probe(self) -> tuple[Any, ...] | None:
        """What the statement that it has prepared finds, prepared now if it has not been, or no longer is."""
        return self.ask(b"EXECUTE probe", f"PREPARE probe AS {_PROBE}")

    def ask(self, query: str | bytes, prepare: str = "") -> tuple[Any, ...] | None:
        """The answer to a query. Raises LeftBehindError if the server refuses."""
        assert self._connection is not None
        try:
            self._connection.execute(b"RESET ROLE; SET default_transaction_read_only = off")
            if (
                prepare
                and not self._connection.execute(
                    b"SELECT FROM pg_catalog.pg_prepared_statements WHERE name = 'probe'"
                ).fetchall()
            ):
                self._connection.execute(prepare.encode())
            return self._connection.execute(query if isinstance(query, bytes) else query.encode()).fetchone()
        except psycopg.Error as problem:
            raise LeftBehindError(f"a session that was left alone by the reset fails: {problem}") from problem

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()


@contextlib.contextmanager
def arena(sandbox: Sandbox, **options: Any) -> Iterator[Arena]:
    """An `Arena` for the length of the block."""
    found = Arena(sandbox, **options)
    try:
        yield found
    finally:
        found.close()
