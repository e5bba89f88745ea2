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
import weakref
from collections.abc import Iterator
from pathlib import Path

from pgsandbox import locks
from pgsandbox.places import new_token, private

try:
    import fcntl
except ImportError:  # Windows: there the container's own watch is the only lease
    fcntl = None  # type: ignore[assignment]

_FILE = "lease"
_SUPERVISED = "supervised"
_REMOVAL_DEADLINE = 10.0
_PROBE_DEADLINE = 0.2


class Lease:
    """A hold on a folder, until `release` or the death of the process; a forked child has no part in it."""

    def __init__(self, folder: Path, descriptor: int) -> None:
        self.folder = folder
        self._descriptor: int | None = descriptor
        _LEASES.add(self)

    def release(self) -> None:
        """Let go; harmless when repeated."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


_LEASES: weakref.WeakSet[Lease] = weakref.WeakSet()


def _let_go_in_child() -> None:
    """A server that a test forked off, and that nobody ends, must not keep PostgreSQL alive: the lock goes with us."""
    for lease in list(_LEASES):
        lease.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_child)


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
    raise locks.not_had(
        f"the lease on {folder} could not be had within {_REMOVAL_DEADLINE:g}s, while another process is removing it",
        folder / _FILE,
        otherwise="it has been at that all the while",
        hint="look for a stopped pgsandbox.supervisor process",
    )


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
    """True while nobody holds `folder`; inside the block nobody can begin to, so it may be removed there.

    True as well where there is no such folder.
    """
    with _alone(folder) as alone:
        yield alone is not False


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[bool | None]:
    """Whether nobody but us has `folder`, for the length of the block; None if it isn't there."""
    file = folder / _FILE
    while (descriptor := _open(file)) is not None:
        try:
            alone = _lock(descriptor, exclusive=True)
            if alone and not _still_there(descriptor, file):
                continue  # it was removed before we had the lock; what is there now is another's
            yield alone
            return
        finally:
            os.close(descriptor)
    yield None


def is_held(folder: Path) -> bool:
    """Whether some live process holds `folder`."""
    return _is_locked(folder / _FILE, by_sharers=True)


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
    return _is_locked(folder / _SUPERVISED, by_sharers=False)


def is_supervised_by(folder: Path, pid: int) -> bool:
    """Whether it is, and as far as the kernel tells, by the process `pid`."""
    return is_supervised(folder) and locks.has_open(pid, folder / _SUPERVISED) is not False


def supervisor_of(folder: Path) -> str | None:
    """Who supervises `folder`, and whether somebody has stopped it, in words; None where nobody knows."""
    return locks.held_by(folder / _SUPERVISED)


def _is_locked(file: Path, *, by_sharers: bool) -> bool:
    """Whether `file` is there and locked; nothing is made, since its folder may be in the middle of its removal.

    Where the holder shares with nobody we ask as a sharer: two who ask must not take each other for the holder.
    """
    descriptor = _open(file, create=False)
    if descriptor is None:
        return False
    try:
        return not _lock(descriptor, exclusive=by_sharers)
    finally:
        os.close(descriptor)


def remove_if_dead(folder: Path) -> bool:
    """Remove `folder` and all in it if nobody holds it; whether it is gone.

    It goes at once, under another name: who begins to hold it meanwhile begins with a new and empty one.
    """
    with _alone(folder) as alone:
        if alone:
            doomed = folder.with_name(f"{folder.name}.{new_token()}")
            try:
                folder.rename(doomed)
            except OSError:  # Windows: not while we have a file in it open
                doomed = folder
            shutil.rmtree(doomed, ignore_errors=True)
        return alone is not False


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


def _open(file: Path, *, create: bool = True) -> int | None:
    try:
        return os.open(file, os.O_RDWR | (os.O_CREAT if create else 0) | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except FileNotFoundError:
        return None


def _lock(descriptor: int, *, exclusive: bool) -> bool:
    if fcntl is None:
        return not exclusive  # nothing is provably dead where nothing can be proven
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
