"""Resets that forget one thing each, to see that the workloads notice.

Each works as a real one does and then does once more what it should have undone: `FORGOTTEN` asks the database, before
the reset, for statements that would make its present state, and those that the baseline wouldn't have said are kept.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import psycopg

from pgsandbox import Database

if TYPE_CHECKING:
    from pgsandbox import Sandbox

FORGOTTEN: dict[str, tuple[str, str]] = {
    "sequences": (
        """
        SELECT format('SELECT setval(%L, %s)', format('%I.%I', schemaname, sequencename), last_value)
        FROM pg_sequences WHERE last_value IS NOT NULL
        """,
        "nextval|numbered",
    ),
    "unlogged tables": (
        "SELECT format('INSERT INTO unlogged VALUES (%s, %L)', id, what) FROM unlogged",
        "INTO unlogged",
    ),
    "a new row": ("SELECT format('INSERT INTO plain (id) VALUES (%s)', max(id)) FROM plain", "INTO plain"),
    "deleted rows": (
        """
        SELECT format('DELETE FROM reference WHERE id = %s', g) FROM generate_series(1, 3000) g
        WHERE NOT EXISTS (SELECT FROM reference WHERE id = g)
        """,
        "FROM reference",
    ),
    "large objects": (
        "SELECT format('SELECT lo_put(%s, 0, %L)', oid, lo_get(oid)) FROM pg_largeobject_metadata WHERE oid < 2000",
        "lo_put",
    ),
    "settings of the database": (
        """
        SELECT format('ALTER DATABASE %I SET %s = %L', datname, split_part(c, '=', 1), split_part(c, '=', 2))
        FROM pg_db_role_setting JOIN pg_database d ON d.oid = setdatabase, unnest(setconfig) c
        WHERE datname = current_database() AND setrole = 0
        """,
        "ALTER DATABASE",
    ),
    "rights": (
        """
        SELECT format('GRANT SELECT ON %s TO PUBLIC', oid::regclass) FROM pg_class
        WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace AND relacl::text LIKE '%,=r%'
        """,
        "GRANT SELECT ON {t}",
    ),
    "comments": (
        "SELECT 'COMMENT ON COLUMN plain.name IS NULL' WHERE col_description('plain'::regclass, 2) <> 'a name'",
        "COMMENT ON COLUMN",
    ),
    "indexes": (
        """
        SELECT 'DROP INDEX ' || n FROM unnest(ARRAY['reference_partial', 'reference_expression']) n
        WHERE to_regclass(n) IS NULL
        """,
        "DROP INDEX",
    ),
    "what is planned by": (
        """
        SELECT 'DELETE FROM pg_statistic WHERE starelid = ''reference''::regclass'
        WHERE NOT EXISTS (SELECT FROM pg_statistic WHERE starelid = 'reference'::regclass)
        """,
        "pg_statistic",
    ),
}
"""By what is forgotten: the question, and a pattern of the statements that bring it about."""


@contextlib.contextmanager
def forgetful(sandbox: Sandbox, what: str, patch: Any) -> Iterator[None]:
    """Every reset in `sandbox` forgets `what`, for the length of the block; `patch` is pytest's MonkeyPatch."""
    original = Database.reset

    def ask(name: str) -> list[str]:
        with contextlib.suppress(psycopg.Error), sandbox.server.inside(name) as connection:
            return [statement for (statement,) in connection.execute(FORGOTTEN[what][0].encode())]
        return []  # the workload has made away with what is asked for

    def reset(database: Database) -> None:
        present = ask(database.name)
        original(database)
        at_baseline = set(ask(database.name))
        with sandbox.server.inside(database.name) as connection:
            for statement in present:
                if statement not in at_baseline:
                    with contextlib.suppress(psycopg.Error):
                        connection.execute(statement.encode())

    with patch.context() as only_here:
        only_here.setattr(Database, "reset", reset)
        yield
