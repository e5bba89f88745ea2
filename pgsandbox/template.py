"""The template: built exactly once by the init steps, sealed, and what its clones must be given besides its files."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

from pgsandbox import libpq, scram, steps
from pgsandbox.contact import disk_full
from pgsandbox.database import Address, Database
from pgsandbox.errors import PgsandboxError, TemplateError
from pgsandbox.isolation import sequences, unlogged

if TYPE_CHECKING:
    from pgsandbox.engines import Progress
    from pgsandbox.isolation import Isolation
    from pgsandbox.server import Server
    from pgsandbox.settings import Settings


@dataclass(frozen=True)
class Facts:
    """What belongs to the template database but is not in its files, so that CREATE DATABASE does not copy it."""

    settings: tuple[tuple[str | None, str, str], ...] = ()
    """`ALTER DATABASE … SET` and `ALTER ROLE … IN DATABASE … SET`: role (None for all), name, value.

    The roles that the steps ran as stand for the worker's own."""
    login_settings: tuple[tuple[str, str], ...] = ()
    """`ALTER ROLE … SET` on the roles that the steps ran as: name, value."""
    grants: tuple[tuple[str, str, bool], ...] = ()
    """Rights on the database: role (PUBLIC for all), right, grantable."""
    comment: str | None = None
    sequences: tuple[tuple[int, int, bool, bool], ...] = ()
    """Of each sequence: oid, last value, whether it was given out, whether sessions cache values."""
    unlogged: tuple[str, ...] = ()
    """Unlogged tables and sequences that have something in them: a crash empties them."""
    why_clone: str | None = None
    """Why a reset has to clone in this server; None where it can undo."""

    def apply(self, server: Server, database: str, login: str) -> None:
        """Give `database`, a clone that the role `login` is to enter, what its files do not bring."""
        name = sql.Identifier(database)
        steps_ran_as = (server.names.owner, server.names.builder)
        if self.comment is not None:
            server.execute(sql.SQL("COMMENT ON DATABASE {} IS {}").format(name, sql.Literal(self.comment)))
        for role, setting, value in self.settings:
            target = sql.SQL("DATABASE {}").format(name)
            if role is not None:
                entering = sql.Identifier(login if role in steps_ran_as else role)
                target = sql.SQL("ROLE {} IN DATABASE {}").format(entering, name)
            _set(server, target, setting, value)
        server.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(name))
        for role, right, grantable in self.grants:
            grantee = sql.SQL("PUBLIC") if role == "PUBLIC" else sql.Identifier(role)
            option = sql.SQL(" WITH GRANT OPTION" if grantable else "")
            grant = sql.SQL("GRANT {} ON DATABASE {} TO {}{}").format(_keyword(right), name, grantee, option)
            server.execute(grant)

    def apply_to_login(self, server: Server, role: str) -> None:
        """Give `role`, a worker's, the settings that the steps made for the role that they ran as."""
        for setting, value in self.login_settings:
            _set(server, sql.SQL("ROLE {}").format(sql.Identifier(role)), setting, value)

    def to_record(self) -> dict[str, Any]:
        """This as JSON data."""
        return asdict(self)

    @staticmethod
    def from_record(record: dict[str, Any]) -> Facts:
        """What `to_record` wrote down."""
        return Facts(
            settings=tuple((role, name, value) for role, name, value in record["settings"]),
            login_settings=tuple((name, value) for name, value in record["login_settings"]),
            grants=tuple((role, right, grantable) for role, right, grantable in record["grants"]),
            comment=record["comment"],
            unlogged=tuple(record["unlogged"]),
            why_clone=record["why_clone"],
            sequences=tuple((oid, last, called, cached) for oid, last, called, cached in record["sequences"]),
        )


def build(server: Server, settings: Settings, root: Path, progress: Progress) -> Facts:
    """Build and seal the template in `server`, replacing one that a dead builder left; what clones must be given.

    Raises TemplateError, for a failing step with its own output (StepError).
    """
    plan = steps.parse(settings.init, root)
    _start_afresh(server)
    password = scram.new_password()
    server.roles.make_owner()
    if server.is_ours:
        server.roles.allow_making(True)
    server.roles.make_login(
        server.names.builder, password=password, budget=settings.connections, superuser=settings.superuser
    )
    server.create_database(server.names.template)
    _create_extensions(server, settings.extensions)
    address = Address(server.host, server.port, server.names.builder, password, server.names.template)
    database = Database(address, _Unresettable())
    environ = libpq.environment(database.env, os.environ) | dict.fromkeys(settings.env, database.url)
    context = steps.Context(root, environ, settings.timeout, server.is_ours)
    for step in plan:
        progress(step.text)
        try:
            step.run(database, context)
        except PgsandboxError:
            raise
        except Exception as problem:
            raise steps.translate(problem, step.text) from problem
    progress("sealing the template")
    try:
        return _seal(server)
    except psycopg.errors.DiskFull as problem:
        raise disk_full(f"the {server.engine} server", problem) from problem
    except psycopg.Error as problem:
        raise TemplateError(
            "the template can't be sealed",
            why=problem.diag.message_primary or str(problem).strip(),
            looked_at=(f"{server.engine}: {server.running.what}",),
            hint="its tables are frozen and analysed: does an index, or a function that one uses, fail?",
        ) from problem


def _start_afresh(server: Server) -> None:
    server.drop_database(server.names.template)
    for role in (server.names.builder, server.names.owner):
        server.roles.drop(role)


def _create_extensions(server: Server, extensions: Sequence[str]) -> None:
    if not extensions:
        return
    with server.inside(server.names.template) as connection:
        for extension in extensions:
            create = sql.SQL("CREATE EXTENSION IF NOT EXISTS {} CASCADE").format(sql.Identifier(extension))
            try:
                connection.execute(create)
            except psycopg.Error as problem:
                raise TemplateError(
                    f"extension {extension} can't be created",
                    why=problem.diag.message_primary or str(problem).strip(),
                    looked_at=(f"{server.engine}: {server.running.what}",),
                    hint="use an image, or install a package, that has it; `SELECT name FROM pg_available_extensions`"
                    " lists what this server has",
                ) from problem


def _seal(server: Server) -> Facts:
    """Freeze, analyse and close the template, and take down what its clones will not get from its files."""
    names = server.names
    server.disconnect(names.template)
    with server.inside(names.template) as connection:
        if server.is_ours:
            _hand_over(server, connection)
        # As the database's owner, who may do that to all but the catalogs that it shares with other databases: the
        # statistics of pg_authid would be a copy of all verifiers.
        connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(names.owner)))
        connection.execute("VACUUM (FREEZE, ANALYZE)")
        connection.execute("RESET ROLE")
        values = sequences.settle(connection) if server.is_ours else []
        lost_in_crash = unlogged.filled(connection)
    facts = replace(_facts(server), sequences=tuple(values), unlogged=lost_in_crash, why_clone=_why_clone(server))
    server.disconnect(names.template)
    server.allow_connections(names.template, False)
    server.roles.retire_login(names.builder)
    return facts


def _hand_over(server: Server, connection: psycopg.Connection[Any]) -> None:
    """Give the owner all that the steps made. What only a superuser may own, such as an event trigger, it may be given

    only while it is one.
    """
    owner, builder = sql.Identifier(server.names.owner), sql.Identifier(server.names.builder)
    row = connection.execute("SELECT rolsuper FROM pg_roles WHERE rolname = %s", [server.names.builder]).fetchone()
    is_super = row is not None and row[0]
    if is_super:
        connection.execute(sql.SQL("ALTER ROLE {} SUPERUSER").format(owner))
    connection.execute(sql.SQL("REASSIGN OWNED BY {} TO {}").format(builder, owner))
    if is_super:
        connection.execute(sql.SQL("ALTER ROLE {} NOSUPERUSER").format(owner))


def _why_clone(server: Server) -> str | None:
    """Why a reset has to clone in `server`; else what it needs is made ready, outside of the user's databases."""
    if not server.is_ours:
        return "the server is not ours"
    if server.version_num < 150000:
        return "it needs PostgreSQL 15 or later"
    needed = ["pg_surgery", "pg_walinspect"]
    there = server.execute("SELECT name FROM pg_available_extensions WHERE name = ANY (%s)", [needed])
    if missing := sorted({*needed} - {name for (name,) in there}):
        return f"the server lacks {' and '.join(missing)}"
    server.execute("CREATE EXTENSION IF NOT EXISTS pg_walinspect")
    return None


def _facts(server: Server) -> Facts:
    names = server.names
    rows = server.execute(
        """
        SELECT r.rolname, d.datname, split_part(c, '=', 1), substr(c, strpos(c, '=') + 1)
        FROM pg_db_role_setting s
        LEFT JOIN pg_roles r ON r.oid = s.setrole
        LEFT JOIN pg_database d ON d.oid = s.setdatabase,
        unnest(s.setconfig) c
        WHERE d.datname = %s OR (s.setdatabase = 0 AND r.rolname IN (%s, %s))
        """,
        [names.template, names.owner, names.builder],
    )
    ours = ("role", "createrole_self_grant")
    grants = server.execute(
        """
        SELECT coalesce(r.rolname, 'PUBLIC'), a.privilege_type, a.is_grantable
        FROM pg_database d, aclexplode(d.datacl) a LEFT JOIN pg_roles r ON r.oid = a.grantee
        WHERE d.datname = %s AND a.grantee <> d.datdba
        """,
        [names.template],
    )
    [(comment,)] = server.execute(
        "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = %s", [names.template]
    )
    return Facts(
        settings=tuple((role, name, value) for role, database, name, value in rows if database),
        login_settings=tuple((name, value) for _, database, name, value in rows if not database and name not in ours),
        grants=tuple((role, right, grantable) for role, right, grantable in grants),
        comment=comment,
    )


def _set(server: Server, target: sql.Composed, setting: str, value: str) -> None:
    """`ALTER target SET setting`, with `value` as PostgreSQL stores it: a list is stored quoted, and must be split."""
    name = sql.SQL(".").join(sql.Identifier(part) for part in setting.split("."))
    values = _items(value) if setting.lower() in _LISTS else [value]
    shown = sql.SQL(", ").join(sql.Literal(one) for one in values)
    server.execute(sql.SQL("ALTER {} SET {} TO {}").format(target, name, shown))


_LISTS = frozenset(
    {
        "local_preload_libraries",
        "search_path",
        "session_preload_libraries",
        "shared_preload_libraries",
        "temp_tablespaces",
        "unix_socket_directories",
    }
)
"""The settings whose values are lists of quoted names (PostgreSQL's source, GUC_LIST_QUOTE; pg_dump has them, too)."""


def _items(value: str) -> list[str]:
    """The names in a list such as `"$user", public`."""
    found = re.findall(r'"((?:[^"]|"")*)"|([^\s,"]+)', value)
    return [quoted.replace('""', '"') or bare for quoted, bare in found]


def _keyword(right: str) -> sql.SQL:
    known = {"CREATE": sql.SQL("CREATE"), "CONNECT": sql.SQL("CONNECT"), "TEMPORARY": sql.SQL("TEMPORARY")}
    return known[right]


class _Unresettable:
    """The template while it is built has no baseline to go back to."""

    def __init__(self) -> None:
        self.made_anew: list[str] = []

    def reset(self) -> None:
        raise TemplateError("the template can't be reset while it is built")

    def remake(self) -> None:
        raise TemplateError("the template can't be reset while it is built")

    def is_untouched(self) -> bool:
        return False

    def move_baseline(self, *, if_changed: bool = False) -> None:
        raise TemplateError("the template has no baseline while it is built")

    def return_baseline(self, moved: Any) -> None:
        """Nothing to return."""

    def snapshot(self) -> str:
        raise TemplateError("the template can't be copied while it is built")

    def restore(self, snapshot: str) -> None:
        raise TemplateError("the template can't be restored while it is built")

    def forget(self, snapshot: str) -> None:
        """Nothing to forget."""


_: type[Isolation] = _Unresettable
