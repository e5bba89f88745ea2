"""Whether a server answers: a real query against a deadline, given up as soon as the server is known to be dead."""

from __future__ import annotations

import time
from collections.abc import Callable

import psycopg
from psycopg import sql

from pgsandbox import libpq, scram
from pgsandbox.bounded import BoundedConnection
from pgsandbox.errors import NotReadyError, PgsandboxError, first_line

_PAUSE = 0.02


def wait_and_rekey(
    *,
    host: str,
    port: int,
    user: str,
    password: str,
    timeout: float,
    within: float,
    died: Callable[[], PgsandboxError | None],
    last_words: Callable[[], str],
) -> tuple[str, str]:
    """Wait until `user` can run a query, then give it a password that only we know; that, and the version (`15.18`).

    Raises what `died` returns as soon as that is an error, NotReadyError with the last reason after `timeout` seconds,
    which are what is left of `within`.
    """
    deadline = time.monotonic() + timeout
    reason = "it was never asked"

    def give_up(connection: BoundedConnection, _waited: float) -> float:
        if time.monotonic() > deadline:
            raise _not_ready(f"it did not answer to {connection.asked}", host, port, within, last_words())
        return 0.0

    while time.monotonic() < deadline:
        try:
            with BoundedConnection.open(
                "",
                ask=give_up,
                host=host,
                port=port,
                user=user,
                password=password,
                dbname="postgres",
                connect_timeout=2,
                **libpq.PLAIN,
            ) as connection:
                fresh = scram.new_password()
                alter = sql.SQL("ALTER ROLE {} PASSWORD {}")
                connection.execute(alter.format(sql.Identifier(user), sql.Literal(scram.verifier(fresh))))
                return fresh, short_version(connection.info.server_version)
        except psycopg.Error as problem:
            reason = first_line(problem)
        if (error := died()) is not None:
            raise error
        time.sleep(_PAUSE)
    raise _not_ready(reason, host, port, within, last_words())


def _not_ready(reason: str, host: str, port: int, within: float, last_words: str) -> NotReadyError:
    return NotReadyError(
        f"PostgreSQL was not ready within {within:g}s",
        why="\n".join(filter(None, [reason, last_words])),
        looked_at=(f"{host}:{port}",),
        hint="raise the setting timeout on a slow machine",
    )


def short_version(number: int) -> str:
    """`150018` as `15.18` (libpq manual, PQserverVersion)."""
    return f"{number // 10000}.{number % 10000}"
