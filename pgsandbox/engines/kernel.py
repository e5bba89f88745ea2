"""What the operating system knows of a local server: its connections, its process, and how to end that."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_PROGRAMS = ("postgres\n", "initdb\n")
_PS = 10.0


def libc() -> Any:
    """The C library, for what Python has no word for; None where the kernel has no such thing."""
    if not sys.platform.startswith("linux"):
        return None
    import ctypes

    return ctypes.CDLL(None, use_errno=True)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a postmaster of our own at once, and wait until it is gone."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGQUIT)  # immediate shutdown: manual, chapter 18.5
        for pid in stopped(process.pid):
            os.kill(pid, signal.SIGCONT)  # who is stopped hears nothing but SIGKILL
    try:
        process.wait(3)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):  # the kernel itself is at work for it
            process.wait(3)


def end_remains(data: Path) -> None:
    """End what a killed server, or a killed initdb, left running in `data`: a busy backend does not notice.

    Only programs of PostgreSQL: somebody's shell may be in that folder, too.
    """
    deadline = time.monotonic() + 3
    while (left := list(_programs_in(data))) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)


def _programs_in(data: Path) -> Iterator[int]:
    if not sys.platform.startswith("linux"):
        return
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):
                is_ours = (process / "comm").read_text(encoding="utf-8", errors="replace") in _PROGRAMS
                if is_ours and (process / "cwd").readlink() == data:
                    yield int(process.name)


def end_leftover(data: Path) -> None:
    """End the server that an earlier supervisor left in `data`, if its own pid file proves that it is that one."""
    try:
        lines = (data / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        pid, folder = int(lines[0]), lines[1]
    except (OSError, ValueError, IndexError):
        return
    if Path(folder) != data or not _works_in(pid, data):
        return
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGQUIT)
    deadline = time.monotonic() + 3
    while _works_in(pid, data) and time.monotonic() < deadline:
        time.sleep(0.02)
    if _works_in(pid, data):
        with contextlib.suppress(OSError):
            os.killpg(pid, signal.SIGKILL)


def postmaster(data: Path) -> int | None:
    """The pid of the postmaster whose data folder is `data`; None if it is gone."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        pid = int((data / "postmaster.pid").read_text(encoding="utf-8").splitlines()[0])
        if _works_in(pid, data):
            return pid
    return None


def stopped(postmaster: int) -> list[int]:
    """The pids of a postmaster and its children that somebody has stopped (SIGSTOP)."""
    return sorted(pid for pid, parent, state in _processes() if postmaster in (pid, parent) and state == "T")


def _processes() -> Iterator[tuple[int, int, str]]:
    """Pid, parent and state of every process."""
    if sys.platform.startswith("linux"):
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError, IndexError, ValueError):
                    state, parent = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
                    yield int(entry.name), int(parent), state
        return
    said = subprocess.run(
        ["/bin/ps", "-A", "-o", "pid=,ppid=,state="], capture_output=True, text=True, check=False, timeout=_PS
    )
    for line in said.stdout.splitlines():
        pid, parent, state = line.split()
        yield int(pid), int(parent), state[0]


def is_connected(postmaster: int, data: Path, port: int) -> bool:
    """Whether the kernel knows an established connection to the server, over TCP or its unix socket in `data`."""
    if sys.platform.startswith("linux"):
        return _established_tcp(port) or _established_unix(f"{data}/.s.PGSQL.{port}")
    return _backends(postmaster)


def _established_tcp(port: int) -> bool:
    ours = f":{port:04X}"
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError), Path(table).open(encoding="ascii") as lines:
            for line in lines:
                _, local, _, state, *_ = line.split()
                if state == "01" and local.endswith(ours):
                    return True
    return False


def _established_unix(path: str) -> bool:
    """Accepted connections carry the path of the socket that they came in through, in state 03 (connected)."""
    with contextlib.suppress(OSError), Path("/proc/net/unix").open(encoding="utf-8", errors="replace") as lines:
        return any(line.endswith(f" {path}\n") and line.split()[5] == "03" for line in lines)
    return False


def _backends(postmaster: int) -> bool:
    """Whether the postmaster has a child that serves a client; its title names user, database and peer."""
    said = subprocess.run(
        ["/bin/ps", "-A", "-o", "ppid=,command="], capture_output=True, text=True, check=False, timeout=_PS
    )
    children = (line.split(None, 1) for line in said.stdout.splitlines())
    return any(
        len(child) == 2 and child[0] == str(postmaster) and ("[local]" in child[1] or "127.0.0.1(" in child[1])
        for child in children
    )


def _works_in(pid: int, data: Path) -> bool:
    """Whether the process `pid` has `data` as its working folder, as a postmaster has; pids are reused."""
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError):
            return Path(f"/proc/{pid}/cwd").readlink() == data
        return False
    said = subprocess.run(
        ["/bin/ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False, timeout=_PS
    )
    return str(data) in said.stdout
