"""What a crash would take: PostgreSQL empties unlogged relations when it recovers (manual, chapter "CREATE TABLE")."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, LiteralString

if TYPE_CHECKING:
    import psycopg

_FILLED: LiteralString = """
SELECT oid::regclass::text FROM pg_class
WHERE relpersistence = 'u' AND relkind IN ('r', 'm') AND pg_relation_size(oid) > 0
UNION ALL SELECT seqrelid::regclass::text FROM pg_sequence JOIN pg_class c ON c.oid = seqrelid
WHERE relpersistence = 'u' AND pg_sequence_last_value(seqrelid) IS NOT NULL ORDER BY 1
"""


def filled(connection: psycopg.Connection[Any]) -> tuple[str, ...]:
    """The unlogged relations that have anything in them, by name."""
    return tuple(name for (name,) in connection.execute(_FILLED))
