"""Connections of this process that were cut off: their pools are told, before a test is handed a dead one.

Each library is only looked at where the application has loaded it, and told in the way that it has for that.
"""

from __future__ import annotations

import contextlib
import gc
import select
import sys
from collections.abc import Iterator
from typing import Any

_state = {"cuts": 0, "told": 0, "is_listening": False}
_untold: set[str] = set()
_MARK = "pgsandbox"
_DRAIN_TIMEOUT = 5.0


def were_cut_off() -> None:
    """Note that connections were ended; `tell` says so to their pools, once the database can be entered again."""
    _state["cuts"] += 1


def tell() -> None:
    """If connections were cut off since this was last called, have every pool replace those that it has."""
    if _state["cuts"] == _state["told"]:
        return
    _state["told"] = _state["cuts"]
    _tell_sqlalchemy()
    _tell_django()
    found = {
        ("psycopg_pool", "ConnectionPool"): _tell_psycopg,
        ("psycopg_pool", "AsyncConnectionPool"): _tell_psycopg_soon,
        ("asyncpg.pool", "Pool"): _tell_asyncpg,
        ("psycopg2.pool", "AbstractConnectionPool"): lambda _pool: False,
    }
    kinds = {kind: tell_it for (module, name), tell_it in found.items() if (kind := _loaded(module, name))}
    for pool in _instances(tuple(kinds)):
        if not _kind(kinds, pool)(pool):
            _untold.add(f"{type(pool).__module__}.{type(pool).__name__}")


def untold() -> list[str]:
    """The classes of pools that could not be told since this was last asked."""
    found = sorted(_untold)
    _untold.clear()
    return found


def _loaded(module: str, name: str) -> Any:
    return getattr(sys.modules.get(module), name, None)


def _instances(kinds: tuple[Any, ...]) -> Iterator[Any]:
    if kinds:
        # By type: to be asked for its class may be too much for somebody's proxy.
        yield from [thing for thing in gc.get_objects() if issubclass(type(thing), kinds)]


def _kind(kinds: dict[Any, Any], pool: Any) -> Any:
    return next(tell for kind, tell in kinds.items() if isinstance(pool, kind))


def is_ended(connection: Any) -> bool:
    """Whether the server has said something while nobody asked: a connection at rest hears only of its end."""
    with contextlib.suppress(Exception):  # a driver without a socket to look at, or a connection closed by its user
        return bool(select.select([connection.fileno()], [], [], 0)[0])
    return False


# SQLAlchemy -----------------------------------------------------------------------------------------------------------


def _tell_sqlalchemy() -> None:
    """Refuse what was cut off at checkout: its documented way ("Dealing with Disconnects") to have it replaced."""
    if "sqlalchemy.pool" in sys.modules and not _state["is_listening"]:
        from sqlalchemy import event
        from sqlalchemy.pool import Pool

        event.listen(Pool, "connect", _connected)
        event.listen(Pool, "checkout", _checked_out)
        _state["is_listening"] = True


def _connected(_connection: Any, record: Any) -> None:
    record.info[_MARK] = _state["cuts"]


def _checked_out(connection: Any, record: Any, _proxy: Any) -> None:
    if record.info.get(_MARK) == _state["cuts"]:
        return
    if is_ended(connection):
        from sqlalchemy.exc import DisconnectionError

        raise DisconnectionError("the database was made anew")
    record.info[_MARK] = _state["cuts"]


# The others -----------------------------------------------------------------------------------------------------------


def _tell_django() -> None:
    """Close what was cut off in this thread: Django opens a closed connection when it is next used."""
    connections = _loaded("django.db", "connections")
    if connections is not None:
        with contextlib.suppress(Exception):  # not configured, or in the middle of something
            for one in connections.all(initialized_only=True):
                if one.connection is not None and is_ended(one.connection):
                    one.close()


def _tell_psycopg(pool: Any) -> bool:
    """Let the pool replace its connections at once: `drain` is for that (psycopg_pool 3.3), before it was `check`.

    Not by its parameter `check`, which is for connections that fail now and then: after each it sleeps for longer.
    """
    if not getattr(pool, "closed", False):
        (pool.drain if hasattr(pool, "drain") else pool.check)()
    return True


def _tell_psycopg_soon(pool: Any) -> bool:
    """The same where the pool belongs to an event loop, whether that is running or between two runs."""
    if getattr(pool, "closed", False):
        return True
    if not hasattr(pool, "drain"):
        return False
    import asyncio

    loops = {worker.get_loop() for worker in getattr(pool, "_workers", ())}
    for loop in loops:
        if loop.is_running():
            asyncio.run_coroutine_threadsafe(pool.drain(), loop)
        elif not loop.is_closed():
            loop.run_until_complete(asyncio.wait_for(pool.drain(), _DRAIN_TIMEOUT))
    return bool(loops)


def _tell_asyncpg(pool: Any) -> bool:
    """Let the pool replace each connection at its next use, which `Pool.expire_connections` is for."""
    with contextlib.suppress(StopIteration):
        pool.expire_connections().send(None)  # a coroutine that waits for nothing
    return True
