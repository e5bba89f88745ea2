"""One run of pytest with one test: how long, whether it passed, and what it left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import bed, containers, environment, processes
from benchmarks.report import say

if TYPE_CHECKING:
    from benchmarks.bed import Bed
    from benchmarks.peers import Peer

_TIMEOUT = 120.0
_GRACE = 5.0
"""Seconds that may pass until everything is gone."""


@dataclass
class Series:
    """The runs of one peer with one schema."""

    peer: Peer
    tables: int
    folder: Path
    failure: str = ""
    first: float = 0.0
    seconds: list[float] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    """In words, what the bench had to remove."""
    kept: list[str] = field(default_factory=list)
    """What stays on purpose."""
    gone_after: list[float] = field(default_factory=list)


def prepare(peer: Peer, tables: int, where: Bed, missing: dict[str, str]) -> Series:
    """A series whose project is there; one that can't be run says why."""
    series = Series(peer, tables, where.folder / f"{peer.name.replace(', ', '-').replace(' ', '-')}-{tables}")
    if peer.name in missing:
        series.failure = missing[peer.name]
    elif peer.needs == "docker" and not where.marked:
        series.failure = where.why_no_docker
    elif peer.needs == "binaries" and not where.binaries:
        series.failure = where.why_no_binaries
    else:
        peer.write_project(series.folder, tables=tables, image=where.image)
    return series


def once(series: Series, where: Bed, *, counts: bool) -> None:
    """Run it, wait until what it started is gone, and remove what stays."""
    try:
        command = _command(series)
    except LookupError as problem:
        series.failure = str(problem)
        return
    environ = where.environ({**series.peer.environ, "TMPDIR": str(series.folder / "tmp")})
    since, begun = time.time(), time.monotonic()
    output = series.folder / "output"
    with output.open("wb") as stream:
        process = subprocess.Popen(
            command, cwd=series.folder, env=environ, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
            start_new_session=True,
        )  # fmt: skip
        # Popen.wait with a timeout would look every 50 ms only.
        timer = threading.Timer(_TIMEOUT, _end, [process])
        timer.start()
        try:
            process.wait()
        except BaseException:
            _end(process)
            raise
        finally:
            timer.cancel()
    seconds = time.monotonic() - begun
    _settle(series, where, since)
    if process.returncode != 0:
        _explain(series, process.returncode, output.read_text(errors="replace"))
    elif counts:
        series.seconds.append(seconds)
    else:
        series.first = seconds


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _command(series: Series) -> list[str]:
    """Raises LookupError with the reason when it can't be run."""
    peer = series.peer
    if peer.kills and (number := containers.foreign(peer.kills)):
        raise LookupError(f"not run: it would kill {number} containers that others started")
    become = bed.unprivileged(series.folder) if peer.refuses_root else []
    plugins = [word for plugin in peer.plugins for word in ("-p", plugin)]
    return [*become, str(environment.PYTHON), "-m", "pytest", "-q", "-p", "no:cacheprovider", *plugins, "test_one.py"]


def _settle(series: Series, where: Bed, since: float) -> None:
    begun = time.monotonic()
    while True:
        processes.bury_orphans()
        running = processes.descendants(os.getpid())
        found = where.marked.left(since) if where.marked else containers.Left()
        files = [one for one in (series.folder / "tmp").iterdir() if not one.name.startswith("pytest-of-")]
        files += (where.runtime / "runs").glob("*")
        waited = time.monotonic() - begun
        if not (running or found.containers or found.volumes or files) or waited > _GRACE:
            break
        time.sleep(0.05)
    series.left += _in_words(
        {
            "container": len(found.containers),
            "volume": len(found.volumes),
            "file": len(files),
            **Counter(f"process of {processes.name(pid)}" for pid in running),
        }
    )
    series.kept += _in_words({"image": len(found.images), "MB of files": where.grown() >> 20})
    series.gone_after.append(waited)
    processes.outlive(0)
    if where.marked:
        where.marked.remove(found)
        where.marked.forgive(found)


def _in_words(counts: dict[str, int]) -> list[str]:
    plural = {
        "process": "processes",
        "container": "containers",
        "volume": "volumes",
        "image": "images",
        "file": "files",
        "MB": "MB",
    }
    found = []
    for what, number in counts.items():
        kind, *of = what.split(" ")
        if number:
            found.append(" ".join([str(number), kind if number == 1 else plural[kind], *of]))
    return found


def _explain(series: Series, code: int, said: str) -> None:
    lines = [line.removeprefix("E ").strip() for line in said.splitlines() if line.startswith(("E  ", "ERROR"))]
    what = f"failed: {lines[0] if lines else f'exit code {code}'}"
    if code == -signal.SIGKILL:
        what = f"did not end within {_TIMEOUT:g} s"
    series.failure = what[:110]
    say(f"{series.peer.name} {what}\n{said[-3000:]}")
