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
    from pgsandbox.engines import Order

GRANT = "grant"
"""The file in a server's folder with the seconds that it may live unheld."""

BAKED = "baked.json"
"""The file in a server's folder that says that it was stopped to be copied."""

PID = "supervisor.json"
"""The file in a server's folder with its supervisor's pid; a name and nothing more: `lease` says if it lives."""

SPEC = "spec.json"
"""The file in a server's folder that says what its supervisor looks after, for a sweep should that die."""

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
                raise ServerError(
                    "the supervisor of the server ended unexpectedly", why=f"exit code {self._process.wait()}"
                )
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                report: dict[str, Any] = json.loads(line)
                if "error" in report:
                    raise PgsandboxError.from_record(report["error"])
                if report["event"] == event:
                    return report
                on(report["event"])
        raise NotReadyError(
            f"PostgreSQL was not ready within {timeout:g}s", hint="raise the setting timeout on a slow machine"
        )

    def detach(self) -> None:
        """Leave it to itself: it outlives this process and this object."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        # Nobody is going to wait for it here, and subprocess would warn about that.
        self._process.returncode = 0


def start(spec: dict[str, Any]) -> Handle:
    """A supervisor for the server that `spec` describes (`engine`, `folder`, `run_folder` and what its ward needs)."""
    here = str(Path(__file__).parent.parent)
    code = _BOOT.format(path=[here, *sys.path])
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(spec).encode() + b"\n")
    process.stdin.flush()
    return Handle(process)


def start_for(order: Order, spec: dict[str, Any]) -> Handle:
    """A supervisor for `order`, with the record that a later sweep needs written first."""
    spec = {**spec, "token": order.token, "folder": str(order.folder), "run_folder": str(order.folder.parent.parent)}
    spec |= {"lease": str(order.lease)}
    write_record(order.folder / SPEC, spec)
    return start(spec)


def end(folder: Path, *, timeout: float) -> bool:
    """Ask the supervisor of `folder` to remove its server now; whether it has, within `timeout` seconds."""
    _signal(folder, signal.SIGTERM)
    deadline = time.monotonic() + timeout
    while lease.is_supervised(folder):
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.01)
    return True


def bake(folder: Path, *, timeout: float) -> None:
    """Ask the supervisor of `folder` to stop its server cleanly, keeping the data. Raises ServerError."""
    _signal(folder, signal.SIGUSR1)
    deadline = time.monotonic() + timeout
    while (record := read_record(folder / BAKED)) is None:
        if not lease.is_supervised(folder) or time.monotonic() > deadline:
            raise ServerError("the server that holds the template did not stop cleanly")
        time.sleep(0.005)
    if "error" in record:
        raise PgsandboxError.from_record(record["error"])


def _signal(folder: Path, number: signal.Signals) -> None:
    record = read_record(folder / PID)
    if record is not None and lease.is_supervised(folder):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(record["pid"], number)


def grant(folder: Path, seconds: float) -> None:
    """Let the server of `folder` live for `seconds` with nobody holding it and nobody connected."""
    (folder / GRANT).write_text(f"{seconds}", encoding="ascii")
