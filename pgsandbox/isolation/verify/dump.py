"""What a database is, down to the last catalog row: one checksum for each thing, and the rows to tell a difference by.

It knows nothing of how a reset works, and asks PostgreSQL only by plain SELECTs: nothing is made in the database.
A worker database is a copy of its template's files, so that even oids have to be the same.
"""

# ruff: noqa: S608 -- SQL made of names that PostgreSQL has quoted itself, and of our own constants

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from pgsandbox import scram
from pgsandbox.isolation.verify import indexes, surroundings

if TYPE_CHECKING:
    import psycopg

    from pgsandbox.database import Address

MOVES = {
    "pg_class": {
        "relfilenode": "TRUNCATE, VACUUM FULL, CLUSTER and REINDEX write the same relation to another file",
        "relpages": "an estimate that VACUUM, ANALYZE and the build of an index refresh",
        "reltuples": "the same",
        "relallvisible": "the same",
        "relallfrozen": "the same (PostgreSQL 18)",
        "relfrozenxid": "how far VACUUM has come: of no meaning to a query",
        "relminmxid": "the same",
    }
}
"""The only columns of catalogs that are not compared, and why. What is planned by, pg_statistic, is compared: a test
that runs ANALYZE would give the next one other plans. The counters of pg_stat_* are no catalog and no state: the
server's memory of what was done, which PostgreSQL itself forgets in a crash."""

_HASHED = frozenset(
    {"oid", "name", "boolean", "smallint", "integer", "bigint", '"char"', "text", "bytea", "regproc", "xid", "pg_lsn"}
    | {"int2vector", "oidvector", "oid[]", "text[]", "smallint[]", '"char"[]', "timestamp with time zone"}
)
"""Types of catalog columns whose hash tells all values apart; of others the text is hashed, which takes longer."""

_KEPT_BYTES = 64 << 20
"""Of larger tables no rows are kept: a difference is seen, but not told row by row."""

_ALIAS = '"a row of it"'
"""What a table is called in our SELECTs: a column of that name would be taken for the row."""

_SIZES = """
    SELECT format('%I.%I', n.nspname, c.relname), pg_table_size(c.oid)
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'm') AND n.nspname NOT IN ('pg_catalog', 'pg_toast', 'information_schema')
"""

_QUIET = """
    BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
    SET LOCAL search_path = pg_catalog; SET LOCAL row_security = off; SET LOCAL lock_timeout = '10s';
    SET LOCAL statement_timeout = 0; SET LOCAL jit = off; SET LOCAL max_parallel_workers_per_gather = 0;
    SET LOCAL datestyle = 'ISO, YMD'; SET LOCAL intervalstyle = 'postgres'; SET LOCAL timezone = 'UTC';
    SET LOCAL extra_float_digits = 1; SET LOCAL bytea_output = 'hex'; SET LOCAL lc_monetary = 'C';
    SET LOCAL xmlbinary = 'base64'; SET LOCAL quote_all_identifiers = off;
    SET LOCAL synchronize_seqscans = off; SET LOCAL enable_seqscan = on; SET LOCAL enable_indexscan = off;
    SET LOCAL enable_indexonlyscan = off; SET LOCAL enable_bitmapscan = off; SET LOCAL enable_tidscan = off
"""
"""Whatever `ALTER DATABASE … SET` says, values look the same in each dump, and tables are read from their beginning."""

_RELATIONS = """
    SELECT c.relkind::text, n.nspname::text, c.relname::text, format('%I.%I', n.nspname, c.relname),
           array_agg(a.attname::text ORDER BY a.attnum) FILTER (WHERE a.attnum IS NOT NULL),
           array_agg(format_type(a.atttypid, NULL) ORDER BY a.attnum) FILTER (WHERE a.attnum IS NOT NULL),
           array_agg(a.attname::text ORDER BY a.attnum) FILTER (WHERE a.attnum = ANY (i.indkey)),
           c.relispopulated
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    LEFT JOIN pg_index i ON i.indrelid = c.oid AND i.indisprimary
    WHERE c.relkind IN ('r', 'm', 'S') AND c.relpersistence <> 't' AND NOT c.relisshared
    GROUP BY c.oid, n.nspname ORDER BY n.nspname, c.relname
"""

_TEMPORARY = """
    WITH spaces AS MATERIALIZED (SELECT oid FROM pg_namespace WHERE nspname ~ '^pg_(toast_)?temp_[0-9]+$'),
    relations AS MATERIALIZED (SELECT oid FROM pg_class WHERE relnamespace IN (TABLE spaces))
    SELECT array_agg(oid::text) FROM (
        TABLE spaces UNION ALL TABLE relations
        UNION ALL SELECT oid FROM pg_type WHERE typnamespace IN (TABLE spaces)
        UNION ALL SELECT oid FROM pg_proc WHERE pronamespace IN (TABLE spaces)
        UNION ALL SELECT oid FROM pg_operator WHERE oprnamespace IN (TABLE spaces)
        UNION ALL SELECT oid FROM pg_collation WHERE collnamespace IN (TABLE spaces)
        UNION ALL SELECT oid FROM pg_statistic_ext WHERE stxnamespace IN (TABLE spaces)
        UNION ALL SELECT oid FROM pg_constraint
                  WHERE connamespace IN (TABLE spaces) OR conrelid IN (TABLE relations)
        UNION ALL SELECT oid FROM pg_attrdef WHERE adrelid IN (TABLE relations)
        UNION ALL SELECT oid FROM pg_trigger WHERE tgrelid IN (TABLE relations)
        UNION ALL SELECT oid FROM pg_rewrite WHERE ev_class IN (TABLE relations)
        UNION ALL SELECT oid FROM pg_policy WHERE polrelid IN (TABLE relations)
    ) found
    WHERE EXISTS (TABLE spaces)
"""
"""A temporary object belongs to a session, which may live on, and its schema to whoever comes next."""


@dataclass(frozen=True)
class Item:
    """One thing that is compared as a whole: the rows of a relation, or the answers to a question."""

    kind: str
    """`catalog`, `table`, `materialized view`, `sequence`, or `about` for what is not in the database's own files."""
    row: str
    """SQL: one row of it as a record."""
    origin: str
    """SQL: where its rows come from."""
    columns: tuple[str, ...]
    key: tuple[str, ...] = ()
    """The columns that tell its rows apart, where there are such."""
    oids: frozenset[str] = frozenset()
    """The columns of a catalog that refer to something by its oid."""

    @property
    def is_stored(self) -> bool:
        """Whether it has rows of the user's, in an order, to be found by indexes."""
        return self.kind in ("table", "materialized view")


class Mark(NamedTuple):
    """The checksums of an item's rows."""

    rows: int
    content: str
    """Of the rows, whatever their order."""
    order: str
    """Of the rows as an unordered SELECT gives them; empty where that is nobody's business."""
    places: int
    """Of where they lie; for the dump's own use."""


@dataclass(frozen=True)
class Dump:
    """The state of one database at one moment, to be compared by `differences`."""

    items: dict[str, Item]
    marks: dict[str, Mark]
    indexes: dict[str, str]
    """The indexes that don't find what their tables hold: what is wrong, in words."""
    temporary: frozenset[str]
    """The oids of what belongs to a session alone."""
    kept: dict[str, bytes] = field(repr=False)
    """The rows of items, packed: of all of them, or of those that differ from the dump that this one was made like."""

    def rows(self, name: str) -> list[str] | None:
        """The rows of the item `name`, as PostgreSQL writes a record; None if they were not kept."""
        if name not in self.kept:
            return None
        text = zlib.decompress(self.kept[name]).decode()
        return text.split("\0") if text else []  # no text of PostgreSQL's has a zero byte


def dump(
    connection: psycopg.Connection[Any], address: Address, *, like: Dump | None = None, whole_server: bool = False
) -> Dump:
    """The full state of the database at `address`, by a superuser's `connection` to it.

    With `like`, only rows of what differs from that dump are kept, which is fast. With `whole_server` also what other
    databases and roles there are, which is of interest where nobody else uses the server. Raises psycopg.Error.
    """
    connection.execute(_QUIET)
    try:
        items = {name: item for relation in connection.execute(_RELATIONS) for name, item in _relation(relation)}
        verifier = connection.execute("SELECT rolpassword FROM pg_authid WHERE rolname = %s", [address.user]).fetchone()
        is_let_in = verifier is not None and scram.is_verifier(verifier[0] or "", address.password)
        asked = surroundings.questions(address.user, is_let_in=is_let_in, whole_server=whole_server)
        for name, question in asked.items():
            items[name] = Item("about", "q", f"({question}) q", ("what", "value"), key=("what",))
        columns = ("classid", "objid", "objsubid", "refclassid", "refobjid", "deptype")
        oids = frozenset({"objid", "refobjid"})
        items["pg_shdepend"] = Item("catalog", _record(columns), surroundings.DEPENDENT, columns, oids=oids)
        [(temporary,)] = connection.execute(_TEMPORARY)
        marks = _marks(connection, items)
        if like is None:
            large = {name for name, size in connection.execute(_SIZES) if size > _KEPT_BYTES}
            wanted = [name for name in items if name not in large]
        else:
            same = {name for name, mark in like.marks.items() if name in marks and marks[name].content == mark.content}
            wanted = [name for name in items if name not in same]
        places = {name: (mark.rows, mark.places) for name, mark in marks.items() if items[name].is_stored}
        return Dump(
            items,
            marks,
            indexes=indexes.failing(connection, places),
            temporary=frozenset(temporary or ()),
            kept={name: _packed(connection, items[name]) for name in wanted if marks[name].rows},
        )
    finally:
        connection.execute("ROLLBACK")


def _relation(found: tuple[Any, ...]) -> Iterator[tuple[str, Item]]:
    """A row of `_RELATIONS` as an item and its name."""
    kind, schema, relation, full, columns, types, key, is_populated = found
    typed = dict(zip(columns or (), types or (), strict=True))
    if schema == "pg_catalog":
        typed = {name: type_ for name, type_ in typed.items() if name not in MOVES.get(relation, {})}
        record = _record(name if type_ in _HASHED else f"{name}::text" for name, type_ in typed.items())
        oids = frozenset(name for name, type_ in typed.items() if type_ == "oid")
        yield relation, Item("catalog", record, full, tuple(typed), tuple(key or ()), oids)
    elif kind == "S":
        yield full, Item("sequence", _record(typed), full, tuple(typed))
    elif is_populated:
        kind = "materialized view" if kind == "m" else "table"
        yield full, Item(kind, f"{_ALIAS}.*", f"ONLY {full} {_ALIAS}", tuple(typed), tuple(key or ()))


def _record(columns: Iterable[str]) -> str:
    return f"ROW({', '.join(columns)})"


def _marks(connection: psycopg.Connection[Any], items: dict[str, Item]) -> dict[str, Mark]:
    """The checksums of all items by one statement."""
    queries = []
    for number, item in enumerate(items.values()):
        hashed = (
            f"hash_record_extended({item.row}, 0)"
            if item.kind == "catalog"
            else f"hashtextextended(({item.row})::text, 0)"
        )
        place, order = ("hashtid(ctid)", "md5(string_agg(h::text, ','))") if item.is_stored else ("0", "NULL")
        queries.append(
            f"SELECT {number}, count(*), coalesce(sum(h), 0)::text, coalesce({order}, ''), coalesce(sum(p), 0)"
            f" FROM (SELECT {hashed}, {place} FROM {item.origin} OFFSET 0) s (h, p)"
        )
    names = list(items)
    answers = connection.execute(" UNION ALL ".join(queries))
    return {names[number]: Mark(rows, *checksums) for number, rows, *checksums in answers}


def _packed(connection: psycopg.Connection[Any], item: Item) -> bytes:
    rows = connection.execute(f"SELECT ({item.row})::text FROM {item.origin}")
    return zlib.compress("\0".join(row for (row,) in rows).encode(), 1)
