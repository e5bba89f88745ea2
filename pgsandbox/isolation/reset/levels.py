"""The baselines of one database, each on the one below: what it has, and where its rows and sequences are kept.

Nothing is kept in the user's schema. The lowest is the template; one above it is the rows of a few tables in this
process's memory, or where that is not enough a database of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pgsandbox.isolation.reset import undo
from pgsandbox.isolation.reset.errors import NotProvenError

if TYPE_CHECKING:
    from pgsandbox.isolation.reset.relations import Relation
    from pgsandbox.isolation.reset.undo import Rows, Value
    from pgsandbox.server import Server

_SMALL = 4 << 20
"""Bytes of one table's rows that are kept after they were read once."""


@dataclass(eq=False)
class Level:
    """One baseline."""

    source: str | None = None
    """A database that holds this state; None where it is the level below with other `contents`."""
    sequences: dict[int, Value] = field(default_factory=dict)
    """By oid, those that differ from the level below."""
    contents: dict[Relation, bytes] = field(default_factory=dict)
    """All rows of the tables that differ from the level below."""
    new: dict[Relation, Rows] | None = None
    """The rows that the level below has not, where they are all the difference."""
    is_over: bool = False
    """Whether it goes as soon as what is above it has gone."""

    @property
    def is_empty(self) -> bool:
        """Whether it is the level below."""
        return self.source is None and not self.contents and not self.sequences


class Levels:
    """The stack of baselines; a reset goes to its top."""

    def __init__(self, server: Server, name: str, bottom: Level) -> None:
        self._server = server
        self._readable = f"{name}-was"
        self._read_from: str | None = None
        self._small: dict[tuple[str, int], bytes] = {}
        self._stack = [bottom]
        self._refilled: set[int] = set()

    def __contains__(self, level: Level) -> bool:
        return level in self._stack

    @property
    def source(self) -> str:
        """The database that holds the topmost level that one does."""
        return next(level.source for level in reversed(self._stack) if level.source is not None)

    @property
    def over_source(self) -> list[Level]:
        """The levels above that one, from the bottom."""
        at = max(index for index, level in enumerate(self._stack) if level.source is not None)
        return self._stack[at + 1 :]

    @property
    def top(self) -> Level:
        """What a reset goes to."""
        return self._stack[-1]

    def push(self, level: Level) -> None:
        """Put `level` on top."""
        self._stack.append(level)

    def remove(self, level: Level) -> list[Level] | None:
        """Take `level` out; those that were above it. None where these can't be had without it: then it stays."""
        at = self._stack.index(level)
        above = self._stack[at + 1 :]
        if len(above) > 1 or (above and (level.new is None or above[0].source is not None)):
            return None
        del self._stack[at]
        return above

    def sequence(self, oid: int) -> Value:
        """What the sequence is at the baseline. Raises NotProvenError."""
        for level in reversed(self._stack):
            if oid in level.sequences:
                return level.sequences[oid]
        raise NotProvenError("a sequence is in use that was not there")

    def rows(self, table: Relation) -> bytes | None:
        """All rows of `table` at the baseline, in COPY's binary format; None where it is empty."""
        for level in reversed(self._stack):
            if table in level.contents:
                return level.contents[table]
            if level.source is not None:
                if level is self._stack[0] and not table.pages and table.oid not in self._refilled:
                    return None  # a template is counted when it is sealed, and this table was not filled by us
                self._refilled.add(table.oid)
                return self._rows_from(level.source, table)
        raise AssertionError("the lowest level has a source")

    def were_refilled(self, tables: Iterable[Relation]) -> None:
        """Know no longer where the rows of these tables lie."""
        gone = set(tables)
        for level in self._stack:
            if level.new is not None and not gone.isdisjoint(level.new):
                level.new = None

    def forget_copy(self) -> None:
        """Drop the database that rows were read from, if there is one."""
        if self._read_from is not None:
            self._server.drop_database(self._readable)
            self._read_from = None

    def _rows_from(self, source: str, table: Relation) -> bytes:
        """The rows in a database that nobody may connect to: read from a copy of it, since others may copy it, too."""
        if (source, table.oid) in self._small:
            return self._small[source, table.oid]
        if self._read_from != source:
            self.forget_copy()
            self._server.drop_database(self._readable)
            self._server.create_database(self._readable, template=source)
            self._read_from = source
        connection = self._server.connect_inspector(self._readable)
        try:
            found = undo.contents(connection, table)
        finally:
            connection.close()
        if len(found) <= _SMALL:
            self._small[source, table.oid] = found
        return found
