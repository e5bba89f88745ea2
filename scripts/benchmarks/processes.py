"""Processes of this machine: which are ours, what they weigh, and how busy the others are (Linux)."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import re
import signal
import sys
import time
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_CALM = 0.2


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent dies, so that `descendants` misses none of them."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def bury_orphans() -> None:
    """Ask for the exit codes of adopted processes that have ended. Not while a `Popen` of ours is running."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def descendants(pid: int) -> list[int]:
    """The processes below `pid` that have not ended."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = entry.read_text(errors="replace").rpartition(")")[2].split()[:2]
            if state not in "ZX":
                children.setdefault(int(parent), []).append(int(entry.parent.name))
    found: list[int] = []
    waiting = [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def name(pid: int) -> str:
    """What the kernel calls the process; nothing if it has ended."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def postgres_processes() -> list[int]:
    """Every process of this machine that is PostgreSQL's, in containers too."""
    return [int(entry.name) for entry in Path("/proc").glob("[0-9]*") if name(int(entry.name)) == "postgres"]


def proportional(pid: int) -> float:
    """The process's proportional set size in MB: its own memory, and its share of what it shares."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    match = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
    return int(match[1]) / 1024 if match else 0.0


def outlive(grace: float) -> None:
    """Wait until nothing is below us; what is there after `grace` seconds is killed. No `Popen` of ours may run."""
    deadline = time.monotonic() + grace
    while below := descendants(os.getpid()):
        if time.monotonic() > deadline:
            for pid in below:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
        bury_orphans()


def busy(seconds: float) -> float:
    """Which part of all processors is in use during the next `seconds`, by others: we sleep. NaN if unknown."""
    before = _ticks()
    time.sleep(seconds)
    idle, total = (after - then for after, then in zip(_ticks(), before, strict=True))
    return 1 - idle / total if total else math.nan


def calm(patience: float) -> float:
    """Wait, but no longer than `patience` seconds, until others are not busy; how busy they are then."""
    deadline = time.monotonic() + patience
    while (share := busy(0.2)) > _CALM and time.monotonic() < deadline:
        pass
    return share


def _ticks() -> tuple[int, int]:
    try:
        numbers = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except OSError:
        return 0, 0
    return numbers[3] + numbers[4], sum(numbers)
