"""Runs a user's program so that it can neither hang past its deadline nor outlive us, and keeps what it said."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_GUARD = """\
import os, select, signal, subprocess, sys
def with_us():
    if sys.platform.startswith("linux"):
        import ctypes
        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))
try:
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, process_group=0, preexec_fn=with_us)
except OSError as problem:
    print(f"{sys.argv[1]}: {problem.strerror}")
    sys.exit(127)
signal.signal(signal.SIGINT, signal.SIG_IGN)
pause = 0.002
while child.poll() is None:
    if select.select([0], [], [], pause)[0]:
        os.killpg(child.pid, signal.SIGKILL)
    pause = min(0.05, pause * 1.5)
try:
    os.killpg(child.pid, signal.SIGKILL)
except OSError:
    pass
sys.exit(child.returncode if child.returncode >= 0 else 128 - child.returncode)
"""
"""The guard's standard input is a pipe from us that says nothing: its end means that we are gone, or want an end.
What the program left running in its process group ends with it."""

_END_TIMEOUT = 10.0

NOT_FOUND = 127
"""The exit code that says that there is no such program."""


@dataclass(frozen=True)
class Outcome:
    """What became of a program: its exit code (None when it was ended at the deadline) and its last lines."""

    exit_code: int | None
    output: str


def run(
    command: Sequence[str], *, environ: Mapping[str, str], folder: Path, timeout: float, lines: int = 15
) -> Outcome:
    """Run `command` in `folder` for at most `timeout` seconds; its output's last `lines` lines, both streams together.

    Programs beside the running Python (a virtual environment's) are found first. Exit code 127 means: not found.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), environ.get("PATH", os.defpath)])
    with tempfile.TemporaryFile() as output:
        guard = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _GUARD, *command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            env={**environ, "PATH": path},
            cwd=folder,
            start_new_session=True,
        )
        assert guard.stdin is not None
        exit_code: int | None
        try:
            exit_code = guard.wait(timeout)
        except subprocess.TimeoutExpired:
            exit_code = None
        finally:
            guard.stdin.close()
            try:
                guard.wait(_END_TIMEOUT)
            except subprocess.TimeoutExpired:  # somebody has stopped it: the kernel ends the program with it
                guard.kill()
                guard.wait(_END_TIMEOUT)
        output.seek(0)
        text = output.read().decode("utf-8", errors="replace")
    return Outcome(exit_code, "\n".join(text.rstrip().splitlines()[-lines:]))


def split(line: str) -> list[str]:
    """A command line as its words, as a shell would split it; raises ValueError for an open quote."""
    return shlex.split(line)
