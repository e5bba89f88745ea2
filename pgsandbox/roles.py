"""The roles in a server: whom everything belongs to, whom each worker is, and how many connections it may open.

One NOLOGIN role owns the template, its clones and all in them. Each worker's LOGIN role acts as that owner, and carries
the worker's budget as its CONNECTION LIMIT.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, LiteralString

from psycopg import sql
from psycopg.sql import Identifier, Literal

from pgsandbox import scram

if TYPE_CHECKING:
    from pgsandbox.server import Server


class Roles:
    """The roles in `server`, made and changed as its superuser. All methods raise ServerError."""

    def __init__(self, server: Server) -> None:
        self._server = server

    @property
    def _owner(self) -> Identifier:
        return Identifier(self._server.names.owner)

    def has(self, name: str) -> bool:
        """Whether there is a role `name`."""
        return bool(self._server.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [name]))

    def make_owner(self) -> None:
        """Make the role that owns everything and that all others act as (manual, chapter 22.3)."""
        self._change("CREATE ROLE {} NOLOGIN CREATEDB", self._owner)
        self._join(self._owner)
        self._own_what_is_made(self._owner)

    def allow_making(self, allowed: bool) -> None:
        """Whether the owner may create roles; only ever asked of servers of our own."""
        self._change("ALTER ROLE {} {}", self._owner, sql.SQL("CREATEROLE" if allowed else "NOCREATEROLE"))

    def make_login(self, name: str, *, password: str, budget: int, superuser: bool = False) -> None:
        """Make the LOGIN role `name`, which acts as the owner and may open `budget` connections.

        `SET role` on the role itself survives RESET ALL and DISCARD ALL, and limits still count the login role.
        """
        role, kind = Identifier(name), sql.SQL("SUPERUSER" if superuser else "")
        create: LiteralString = "CREATE ROLE {} LOGIN CREATEDB {} PASSWORD {} CONNECTION LIMIT {} IN ROLE {}"
        self._change(create, role, kind, Literal(scram.verifier(password)), Literal(budget), self._owner)
        self._join(role)
        self._act_as_owner(role, superuser=superuser)

    def restore_login(self, name: str, *, password: str, budget: int, superuser: bool = False) -> None:
        """Make the role `name` what `make_login` made it, whatever was done to it since."""
        role, kind = Identifier(name), sql.SQL("SUPERUSER" if superuser else "NOSUPERUSER")
        self._change("ALTER ROLE {} RESET ALL", role)
        again: LiteralString = "ALTER ROLE {} LOGIN INHERIT CREATEDB NOCREATEROLE {} CONNECTION LIMIT {} PASSWORD {}"
        self._change(again, role, kind, Literal(budget), Literal(scram.verifier(password)))
        self._act_as_owner(role, superuser=superuser)

    def limit_login(self, name: str, budget: int) -> None:
        """Let the role `name` open `budget` connections from now on."""
        self._change("ALTER ROLE {} CONNECTION LIMIT {}", Identifier(name), Literal(budget))

    def retire_login(self, name: str) -> None:
        """Take from the role `name` its password and the right to log in."""
        self._change("ALTER ROLE {} NOLOGIN PASSWORD NULL", Identifier(name))

    def forget_password(self) -> None:
        """Leave nobody a password to be the superuser with: before the cluster is copied to where others may look.

        Nor what passwords have left behind: dead rows, and the WAL that told of them.
        """
        self._change("ALTER ROLE {} PASSWORD NULL", Identifier(self._server.running.user))
        self._server.execute("VACUUM (FULL) pg_authid")
        self._server.execute("SELECT pg_switch_wal()")

    def drop(self, name: str) -> None:
        """Drop the role `name`, and the rights that it was given, if it is there."""
        if self.has(name):
            self._change("DROP OWNED BY {}", Identifier(name))
            self._change("DROP ROLE {}", Identifier(name))

    def _act_as_owner(self, role: Identifier, *, superuser: bool) -> None:
        if not superuser:
            self._change("ALTER ROLE {} SET role = {}", role, self._owner)
            self._own_what_is_made(role)

    def _own_what_is_made(self, role: Identifier) -> None:
        """Since 16 who creates a role may not act as it by itself (release notes of 16)."""
        if self._server.is_ours and self._server.version_num >= 160000:
            self._change("ALTER ROLE {} SET createrole_self_grant = 'set, inherit'", role)

    def _join(self, role: Identifier) -> None:
        """Where we are not superuser: what is made in the role's name, or ended, has to be ours to make and end."""
        if not self._server.is_superuser:
            self._change("GRANT {} TO CURRENT_USER", role)

    def _change(self, statement: LiteralString, *parts: sql.Composable) -> None:
        self._server.execute(sql.SQL(statement).format(*parts))
