"""How long it takes until every worker has its database, for one worker and for many, with a warm cache.

From the moment that all workers, processes that have imported their driver as those of xdist would have, enter their
`Sandbox` at once, to the last one's first query; each engine in its default scope. One and many take turns.

  scripts/bench workers --tables 300 --workers 8 --rounds 5
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import statistics
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import bed, environment, helpers, processes, schema
from benchmarks.peers import MAJOR
from benchmarks.report import ratio, say, spread, table

if TYPE_CHECKING:
    from benchmarks.bed import Bed

ENGINES = ("docker", "local")


@dataclass
class Series:
    """What was measured on one engine, round by round, in seconds."""

    one: list[float] = field(default_factory=list)
    many: list[float] = field(default_factory=list)
    scope: str = ""
    failure: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What can be asked for."""
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds (default: 5)")
    parser.add_argument("--tables", type=int, default=300, help="size of the schema (default: 300)")
    parser.add_argument("--workers", type=int, default=8, help="how many are many (default: 8)")
    parser.add_argument("--engine", action="append", choices=ENGINES, help="may be repeated (default: both)")
    parser.add_argument(
        "--scope", choices=["auto", "session", "worker"], default="auto", help="default: each one's own"
    )
    bed.add_arguments(parser)


def run(given: argparse.Namespace) -> int:
    """Measure, and print the table."""
    with bed.made(given.image, given.binaries) as where:
        environment.prepare()
        missing = {"docker": where.why_no_docker, "local": where.why_no_binaries}
        every = {engine: Series(failure=missing[engine]) for engine in given.engine or ENGINES}
        folders = {engine: _project(where, engine, given.tables) for engine in every}
        others = []
        for turn in range(given.rounds + 1):  # the first builds the template, and does not count
            say(f"round {turn} of {given.rounds}")
            others.append(processes.busy(0.2))
            for engine, series in every.items():
                if not series.failure:
                    _round(engine, series, where, folders[engine], given, counts=turn > 0)
        _show(every, given, others)
    return 0


def _project(where: Bed, engine: str, tables: int) -> Path:
    folder = where.folder / f"workers-{engine}"
    folder.mkdir()
    (folder / "schema.sql").write_text(schema.sql(tables))
    (folder / "pytest.ini").write_text("[pytest]\n")
    return folder


def _round(engine: str, series: Series, where: Bed, folder: Path, given: argparse.Namespace, *, counts: bool) -> None:
    try:
        one, _ = _entered(engine, where, folder, 1, given.scope)
        many, series.scope = _entered(engine, where, folder, given.workers, given.scope)
    except LookupError as problem:
        series.failure = str(problem)
        return
    if counts:
        series.one.append(one)
        series.many.append(many)


def _entered(engine: str, where: Bed, folder: Path, workers: int, scope: str) -> tuple[float, str]:
    """Seconds until the last of `workers` had its answer, and the scope. Raises LookupError with the reason."""
    words = [engine, where.image, str(MAJOR), f"bench-{secrets.token_hex(4)}"]
    started: list[subprocess.Popen[str]] = []
    try:
        started.extend(
            helpers.started("enter.py", [*words, f"gw{number}", str(workers), scope], where=where, folder=folder)
            for number in range(workers)
        )
        for process in started:
            helpers.line_of(process, folder)
        for process in started:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        said = [json.loads(helpers.line_of(process, folder)) for process in started]
    finally:
        for process in started:
            assert process.stdin is not None
            process.stdin.close()
        for process in started:
            process.wait(60)
        processes.outlive(5.0)
    return max(one["seconds"] for one in said), said[0]["scope"]


def _show(every: dict[str, Series], given: argparse.Namespace, others: list[float]) -> None:
    print(f"pgsandbox {environment.checkout()}; PostgreSQL {MAJOR}; {os.cpu_count()} processors")
    print(
        f"busy with others' work before the rounds: {statistics.median(others):.0%} (median), {max(others):.0%} (most)"
    )
    print(f"\nall workers have their database, {given.tables} tables, {given.rounds} rounds, seconds")
    rows = []
    for engine, series in every.items():
        name = f"pgsandbox, {engine}"
        if series.failure:
            rows.append([name, "", "", "", "", "", series.failure])
            continue
        one, many = (f"{statistics.median(seconds):.2f}" for seconds in (series.one, series.many))
        row = [name, one, spread(series.one), many, spread(series.many), ratio(series.many, series.one)]
        rows.append([*row, f"scope {series.scope}"])
    print(table(["", "one", "min-max", f"{given.workers}", "min-max", "ratio", ""], rows), flush=True)
