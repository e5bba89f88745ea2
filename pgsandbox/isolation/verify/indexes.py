"""Whether indexes find what their tables hold, by reading each table once by way of each of its B-trees.

amcheck would know more, and would have to be created in the user's database.
"""

# ruff: noqa: S608 -- SQL made of names that PostgreSQL has quoted itself, and of our own constants

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import psycopg

Places = tuple[int, int]
"""How many rows there are, and a checksum of where they lie."""

_INDEXES = """
    SELECT format('%I.%I', n.nspname, t.relname), format('%I.%I', n.nspname, x.relname),
           (SELECT string_agg('(' || pg_get_indexdef(i.indexrelid, k, false) || ')'
                || coalesce((SELECT format(' COLLATE %I.%I', m.nspname, l.collname) FROM pg_collation l
                             JOIN pg_namespace m ON m.oid = l.collnamespace WHERE l.oid = i.indcollation[k - 1]), '')
                || CASE WHEN i.indoption[k - 1] & 1 = 1 THEN ' DESC' ELSE '' END
                || CASE WHEN i.indoption[k - 1] & 2 = 2 THEN ' NULLS FIRST' ELSE ' NULLS LAST' END, ', ' ORDER BY k)
            FROM generate_series(1, i.indnkeyatts) k),
           pg_get_expr(i.indpred, i.indrelid)
    FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid JOIN pg_class t ON t.oid = i.indrelid
    JOIN pg_namespace n ON n.oid = t.relnamespace JOIN pg_am m ON m.oid = x.relam
    WHERE m.amname = 'btree' AND x.relkind = 'i' AND i.indisvalid AND i.indisready AND t.relkind IN ('r', 'm')
      AND t.relpersistence <> 't' AND n.nspname NOT IN ('pg_catalog', 'pg_toast', 'information_schema')
"""

_BY_INDEX = """
    SET LOCAL enable_seqscan = off; SET LOCAL enable_sort = off; SET LOCAL enable_incremental_sort = off;
    SET LOCAL enable_indexscan = on
"""


def failing(connection: psycopg.Connection[Any], tables: dict[str, Places]) -> dict[str, str]:
    """The indexes that find other rows than a full scan of their table: what is wrong, in words.

    `tables` says what a full scan found. It is asked for in a transaction whose settings it may change.
    """
    found = [row for row in connection.execute(_INDEXES) if tables.get(row[0], (0, 0))[0]]
    partial = [row for row in found if row[3] is not None]
    there = {index: tables[table] for table, index, _, _ in found}
    there |= _count(connection, [(index, table, predicate, "") for table, index, _, predicate in partial])
    connection.execute(_BY_INDEX)
    reached = _count(connection, [(index, table, predicate, keys) for table, index, keys, predicate in found])
    return {
        index: f"finds {reached[index][0]} rows of {there[index][0]}"
        if reached[index][0] != there[index][0]
        else "finds other rows than a full scan"
        for index in there
        if reached[index] != there[index]
    }


def _count(connection: psycopg.Connection[Any], scans: list[tuple[str, str, str | None, str]]) -> dict[str, Places]:
    """For each index, table, predicate and order: what such a SELECT finds."""
    if not scans:
        return {}
    queries = [
        f"SELECT {number}, count(*), coalesce(sum(p), 0) FROM (SELECT hashtid(ctid) FROM ONLY {table}"
        f"{f' WHERE {predicate}' if predicate else ''}{f' ORDER BY {order}' if order else ''} OFFSET 0) s (p)"
        for number, (_, table, predicate, order) in enumerate(scans)
    ]
    rows = connection.execute(" UNION ALL ".join(queries))
    return {scans[number][0]: (count, places) for number, count, places in rows}
