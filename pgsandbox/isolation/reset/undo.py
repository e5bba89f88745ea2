"""Putting back what rows and sequences were, in place: new rows are killed, old ones made visible again where they lie.

`pg_surgery` (manual, appendix F; in contrib since 14) does both, past triggers, rules, constraints and policies, for
tables, TOAST tables and materialized views alike. It can because a `Past` has kept every old row and its index entries.
So the order of an unordered SELECT stays what it was, too.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, LiteralString

from psycopg import sql

from pgsandbox.isolation.reset import relations
from pgsandbox.isolation.reset.errors import NotProvenError
from pgsandbox.isolation.reset.relations import Relation, named

if TYPE_CHECKING:
    import psycopg

    from pgsandbox.isolation.reset.wal import File
    from pgsandbox.server import Server

_MANY = 200
"""Killed rows of one table after which it is vacuumed: their line pointers, and index entries, stay until then."""

_FUNCTION = """
CREATE FUNCTION pg_temp.{name}(regclass, tid[]) RETURNS void LANGUAGE c STRICT AS '$libdir/pg_surgery', {name_text}
"""

_KILL = """
SELECT pg_temp.heap_force_kill(oid::regclass, tids::tid[]) FROM unnest(%s::oid[], %s::text[]) rows(oid, tids)
"""
_REVIVE = """
SELECT pg_temp.heap_force_freeze(oid::regclass, tids::tid[]) FROM unnest(%s::oid[], %s::text[]) rows(oid, tids)
"""
_SET_VALUES = """
SELECT setval(oid::oid::regclass, last, called) FROM unnest(%s::int8[], %s::int8[], %s::bool[]) value(oid, last, called)
"""
_WITH_BLOCKS = "SELECT oid FROM unnest(%s::int8[]) oid WHERE pg_relation_size(oid::oid::regclass) > 0"
_LASTING = """
SELECT tgrelid::regclass::text FROM pg_trigger WHERE tgrelid = ANY (%(oids)s) AND tgenabled IN ('A', 'R')
UNION ALL SELECT adrelid::regclass::text FROM pg_attrdef a
JOIN pg_attribute ON attrelid = adrelid AND attnum = adnum AND attgenerated = 's'
JOIN pg_depend ON classid = 'pg_attrdef'::regclass AND objid = a.oid AND refclassid = 'pg_proc'::regclass
WHERE adrelid = ANY (%(oids)s)
UNION ALL SELECT ev_class::regclass::text FROM pg_rewrite WHERE ev_class = ANY (%(oids)s) AND ev_enabled IN ('A', 'R')
LIMIT 1
"""

_ACTING = "SELECT 1 FROM pg_event_trigger WHERE evtenabled IN ('A', 'R')"

Rows = frozenset[str]
"""Row addresses (tids), such as `(0,1)`."""

Changes = dict[Relation, tuple[Rows, Rows]]
"""Of each table the rows that are new, and those that are gone."""

Value = tuple[int, bool, bool]
"""A sequence: its last value, whether that was given out, and whether sessions may cache further ones."""


class Undo:
    """The present of one database, and the tools to make it its past."""

    def __init__(self, server: Server, database: str) -> None:
        self.connection = server.connect_inspector(database)
        if server.version_num < 170000 and self.connection.execute(_ACTING).fetchone():
            self.connection.close()
            raise NotProvenError("an event trigger that is always on would act on us, too")
        self._dead: collections.Counter[int] = collections.Counter()
        equip(self.connection)

    @property
    def pid(self) -> int:
        """The server's process that works for it."""
        return self.connection.info.backend_pid

    def close(self) -> None:
        """End the session, and with it the functions, which are temporary."""
        self.connection.close()

    def compare(self, past: psycopg.Connection[Any], tables: dict[Relation, File]) -> Changes:
        """The rows that are new, and those that are gone, where the tables were written."""
        found = {table: (Rows(file.inserted), Rows()) for table, file in tables.items() if file.is_only_inserted}
        if others := {table: file for table, file in tables.items() if table not in found}:
            questions = [relations.rows(table, file.blocks) for table, file in others.items()]
            before, after = self._ask_both(past, questions)
            for (table, file), then, now in zip(others.items(), before, after, strict=True):
                if then != now:
                    found[table] = (now - then | file.chained, then - now)
        return found

    def changed(self, past: psycopg.Connection[Any], tables: list[Relation]) -> list[Relation]:
        """Those of the tables that have other rows now."""
        questions = [relations.everything(table) for table in tables]
        before, after = self._ask_both(past, questions)
        return [table for table, then, now in zip(tables, before, after, strict=True) if then != now]

    def at_once(self) -> AbstractContextManager[psycopg.Pipeline]:
        """What is done in the block takes one round trip: its answers are there after it, its errors come then."""
        return self.connection.pipeline()

    def put_back(self, rows: Changes, values: dict[Relation, Value]) -> None:
        """Kill the new rows, revive those that are gone, rewind sequences to `values`.

        With a new row go its versions in between: from a revived row none of them could be reached, and pruning
        would stumble over them.
        """
        self._operate(_KILL, {table: new for table, (new, _) in rows.items() if new})
        self._operate(_REVIVE, {table: gone for table, (_, gone) in rows.items() if gone})
        self._rewind(values)

    def _operate(self, statement: LiteralString, rows: dict[Relation, Rows]) -> None:
        if rows:
            oids = [table.oid for table in rows]
            arrays = ["{" + ",".join(f'"{tid}"' for tid in tids) + "}" for tids in rows.values()]
            self.connection.execute(statement, [oids, arrays], prepare=True)

    def full(self, written: dict[Relation, int], rows: Changes) -> list[Relation]:
        """The tables that should be vacuumed now that so many records of them were `written`, and these rows killed."""
        found: list[Relation] = []
        for table, records in written.items():
            self._dead[table.oid] += records
            new, _ = rows.get(table, (Rows(), Rows()))
            blocks = {tid.partition(",")[0] for tid in new}
            is_spread = not table.is_catalog and table.pages <= 1 and len(blocks) > 1
            if is_spread or self._dead[table.oid] > max(_MANY, table.pages):
                found.append(table)
        return found

    def vacuum(self, tables: Iterable[Relation]) -> None:
        """Give back the room of killed rows, so that a table empty at the baseline has no blocks again."""
        names = sql.SQL(", ").join(named(table) for table in tables)
        self.connection.execute(sql.SQL("VACUUM (INDEX_CLEANUP ON, TRUNCATE ON) {}").format(names), {})
        for table in tables:
            del self._dead[table.oid]

    def _rewind(self, values: dict[Relation, Value]) -> None:
        """Set each sequence to its value, log_cnt 0."""
        if values:
            oids = [sequence.oid for sequence in values]
            lasts, called = [last for last, _, _ in values.values()], [called for _, called, _ in values.values()]
            self.connection.execute(_SET_VALUES, [oids, lasts, called], prepare=True)

    def invalidate(self, sequences: Iterable[Relation]) -> None:
        """Give these sequences other files: so sessions know that the values that they have cached are void.

        Not in a block of `at_once`: after ALTER psycopg forgets what it has prepared, at once, and the server later.
        """
        for sequence in sequences:
            self.connection.execute(sql.SQL("ALTER SEQUENCE {} RESTART").format(named(sequence)), {})

    def is_rewound(self, values: dict[Relation, Value], *, asking: psycopg.Connection[Any]) -> bool:
        """Whether each sequence has just this value, and nothing was taken from it since it was set.

        A transaction that is `asking` keeps a lock on each, and sees what is there now all the same.
        """
        for sequence, (last, called, _) in values.items():
            query = sql.SQL("SELECT last_value, is_called, log_cnt FROM {}").format(named(sequence))
            if asking.execute(query, {}).fetchone() != (last, called, 0):
                return False
        return True

    def refill(self, tables: dict[Relation, bytes | None]) -> list[Relation]:
        """Make these rows, in COPY's binary format, all that the tables have, None for nothing; what to vacuum.

        Raises NotProvenError for tables whose triggers act on us, too (ENABLE ALWAYS, ENABLE REPLICA).
        """
        self.refuse_lasting_triggers(tables)
        oids = [table.oid for table in tables]
        used = {oid for (oid,) in self.connection.execute(_WITH_BLOCKS, [oids], prepare=True)}
        for table, rows in tables.items():
            if table.oid in used:
                self.connection.execute(sql.SQL("DELETE FROM ONLY {}").format(named(table)), {})
            if rows is not None:
                with self.connection.cursor().copy(_copy(self.connection, table, "FROM STDIN")) as copy:
                    copy.write(rows)
        return [table for table, rows in tables.items() if rows is not None or table.oid in used]

    def _ask_both(
        self, past: psycopg.Connection[Any], questions: list[tuple[sql.Composed, dict[str, Any]]]
    ) -> tuple[list[Rows], list[Rows]]:
        """The answers to questions for rows, from the past and the present: both are at work at the same time."""
        with past.pipeline(), self.connection.pipeline():
            then, now = (
                [one.execute(query, parameters, prepare=True) for query, parameters in questions]
                for one in (past, self.connection)
            )
        return [_rows(answer) for answer in then], [_rows(answer) for answer in now]

    def refuse_lasting_triggers(self, tables: Iterable[Relation]) -> None:
        """Raise NotProvenError if a trigger or rule of these tables would act on us, too.

        Or a function of the user's that generates a column: it may say something else than it did.
        """
        row = self.connection.execute(_LASTING, {"oids": [table.oid for table in tables]}, prepare=True).fetchone()
        if row is not None:
            raise NotProvenError(f"{row[0]} has triggers, rules or functions that would act on a copy of its rows")


def equip(connection: psycopg.Connection[Any]) -> None:
    """Give a session the tools: functions that are temporary, its own, and end with it. Where it fails it is closed."""
    try:
        for name in ("heap_force_kill", "heap_force_freeze"):
            connection.execute(sql.SQL(_FUNCTION).format(name=sql.Identifier(name), name_text=sql.Literal(name)))
    except BaseException:
        connection.close()
        raise


def contents(connection: psycopg.Connection[Any], table: Relation) -> bytes:
    """All rows of a table, in their order, in COPY's binary format."""
    with connection.cursor().copy(_copy(connection, table, "TO STDOUT")) as copy:
        return b"".join(copy)


def _copy(connection: psycopg.Connection[Any], table: Relation, end: LiteralString) -> sql.Composed:
    columns = connection.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped AND attgenerated = ''"
        " ORDER BY attnum",
        [table.oid],
    )
    names = sql.SQL(", ").join(sql.Identifier(name) for (name,) in columns)
    table_name = sql.SQL(table.name)  # quoted by the server that it came from
    return sql.SQL("COPY {} ({}) {} (FORMAT binary)").format(table_name, names, sql.SQL(end))


def _rows(answer: psycopg.Cursor[Any]) -> Rows:
    row = answer.fetchone()
    return Rows(row[0] if row and row[0] else ())
