"""How an engine puts a server under a supervisor, and speaks with it: the starter's side of `supervisor`."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgsandbox import lease
from pgsandbox.errors import NotReadyError, PgsandboxError, ServerError
from pgsandbox.run import read_record, write_record

if TYPE_CHECKING:
    from pgsandbox.engines import Layout, Order

GRANT = "grant"
"""The file in a server's folder with the seconds that it may live unheld."""

BAKE, BAKED = "bake.json", "baked.json"
"""The files in a server's folder that say where its cluster is to be packed to, and that it was."""

ENDED = "ended"
"""The file in a server's folder that says that nobody can use it any more; what is left of it is being removed."""

PID = "supervisor.json"
"""The file in a server's folder with its supervisor's pid; a name and nothing more: `lease` says if it lives."""

SPEC = "spec.json"
"""The file in a server's folder that says what its supervisor looks after, for a sweep should that die."""

_END_TIMEOUT = 5.0
_RAISE = "raise the setting timeout on a slow machine"

_BOOT = """\
import sys
sys.path[:] = {path!r}
from pgsandbox.supervisor import main
main()
"""


class Handle:
    """A supervisor seen from the process that started it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.pid = process.pid

    def wait_for(self, event: str, *, timeout: float, on: Callable[[str], None]) -> dict[str, Any]:
        """The next report named `event`; reports of other names go to `on`.

        Raises the error that the supervisor reported, ServerError if it ended, NotReadyError after `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        pending = b""
        stdout = self._process.stdout
        assert stdout is not None
        while (left := deadline - time.monotonic()) > 0:
            if not select.select([stdout], [], [], left)[0]:
                break
            chunk = os.read(stdout.fileno(), 65536)
            if not chunk:
                raise self._ended()
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                report: dict[str, Any] = json.loads(line)
                if "error" in report:
                    raise PgsandboxError.from_record(report["error"])
                if report["event"] == event:
                    return report
                on(report["event"])
        raise NotReadyError(f"PostgreSQL was not ready within {timeout:g}s", hint=_RAISE)

    def tell(self, what: Any) -> None:
        """Write a line to it. Raises ServerError when it is gone."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(what).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as problem:
            raise self._ended() from problem

    def _ended(self) -> ServerError:
        code: int | None = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._process.wait(_END_TIMEOUT)
        why = f"exit code {code}" if code is not None else "it hung up, and is still there"
        return ServerError("the supervisor of the server ended unexpectedly", why=why)

    def detach(self) -> None:
        """Leave it to itself: it outlives this process and this object. Harmless when repeated."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        if self._process.returncode is None:
            self._process.returncode = 0  # subprocess would warn about a process that nobody waits for
            _DETACHED.add(self.pid)


_DETACHED: set[int] = set()
"""Children that were left to themselves; once they have ended, somebody has to ask for their exit code."""


def _reap() -> None:
    for pid in list(_DETACHED):
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(pid, os.WNOHANG)[0] == 0:
                continue
        _DETACHED.discard(pid)


def ahead(run_folder: Path) -> Handle:
    """A supervisor that waits for its server's spec; should we die before there is one, it removes `run_folder`."""
    _reap()
    here = str(Path(__file__).parents[2])
    code = _BOOT.format(path=[here, *sys.path])
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,
    )
    handle = Handle(process)
    handle.tell(str(run_folder))
    return handle


def start_for(order: Order, spec: dict[str, Any]) -> Handle:
    """A supervisor for `order`, with the record that a later sweep needs written first."""
    spec = {**spec, "token": order.token, "folder": str(order.folder), "lease": str(order.lease)}
    handle = order.supervisor or ahead(order.folder.parent.parent)
    try:
        write_record(order.folder / SPEC, spec)
        handle.tell(spec)
    except BaseException:
        handle.detach()
        raise
    return handle


def end(*folders: Path, timeout: float, removed: bool = True) -> list[Path]:
    """Ask the supervisors of `folders` to remove their servers now; those that have not within `timeout` seconds.

    With `removed` false only until they have `ENDED`: their supervisors see to the rest by themselves.
    All are asked before any is waited for: a seed can't be removed before the servers that were started from it.
    """
    deadline = time.monotonic() + timeout
    alive, asked = list(folders), set[Path]()
    while alive := [one for one in alive if lease.is_supervised(one) and (removed or not (one / ENDED).exists())]:
        if time.monotonic() >= deadline:
            break
        # One that has just begun has not said its pid yet.
        asked |= {folder for folder in alive if folder not in asked and _signal(folder, signal.SIGTERM)}
        time.sleep(0.002)
    return alive


def not_ended(what: str, folder: Path, timeout: float) -> ServerError:
    """The error for a server that its supervisor has not ended, which says who that is."""
    who = lease.supervisor_of(folder)
    why = f": {who}" if who else ""
    return ServerError(f"{what} did not end within {timeout:g}s{why}", hint="try `pgsandbox prune`")


def bake(folder: Path, to: Path, *, layout: Layout, timeout: float) -> dict[str, Any]:
    """Have the supervisor of `folder` stop its server cleanly and pack the data into the file `to`; its checksum.

    Raises PlaceError when the file can't be written, ServerError, NotReadyError.
    """
    write_record(folder / BAKE, {"to": str(to), "layout": layout})
    _signal(folder, signal.SIGUSR1)
    deadline = time.monotonic() + timeout
    while (record := read_record(folder / BAKED)) is None:
        if not lease.is_supervised(folder):
            raise ServerError("the server that holds the template did not stop cleanly")
        if time.monotonic() > deadline:
            who = lease.supervisor_of(folder)
            raise NotReadyError(f"the template was not packed within {timeout:g}s", why=who, hint=_RAISE)
        time.sleep(0.005)
    if "error" in record:
        raise PgsandboxError.from_record(record["error"])
    return record


def complete(folder: Path) -> None:
    """Have the supervisor of `folder` put in place what a start from a seed left out; does not wait for it."""
    _signal(folder, signal.SIGUSR2)


def _signal(folder: Path, number: signal.Signals) -> bool:
    """Send a signal to the supervisor of `folder`; whether it is known who that is.

    Its pid is what it calls itself: to us, in another container, that may be somebody else.
    """
    record = read_record(folder / PID)
    if record is None or not lease.is_supervised_by(folder, record["pid"]):
        return False
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(record["pid"], number)
    return True


def grant(folder: Path, seconds: float) -> None:
    """Let the server of `folder` live for `seconds` with nobody holding it and nobody connected."""
    (folder / GRANT).write_text(f"{seconds}", encoding="ascii")
