"""What a server weighs, and each further worker: pgsandbox on both engines, in its default scope, idle."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks import helpers, processes, schema
from benchmarks.peers import MAJOR
from benchmarks.report import say, table

if TYPE_CHECKING:
    from benchmarks.bed import Bed

_WORKERS = 4
_CALM = 1.5
"""Seconds after which a server has finished what a start makes it do."""


@dataclass(frozen=True)
class Weight:
    """In MB."""

    servers: float
    supervisors: float
    files: float
    scope: str


def measured(where: Bed, tables: int) -> str:
    """The table, with the reason in the row of an engine that can't be measured."""
    rows = []
    for engine, why in (("docker", where.why_no_docker), ("local", where.why_no_binaries)):
        name = f"pgsandbox, {engine}"
        if why:
            rows.append([name, "", "", "", "", "", why])
            continue
        try:
            one, all_ = _weights(engine, where, tables)
        except LookupError as problem:
            rows.append([name, "", "", "", "", "", str(problem)])
            continue
        further = _WORKERS - 1
        rows.append(
            [
                name,
                f"{one.servers:.1f}",
                f"{(all_.servers - one.servers) / further:.1f}",
                f"{one.supervisors:.1f}",
                f"{one.files:.0f}",
                f"{(all_.files - one.files) / further:.0f}",
                f"{one.scope}" + (": each further worker is a server" if one.scope == "worker" else ""),
            ]
        )
    head = ["", "server", "further worker", "supervisor", "files", "of a further worker", "scope"]
    return (
        f"memory with {tables} tables, idle, in MB (PSS; without Docker's own processes)\n"
        "server: with its first worker, each with one connection beside pgsandbox's own; supervisor: one per server;\n"
        "files: databases and WAL, which are in memory too where they are on a tmpfs\n" + table(head, rows)
    )


def _weights(engine: str, where: Bed, tables: int) -> tuple[Weight, Weight]:
    """With one worker, and with all. Raises LookupError with the reason when they can't be had."""
    folder = where.folder / f"memory-{engine}"
    folder.mkdir()
    (folder / "schema.sql").write_text(schema.sql(tables))
    (folder / "pytest.ini").write_text("[pytest]\n")
    run = f"bench-{secrets.token_hex(4)}"
    holders: list[subprocess.Popen[str]] = []
    said: list[dict[str, object]] = []
    weights = []
    say(f"memory, {engine}")
    try:
        for number in range(_WORKERS):
            words = [engine, where.image, str(MAJOR), run, f"gw{number}", str(_WORKERS)]
            holders.append(helpers.started("hold.py", words, where=where, folder=folder))
            said.append(json.loads(helpers.line_of(holders[-1], folder)))
            if number in (0, _WORKERS - 1):
                weights.append(_weigh(where, {one.pid for one in holders}, said))
    finally:
        for holder in holders:
            if holder.stdin is not None:
                holder.stdin.close()
            holder.wait(60)
    return weights[0], weights[1]


def _weigh(where: Bed, holders: set[int], said: list[dict[str, object]]) -> Weight:
    time.sleep(_CALM)
    scope = str(said[0]["scope"])
    files = [float(str(one["files"])) for one in said]
    below = [pid for pid in processes.descendants(os.getpid()) if pid not in holders]
    servers = [pid for pid in below if processes.name(pid) == "postgres"]
    supervisors = [pid for pid in below if pid not in servers]
    for first in where.marked.processes() if where.marked else ():
        servers += [first, *processes.descendants(first)]
    weight = sum(processes.proportional(pid) for pid in servers)
    if not weight:
        raise LookupError("its processes can't be looked at: they run elsewhere, or as another user")
    return Weight(
        servers=weight,
        supervisors=sum(processes.proportional(pid) for pid in supervisors) / (len(said) if scope == "worker" else 1),
        files=sum(files) if scope == "worker" else files[-1],
        scope=scope,
    )
