"""What differs between two dumps of a database, in words."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pgsandbox.isolation.verify.dump import Dump, Item

_SHOWN = 3
"""How many differences of one kind are told; of the others, how many there are."""

_LENGTH = 60
"""How much of a value is shown, in characters."""

_RELATIONS = frozenset(
    """
    attrelid adrelid indexrelid indrelid conrelid confrelid conindid tgrelid tgconstrrelid polrelid inhrelid inhparent
    ev_class starelid stxrelid partrelid partdefid prrelid seqrelid typrelid reltoastrelid ftrelid classid refclassid
    classoid
    """.split()  # noqa: SIM905 -- as a list it would be five times as long
)
"""Columns of catalogs that name a relation by its oid, which says more by its name."""

Row = tuple[str | None, ...]


def differences(before: Dump, after: Dump, *, order: bool = False) -> list[str]:
    """What of `after` is not as it is in `before`, a line each; with `order` also where rows stand in another order.

    `after` is made like `before`, or both keep all rows. What belongs to a session alone, such as its temporary
    tables, is not compared.
    """
    names = _Names(before, after)
    found = []
    for name in dict.fromkeys([*before.items, *after.items]):
        item = after.items.get(name) or before.items[name]
        if name not in after.items:
            found.append(f"{item.kind} {name} is gone")
        elif name not in before.items:
            found.append(f"{item.kind} {name} is there now")
        elif before.items[name].columns != after.items[name].columns:
            found.append(f"{item.kind} {name} has other columns")
        elif before.marks[name].content != after.marks[name].content or (
            before.marks[name].rows != after.marks[name].rows
        ):
            found += _in_brief(name, item, _told(name, item, before, after, names))
        elif order and before.marks[name].order != after.marks[name].order:
            found.append(f"{name}: the same rows come in another order")
    found += [f"{index} {what}" for index, what in after.indexes.items() if before.indexes.get(index) != what]
    return found


def _in_brief(name: str, item: Item, told: list[str]) -> list[str]:
    title = "" if item.kind == "about" else f"{name}: "
    brief = [f"{title}{line}" for line in told[:_SHOWN]]
    if len(told) > _SHOWN:
        brief.append(f"{title or f'{name}: '}and {len(told) - _SHOWN} more")
    return brief


def _told(name: str, item: Item, before: Dump, after: Dump, names: _Names) -> list[str]:
    """Each row that is gone, new or changed."""
    was, now = _rows(name, before), _rows(name, after)
    if was is None or now is None:
        counts = before.marks[name].rows, after.marks[name].rows
        return [f"{counts[0]} rows were there, {counts[1]} are" if counts[0] != counts[1] else "rows have changed"]
    gone, new = _lasting(was - now, item, before), _lasting(now - was, item, after)
    told = []
    if item.kind == "sequence" and gone and new:
        return list(_changes(item, gone[0], new[0], names))
    keys = [item.columns.index(column) for column in item.key]
    partners = {tuple(row[at] for at in keys): row for row in new} if keys else {}
    for row in gone:
        partner = partners.pop(tuple(row[at] for at in keys), None) if keys else None
        if partner is None:
            told.append(f"{_row(item, row, names)} is gone")
        else:
            new.remove(partner)
            told += _changes(item, row, partner, names)
    return told + [f"{_row(item, row, names)} is there now" for row in new]


def _changes(item: Item, was: Row, now: Row, names: _Names) -> Iterator[str]:
    """What has changed of one row, a line for each column."""
    for column, before, after in zip(item.columns, was, now, strict=True):
        if before != after:
            where = f"{_label(item, was, names)}{column}" if item.kind != "about" else was[0]
            shown = _value(item, column, before, names), _value(item, column, after, names)
            if shown[0] == shown[1]:  # what differs is not shown
                yield f"{where} was another value than {shown[1]}"
            else:
                yield f"{where} was {shown[0]}, is {shown[1]}"


def _label(item: Item, row: Row, names: _Names) -> str:
    """Which row it is, by its key and what it is called."""
    called = [c for c in item.columns if item.kind == "catalog" and c.endswith("name") and c not in item.key]
    shown = [(c, v) for c, v in zip(item.columns, row, strict=True) if c in item.key or c in called]
    return (
        f"({', '.join(f'{column} {_value(item, column, value, names)}' for column, value in shown)}) " if shown else ""
    )


def _row(item: Item, row: Row, names: _Names) -> str:
    if item.kind == "about":
        return f"{row[0]} ({_value(item, 'value', row[1], names)})"
    if item.kind == "catalog" and (label := _label(item, row, names)):
        return f"the row {label.rstrip()}"
    parts = (f"{column} {_value(item, column, value, names)}" for column, value in zip(item.columns, row, strict=True))
    return f"the row ({_cut(', '.join(parts))})"


def _value(item: Item, column: str, value: str | None, names: _Names) -> str:
    if value is None:
        return "NULL"
    if item.kind == "catalog" and column in _RELATIONS:
        return names.get(value)
    return _cut(value) or "''"


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LENGTH else f"{text[:_LENGTH]}…"


def _rows(name: str, dump: Dump) -> Counter[str] | None:
    return Counter() if dump.marks[name].rows == 0 else None if (rows := dump.rows(name)) is None else Counter(rows)


def _lasting(records: Counter[str], item: Item, dump: Dump) -> list[Row]:
    """The rows that belong to the database, not to a session alone."""
    rows = [parsed(record, len(item.columns)) for record in records.elements()]
    oids = [at for at, column in enumerate(item.columns) if column in item.oids]
    return [row for row in rows if not any(row[at] in dump.temporary for at in oids)]


class _Names:
    """What relations are called, by oid; looked up once somebody asks."""

    def __init__(self, *dumps: Dump) -> None:
        self._dumps = dumps

    def get(self, oid: str) -> str:
        return self._found.get(oid, oid)

    @functools.cached_property
    def _found(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for dump in self._dumps:
            columns = dump.items["pg_class"].columns
            oid, name = columns.index("oid"), columns.index("relname")
            for record in dump.rows("pg_class") or ():
                row = parsed(record, len(columns))
                found[row[oid] or ""] = row[name] or ""
        return found


def parsed(record: str, fields: int) -> Row:
    """The `fields` fields of a record in PostgreSQL's text form (manual, chapter 8.16.6)."""
    return tuple(_fields(record[1:-1])) if fields else ()


def _fields(text: str) -> Iterator[str | None]:
    at = 0
    while True:
        if text[at : at + 1] != '"':
            end = text.find(",", at)
            field = text[at:] if end < 0 else text[at:end]
            yield field or None
        else:
            end = at + 1
            while text[end] != '"' or text[end + 1 : end + 2] == '"':
                end += 2 if text[end] in '"\\' else 1
            yield text[at + 1 : end].replace('""', '"').replace("\\\\", "\\")
            end += 1
        if end < 0 or end >= len(text):
            return
        at = end + 1
