"""Which process of which run a pytest is: told apart by name and parent process."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field

RUN_VARIABLE = "_PGSANDBOX_RUN"
"""Tells workers their run: `id/controller's pid/number of workers`. A process of another parent is another run."""

_ANNOUNCED = re.compile("([^/]+)/([0-9]{1,9})/([1-9][0-9]{0,5})")
"""Anything else is not from us: somebody has set the variable by hand."""


@dataclass(frozen=True)
class Identity:
    """Which process of which run this is."""

    run: str
    worker: str
    """`gw0` and so on, `main` without xdist, `controller` for the process that runs no test."""
    workers: int
    controller: int | None = field(default=None, compare=False)
    """The pid of the process that started this worker."""

    @property
    def is_worker(self) -> bool:
        """Whether it is an xdist worker; `--tx popen//id=main` gives one any name."""
        return self.controller is not None

    @property
    def is_controller(self) -> bool:
        """Whether it starts workers, and runs no test itself."""
        return self.worker == "controller" and not self.is_worker


def worker_identity() -> Identity | None:
    """Who this process is if it is an xdist worker of a run that its parent announced, else None.

    At the time conftest files are imported xdist has only set variables, which a pytest inside a test inherits:
    the parent's pid tells the two apart. What was announced is for this process alone, and taken out of its sight.
    """
    announced = _ANNOUNCED.fullmatch(os.environ.get(RUN_VARIABLE, ""))
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if announced is None or not worker:
        return None
    run, parent, workers = announced[1], int(announced[2]), int(announced[3])
    if parent != os.getppid() and _is_alive(parent):
        return None
    del os.environ[RUN_VARIABLE]
    return Identity(run, worker, workers, parent)


def _is_alive(pid: int) -> bool:
    """Whether there is a process of that pid; an orphaned worker must not take itself for a run of its own."""
    if os.name != "posix":
        return True  # to ask like this would be to end it
    try:
        os.kill(pid, 0)
    except OSError as problem:
        return isinstance(problem, PermissionError)
    return True


def new_identity(worker: str, workers: int = 1) -> Identity:
    """A run of its own."""
    from pgsandbox import places

    return Identity(f"pytest-{places.new_token()}", worker, workers)
