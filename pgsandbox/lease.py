"""Who is alive: a lease is a shared lock on a folder, held by the kernel for as long as the process lives.

A folder whose lease nobody holds, and whose supervisor is gone, belonged to the dead and may be removed.
No pid is ever trusted for that: pids are reused, locks are not.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from pgsandbox.errors import NotReadyError
from pgsandbox.places import private

try:
    import fcntl
except ImportError:  # Windows: there the container's own watch is the only lease
    fcntl = None  # type: ignore[assignment]

_FILE = "lease"
_SUPERVISED = "supervised"
_REMOVAL_DEADLINE = 10.0
_PROBE_DEADLINE = 0.2


class Lease:
    """A hold on a folder, until `release` or the death of the process."""

    def __init__(self, folder: Path, descriptor: int) -> None:
        self.folder = folder
        self._descriptor: int | None = descriptor

    def release(self) -> None:
        """Let go; harmless when repeated."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def hold(folder: Path) -> Lease:
    """A lease on `folder`, which is made when it does not exist.

    Raises NotReadyError when a remover keeps it locked for more than ten seconds.
    """
    deadline = time.monotonic() + _REMOVAL_DEADLINE
    while time.monotonic() < deadline:
        private(folder)
        lease = _try_hold(folder)
        if lease is not None:
            return lease
        time.sleep(0.01)
    raise NotReadyError(
        f"the lease on {folder} could not be had within {_REMOVAL_DEADLINE:g}s",
        why="another process has been removing that folder all the while",
        hint="look for a stopped pgsandbox.supervisor process",
    )


def hold_existing(folder: Path) -> Lease | None:
    """A lease on `folder` if it is there and not being removed right now, else None."""
    return _try_hold(folder) if folder.is_dir() else None


def _try_hold(folder: Path) -> Lease | None:
    descriptor = _open(folder / _FILE)
    if descriptor is None:
        return None
    if _lock(descriptor, exclusive=False) and _still_there(descriptor, folder / _FILE):
        return Lease(folder, descriptor)
    os.close(descriptor)
    return None


@contextlib.contextmanager
def if_nobody_holds(folder: Path) -> Iterator[bool]:
    """True while nobody holds `folder`; inside the block nobody can begin to, so it may be removed there."""
    descriptor = _open(folder / _FILE)
    if descriptor is None:
        yield True
        return
    try:
        yield _lock(descriptor, exclusive=True)
    finally:
        os.close(descriptor)


def is_held(folder: Path) -> bool:
    """Whether some live process holds `folder`."""
    with if_nobody_holds(folder) as free:
        return not free


def supervise(folder: Path) -> Lease | None:
    """The mark of the one process that looks after `folder`, released by its death; None if another one has it.

    Those who ask `is_supervised` have the lock for an instant, so that one refusal says nothing.
    """
    descriptor = _open(folder / _SUPERVISED)
    deadline = time.monotonic() + _PROBE_DEADLINE
    while descriptor is not None:
        if _lock(descriptor, exclusive=True):
            return Lease(folder, descriptor)
        if time.monotonic() > deadline:
            os.close(descriptor)
            break
        time.sleep(0.002)
    return None


def is_supervised(folder: Path) -> bool:
    """Whether a supervisor of `folder` is alive."""
    if not (folder / _SUPERVISED).exists():
        return False
    descriptor = _open(folder / _SUPERVISED)
    if descriptor is None:
        return False
    try:
        return not _lock(descriptor, exclusive=False)  # shared: two who ask must not take each other for one
    finally:
        os.close(descriptor)


def remove_if_dead(folder: Path) -> bool:
    """Remove `folder` and all in it if nobody holds it; whether it is gone."""
    with if_nobody_holds(folder) as free:
        if free:
            shutil.rmtree(folder, ignore_errors=True)
        return free


def boot_id() -> str:
    """What tells this boot of this kernel from all others; empty where the system doesn't say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def end_with(parent: int) -> None:
    """End this process soon after `parent` has died: an orphaned worker would keep its server alive for nobody.

    SIGTERM first, so that what the tests started can be ended by them; a second later, without further ado.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.25)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1.0)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, name="pgsandbox-end-with-parent", daemon=True).start()


def _open(file: Path) -> int | None:
    try:
        return os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except FileNotFoundError:
        return None


def _lock(descriptor: int, *, exclusive: bool) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _still_there(descriptor: int, file: Path) -> bool:
    try:
        return os.fstat(descriptor).st_ino == file.stat().st_ino
    except FileNotFoundError:
        return False
