"""One small process per server that keeps it exactly as long as somebody holds it, then removes all of it.

It is started by whoever starts the server, lives in a session of its own, and imports as little as it can. It knows
of deaths from the kernel: a lease is a lock that goes with its process. Its own death is survived, too: a local
server gets a signal from the kernel, a container watches its own connections, and the next start sweeps the rest.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgsandbox import engines, lease, sweep
from pgsandbox.engines.condition import leave_word
from pgsandbox.engines.supervised import BAKE, BAKED, ENDED, GRANT, PID
from pgsandbox.errors import PgsandboxError, ServerError
from pgsandbox.run import read_record, write_record

if TYPE_CHECKING:
    from types import FrameType

_POLL = 0.2
_GRANTED_POLL = 2.0  # to look at the kernel's table of connections takes milliseconds
_LINGER = 0.4


def main() -> None:
    """The supervisor's own process: what to do comes in on standard input, reports go out on standard output.

    The first line names the run's folder, and may come long before the second, the server's spec. Should the starter
    die in between, only the folder is left to remove.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signals = _Signals(signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    run_folder = _read_line()
    if run_folder is None:
        return
    spec = _read_line()
    try:
        if spec is not None:
            _look_after(spec, signals)
    finally:
        sweep.sweep_run(Path(run_folder))


def _read_line() -> Any:
    """The next line's JSON value; None when the starter died, or wants nothing any more, before it was written."""
    line = sys.stdin.readline()
    return json.loads(line) if line.endswith("\n") else None


def _look_after(spec: dict[str, Any], signals: _Signals) -> None:
    folder = Path(spec["folder"])
    mark = lease.supervise(folder)
    if mark is None:
        return
    try:
        write_record(folder / PID, {"pid": os.getpid()})
        ward = engines.ward(spec)
        try:
            if _begin(ward):
                # Beside our own work: of the dead, some may be with an engine that does not answer.
                threading.Thread(target=_sweep_others, args=[folder], daemon=True).start()
                _watch(ward, folder, Path(spec["lease"]), signals)
        finally:
            _remove(ward, folder)
    finally:
        mark.release()


class _Signals:
    """What others ask of a supervisor: SIGTERM to end its server, SIGUSR1 to bake it, SIGUSR2 to complete it.

    A wait ends when one comes.
    """

    def __init__(self, *numbers: signal.Signals) -> None:
        self._came: set[int] = set()
        self._woken, waker = os.pipe()
        for end in (self._woken, waker):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        for number in numbers:
            signal.signal(number, self._note)

    def take(self, number: signal.Signals) -> bool:
        """Whether `number` has come since it was last asked for."""
        came = number in self._came
        self._came.discard(number)
        return came

    def wait(self, seconds: float) -> None:
        """Sleep for `seconds`, or until one comes."""
        if select.select([self._woken], [], [], seconds)[0]:
            os.read(self._woken, 64)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._came.add(number)


def _begin(ward: engines.Ward) -> bool:
    try:
        ward.begin(_report)
    except PgsandboxError as problem:
        _report({"event": "failed", "error": problem.to_record()})
        return False
    except Exception as problem:
        error = ServerError("the server could not be started", why=f"{type(problem).__name__}: {problem}")
        _report({"event": "failed", "error": error.to_record()})
        return False
    return True


def _report(event: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # the starter may be gone, or have heard enough
        os.write(1, json.dumps(event).encode() + b"\n")


def _watch(ward: engines.Ward, folder: Path, held: Path, signals: _Signals) -> None:
    """Return when nobody has held the server for a moment, or, with a grant, been connected for that long.

    It counts from when that is first seen: what was granted is never cut short by the time between two looks.
    """
    unheld_since: float | None = None
    while not signals.take(signal.SIGTERM):
        if not ward.alive():
            leave_word(folder, ward.last_word())
            return
        if signals.take(signal.SIGUSR1):
            _bake(ward, folder)
        if signals.take(signal.SIGUSR2):
            ward.complete()
        now = time.monotonic()
        granted = _granted(folder)
        if lease.is_held(held) or (granted and ward.connected()):
            unheld_since = None
        elif unheld_since is None:
            unheld_since = now
        elif now - unheld_since > max(granted, _LINGER):
            return
        signals.wait(max(_POLL, min(_GRANTED_POLL, granted / 10)))


def _bake(ward: engines.Ward, folder: Path) -> None:
    try:
        request = read_record(folder / BAKE) or {}
        baked = ward.bake(Path(request["to"]), request["layout"])
    except PgsandboxError as problem:
        baked = {"error": problem.to_record()}
    except Exception as problem:
        error = ServerError("the template could not be packed", why=f"{type(problem).__name__}: {problem}")
        baked = {"error": error.to_record()}
    write_record(folder / BAKED, baked)


def _granted(folder: Path) -> float:
    try:
        return float((folder / GRANT).read_text(encoding="ascii") or 0)
    except (FileNotFoundError, ValueError):
        return 0.0


def _remove(ward: engines.Ward, folder: Path) -> None:
    with contextlib.suppress(Exception):  # what could not be removed is swept by the next start
        ward.end()
        with contextlib.suppress(OSError):  # somebody may have removed the folder, but nobody else knows of its data
            (folder / ENDED).touch(mode=0o600)
        ward.remove()
        shutil.rmtree(folder, ignore_errors=True)


def _sweep_others(folder: Path) -> None:
    with contextlib.suppress(Exception):  # never at the cost of the server that lives
        sweep.sweep(keep=folder)
