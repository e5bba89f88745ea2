"""Connections of our own never wait without end: while the server is silent, somebody is asked whether to go on."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Self

import psycopg
from psycopg import sql

if TYPE_CHECKING:
    from pgsandbox.errors import PgsandboxError

Ask = Callable[["BoundedConnection", float], float]
"""Called with the seconds that a connection has waited for one answer: how many it may wait until it asks again.

What it raises ends the wait, and the connection."""


def within(seconds: float, error: Callable[[BoundedConnection], PgsandboxError]) -> Ask:
    """To be patient for so many seconds for each answer, and then raise `error`."""

    def ask(connection: BoundedConnection, waited: float) -> float:
        if waited >= seconds:
            raise error(connection)
        return min(1.0, seconds - waited)

    return ask


class BoundedConnection(psycopg.Connection[tuple[Any, ...]]):
    """A connection that asks `ask` while the server is silent. To wait for an answer that comes costs nothing more."""

    ask: Ask | None = None
    _statement: Any = ""

    @classmethod
    def open(cls, conninfo: str, *, ask: Ask, **parameters: Any) -> Self:
        """As `psycopg.connect`, in autocommit; `connect_timeout` is the caller's to give."""
        connection = cls.connect(conninfo, autocommit=True, **parameters)
        connection.ask = ask
        return connection

    @property
    def asked(self) -> str:
        """The beginning of the last statement: it is never long enough to hold a secret."""
        text = self._statement.as_string(self) if isinstance(self._statement, sql.Composable) else self._statement
        return " ".join(str(text).split()[:3])

    def execute(self, query: Any, *args: Any, **more: Any) -> Any:
        """As psycopg's."""
        self._statement = query
        return super().execute(query, *args, **more)

    def wait(self, gen: Any, *args: Any, **more: Any) -> Any:
        """As psycopg's, which everything that waits for an answer goes through."""
        if self.ask is None:
            return super().wait(gen, *args, **more)
        try:
            return super().wait(self._asking(gen), *args, **more)
        except psycopg.Error:
            raise
        except BaseException:
            self.close()  # in the middle of a statement it is of no more use
            raise

    def _asking(self, gen: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        """`gen`, which psycopg wakes ten times a second with the word that nothing has come."""
        assert self.ask is not None
        began, due = time.monotonic(), 0.0
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if not ready and (waited := time.monotonic() - began) >= due:
                    due = waited + self.ask(self, waited)
                wanted = gen.send(ready)
        except StopIteration as done:
            return done.value
