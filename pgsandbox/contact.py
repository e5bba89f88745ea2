"""How we stay in touch with one server: connections of our own, and what to say, once, when it does not answer."""

from __future__ import annotations

import contextlib
import math
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import psycopg

from pgsandbox import engines, libpq, pools
from pgsandbox.bounded import BoundedConnection
from pgsandbox.engines import supervised
from pgsandbox.engines.condition import leave_word
from pgsandbox.errors import CutError, ServerError, first_line

if TYPE_CHECKING:
    from pgsandbox.engines import Running
    from pgsandbox.engines.condition import Condition

_UNMOVED = "-c role=none -c default_transaction_read_only=off -c statement_timeout=0 -c lock_timeout=0"
"""What `ALTER DATABASE … SET` in a migration could do to our own connections, undone."""

_ONLY_ON_DEMAND = 1 << 30
"""Executions before a statement is prepared without being asked to: never, since most of ours run once."""

_LONGEST = 600.0
"""Seconds for one statement of ours on a server that is at work: a clone of a large database takes minutes."""

_LAG = 2.0
"""Seconds in which the slot of a connection that was just closed is free again."""

_IN_RECOVERY = r"the database system is (starting up|in recovery mode|not yet accepting|not accepting)"
_PASSES = "too many clients already|remaining connection slots|server closed the connection|Connection reset"
"""What is over in a moment: a slot just closed, or a handshake that a crash has cut off."""

_END_TIMEOUT = 10.0
_ENDED = "run again; if nobody ended it on purpose, did memory run out?"
_SILENT = "is the machine overloaded? Else look at its log, and run again"


class Contact:
    """The connections of one process to `running`, which may take `timeout` seconds to answer.

    When it does not, what raises is the same error each time, at once, until it answers again.
    """

    def __init__(self, running: Running, *, timeout: float) -> None:
        self._running = running
        self._timeout = timeout
        self._admin: BoundedConnection | None = None
        self._lost: ServerError | None = None
        self._is_final = False

    @property
    def lost(self) -> ServerError | None:
        """Why the server did not answer when it was last asked."""
        return self._lost

    @property
    def is_cut(self) -> bool:
        """Whether the connection that is kept was lost."""
        return self._admin is not None and self._admin.closed

    @property
    def admin(self) -> BoundedConnection:
        """The connection that is kept: opened when first needed, and again if it was cut off. Raises ServerError."""
        admin = self._admin
        if admin is None or admin.closed or (admin.pgconn.transaction_status == _IDLE and pools.is_ended(admin)):
            if admin is not None:
                admin.close()
            self._admin = self.open(self._running.detail.get("maintenance", "postgres"))
            return self._admin
        return admin

    def close(self) -> None:
        """Close the connection that is kept."""
        if self._admin is not None:
            self._admin.close()

    def conninfo(self, database: str, options: str = "") -> str:
        """How to connect to `database` as the superuser (libpq connection string; holds the password)."""
        running = self._running
        if running.engine == "external":
            return psycopg.conninfo.make_conninfo(running.detail["url"], dbname=database)
        parts: dict[str, Any] = {**libpq.PLAIN, "user": running.user, "port": running.port, "dbname": database}
        parts |= {"host": running.socket} if running.socket else {"host": running.host, "password": running.password}
        parts["options"] = f"{_UNMOVED} {options}".rstrip()
        return psycopg.conninfo.make_conninfo("", **parts)

    def open(self, database: str, options: str = "") -> BoundedConnection:
        """A further connection, to `database`; the caller closes it. Waits for a recovery. Raises ServerError."""
        self._raise_if_lost()
        began = time.monotonic()
        while True:
            try:
                connection = BoundedConnection.open(
                    self.conninfo(database, options),
                    ask=self._ask,
                    connect_timeout=math.ceil(self._timeout),
                    application_name="pgsandbox",
                    prepare_threshold=_ONLY_ON_DEMAND,
                    client_encoding="UTF8",
                    keepalives_idle=30,
                )
                connection.prepared_max = 1000
                return connection
            except psycopg.OperationalError as problem:
                waited, said = time.monotonic() - began, str(problem)
                passes = self._timeout if re.search(_IN_RECOVERY, said) else _LAG if re.search(_PASSES, said) else 0.0
                if waited >= passes:
                    self._give_up(problem)
                time.sleep(0.02)

    def end_if_halted(self) -> None:
        """End the server if somebody has paused or stopped it: else who waits for its answer would do so for ever."""
        condition = self._condition()
        if condition.is_halted:
            folder = Path(self._running.folder)
            leave_word(folder, f"{condition.why}; {self._timeout:g}s later it was ended, so that nobody waits for ever")
            supervised.end(folder, timeout=_END_TIMEOUT)

    def _ask(self, connection: BoundedConnection, waited: float) -> float:
        """Whether to wait longer for an answer: for one that is at work, but not for one that somebody has halted."""
        if waited < self._timeout:
            return min(1.0, self._timeout - waited)
        condition = self._condition()
        if condition.is_over or condition.is_halted:
            self._lose(condition, condition.why)
        if waited > _LONGEST:
            what = f"{self._name} was not done within {_LONGEST:g}s with: {connection.asked}"
            raise ServerError(what, why=condition.why or None, hint="is the machine overloaded?")
        return min(self._timeout, _LONGEST)

    def _give_up(self, problem: psycopg.OperationalError) -> NoReturn:
        said, condition = first_line(problem), self._condition()
        if "FATAL:" in said and not condition.is_over:
            raise ServerError(
                f"{self._name} refuses our own connection",
                why=said.partition("FATAL:")[2].strip(),
                hint="were all connections taken, or was the superuser's password or pg_hba.conf changed?",
            ) from problem
        is_slow = isinstance(problem, psycopg.errors.ConnectionTimeout)
        is_ours = self._running.engine != "external"
        if is_ours and not (is_slow or condition.is_running or condition.is_halted):
            condition = replace(condition, is_over=True)  # where nobody listens any more, nobody will again
        why = condition.why if condition.is_over or condition.is_halted else f"{said}\n{condition.why}".strip()
        is_final = (is_slow or (is_ours and not condition.is_running)) and not condition.is_halted
        self._lose(condition, why, is_final=is_final, problem=problem)

    def _lose(
        self, condition: Condition, why: str, *, is_final: bool = False, problem: Exception | None = None
    ) -> NoReturn:
        is_silent = condition.is_halted or isinstance(problem, psycopg.errors.ConnectionTimeout)
        what = "has ended" if condition.is_over else "does not answer"
        if is_silent and not condition.is_over:
            what = f"has not answered for {self._timeout:g}s"
        hint = condition.hint or (_ENDED if condition.is_over else _SILENT)
        self._lost = ServerError(f"{self._name} {what}", why=why, hint=hint)
        self._is_final = is_final or condition.is_over
        if condition.is_over and self._running.engine != "external":  # what is left of it may be in others' way
            folder = Path(self._running.folder)
            leave_word(folder, why)
            supervised.end(folder, timeout=_END_TIMEOUT, removed=False)
        raise self._lost from problem

    def _raise_if_lost(self) -> None:
        """One failure is not waited for twice."""
        if self._lost is not None:
            if self._is_final or self._condition().is_halted:
                raise self._lost.with_traceback(None)
            self._lost = None

    def _condition(self) -> Condition:
        return engines.named(self._running.engine).condition(self._running)

    @property
    def _name(self) -> str:
        return f"the {self._running.engine} server at {self._running.host}:{self._running.port}"


_IDLE = psycopg.pq.TransactionStatus.IDLE


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """What the driver raises in the block, in the middle of what we do for a test, in our words: ServerError."""
    try:
        yield
    except psycopg.errors.DiskFull as problem:
        raise disk_full("the server", problem) from problem
    except psycopg.Error as problem:
        kind = CutError if isinstance(problem, psycopg.OperationalError) else ServerError
        raise kind("the server refused, or was lost, in the middle of our work", why=first_line(problem)) from problem


def disk_full(server: str, problem: psycopg.Error) -> ServerError:
    """The error for a server whose disk, or tmpfs, is full."""
    return ServerError(
        f"{server} has no space left",
        why=first_line(problem),
        hint="free some space; a container's data is on a tmpfs, that is in memory",
    )
