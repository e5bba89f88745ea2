"""Processes that tests start, kill and watch end."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def child(code: str, *words: object, says: str | None = "ready") -> Iterator[subprocess.Popen[str]]:
    """A Python process that runs `code`, killed after the block; with `says`, one that has printed that line."""
    command = [sys.executable, "-c", code, *map(str, words)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            if says is not None:
                assert process.stdout is not None
                assert process.stdout.readline() == f"{says}\n"
            yield process
        finally:
            process.kill()


def eventually(claim: Callable[[], bool], *, timeout: float = 5.0) -> bool:
    """Whether `claim` comes true within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not claim():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def is_gone(pid: int) -> bool:
    """Whether the process has ended, reaped or not."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False
