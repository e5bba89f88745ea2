"""What belongs to one database but lies in the catalogs that all databases of a server share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, LiteralString

from psycopg import sql

from pgsandbox.errors import PgsandboxError

if TYPE_CHECKING:
    from pgsandbox.server import Server

_DATABASE: LiteralString = """
SELECT (to_jsonb(d) - '{oid,datfrozenxid,datminmxid}'::text[])::text, shobj_description(d.oid, 'pg_database'),
       (SELECT array_agg((s.setrole, s.setconfig)::text ORDER BY 1) FROM pg_db_role_setting s
        WHERE setdatabase = d.oid OR (setdatabase = 0 AND setrole = r.oid)),
       (SELECT array_agg((to_jsonb(s) - '{oid,subdbid,subskiplsn}'::text[])::text ORDER BY subname)
        FROM pg_subscription s WHERE subdbid = d.oid),
       (SELECT array_agg(m.roleid ORDER BY m.roleid) FROM pg_auth_members m WHERE m.member = r.oid),
       (to_jsonb(r) - '{rolpassword,rolconnlimit}'::text[])::text, md5(r.rolpassword),
       shobj_description(r.oid, 'pg_authid')
FROM pg_database d, pg_authid r WHERE d.datname = %s AND r.rolname = %s
"""

_OWNER: LiteralString = """
SELECT to_jsonb(r)::text, shobj_description(r.oid, 'pg_authid'),
       (SELECT s.setconfig FROM pg_db_role_setting s WHERE s.setrole = r.oid AND s.setdatabase = 0)
FROM pg_authid r WHERE r.rolname = %s
"""

_ATTRIBUTES: LiteralString = """
UPDATE pg_authid r SET (rolinherit, rolcreaterole, rolcreatedb, rolcanlogin, rolconnlimit, rolpassword, rolvaliduntil) =
    (w.rolinherit, w.rolcreaterole, w.rolcreatedb, w.rolcanlogin, w.rolconnlimit, w.rolpassword, w.rolvaliduntil)
FROM jsonb_populate_record(NULL::pg_authid, %s::jsonb) w WHERE r.oid = w.oid
"""

_OTHERS: LiteralString = "SELECT 'r', rolname FROM pg_roles UNION ALL SELECT 'd', datname FROM pg_database"


class Shared:
    """The shared rows of the database `name` and of its login role, as they were when `remember` was last called.

    `alone` says that nobody else uses the server: then every new role or database is a test's, too. `relogin` makes
    the role what it should be.
    """

    def __init__(self, server: Server, name: str, login: str, *, alone: bool, relogin: Callable[[], None]) -> None:
        self._server = server
        self._name = name
        self._login = login
        self._alone = alone
        self._relogin = relogin
        self._rows: Any = None
        self._owner: Any = None
        self._others: frozenset[Any] = frozenset()

    def remember(self) -> None:
        """Take what is there now for what should be."""
        self._rows, self._owner = self._read(), self._read_owner()
        self._others = self._beside()

    def has_changed(self) -> bool:
        """Whether the rows of the database and its role are not what they were."""
        return bool(self._read() != self._rows)

    @contextlib.contextmanager
    def shut(self) -> Iterator[None]:
        """For the block let nobody log in, not even a superuser; afterwards `restore`.

        Where the block fails they may again: else whoever looks for the reason finds another one.
        """
        self._server.execute(sql.SQL("ALTER ROLE {} NOLOGIN").format(sql.Identifier(self._login)))
        try:
            yield
        except BaseException:  # also when it is interrupted
            with contextlib.suppress(PgsandboxError):
                self._relogin()
            raise
        self.restore()

    def restore(self) -> None:
        """Make the login role what it was, after its database was made anew."""
        self.remove_others()
        self.restore_owner()
        self._relogin()
        self.remember()

    def remove_others(self) -> bool:
        """Drop the databases and roles that were not there, where nobody else can have made them; whether any were."""
        new = self._beside() - self._others
        for kind, name in sorted(new):  # databases first: what is in them belongs to roles
            if kind == "d":
                self._server.drop_database(name)
        for kind, name in new:
            if kind == "r":
                with self._server.inside(self._name) as connection:
                    connection.execute(sql.SQL("DROP OWNED BY {} CASCADE").format(sql.Identifier(name)))
                self._server.roles.drop(name)
        return bool(new)

    def restore_owner(self) -> bool:
        """Make the role that all workers act as what it was; whether it was anything else. No session is cut for that.

        A superuser may write its rows back as they were (manual, chapter 53), which no ALTER ROLE says so exactly.
        """
        if self._read_owner() == self._owner:
            return False
        [(attributes, comment, settings)] = self._owner
        owner = self._server.names.owner
        with self._server.admin.transaction():
            self._server.execute(sql.SQL("ALTER ROLE {} RESET ALL").format(sql.Identifier(owner)))
            if settings is not None:
                put = "INSERT INTO pg_db_role_setting SELECT 0, oid, %s::text[] FROM pg_authid WHERE rolname = %s"
                self._server.execute(put, [settings, owner])
            self._server.execute(_ATTRIBUTES, [attributes])
            said = sql.Literal(comment)
            self._server.execute(sql.SQL("COMMENT ON ROLE {} IS {}").format(sql.Identifier(owner), said))
        return True

    def _read_owner(self) -> Any:
        return self._server.execute(_OWNER, [self._server.names.owner])

    def _read(self) -> Any:
        return self._server.execute(_DATABASE, [self._name, self._login])

    def _beside(self) -> frozenset[Any]:
        if not self._alone:
            return frozenset()
        ours = self._server.names.prefix
        return frozenset((kind, name) for kind, name in self._server.execute(_OTHERS) if not name.startswith(ours))
