"""The relations of one database by the files that they are in, and whether its catalogs say what they said."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, LiteralString

import psycopg
from psycopg import sql

from pgsandbox.isolation.reset.errors import NotProvenError

if TYPE_CHECKING:
    from pgsandbox.isolation.reset.wal import File

PG_CLASS, PG_NAMESPACE, BRIN = 1259, 2615, 3580
_FIRST_OF_USERS = 16384
"""Oids below this one are given by initdb (PostgreSQL's source, access/transam.h)."""

TABLE, TOAST, VIEW, SEQUENCE = "r", "t", "m", "S"
"""Kinds of relations with rows of their own (pg_class.relkind): table, TOAST table, materialized view, sequence."""

_FIND: LiteralString = """
SELECT coalesce(nullif(relfilenode, 0), pg_relation_filenode(oid))::int8, oid::int8, relkind,
       oid::regclass::text, relpages, relam::int8
FROM pg_class
"""
_BY_FILE: LiteralString = (
    _FIND + "WHERE relfilenode = ANY (%(wanted)s) OR (relfilenode = 0 AND pg_relation_filenode(oid) = ANY (%(wanted)s))"
)
_UNLOGGED: LiteralString = _FIND + "WHERE relpersistence = 'u' AND relkind IN ('r', 't', 'm', 'S')"
_BY_OID: LiteralString = _FIND + "WHERE oid = ANY (%(wanted)s::int8[]::oid[])"

_MAPPED: LiteralString = """
SELECT oid::int8, pg_relation_filenode(oid)::int8 FROM pg_class
WHERE oid < 16384 AND relfilenode = 0 AND NOT relisshared AND relkind IN ('r', 'i', 't')
"""
"""The catalogs whose files pg_class does not name; VACUUM FULL can move them."""

_BLOCKS: LiteralString = """
SELECT {what} FROM unnest(%(low)s::int8[], %(high)s::int8[]) span(low, high)
CROSS JOIN LATERAL (SELECT {columns} FROM ONLY {relation} r
                    WHERE ctid >= ('(' || span.low || ',0)')::tid AND ctid < ('(' || span.high || ',0)')::tid
                    OFFSET 0) r
"""
"""Rows by block: with OFFSET 0 each span is scanned by itself, and nothing but its blocks is read."""

_MOVING = [
    "relfilenode",
    "relpages",
    "reltuples",
    "relallvisible",
    "relallfrozen",
    "relfrozenxid",
    "relminmxid",
    "relhastriggers",
    "relhasrules",
    "relhassubclass",
    "relhasindex",
]
"""Columns of pg_class that say where a relation is and what was last counted in it, not what it is.

The `relhas…` ones are hints that may stay true when there is nothing left (manual, chapter 53.11)."""

_OF_CLASS: LiteralString = """
r.ctid::text, (to_jsonb(r) - 'ctid' - {}::text[])::text, r.oid::int8, r.relfilenode::int8,
substring(r.relnamespace::regnamespace::text from '^pg_temp_([0-9]+)$')::int4
"""


@dataclass(frozen=True)
class Relation:
    """One relation with a file, as pg_class had it at a baseline."""

    filenode: int = field(compare=False)
    oid: int
    kind: str = field(compare=False)
    """`pg_class.relkind`."""
    name: str = field(compare=False)
    """Quoted and with its schema, as SQL wants it."""
    pages: int = field(compare=False)
    """Blocks, when it was last counted."""
    method: int = field(compare=False)
    """The oid of its access method."""

    @property
    def is_catalog(self) -> bool:
        """Whether it belongs to PostgreSQL itself."""
        return self.oid < _FIRST_OF_USERS

    @property
    def has_content(self) -> bool:
        """Whether it has rows or a value of its own; an index has not."""
        return self.kind in (TABLE, TOAST, VIEW, SEQUENCE)


def by_file(connection: psycopg.Connection[Any], filenodes: Iterable[int]) -> dict[int, Relation]:
    """The relations that are in these files, as this session sees pg_class."""
    return {r.filenode: r for r in _find(connection, _BY_FILE, filenodes)}


def by_oid(connection: psycopg.Connection[Any], oids: Iterable[int]) -> dict[int, Relation]:
    """The relations of these oids, as this session sees pg_class."""
    return {r.oid: r for r in _find(connection, _BY_OID, oids)}


def unlogged(connection: psycopg.Connection[Any]) -> list[Relation]:
    """The relations that the log has nothing of."""
    return [Relation(*row) for row in connection.execute(_UNLOGGED, {}, prepare=True)]


def mapped(connection: psycopg.Connection[Any]) -> frozenset[tuple[int, int]]:
    """Oid and file of each catalog that pg_class does not name the file of."""
    return frozenset(connection.execute(_MAPPED, prepare=True).fetchall())


def rows(relation: Relation, blocks: Iterable[int]) -> tuple[sql.Composed, dict[str, Any]]:
    """A query for the tids of the rows in these blocks, as an array of texts or NULL; and its parameters."""
    what, columns = sql.SQL("array_agg(r.ctid::text)"), sql.SQL("r.ctid")
    return _in_blocks(relation, blocks, what, columns)


def everything(relation: Relation) -> tuple[sql.Composed, dict[str, Any]]:
    """A query for the tids of all rows, as `rows` gives them."""
    query = sql.SQL("SELECT array_agg(ctid::text) FROM ONLY {}").format(named(relation))
    return query, {}


@dataclass(frozen=True)
class Differences:
    """What is no longer in the catalogs as it was at the baseline."""

    changed: tuple[str, ...] = ()
    """The catalogs that say something else."""
    moved: tuple[int, ...] = ()
    """Relations that are in another file: TRUNCATE, CLUSTER, VACUUM FULL, REINDEX, ALTER SEQUENCE do that."""
    temporary: tuple[int, ...] = ()
    """The numbers of the temporary schemas that have relations in them now."""
    counted: bool = False
    """Whether a row that was there was overwritten in place."""


def differences(
    past: psycopg.Connection[Any], present: psycopg.Connection[Any], catalogs: dict[Relation, File]
) -> Differences:
    """Compare the catalogs where they were written, as the session `past` sees them, with what is there at present."""
    changed: list[str] = []
    moved: list[int] = []
    temporary: list[int] = []
    counted = False
    for catalog, file in catalogs.items():
        before, after = _said(past, catalog, file.blocks), _said(present, catalog, file.blocks)
        counted |= not file.overwritten.isdisjoint(before)
        gone, new = before.keys() - after.keys(), after.keys() - before.keys()
        if catalog.oid != PG_CLASS:
            if _texts(before, gone) != _texts(after, new):
                changed.append(_short(catalog))
            continue
        were = {oid: (text, file) for text, oid, file, _ in (before[tid] for tid in gone)}
        are = {oid: (text, file) for text, oid, file, _ in (after[tid] for tid in new)}
        temporary += {schema for _, _, _, schema in (after[tid] for tid in new) if schema is not None}
        if {oid: text for oid, (text, _) in were.items()} != {oid: text for oid, (text, _) in are.items()}:
            changed.append("pg_class")
        else:
            moved += [oid for oid, (_, file) in are.items() if were[oid][1] != file]
    return Differences(tuple(changed), tuple(moved), tuple(temporary), counted)


def _texts(said: dict[str, tuple[str | None, int, int, int | None]], tids: Iterable[str]) -> list[str]:
    return sorted(text for text, _, _, _ in (said[tid] for tid in tids) if text is not None)


def _said(
    connection: psycopg.Connection[Any], catalog: Relation, blocks: Iterable[int]
) -> dict[str, tuple[str | None, int, int, int | None]]:
    """What the rows of these blocks say, by tid: all of it as text; of pg_class oid, file and temporary schema, too.

    The name of a temporary schema stays when nothing is in it any more, and says nothing.
    """
    what: sql.Composable = sql.SQL("r.ctid::text, r.said, 0, 0, NULL")
    columns = sql.SQL("r.ctid, r::text AS said")
    if catalog.kind == TOAST:
        columns = sql.SQL("r.ctid, concat_ws(' ', r.chunk_id, r.chunk_seq, r.chunk_data) AS said")
    elif catalog.oid == PG_NAMESPACE:
        columns = sql.SQL("r.ctid, CASE WHEN r.nspname !~ '^pg_(toast_)?temp_' THEN r::text END AS said")
    elif catalog.oid == PG_CLASS:
        what, columns = sql.SQL(_OF_CLASS).format(sql.Literal(_MOVING)), sql.SQL("r.ctid, r.*")
    query, parameters = _in_blocks(catalog, blocks, what, columns)
    try:
        found = connection.execute(query, parameters, prepare=True)
    except psycopg.errors.InternalError_ as problem:  # a value of a type that is gone, which nobody can read any more
        raise NotProvenError(f"the schema was changed ({_short(catalog)})") from problem
    return {tid: (said, oid, file, schema) for tid, said, oid, file, schema in found}


def _short(catalog: Relation) -> str:
    return catalog.name.removeprefix("pg_catalog.")


def _in_blocks(
    relation: Relation, blocks: Iterable[int], what: sql.Composable, columns: sql.Composable
) -> tuple[sql.Composed, dict[str, Any]]:
    spans = _spans(sorted(blocks))
    query = sql.SQL(_BLOCKS).format(what=what, columns=columns, relation=named(relation))
    return query, {"low": [low for low, _ in spans], "high": [high for _, high in spans]}


def _spans(blocks: list[int]) -> list[tuple[int, int]]:
    """Ascending numbers as half-open spans."""
    spans: list[tuple[int, int]] = []
    for block in blocks:
        if spans and spans[-1][1] == block:
            spans[-1] = (spans[-1][0], block + 1)
        else:
            spans.append((block, block + 1))
    return spans


def named(relation: Relation) -> sql.SQL:
    """Its name as part of a query that is executed with parameters."""
    return sql.SQL(relation.name.replace("%", "%%"))  # quoted by the server that gave it


def _find(connection: psycopg.Connection[Any], query: LiteralString, wanted: Iterable[int]) -> list[Relation]:
    return [Relation(*row) for row in connection.execute(query, {"wanted": list(wanted)}, prepare=True)]
