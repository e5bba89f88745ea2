"""A server that is not ours: databases and roles are created and removed in it, and nothing else is changed."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgsandbox.engines import Choice, Layout, Order, Progress, Running, ready, supervised
from pgsandbox.engines.condition import Condition
from pgsandbox.errors import EngineError, PgsandboxError, ServerError

if TYPE_CHECKING:
    import psycopg

    from pgsandbox.settings import Settings

_CONNECT_TIMEOUT = 10
_ANSWER_TIMEOUT = 60.0


class ExternalEngine:
    """Somebody's server, by URL. No tuning, no extra rights, no leftovers."""

    name = "external"

    def find(self, settings: Settings, progress: Progress) -> Choice:
        """The server behind the setting url; raises EngineError when it refuses, or its role may not do enough."""
        assert settings.url is not None
        with _connect(settings.url) as connection:
            info = connection.info
            version = ready.short_version(info.server_version)
            if settings.version is not None and info.server_version // 10000 != settings.version:
                raise EngineError(
                    f"external: the server has PostgreSQL {version}, but version = {settings.version}",
                    hint="leave version out, or name another server in url",
                )
            _check_rights(connection)
            return Choice(
                engine=self.name,
                version=version,
                what=f"{info.host}:{info.port}",
                detail={
                    "url": settings.url,
                    "maintenance": info.dbname,
                    "host": info.host,
                    "port": info.port,
                    "available": _available(connection),
                },
            )

    def start(self, choice: Choice, order: Order, progress: Progress) -> Running:
        """The server as it is, with a supervisor that removes from it what this run creates."""
        supervised.start_for(order, {"engine": self.name, "url": choice.detail["url"]}).detach()
        return Running(
            engine=self.name,
            token=order.token,
            folder=str(order.folder),
            version=choice.version,
            what=choice.what,
            host=choice.detail["host"],
            port=choice.detail["port"],
            detail=choice.detail,
        )

    def bake(
        self, running: Running, *, folder: Path, name: str, note: dict[str, Any], timeout: float
    ) -> dict[str, Any]:
        """Never asked for: an external server is always shared."""
        raise ServerError("a server that is not ours can't be copied")

    def export(self, seed: dict[str, Any], order: Order) -> Iterator[bytes]:
        """Never asked for: there are no seeds."""
        raise ServerError("a server that is not ours can't be copied")

    def adopt(
        self, content: Iterator[bytes], note: dict[str, Any], choice: Choice, order: Order, *, folder: Path, name: str
    ) -> dict[str, Any]:
        """Never asked for: there are no seeds."""
        raise ServerError("a server that is not ours can't be copied")

    def damage(self, seed: dict[str, Any]) -> str | None:
        """There are none."""
        return "it was kept of a server that is not ours"

    def forget_seed(self, seed: dict[str, Any]) -> None:
        """Nothing to forget."""

    def strays(self, folder: Path, known: set[str]) -> list[tuple[str, dict[str, Any]]]:
        """None."""
        return []

    def grant(self, running: Running, seconds: float) -> None:
        """Let the server's supervisor wait for `seconds` with nobody holding it and nobody connected."""
        supervised.grant(Path(running.folder), seconds)

    def complete(self, running: Running) -> None:
        """Nothing: it is not ours."""

    def logs(self, running: Running, lines: int) -> str:
        """Raises ServerError: the log belongs to the server's owner."""
        raise ServerError(f"the log of {running.what} is not ours to read")

    def condition(self, running: Running) -> Condition:
        """Unknown: nothing but itself tells of somebody's server."""
        return Condition()


class ExternalWard:
    """What one run has created in somebody's server."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._url: str = spec["url"]
        self._pattern = rf"pgsandbox\_{spec['token']}\_%"

    def begin(self, report: Callable[[dict[str, Any]], None]) -> None:
        """Nothing to start."""

    def complete(self) -> None:
        """Nothing is left for later."""

    def alive(self) -> bool:
        """True: the server is not ours to watch."""
        return True

    def last_word(self) -> str:
        """Never asked for."""
        return ""

    def bake(self, to: Path, layout: Layout) -> dict[str, Any]:
        """Never asked for."""
        raise ServerError("a server that is not ours can't be copied")

    def connected(self) -> bool:
        """Whether anybody is connected to a database of this run; not, where the server does not answer."""
        import psycopg

        with contextlib.suppress(PgsandboxError, psycopg.Error), _connect(self._url) as connection:
            found = connection.execute("SELECT 1 FROM pg_stat_activity WHERE datname LIKE %s LIMIT 1", [self._pattern])
            return found.fetchone() is not None
        return False

    def end(self) -> None:
        """Nothing: the server goes on."""

    def remove(self) -> None:
        """Drop the databases and roles of this run, by their prefix."""
        from psycopg import sql

        with _connect(self._url) as connection:
            for (name,) in connection.execute(
                "SELECT datname FROM pg_database WHERE datname LIKE %s", [self._pattern]
            ).fetchall():
                connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
            roles = connection.execute(
                "SELECT rolname FROM pg_roles WHERE rolname LIKE %s ORDER BY rolcanlogin DESC", [self._pattern]
            ).fetchall()
            for (name,) in roles:
                connection.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(name)))
                connection.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(name)))


def _connect(url: str) -> psycopg.Connection[Any]:
    import psycopg

    from pgsandbox.bounded import BoundedConnection, within

    def too_slow(connection: BoundedConnection) -> ServerError:
        return ServerError(f"the server behind url was not done within {_ANSWER_TIMEOUT:g}s with {connection.asked}")

    patience = within(_ANSWER_TIMEOUT, too_slow)
    try:
        return BoundedConnection.open(url, ask=patience, connect_timeout=_CONNECT_TIMEOUT, application_name="pgsandbox")
    except psycopg.OperationalError as problem:
        raise _refused(url, problem) from problem
    except psycopg.ProgrammingError as problem:
        raise _malformed(str(problem)) from None  # its words may hold the password


def _malformed(said: str) -> EngineError:
    why = said.strip().removeprefix("connection is bad: ")
    if not why.startswith(("invalid URI query parameter", "invalid integer value", "invalid port number")):
        why = why.partition(": ")[0]  # what it quotes then is part of the URL
    return EngineError(
        "external: url can't be understood",
        why=why,
        hint="write postgresql://user:password@host:port/database, and special characters as %XX",
    )


def _refused(url: str, problem: psycopg.OperationalError) -> EngineError:
    import psycopg

    parts = psycopg.conninfo.conninfo_to_dict(url)
    if not re.fullmatch("[0-9,]*", str(parts.get("port", ""))):
        return _malformed("the port is not a number")  # but perhaps a part of the password
    where = f"{parts.get('host', 'localhost')}:{parts.get('port', 5432)}"
    text = str(problem).strip()
    if re.search("invalid (integer value|port number)", text):
        return _malformed(text)
    lines = [line.rpartition(" failed: ")[2] for line in text.splitlines() if " failed: " in line]
    said = lines[-1] if lines else text.splitlines()[0]
    if "password authentication failed" in text or "no password supplied" in text:
        return EngineError(
            f"external: {where} refuses the password of {parts.get('user', 'the user')}",
            why="no password was given" if "no password supplied" in text else said,
            hint="check user and password in url",
        )
    if re.search("Connection refused|No such file|resolve host|translate host|unreachable|No route|timeout", text):
        return EngineError(
            f"external: no server answers at {where}",
            why="connection refused" if "Connection refused" in said else said,
            hint="is it running, and does it listen there?",
        )
    hint = None
    if re.search(r"database .* does not exist", said):
        hint = "name a database in url that is there, such as postgres: ours are made beside it"
    return EngineError(f"external: {where} refuses the connection", why=said, hint=hint)


def _check_rights(connection: psycopg.Connection[Any]) -> None:
    row = connection.execute(
        "SELECT rolsuper, rolcreatedb, rolcreaterole, rolname FROM pg_roles WHERE rolname = current_user"
    ).fetchone()
    assert row is not None
    is_super, may_create_databases, may_create_roles, name = row
    missing = [
        right
        for right, has in (("CREATEDB", may_create_databases), ("CREATEROLE", may_create_roles))
        if not (has or is_super)
    ]
    if missing:
        raise EngineError(
            f"external: the role {name} may not do enough",
            why=f"it lacks {' and '.join(missing)}, to make a database and a role for each worker",
            hint=f'as a superuser there: ALTER ROLE "{name}" {" ".join(missing)}',
        )


def _available(connection: psycopg.Connection[Any]) -> int:
    row = connection.execute(
        """
        SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
               - (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend')
        """
    ).fetchone()
    assert row is not None
    return int(row[0])
