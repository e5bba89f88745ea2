"""Who holds a worker's connections: leaks after a test, and the holders when a budget is used up."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pgsandbox.server import Server

_LAG = 0.25
"""Seconds that the server may take to notice that a connection was closed."""

_LEFT = """
SELECT pid, state, left(query, 80) FROM pg_stat_get_activity(NULL)
WHERE datid = (SELECT oid FROM pg_database WHERE datname = %s) AND usesysid <> current_user::regrole
      AND state IN ('active', 'idle in transaction', 'idle in transaction (aborted)') ORDER BY pid
"""
"""Asked after each test, and so without pg_stat_activity, which looks up names for everybody."""


def leaked(server: Server, database: str) -> str | None:
    """The connections to `database` that a test left in the middle of something, in words; None if there is none.

    Idle connections are an application's pool and no leak; one that is busy or in a transaction would keep its locks.
    """
    deadline = time.monotonic() + _LAG
    while rows := server.execute(_LEFT, [database], often=True):
        if time.monotonic() > deadline:
            break
        time.sleep(0.005)
    if not rows:
        return None
    what = "; ".join(f"{state}: {query}" for _, state, query in rows)
    return f"{len(rows)} connection{'s' if len(rows) > 1 else ''} ({what})"


def holders(server: Server, role: str) -> str | None:
    """Who holds the connections of `role`, a line each, longest first; None if the server has no such role."""
    found = server.execute("SELECT rolconnlimit FROM pg_roles WHERE rolname = %s", [role])
    if not found:
        return None
    rows = server.execute(
        """
        SELECT pid, state, now() - coalesce(state_change, backend_start), application_name, left(query, 80)
        FROM pg_stat_activity WHERE usename = %s ORDER BY state_change
        """,
        [role],
    )
    if not rows:
        return (
            f"all of the {found[0][0]} connections of {role} have been closed since, as the test failed or before\n"
            "the setting connections raises the budget"
        )
    lines = [f"{len(rows)} of the {found[0][0]} connections of {role} are held:"]
    for pid, state, since, application, query in rows:
        name, said = application or "unnamed", query or "no statement yet"
        lines.append(f"  pid {pid}, {state} for {since.total_seconds():.1f}s, {name}: {said}")
    lines.append(
        "a connection that was just closed may still count for a moment; the setting connections raises the budget"
    )
    return "\n".join(lines)
