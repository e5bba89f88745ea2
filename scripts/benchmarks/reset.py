"""What it costs to give each test a database at its baseline, after what the test did and committed.

The same tests for everybody, process by process, side by side in each round. `isolation` is the time from the test's
last word to the baseline, `above floor` the whole test's time less that of the same test where somebody who knows
exactly what it did takes it back. Medians of all tests of all rounds, in ms.

  scripts/bench reset --tables 50 --tables 300 --tables 1000 --rounds 3
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import statistics
import subprocess
from typing import TYPE_CHECKING

from benchmarks import bed, environment, processes
from benchmarks.contender import HOW
from benchmarks.peers import MAJOR
from benchmarks.report import say, table

if TYPE_CHECKING:
    from benchmarks.bed import Bed

_TIMEOUT = 300.0
_WORKERS = 4
_PAUSE = 0.02

Times = dict[str, list[float]]
"""`whole` and `isolation`: ms of each test."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What can be asked for."""
    parser.add_argument("--rounds", type=int, default=3, help="processes of each (default: 3)")
    parser.add_argument("--tests", type=int, default=60, help="tests in each process (default: 60)")
    parser.add_argument("--tables", type=int, action="append", help="size of the schema; may be repeated (default: 50)")
    parser.add_argument("--only", action="append", choices=list(HOW), metavar="WHO", help=f"of {'; '.join(HOW)}")
    bed.add_arguments(parser)


def run(given: argparse.Namespace) -> int:
    """Measure, and print the tables."""
    sizes = given.tables or [50]
    with bed.made(given.image, given.binaries) as where:
        environment.prepare()
        print(f"pgsandbox {environment.checkout()}; PostgreSQL {MAJOR}; {os.cpu_count()} processors")
        busy = processes.calm(0)
        print(f"busy with others' work before: {busy:.0%}", flush=True)
        for size in sizes:
            _compare(given, where, size, "three tables", list(HOW))
        ours = [how for how in HOW if how.startswith(("floor", "pgsandbox reset"))]
        for work in ("nothing", "one row of many"):
            _compare(given, where, sizes[0], work, ours)
        if not given.only:
            _beside(given, where, sizes[0])
    return 0


def _compare(given: argparse.Namespace, where: Bed, size: int, work: str, who: list[str]) -> None:
    found: dict[str, Times] = {}
    failed: dict[str, str] = {}
    for turn in range(given.rounds):
        say(f"{work}, {size} tables: round {turn + 1} of {given.rounds}")
        for how in who:
            if how in failed or (given.only and how not in given.only and not how.startswith("floor")):
                continue
            if ("docker" in how or "pytest-pg" in how) and where.marked is None:
                failed[how] = where.why_no_docker
                continue
            own = "in memory" if how.startswith("SQLite") else work
            try:
                times = _all_of([_start(given, where, how, size, own)])
            except RuntimeError as problem:
                failed[how] = str(problem)
                continue
            for kind, values in times.items():
                found.setdefault(how, {}).setdefault(kind, []).extend(values)
    rows = []
    for how, times in found.items():
        floor = found.get("floor, docker" if "docker" in how or "pytest-pg" in how else "floor, local")
        above = f"{_median(times['whole']) - _median(floor['whole']):.2f}" if floor and "SQLite" not in how else ""
        rows.append([how, f"{_median(times['isolation']):.2f}", f"{_median(times['whole']):.2f}", above, ""])
    rows += [[how, "", "", "", why] for how, why in failed.items()]
    print(f"\n{work}, {size} tables, {given.rounds} x {given.tests} tests: ms")
    print(table(["", "isolation", "whole test", "above floor", ""], rows), flush=True)


def _beside(given: argparse.Namespace, where: Bed, size: int) -> None:
    """Four workers, on one server and on a server each, against one."""
    rows = []
    for name, workers, scope in (
        ("one worker", 1, "worker"),
        (f"{_WORKERS} workers, a server each", _WORKERS, "worker"),
        (f"{_WORKERS} workers, one server", _WORKERS, "session"),
    ):
        run_id = f"bench-{secrets.token_hex(4)}"
        started = [
            _start(given, where, "pgsandbox reset, local", size, "three tables",
                   "--run", run_id, "--worker", f"gw{n}", "--workers", str(workers), "--scope", scope,
                   "--pause", str(_PAUSE))
            for n in range(workers)
        ]  # fmt: skip
        times = _all_of(started)
        rows.append([name, f"{_median(times['isolation']):.2f}", f"{_median(times['whole']):.2f}", ""])
    print(f"\nreset beside others, three tables written, {size} tables, {_PAUSE * 1000:g} ms between tests: ms")
    print(table(["", "isolation", "whole test", ""], rows), flush=True)


def _start(given: argparse.Namespace, where: Bed, how: str, size: int, work: str, *more: str) -> subprocess.Popen[str]:
    command = [str(environment.PYTHON), "-m", "benchmarks.contender", how, "--work", work, "--tables", str(size)]
    command += ["--tests", str(given.tests), "--image", where.image, *more]
    environ = where.environ({"PYTHONPATH": str(environment.ROOT / "scripts")})
    return subprocess.Popen(
        command, cwd=where.folder, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _all_of(started: list[subprocess.Popen[str]]) -> Times:
    """What they measured, together. Raises RuntimeError with the last words of one that failed."""
    times: Times = {"whole": [], "isolation": []}
    for process in started:
        try:
            said, complained = process.communicate(timeout=_TIMEOUT)
        except BaseException:
            for one in started:
                one.kill()
            raise
        if process.returncode != 0:
            raise RuntimeError(next(reversed(complained.strip().splitlines()), f"exit code {process.returncode}"))
        for kind, values in json.loads(said).items():
            times[kind] += values
    return times


def _median(values: list[float]) -> float:
    return statistics.median(values)
