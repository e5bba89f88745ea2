"""What PostgreSQL's own log says was changed: which blocks of which files of one database, between two positions.

`pg_walinspect` (manual, appendix F; in contrib since 15) decodes the log. It is read in the maintenance database, so
that nothing is added to the one it is about.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, LiteralString

import psycopg

INPLACE, PAGE = "Heap INPLACE", "XLOG FPI"
"""Kinds of record: a row of a catalog overwritten where it is, without a new version; a page written whole."""

_NEUTRAL = [
    "Heap LOCK",
    "Heap2 LOCK_UPDATED",
    "Heap2 PRUNE",
    "Heap2 PRUNE_ON_ACCESS",
    "Heap2 PRUNE_VACUUM_SCAN",
    "Heap2 PRUNE_VACUUM_CLEANUP",
    "Heap2 VACUUM",
    "Heap2 FREEZE_PAGE",
    "Heap2 VISIBLE",
    "Heap2 NEW_CID",
    "XLOG FPI_FOR_HINT",
]
"""Records that touch blocks and leave what the table says as it is: locks, pruning, freezing, visibility, hints."""

_INSERTS = {"Heap INSERT", "Heap INSERT+INIT", "Heap HEAP_CONFIRM", PAGE}

_INDEXES = ["Btree", "Hash", "Gin", "Gist", "SPGist"]
"""Resource managers that write indexes only: those follow their tables."""

SUMMARIES = {"BRIN INSERT", "BRIN INSERT+INIT", "BRIN DESUMMARIZE", "BRIN CREATE_INDEX"}
"""A range of blocks was summarised anew, by the rows that were there then: of what is revived it may know nothing."""

_SINCE_16: LiteralString = """
    SELECT reldatabase, relfilenode, relblocknumber, resource_manager, record_type, description
    FROM pg_get_wal_block_info(%(start)s, %(end)s, false) WHERE relforknumber = 0
"""
_IN_15: LiteralString = r"""
    SELECT ref[1]::oid, ref[2]::oid, ref[3]::int8, resource_manager, record_type, description
    FROM pg_get_wal_records_info(%(start)s, %(end)s),
         regexp_matches(block_ref, 'rel \d+/(\d+)/(\d+) fork main blk (\d+)', 'g') ref
"""
"""What the two versions of the extension know of each block of a main fork that a record touches."""

_SUMMED: LiteralString = r"""
SELECT database = 0, file::int8, manager || ' ' || type, array_agg(DISTINCT block),
       array_agg(DISTINCT format('(%%s,%%s)', block, substring(description from 'off:? (\d+)')))
           FILTER (WHERE type = 'INPLACE'),
       array_agg(DISTINCT format('(%%s,%%s)', block, substring(description from 'new[_ ]off:? (\d+)')))
           FILTER (WHERE type LIKE 'HOT_UPDATE%%'),
       array_agg(DISTINCT format('(%%s,%%s)', block, substring(description from 'off:? (\d+)')))
           FILTER (WHERE type LIKE 'INSERT%%'),
       count(*)
FROM ({}) touched(database, file, block, manager, type, description)
WHERE database IN (0, %(database)s::oid)
      AND manager <> ALL (%(indexes)s) AND manager || ' ' || type <> ALL (%(neutral)s)
GROUP BY 1, 2, 3
"""

_SUMMED_SINCE_16, _SUMMED_IN_15 = _SUMMED.format(_SINCE_16), _SUMMED.format(_IN_15)


@dataclass
class File:
    """What happened to the main fork of one relation's file."""

    kinds: set[str] = field(default_factory=set)
    """Resource manager and type of each record: `Heap INSERT`."""
    blocks: set[int] = field(default_factory=set)
    overwritten: set[str] = field(default_factory=set)
    """The tids of rows that were overwritten in place: `(0,1)`."""
    chained: set[str] = field(default_factory=set)
    """The tids of the new versions that lie beside their old ones and have no index entries of their own (HOT)."""
    records: int = 0
    inserted: set[str] = field(default_factory=set)
    """The tids of rows that were inserted one by one, whether or not that was committed."""

    @property
    def is_only_inserted(self) -> bool:
        """Whether `inserted` is all that happened."""
        return self.kinds <= _INSERTS


@dataclass
class Touched:
    """What happened to the files of one database, and whether the catalogs that all databases share were written."""

    files: dict[int, File] = field(default_factory=dict)
    """By relfilenode."""
    shared: bool = False


def read(admin: psycopg.Connection[Any], database: int, start: int, end: int) -> Touched:
    """What was written to the database of that oid from the position `start` up to `end`, which must be flushed.

    Raises psycopg.Error when the log can't be read, such as when a checkpoint has recycled its beginning.
    """
    try:
        return _read(admin, database, start, end)
    except psycopg.Error:  # between the two may lie no record at all, but the head of a page: then there is no start
        return _read(admin, database, start, flush(admin))


def _read(admin: psycopg.Connection[Any], database: int, start: int, end: int) -> Touched:
    query = _SUMMED_SINCE_16 if admin.info.server_version >= 160000 else _SUMMED_IN_15
    parameters = {"start": lsn(start), "end": lsn(end), "database": database, "indexes": _INDEXES, "neutral": _NEUTRAL}
    touched = Touched()
    for shared, filenode, kind, blocks, overwritten, chained, inserted, records in admin.execute(
        query, parameters, prepare=True
    ):
        if shared:
            touched.shared = True
            continue
        file = touched.files.setdefault(filenode, File())
        file.kinds.add(kind)
        file.blocks.update(blocks)
        file.overwritten.update(overwritten or ())
        file.chained.update(chained or ())
        file.inserted.update(inserted or ())
        file.records += records
    return touched


def flush(admin: psycopg.Connection[Any]) -> int:
    """Have all that was written so far flushed; the position up to which it is.

    What is beyond that position would be missing from what `read` finds, without an error. A message into the log
    (manual, chapter 9.28.6) is the cheapest transaction there is, and its commit flushes all before it.
    """
    with admin.pipeline() as pipeline:
        admin.execute("SELECT set_config('synchronous_commit', 'on', false)")
        admin.execute("SELECT pg_logical_emit_message(true, 'pgsandbox', '')")
        pipeline.sync()  # which commits: without it all three are one transaction, and the position that of before it
        answer = admin.execute("SELECT (pg_current_wal_flush_lsn() - '0/0')::int8")
    row = answer.fetchone()
    assert row is not None
    return int(row[0])


def lsn(position: int) -> str:
    """A position, in bytes, as PostgreSQL writes it: `0/16B3748`."""
    return f"{position >> 32:X}/{position & 0xFFFFFFFF:X}"
