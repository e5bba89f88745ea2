"""Settings and the number of workers in, PostgreSQL's own settings out."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pgsandbox.settings import Settings

OURS = 3
"""Connections to each worker's database that pgsandbox itself may need beside the worker's budget."""

_RESERVE = 10
"""Connections for administration: one per process that looks after a server, and for a human with psql."""

_SLACK = 100
"""Slots for handshakes that are not authenticated yet: the attempts of a worker that overdraws take a slot until
they are refused. With this many spare ones no neighbour was ever refused."""


def max_connections(*, workers: int, budget: int) -> int:
    """How many connections a server for `workers` workers of `budget` connections each must allow."""
    return workers * (budget + OURS) + _RESERVE + _SLACK


def fitting_budget(*, workers: int, budget: int, available: int) -> int:
    """The budget, at most `budget`, that `workers` workers can have of `available` connections; 0 if none."""
    return max(0, min(budget, available // max(1, workers) - OURS))


def flags(settings: Settings, *, workers: int, is_baked: bool = False) -> dict[str, str]:
    """The server's settings, by name (PostgreSQL manual, chapter 19, "Server Configuration"); `options` win."""
    found = {
        "max_connections": str(max_connections(workers=workers, budget=settings.connections)),
        # A killed client's statement ends within a second instead of committing whenever it is done.
        "client_connection_check_interval": "1s",
        # Nothing runs beside the tests that could change what they see or what they cost.
        "autovacuum": "off",
        "jit": "off",
        "max_wal_senders": "0",
        "wal_level": "minimal",
        "shared_buffers": "128MB",
        # Checkpoints only where the amount of WAL asks for one: the data may be on a tmpfs.
        "checkpoint_timeout": "1d",
        "max_wal_size": "1GB",
        "min_wal_size": "32MB",
    }
    if not settings.durable:
        found |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
    if is_baked:  # a WAL file that is begun is empty then, and not an old one with what was written before
        found |= {"wal_recycle": "off"}
    for option in settings.options:
        name, _, value = option.partition("=")
        found[name.strip()] = value.strip()
    return found
