"""One database as its user sees it: its URLs, connections, and the way back to its baseline."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from pgsandbox import libpq, pools
from pgsandbox.errors import CutError

if TYPE_CHECKING:
    import psycopg

    from pgsandbox.isolation import Isolation


@dataclass(frozen=True)
class Address:
    """Where a database is and who may enter it."""

    host: str
    port: int
    user: str
    password: str = field(repr=False)
    name: str

    def url(self, scheme: str = "postgresql") -> str:
        """`scheme://user:password@host:port/name`, each part quoted as URLs need it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        user, password, name = (quote(part, safe="") for part in (self.user, self.password, self.name))
        if host.startswith("/"):  # the folder of a unix socket; libpq and SQLAlchemy agree on this form only
            return f"{scheme}://{user}:{password}@/{name}?host={quote(host, safe='')}&port={self.port}"
        return f"{scheme}://{user}:{password}@{host}:{self.port}/{name}"

    @property
    def env(self) -> dict[str, str]:
        """DATABASE_URL and libpq's variables (manual, chapter 32.15)."""
        return {
            "DATABASE_URL": self.url(),
            "PGHOST": self.host,
            "PGPORT": str(self.port),
            "PGUSER": self.user,
            "PGPASSWORD": self.password,
            "PGDATABASE": self.name,
        }


@dataclass(frozen=True)
class Snapshot:
    """A state of a database that `Database.restore` can bring back; it lives as long as its sandbox."""

    name: str
    """The database in the server that holds the state."""


class Database:
    """A database of one's own, reachable by the same URL for as long as its sandbox lives."""

    def __init__(self, address: Address, isolation: Isolation) -> None:
        self.address = address
        self.isolation = isolation

    def __repr__(self) -> str:
        return f"<Database {self.name} at {self.address.host}:{self.address.port}>"

    @property
    def name(self) -> str:
        """The database's name in its server."""
        return self.address.name

    @property
    def url(self) -> str:
        """libpq URL: `postgresql://user:password@host:port/name`."""
        return self.address.url()

    def sqlalchemy_url(self, driver: str | None = "psycopg") -> str:
        """SQLAlchemy URL: `postgresql+driver://user:password@host:port/name`; without a driver, SQLAlchemy's own."""
        return self.address.url(f"postgresql+{driver}" if driver else "postgresql")

    @property
    def conninfo(self) -> str:
        """libpq connection string: `host=… port=… user=… password=… dbname=…`."""
        parts = {key[2:].lower(): value for key, value in self.env.items() if key != "DATABASE_URL"}
        parts["dbname"] = parts.pop("database")
        return " ".join(f"{key}={_quoted(value)}" for key, value in parts.items())

    @property
    def env(self) -> dict[str, str]:
        """The environment that libpq and most frameworks read: DATABASE_URL, PGHOST, PGPORT, PGUSER, and so on."""
        return self.address.env

    def connect(self, **options: Any) -> psycopg.Connection[Any]:
        """An open psycopg connection, which the caller closes; `options` are psycopg.connect's."""
        import psycopg

        return psycopg.connect(self.conninfo, **{**libpq.PLAIN, **options})

    async def aconnect(self, **options: Any) -> psycopg.AsyncConnection[Any]:
        """An open asynchronous psycopg connection, which the caller closes."""
        import psycopg

        return await psycopg.AsyncConnection.connect(self.conninfo, **{**libpq.PLAIN, **options})

    def reset(self) -> None:
        """Bring it to its baseline; its URL stays. Raises PgsandboxError."""
        try:
            with _telling_pools():
                self.isolation.reset()
        except CutError as problem:  # the server crashed meanwhile, and has recovered, or will say why not
            self.isolation.made_anew.append(problem.message)
            self.remake()

    def is_untouched(self) -> bool:
        """Whether nothing was written since the baseline; False also where that can't be told."""
        from pgsandbox.contact import translated

        with translated():
            return self.isolation.is_untouched()

    def remake(self) -> None:
        """Make it anew at its baseline, which cuts its connections; its URL stays. Raises PgsandboxError."""
        try:
            with _telling_pools():
                self.isolation.remake()
        except CutError:  # as for a reset; what was begun is begun again
            with _telling_pools():
                self.isolation.remake()

    @contextlib.contextmanager
    def baseline(self) -> Iterator[None]:
        """For the length of the block, its state at the block's end of set-up is what resets go back to.

        Use it in a fixture that loads data for several tests: load, then `with database.baseline(): yield`.
        The baseline of before is given back afterwards, and the database with it.
        """
        moved = self.move_baseline()
        try:
            yield
        finally:
            self.return_baseline(moved)

    def move_baseline(self, *, if_changed: bool = False) -> Any:
        """Make its present state the baseline; what `return_baseline` takes. See `Isolation.move_baseline`."""
        with _telling_pools():
            return self.isolation.move_baseline(if_changed=if_changed)

    def return_baseline(self, moved: Any) -> None:
        """Make the baseline what it was before `moved`, and be there. Raises PgsandboxError."""
        with _telling_pools():
            self.isolation.return_baseline(moved)

    def snapshot(self) -> Snapshot:
        """Its state now, to be given to `restore`. Cuts its connections. Raises PgsandboxError."""
        with _telling_pools():
            return Snapshot(self.isolation.snapshot())

    def restore(self, snapshot: Snapshot) -> None:
        """Bring back the state of `snapshot`. Cuts its connections. Raises PgsandboxError."""
        with _telling_pools():
            self.isolation.restore(snapshot.name)


@contextlib.contextmanager
def _telling_pools() -> Iterator[None]:
    """Afterwards, when the database can be entered again, the pools of what was cut off hear of it."""
    from pgsandbox.contact import translated

    try:
        with translated():
            yield
    finally:
        pools.tell()


def _quoted(value: str) -> str:
    if re.fullmatch(r"[\w.:/%+~-]+", value, re.ASCII):
        return value
    return "'" + value.replace("\\", r"\\").replace("'", r"\'") + "'"
