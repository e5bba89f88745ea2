"""pgsandbox: a real PostgreSQL of its own for every test worker, gone afterwards; the public names, loaded lazily."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pgsandbox.database import Database, Snapshot
    from pgsandbox.errors import PgsandboxError
    from pgsandbox.sandbox import Sandbox
    from pgsandbox.server import Server
    from pgsandbox.settings import Settings

__all__ = ["Database", "PgsandboxError", "Sandbox", "Server", "Settings", "Snapshot", "__version__"]

__version__ = "0.1.0"

_HOMES = {
    "Database": "database",
    "PgsandboxError": "errors",
    "Sandbox": "sandbox",
    "Server": "server",
    "Settings": "settings",
    "Snapshot": "database",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
