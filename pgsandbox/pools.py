"""Pools of this process that a clone has cut off: told to reconnect, before a test is handed a dead connection."""

from __future__ import annotations

import contextlib
import select
import sys
from typing import Any

_state = {"clones": 0, "is_listening": False}
_MARK = "pgsandbox"


def were_cut_off() -> None:
    """Have SQLAlchemy's pools look at each connection once more before they hand it out.

    Only where the application has loaded SQLAlchemy. Its documented way to refuse a connection at checkout
    ("Dealing with Disconnects") makes the pool replace it without anybody noticing.
    """
    _state["clones"] += 1
    if "sqlalchemy.pool" in sys.modules and not _state["is_listening"]:
        from sqlalchemy import event
        from sqlalchemy.pool import Pool

        event.listen(Pool, "connect", _connected)
        event.listen(Pool, "checkout", _checked_out)
        _state["is_listening"] = True


def _connected(_connection: Any, record: Any) -> None:
    record.info[_MARK] = _state["clones"]


def _checked_out(connection: Any, record: Any, _proxy: Any) -> None:
    if record.info.get(_MARK) == _state["clones"]:
        return
    if _is_ended(connection):
        from sqlalchemy.exc import DisconnectionError

        raise DisconnectionError("the database was made anew")
    record.info[_MARK] = _state["clones"]


def _is_ended(connection: Any) -> bool:
    """Whether the server has said something while nobody asked: a connection at rest hears only of its end."""
    with contextlib.suppress(Exception):  # a driver without a socket to look at, or a connection closed by its user
        return bool(select.select([connection.fileno()], [], [], 0)[0])
    return False
