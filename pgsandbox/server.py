"""A running server, seen through its admin connection: databases, clones, and who is connected."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, LiteralString

import psycopg
from psycopg import sql

from pgsandbox import engines, tuning
from pgsandbox.contact import Contact, disk_full
from pgsandbox.errors import CutError, NotReadyError, ServerError, first_line
from pgsandbox.roles import Roles

if TYPE_CHECKING:
    from pgsandbox.engines import Layout, Running

_INSPECTING = (
    "-c search_path=pg_catalog -c session_replication_role=replica -c row_security=off -c synchronize_seqscans=off"
    " -c client_min_messages=error -c lock_timeout=5s -c statement_timeout=60s"
    " -c idle_in_transaction_session_timeout=0 -c idle_session_timeout=0"
)
_BIRTH: LiteralString = """
SELECT backend_start FROM pg_stat_get_activity(NULL) WHERE backend_type = 'checkpointer'
"""
_SINCE = {150000: "-c stats_fetch_consistency=none", 170000: "-c event_triggers=off -c transaction_timeout=0"}
"""What there is only since a version: sessions are counted as they are now, not as a transaction first saw them."""

_MADE_FOR: LiteralString = """
SELECT datname FROM pg_database
WHERE datname = %s OR starts_with(datname, %s || '-') OR pg_get_userbyid(datdba) = %s
"""


@dataclass(frozen=True)
class Names:
    """What things of ours are called in a server: plain in our own, with the run's token in somebody else's."""

    prefix: str = "pgsandbox"

    @property
    def owner(self) -> str:
        """The NOLOGIN role that owns the template, its clones and all in them."""
        return f"{self.prefix}_owner"

    @property
    def builder(self) -> str:
        """The LOGIN role that init steps connect as; it acts as the owner."""
        return f"{self.prefix}_builder"

    @property
    def template(self) -> str:
        """The template database."""
        return f"{self.prefix}_template"

    @property
    def spare(self) -> str:
        """A clone of the template that was made with it, for the first worker that comes."""
        return f"{self.prefix}_spare"

    def database(self, worker: str) -> str:
        """The database, and LOGIN role, of `worker`. What else is made for it has this name and more after a dash."""
        return f"{self.prefix}_{worker}"


class Server:
    """One running server and one admin connection to it, which is a lease on its life, too.

    It may be silent for `timeout` seconds before we look what has become of it. Not thread-safe. `close` gives up the
    connection, not the server.
    """

    def __init__(self, running: Running, *, timeout: float = 60.0) -> None:
        self.running = running
        self._contact = Contact(running, timeout=timeout)
        self.names = Names() if running.engine != "external" else Names(f"pgsandbox_{running.token}")
        self._template_follows = bool(running.detail.get("template_follows"))
        self._last_birth: str | None = running.detail.get("born")
        self.roles = Roles(self)

    def __repr__(self) -> str:
        return f"<Server PostgreSQL {self.version} ({self.engine}) at {self.address}>"

    @property
    def host(self) -> str:
        """The address that applications connect to."""
        return self.running.host

    @property
    def port(self) -> int:
        """Its TCP port."""
        return self.running.port

    @property
    def address(self) -> str:
        """`host:port`."""
        return f"{self.host}:{self.port}"

    @property
    def version(self) -> str:
        """PostgreSQL's version, such as `15.18`."""
        return self.running.version

    @property
    def version_num(self) -> int:
        """PostgreSQL's version as a number, such as 150018."""
        return self.admin.info.server_version

    @property
    def engine(self) -> str:
        """The engine that runs it: docker, local or external."""
        return self.running.engine

    @property
    def is_ours(self) -> bool:
        """Whether pgsandbox started it, and may therefore change what belongs to the whole server."""
        return self.running.engine != "external"

    @property
    def is_superuser(self) -> bool:
        """Whether we are superuser there: always in a server of our own."""
        return self.admin.info.parameter_status("is_superuser") == "on"

    @property
    def admin(self) -> psycopg.Connection[tuple[Any, ...]]:
        """The admin connection, opened when first needed and again if it was lost; autocommit. Raises ServerError."""
        return self._contact.admin

    @property
    def lost(self) -> ServerError | None:
        """Why it did not answer when it was last asked; what each further attempt raises, at once."""
        return self._contact.lost

    def admin_conninfo(self, database: str = "postgres", options: str = "") -> str:
        """How to connect to `database` as the superuser (libpq connection string; holds the password)."""
        return self._contact.conninfo(database, options)

    def connect_inspector(self, database: str) -> psycopg.Connection[tuple[Any, ...]]:
        """An admin connection to `database` that sees and mends it past its own rules; the caller closes it.

        No trigger, rule or policy acts on it, names are told in full, and it waits for nobody's lock for long.
        Raises ServerError.
        """
        more = [options for version, options in _SINCE.items() if self.version_num >= version]
        return self.connect_admin(database, " ".join([_INSPECTING, *more]))

    def connect_admin(self, database: str, options: str = "") -> psycopg.Connection[tuple[Any, ...]]:
        """A further admin connection, to `database`; the caller closes it. Raises ServerError."""
        return self._contact.open(database, options)

    def end_if_halted(self) -> None:
        """End it if it is ours and somebody has paused or stopped it: whoever waits for it would do so for ever."""
        self._contact.end_if_halted()

    def connect(self) -> None:
        """Open the admin connection, if it is not open. Raises ServerError."""
        assert self.admin

    def close(self) -> None:
        """Close the admin connection."""
        self._contact.close()

    def birth(self) -> str:
        """When its processes were started: anew when one of them crashed and all the others were ended for that."""
        found = self.execute(_BIRTH)
        return str(found[0][0]) if found else ""

    def has_crashed_again(self) -> bool:
        """Whether PostgreSQL has crashed, and recovered, since this was last asked."""
        last, self._last_birth = self._last_birth, self.birth()
        return last is not None and self._last_birth != last

    @property
    def has_crashed(self) -> bool:
        """Whether a process of it has crashed since it was started, and it recovered."""
        born = self.running.detail.get("born")
        return born is not None and self.birth() != born

    def execute(
        self, query: LiteralString | sql.Composed, params: Iterable[Any] | None = None, *, often: bool = False
    ) -> list[tuple[Any, ...]]:
        """Run one statement as the superuser, prepared if it is run `often`; its rows, if any. Raises ServerError."""
        try:
            cursor = self.admin.execute(query, None if params is None else list(params), prepare=often)
            return cursor.fetchall() if cursor.description else []
        except psycopg.errors.DiskFull as problem:
            raise disk_full(f"the {self.engine} server", problem) from problem
        except psycopg.Error as problem:
            raise self._refusal(problem) from problem

    def _refusal(self, problem: psycopg.Error) -> ServerError:
        """What an error means. Raises ServerError where it is that the server has ended."""
        if not self._contact.is_cut:
            return ServerError("the server refused", why=first_line(problem))
        self.connect()
        if self.has_crashed:
            return CutError("PostgreSQL crashed, and recovered", why="who or what killed one of its processes?")
        return CutError("our connection to the server was cut off", why=first_line(problem))

    # Databases -------------------------------------------------------------------------------------------------------

    def create_database(self, name: str, *, template: str | None = None, limit: int = -1) -> None:
        """Make the database `name`, owned by the owner, that allows `limit` connections, as a copy of `template`.

        A copy of files where the server is ours: it writes no WAL, so that a neighbour has none to wait for. Since 18
        the kernel copies them, which shares blocks on file systems that can (manual, chapter 19.4, file_copy_method).
        """
        copy: sql.Composable = sql.SQL("")
        if template == self.names.template:
            self._wait_for_template()
        if template is not None:
            copy = sql.SQL("TEMPLATE {}").format(sql.Identifier(template))
            if self.is_ours and self.version_num >= 150000:
                copy += sql.SQL(" STRATEGY file_copy")
        create = sql.SQL("CREATE DATABASE {} OWNER {} CONNECTION LIMIT {} {}").format(
            sql.Identifier(name), sql.Identifier(self.names.owner), sql.Literal(limit), copy
        )
        if template is not None and self.is_ours and self.version_num >= 180000:
            self._execute_cloning(create)
        else:
            self.execute(create)
        self.execute(sql.SQL("REVOKE CONNECT ON DATABASE {} FROM PUBLIC").format(sql.Identifier(name)))

    def _execute_cloning(self, create: sql.Composed) -> None:
        """Run `create` with the kernel as the copier, and where that or the file system can't, without."""
        with contextlib.suppress(ServerError):  # a build without it
            self.execute("SET file_copy_method = clone")
        try:
            self.execute(create)
        except ServerError as problem:
            if not (problem.why or "").startswith("could not clone file"):
                raise
            self.execute("SET file_copy_method = copy")
            self.execute(create)

    def _wait_for_template(self, *, timeout: float = 60.0) -> None:
        """A server that was started from a seed gets its template last. Raises ServerError, NotReadyError."""
        deadline = time.monotonic() + timeout
        if self._template_follows:
            engines.named(self.engine).complete(self.running)
        while self._template_follows:
            [(said,)] = self.execute("SELECT trim(pg_read_file('pgsandbox.whole', 0, 1000, true), E'\\n')")
            if said == "whole":
                self._template_follows = False
            elif said:
                raise ServerError(
                    "the template could not be unpacked", why=said, hint="free some space where the server's data is"
                )
            elif time.monotonic() > deadline:
                raise NotReadyError(f"the template was not unpacked within {timeout:g}s")
            else:
                time.sleep(0.002)

    def make_spare(self) -> Layout:
        """A clone of the template, which nobody can enter, ready to become a worker's database by `take_spare`."""
        self.create_database(self.names.spare, template=self.names.template)
        self.allow_connections(self.names.spare, False)
        oids = {name: int(oid) for name, oid in self.execute("SELECT datname, oid FROM pg_database")}
        template, spare = oids[self.names.template], oids[self.names.spare]
        return {"template": template, "spare": spare, "late": sorted({*oids.values()} - {oids["postgres"], spare})}

    def take_spare(self, name: str, *, limit: int) -> bool:
        """Make the spare clone the database `name`, that allows `limit` connections; whether there was one to take."""
        spare, taken = sql.Identifier(self.names.spare), sql.Identifier(name)
        if not self.is_ours or not self.has_database(self.names.spare):
            return False
        try:
            self.admin.execute(sql.SQL("ALTER DATABASE {} RENAME TO {}").format(spare, taken))
        except psycopg.Error:  # another worker was faster
            return False
        change = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true CONNECTION LIMIT {}")
        self.execute(change.format(taken, sql.Literal(limit)))
        return True

    def has_database(self, name: str) -> bool:
        """Whether there is a database of that name."""
        return bool(self.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]))

    def drop_database(self, name: str) -> None:
        """Drop the database `name`, if it is there, ending whatever is connected to it.

        First by ourselves: where DROP DATABASE has to end somebody it sleeps for 100 ms before it looks again.
        """
        self.roll_back_prepared(name)
        self._end_subscriptions(name)
        self.disconnect(name)
        self.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def bury(self, login: str, *, kept: AbstractSet[str] = frozenset()) -> None:
        """Drop the role `login`, every database that was made for it or by it, and end whoever is connected as it.

        The databases `kept` stay, and with one of them the role, by which they are entered.
        """
        databases = {name for (name,) in self.execute(_MADE_FOR, [login, login, login])}
        goes = databases.isdisjoint(kept) and self.roles.has(login)
        if goes:
            self.roles.retire_login(login)  # programs that outlive who started them connect again and again
        for name in sorted(databases - kept):
            self.drop_database(name)
        if goes:
            self.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", [login])
            self.roles.drop(login)

    def roll_back_prepared(self, database: str) -> bool:
        """Roll back what was prepared in `database`, which can be neither dropped nor copied with it; whether any was.

        On a connection of its own: it has to be one to that database, and psycopg forgets what it has prepared in it.
        """
        prepared = self.execute("SELECT gid FROM pg_prepared_xacts WHERE database = %s", [database])
        if prepared:
            with self.inside(database) as connection:
                for (gid,) in prepared:
                    connection.execute(sql.SQL("ROLLBACK PREPARED {}").format(sql.Literal(gid)))
        return bool(prepared)

    def _end_subscriptions(self, database: str) -> None:
        """Drop the subscriptions of `database`, which can't be dropped with them, and leave their publishers alone."""
        query = "SELECT subname FROM pg_subscription s JOIN pg_database d ON d.oid = subdbid WHERE datname = %s"
        if self.is_superuser and (found := self.execute(query, [database])):
            with self.inside(database) as connection:
                for (name,) in found:
                    subscription = sql.Identifier(name)
                    connection.execute(sql.SQL("ALTER SUBSCRIPTION {} DISABLE").format(subscription))
                    connection.execute(sql.SQL("ALTER SUBSCRIPTION {} SET (slot_name = NONE)").format(subscription))
                    connection.execute(sql.SQL("DROP SUBSCRIPTION {}").format(subscription))

    def allow_connections(self, name: str, allowed: bool) -> None:
        """Whether anybody may connect to the database `name`."""
        word = sql.SQL("true" if allowed else "false")
        self.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}").format(sql.Identifier(name), word))

    def disconnect(self, database: str, *, timeout: float = 5.0) -> int:
        """End every connection to `database` and wait until they are gone; how many there were.

        Raises NotReadyError, naming them, if some are still there after `timeout` seconds.
        """
        end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()"
        ended = len(self.execute(end, [database]))
        deadline = time.monotonic() + timeout
        again = time.monotonic() + 0.1
        while left := self.execute("SELECT pid, state, query FROM pg_stat_activity WHERE datname = %s", [database]):
            if time.monotonic() > deadline:
                raise NotReadyError(
                    f"{len(left)} connections to {database} did not end within {timeout:g}s",
                    why="; ".join(f"pid {pid} is {state}: {query[:80]}" for pid, state, query in left),
                )
            if time.monotonic() > again:  # somebody reconnects as soon as it is cut off
                again = time.monotonic() + 0.1
                self.execute(end, [database])
            time.sleep(0.002)
        return ended

    @contextlib.contextmanager
    def inside(self, database: str) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
        """An admin connection to `database` for the length of the block."""
        connection = self.connect_admin(database)
        try:
            yield connection
        finally:
            connection.close()


def cloning(engine: str, major: int | None) -> str:
    """How `create_database` copies a template on such a server, and why so, in words."""
    if engine == "external":
        return "as that server does by itself: what else it has to do is not ours to know"
    only = ", the one way that this version has" if major is not None and major < 15 else " (STRATEGY file_copy)"
    how = ", by the kernel (file_copy_method = clone)" if major is not None and major >= 18 else ""
    return (
        f"file by file{only}{how}: of 300 tables in less than half of the time that WAL_LOG takes, and without WAL; "
        "the first worker gets a spare one that is kept with the template"
    )


def limit_with_ours(budget: int) -> int:
    """The connections that a worker's database allows: its budget and what pgsandbox itself may need."""
    return budget + tuning.OURS
