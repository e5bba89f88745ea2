"""The values of sequences: not rows, not transactional, and written to the log ahead of what was given out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, LiteralString

import psycopg
from psycopg import sql

_ALL: LiteralString = """
SELECT seqrelid::int8, seqrelid::regclass::text, seqcache > 1 FROM pg_sequence
JOIN pg_class c ON c.oid = seqrelid
WHERE c.relpersistence <> 't' AND (%(wanted)s::int8[] IS NULL OR seqrelid::int8 = ANY (%(wanted)s)) ORDER BY 1
"""
_AT_ONCE = 100


def settle(
    connection: psycopg.Connection[Any], wanted: Iterable[int] | None = None
) -> list[tuple[int, int, bool, bool]]:
    """Oid, last value, whether it was given out, and whether sessions cache values, of the sequences `wanted` or all.

    Each is set to what it is, so that its next value is written to the log again: nextval logs 32 values ahead
    (`log_cnt`), and what it gives out of these would pass unseen.
    """
    found = connection.execute(_ALL, {"wanted": None if wanted is None else list(wanted)}).fetchall()
    values: list[tuple[int, int, bool, bool]] = []
    for start in range(0, len(found), _AT_ONCE):
        each = [
            sql.SQL(
                "SELECT {}::int8, last_value, is_called, {}, setval({}::oid::regclass, last_value, is_called) FROM {}"
            ).format(oid, cached, oid, sql.SQL(name))
            for oid, name, cached in found[start : start + _AT_ONCE]
        ]
        rows = connection.execute(sql.SQL(" UNION ALL ").join(each))
        values += [(oid, last, called, cached) for oid, last, called, cached, _ in rows]
    return values
