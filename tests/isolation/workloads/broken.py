"""Resets that forget one thing each, to see that the workloads notice.

Each works as a real one does and then does once more what it should have undone: `FORGOTTEN` asks the database, before
the reset, for statements that would make its present state, and those that the baseline wouldn't have said are kept.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import psycopg

from pgsandbox import Database
from pgsandbox.isolation.reset import quiet, relations, wal
from pgsandbox.isolation.reset.shared import Shared
from pgsandbox.isolation.reset.undo import Undo
from pgsandbox.isolation.reset.watch import Watch

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


# One rule of the reset at a time, disabled ----------------------------------------------------------------------------


def _no_flush(patch: Any) -> None:
    patch.setattr(wal, "flush", _flushed)


def _flushed(admin: psycopg.Connection[Any]) -> int:
    row = admin.execute("SELECT (pg_current_wal_flush_lsn() - '0/0')::int8").fetchone()
    assert row is not None
    return int(row[0])


def _without(patch: Any, **fields: Any) -> None:
    """What the catalogs are found to say differs in less than it does."""
    compared = relations.differences
    patch.setattr(relations, "differences", lambda *given: replace(compared(*given), **fields))


def _no_advisory_locks(patch: Any) -> None:
    seen = quiet.seen
    patch.setattr(quiet, "seen", lambda answer: replace(seen(answer), advisory=frozenset()))


RULES: dict[str, tuple[Callable[[Any], None], str]] = {
    "what was written last is flushed before it is read": (_no_flush, "many|nextval.*generate_series"),
    "unlogged tables are looked at each time": (
        lambda patch: patch.setattr(Undo, "changed", lambda *_: []),
        "INTO unlogged|UPDATE unlogged",
    ),
    "sequences whose values sessions cache get another file": (
        lambda patch: patch.setattr(Undo, "invalidate", lambda *_: None),
        r"nextval\('cached'\)",
    ),
    "sequences are put back": (lambda patch: patch.setattr(Undo, "_rewind", lambda *_: None), "nextval"),
    "deleted rows are revived": (
        lambda patch: patch.setattr(wal, "_NEUTRAL", [*wal._NEUTRAL, "Heap DELETE"]),
        "DELETE FROM reference",
    ),
    "the database's own settings and rights are compared": (
        lambda patch: patch.setattr(Shared, "has_changed", lambda _: False),
        "ALTER DATABASE",
    ),
    "new roles and databases are removed": (
        lambda patch: patch.setattr(Shared, "remove_others", lambda _: False),
        "CREATE ROLE|CREATE DATABASE",
    ),
    "what was prepared is rolled back": (
        lambda patch: patch.setattr(Watch, "_roll_back_prepared", lambda _: False),
        "INTO plain",
    ),
    "who took an advisory lock and kept it is ended": (_no_advisory_locks, "advisory_lock"),
    "a changed schema is a reason for a clone": (lambda patch: _without(patch, changed=()), "COMMENT ON|^GRANT"),
    "what was truncated is filled again": (lambda patch: _without(patch, moved=()), "^TRUNCATE"),
}
"""By rule: how it is disabled, and a pattern of the statements that it is for."""


@contextlib.contextmanager
def disabled(rule: str, patch: Any) -> Iterator[None]:
    """The rule `rule` of the reset by WAL is disabled for the length of the block; `patch` is pytest's MonkeyPatch."""
    with patch.context() as only_here:
        RULES[rule][0](only_here)
        yield
