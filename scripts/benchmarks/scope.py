"""The sample application's suite with one server for the run and with one per worker.

Whole run, one file of it, and the memory of the servers. Uses the virtual environment of scripts/venv.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.processes import postgres_processes, proportional
from benchmarks.report import ratio, table

ROOT = Path(__file__).parent.parent.parent
BOOKING = ROOT / "tests" / "apps" / "booking"
PYTHON = ROOT / ".venv" / "bin" / "python"
SCOPES = ("session", "worker")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What can be asked for."""
    parser.add_argument("--rounds", type=int, default=3, help="counted runs of each, after one that is not counted")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 2)
    parser.add_argument("--engine", action="append", choices=["docker", "local"])
    parser.add_argument("--image", default=os.environ.get("TEST_IMAGE_18"), help="the image for docker")


def run(given: argparse.Namespace) -> int:
    """Compare the two scopes on each engine."""
    for engine in given.engine or ["docker", "local"]:
        _compare(engine, given)
    return 0


def _compare(engine: str, given: argparse.Namespace) -> None:
    flags = [f"--pgsandbox-engine={engine}", "-n", str(given.workers)]
    if engine == "docker" and given.image:
        flags.append(f"--pgsandbox-image={given.image}")
    whole: dict[str, list[float]] = {scope: [] for scope in SCOPES}
    single: dict[str, list[float]] = {scope: [] for scope in SCOPES}
    memory: dict[str, list[float]] = {scope: [] for scope in SCOPES}
    for turn in range(given.rounds + 1):
        for scope in SCOPES:
            seconds, peak = _timed([*flags, f"--pgsandbox-scope={scope}"])
            few, _ = _timed([*flags, f"--pgsandbox-scope={scope}", "tests/test_users.py"])
            if turn:
                whole[scope].append(seconds)
                single[scope].append(few)
                memory[scope].append(peak)
    print(f"\n{engine}, {given.workers} workers, {given.rounds} rounds (median; ratio to session, pair by pair)")
    rows = [
        [
            scope,
            f"{statistics.median(whole[scope]):.2f} s",
            f"{statistics.median(single[scope]):.2f} s",
            f"{statistics.median(memory[scope]):.0f} MB",
        ]
        for scope in SCOPES
    ]
    rows.append(["ratio", *(ratio(which["worker"], which["session"]) for which in (whole, single, memory))])
    print(table(["scope", "404 tests", "one file", "servers, peak"], rows), flush=True)


def _timed(flags: list[str]) -> tuple[float, float]:
    """Seconds of one run of the suite, and the peak of its PostgreSQL processes' memory in MB (shared counted once)."""
    command = [str(PYTHON), "-m", "pytest", "-q", "-p", "pgsandbox", "-p", "no:randomly", "-p", "no:cacheprovider"]
    begun = time.monotonic()
    suite = subprocess.Popen(
        [*command, *flags], cwd=BOOKING, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    peak, before = 0.0, set(postgres_processes())
    while suite.poll() is None:
        peak = max(peak, sum(proportional(pid) for pid in set(postgres_processes()) - before))
        time.sleep(0.2)
    seconds = time.monotonic() - begun
    assert suite.stdout is not None
    said = suite.stdout.read()
    if suite.returncode != 0:
        sys.exit(f"the suite failed:\n{said[-2000:]}")
    return seconds, peak
