"""What PostgreSQL's own log says was changed: which blocks of which files of one database, between two positions.

`pg_walinspect` (manual, appendix F; in contrib since 15) decodes the log. It is read in the maintenance database, so
that nothing is added to the one it is about.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, LiteralString

import psycopg

from pgsandbox.isolation.reset.errors import NotProvenError

INPLACE, PAGE = "Heap INPLACE", "XLOG FPI"
"""Kinds of record: a row of a catalog overwritten where it is, without a new version; a page written whole."""

WORTH = 4 << 20
"""Bytes of log that are worth reading, to keep connections alive: with more, a clone is many times faster."""

_NEUTRAL = {
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
}
"""Records that touch blocks and leave what the table says as it is: locks, pruning, freezing, visibility, hints."""

_INSERTS = {"Heap INSERT", "Heap INSERT+INIT", "Heap HEAP_CONFIRM", PAGE}

_INDEXES = ["Btree", "Hash", "Gin", "Gist", "SPGist"]
"""Resource managers that write indexes only: those follow their tables."""

SUMMARIES = {"BRIN INSERT", "BRIN INSERT+INIT", "BRIN DESUMMARIZE", "BRIN CREATE_INDEX"}
"""A range of blocks was summarised anew, by the rows that were there then: of what is revived it may know nothing."""

_SINCE_16: LiteralString = """
    SELECT reldatabase::int8, relfilenode::int8, relblocknumber, resource_manager || ' ' || record_type, description
    FROM pg_get_wal_block_info(%s::pg_lsn, %s::pg_lsn, false)
    WHERE relforknumber = 0 AND reldatabase IN (0, %s::oid) AND resource_manager <> ALL (%s)
"""
"""Each block of a main fork that a record touches."""

_IN_15: LiteralString = """
    SELECT block_ref, resource_manager || ' ' || record_type, description
    FROM pg_get_wal_records_info(%s::pg_lsn, %s::pg_lsn)
    WHERE (block_ref LIKE '%%/0/%%' OR block_ref LIKE %s) AND resource_manager <> ALL (%s)
"""
"""Each record, with the blocks that it touches in words: `blkref #0: rel 1663/16384/16385 fork main blk 0`."""

_REFERENCE = re.compile(r"rel \d+/(\d+)/(\d+) fork main blk (\d+)")
_ROW, _NEW_ROW = re.compile(r"\boff:? (\d+)"), re.compile(r"\bnew[_ ]off:? (\d+)")
"""Where the description of a record says which row of its block it is about."""

Block = tuple[int, int, int, str, str]
"""A block that a record touches: database, relfilenode, number; the record's kind and description."""


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
    """How many there are, one that touches two blocks of it counted twice."""
    inserted: set[str] = field(default_factory=set)
    """The tids of rows that were inserted one by one, whether or not that was committed."""

    def note(self, block: int, kind: str, description: str) -> None:
        """Take in what one record did to one block. Raises NotProvenError where it can't be read."""
        self.kinds.add(kind)
        self.blocks.add(block)
        self.records += 1
        if kind == INPLACE:
            self.overwritten.add(_tid(block, _ROW, description))
        elif kind.startswith("Heap HOT_UPDATE"):
            self.chained.add(_tid(block, _NEW_ROW, description))
        elif kind.startswith("Heap INSERT"):
            self.inserted.add(_tid(block, _ROW, description))

    @property
    def is_only_inserted(self) -> bool:
        """Whether `inserted` is all that happened."""
        return self.kinds <= _INSERTS


def _tid(block: int, row: re.Pattern[str], description: str) -> str:
    found = row.search(description)
    if found is None:
        raise NotProvenError("the log has a record of an unknown form")
    return f"({block},{found[1]})"


@dataclass
class Touched:
    """What happened to the files of one database, and whether the catalogs that all databases share were written."""

    files: dict[int, File] = field(default_factory=dict)
    """By relfilenode."""
    shared: bool = False


def read(admin: psycopg.Connection[Any], database: int, start: int, end: int) -> Touched:
    """What was written to the database of that oid from the position `start` up to `end`, which must be flushed.

    Raises psycopg.Error when the log can't be read, such as when a checkpoint has recycled its beginning, and
    NotProvenError when it has what we can't read.
    """
    try:
        return _read(admin, database, start, end)
    except psycopg.Error:  # between the two may lie no record at all, but the head of a page: then there is no start
        return _read(admin, database, start, flush(admin))


def _read(admin: psycopg.Connection[Any], database: int, start: int, end: int) -> Touched:
    touched = Touched()
    blocks = _blocks if admin.info.server_version >= 160000 else _blocks_in_15
    for owner, filenode, block, kind, description in blocks(admin, database, start, end):
        if kind in _NEUTRAL:
            continue
        if owner == 0:
            touched.shared = True
            continue
        file = touched.files.get(filenode)
        if file is None:
            file = touched.files[filenode] = File()
        file.note(block, kind, description)
    return touched


def _blocks(admin: psycopg.Connection[Any], database: int, start: int, end: int) -> Iterable[Block]:
    return admin.execute(_SINCE_16, [lsn(start), lsn(end), database, _INDEXES], prepare=True)


def _blocks_in_15(admin: psycopg.Connection[Any], database: int, start: int, end: int) -> Iterator[Block]:
    parameters = [lsn(start), lsn(end), f"%/{database}/%", _INDEXES]
    for references, kind, description in admin.execute(_IN_15, parameters, prepare=True):
        for owner, filenode, block in _REFERENCE.findall(references):
            if owner in ("0", str(database)):
                yield int(owner), int(filenode), int(block), kind, description


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
