"""Whether what was done to a database is rows and sequences only, and which; whatever else it is needs a clone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pgsandbox.isolation.reset import relations, wal
from pgsandbox.isolation.reset.errors import NotProvenError
from pgsandbox.isolation.reset.relations import BRIN, PG_CLASS, SEQUENCE, TABLE, TOAST, VIEW, Relation

if TYPE_CHECKING:
    from pgsandbox.isolation.reset.shared import Shared
    from pgsandbox.isolation.reset.watch import Watch


@dataclass
class Plan:
    """What there is to put back."""

    tables: dict[Relation, wal.File] = field(default_factory=dict)
    """Where rows were written."""
    unlogged: list[Relation] = field(default_factory=list)
    """Tables of which nobody knows."""
    refills: list[Relation] = field(default_factory=list)
    """Tables that are in another file than at the baseline: TRUNCATE does that, CLUSTER and VACUUM FULL."""
    sequences: set[Relation] = field(default_factory=set)
    written: dict[Relation, int] = field(default_factory=dict)
    """How many records there are of each table and catalog: so much that is dead may be left of it."""


class Judge:
    """Reads what was written as a plan."""

    def __init__(self, watch: Watch, shared: Shared) -> None:
        self._watch = watch
        self._shared = shared
        self._known: dict[int, Relation] = {}
        self._mapped: frozenset[tuple[int, int]] = frozenset()
        self._unlogged: list[Relation] = []

    def begin(self) -> None:
        """Take the relations that are there at the baseline for those that there should be."""
        present = self._watch.undo.connection  # which is the past, and keeps no locks on what it looked at
        self._known.clear()
        self._mapped, self._unlogged = relations.mapped(present), relations.unlogged(present)
        self._watch.has_unlogged = bool(self._unlogged)

    def forget(self, oids: Iterable[int]) -> None:
        """Know no longer which files these relations are in."""
        if gone := set(oids):
            self._known = {file: relation for file, relation in self._known.items() if relation.oid not in gone}

    def plan(self, touched: wal.Touched) -> Plan | None:
        """What has to be put back; None where something had to be ended or removed first: look again.

        Raises NotProvenError when a clone is needed, psycopg.Error.
        """
        if touched.shared:
            if self._shared.has_changed():
                raise NotProvenError("settings or rights of the database or its role were changed")
            if self._shared.remove_others() or self._shared.restore_owner():
                return None
        past, present = self._watch.past.connection, self._watch.undo.connection
        if missing := touched.files.keys() - self._known.keys():
            self._known |= relations.by_file(past, missing)
        plan = Plan(
            unlogged=[one for one in self._unlogged if one.kind != SEQUENCE],
            sequences={one for one in self._unlogged if one.kind == SEQUENCE},
        )
        catalogs = self._sort(touched, plan)
        if not touched.files.keys() <= self._known.keys():  # files that there were not
            if relations.mapped(present) != self._mapped:
                raise NotProvenError("system catalogs were rewritten (VACUUM FULL, REINDEX)")
            if all(catalog.oid != PG_CLASS for catalog in catalogs):
                raise NotProvenError("files were written that belong to no relation")
        return self._compare(catalogs, plan) if catalogs else plan

    def _sort(self, touched: wal.Touched, plan: Plan) -> dict[Relation, wal.File]:
        """Put tables and sequences into `plan`; the catalogs that were written."""
        catalogs: dict[Relation, wal.File] = {}
        for filenode, file in touched.files.items():
            relation = self._known.get(filenode)
            if file.kinds & wal.SUMMARIES:
                raise NotProvenError("a BRIN index was summarised")
            if relation is None or not relation.has_content:
                continue
            if relation.kind != SEQUENCE:
                plan.written[relation] = file.records
            kinds = file.kinds - {wal.PAGE}  # the page of a table written whole says what it said
            if relation.kind != SEQUENCE and not all(kind.startswith(("Heap ", "Heap2 ")) for kind in kinds):
                raise NotProvenError(f"{relation.name} is not stored as a heap")
            if relation.kind == SEQUENCE:
                plan.sequences.add(relation)
            elif relation.is_catalog:
                catalogs[relation] = file
            elif kinds and relation not in plan.unlogged:
                plan.tables[relation] = file
        return catalogs

    def _compare(self, catalogs: dict[Relation, wal.File], plan: Plan) -> Plan | None:
        past, present = self._watch.past.connection, self._watch.undo.connection
        found = relations.differences(past, present, catalogs)
        if found.temporary:
            self._watch.end_temporary(found.temporary)
            return None
        if found.changed:
            raise NotProvenError(f"the schema was changed ({', '.join(sorted(found.changed))})")
        if found.counted:
            raise NotProvenError("VACUUM, ANALYZE or CREATE INDEX left its counts")
        self.forget(found.moved)
        moved = relations.by_oid(past, found.moved).values()
        for relation in moved:
            plan.tables.pop(relation, None)
            if relation in plan.unlogged:
                plan.unlogged.remove(relation)
            if relation.is_catalog:
                raise NotProvenError("system catalogs were rewritten (VACUUM FULL, REINDEX)")
            if relation.method == BRIN:
                raise NotProvenError("a BRIN index was summarised")
            if relation.kind == VIEW:
                raise NotProvenError(f"the materialized view {relation.name} was refreshed")
            if relation.kind == TABLE:
                plan.refills.append(relation)
            elif relation.kind == SEQUENCE:
                plan.sequences.add(relation)
        if not plan.refills and any(one.kind == TOAST for one in moved):
            raise NotProvenError("a TOAST table was rewritten")
        return plan
