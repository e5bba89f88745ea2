"""A thread that asks the server a question now and then, for a test that would wait for ever where somebody halted it.

A connection to a paused server is alive as far as TCP knows, and drivers have no deadline of their own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pgsandbox.errors import ServerError

if TYPE_CHECKING:
    import psycopg

    from pgsandbox.server import Server

Question = Callable[["psycopg.Connection[Any]"], bool]
"""Asked on a connection to the maintenance database; whether to go on asking."""


class Guard:
    """Asks `question` every `poll` seconds, from the first time that `is_due` on, until `close`.

    A server that does not answer it, since somebody has paused or stopped it, is ended.
    """

    def __init__(
        self, server: Server, question: Question, *, poll: float, is_due: Callable[[], bool] = lambda: True
    ) -> None:
        self._server = server
        self._question = question
        self._poll = poll
        self._is_due = is_due
        self._closed = threading.Event()
        threading.Thread(target=self._ask, name="pgsandbox-guard", daemon=True).start()

    def close(self) -> None:
        """Ask no more; does not wait for an answer that is due."""
        self._closed.set()

    def _ask(self) -> None:
        mine: psycopg.Connection[Any] | None = None
        while not self._closed.wait(self._poll):
            if not self._is_due():
                continue
            try:
                mine = mine or self._server.connect_admin("postgres")
                if not self._question(mine):
                    break
            except ServerError:  # it has gone: the test will tell; or somebody has paused it, and nobody would
                self._server.end_if_halted()
                break
            except Exception:
                break
        if mine is not None:
            mine.close()


def is_there(connection: psycopg.Connection[Any]) -> bool:
    """The question that means nothing but itself."""
    return bool(connection.execute("SELECT true").fetchone())
