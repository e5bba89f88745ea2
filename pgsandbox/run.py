"""A run's folder: what its processes agree on (who starts what, what was started, what failed)."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pgsandbox import lease, locks, places
from pgsandbox.errors import PgsandboxError, PlaceError, UsageError

KEEPING = "keeping.json"
"""The file in a run's folder that says for which cache something is being made; it stays if that was never finished."""


class Run:
    """This process's part in the run `id`: a lease on the run's folder, until `leave` or death."""

    def __init__(self, id_: str) -> None:
        self.id = id_
        self.folder = folder_of(id_)
        self._lease = lease.hold(self.folder)

    def leave(self) -> None:
        """Give up this process's hold; the folder goes with the last one, unless a supervisor has to look after it."""
        self._lease.release()
        if not entries(self.folder / "servers") and not (self.folder / KEEPING).exists():
            lease.remove_if_dead(self.folder)

    @contextlib.contextmanager
    def lock(self, name: str, *, timeout: float) -> Iterator[None]:
        """Hold the run's lock `name`. The kernel frees it when its holder dies, so that another takes over.

        Raises NotReadyError, naming the lock, after `timeout` seconds.
        """
        import filelock

        file = self.folder / f"{name}.lock"
        try:
            with filelock.FileLock(file, timeout=timeout, poll_interval=0.005):
                yield
        except filelock.Timeout:
            raise locks.not_had(
                f"waited {timeout:g}s for another process of this run that is working on: {name}",
                file,
                otherwise="it is alive, but has not finished",
                hint="raise the setting timeout if the work is known to take longer",
            ) from None

    @contextlib.contextmanager
    def keeping(self, engine: str, cache: Path) -> Iterator[None]:
        """Note while something is made for the cache in the folder `cache`, so that who sweeps us can tidy up there."""
        write_record(self.folder / KEEPING, {"engine": engine, "cache": str(cache)})
        yield
        (self.folder / KEEPING).unlink(missing_ok=True)

    def read(self, name: str) -> dict[str, Any] | None:
        """The record `name`, or None; raises the error that stands there instead of it."""
        record = read_record(self.folder / f"{name}.json")
        if record is not None and "error" in record:
            raise PgsandboxError.from_record(record["error"])
        return record

    def write(self, name: str, record: dict[str, Any]) -> None:
        """Set the record `name` for all processes of the run, whole or not at all."""
        write_record(self.folder / f"{name}.json", record)

    def fail(self, name: str, error: PgsandboxError) -> None:
        """Have every process of the run raise `error` instead of trying `name` again."""
        self.write(name, {"error": error.to_record()})


def folder_of(id_: str) -> Path:
    """The folder of the run `id_`, whether or not it exists. Raises UsageError for what can't be one."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,79}", id_):
        raise UsageError(f"{id_!r} can't name a run", hint="use up to 80 letters, digits, and . _ - inside")
    return all_runs() / id_


def entries(folder: Path) -> list[Path]:
    """What is in `folder`: nothing, if it is gone. `glob` would stumble over folders that others remove meanwhile."""
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def all_runs() -> Path:
    """The folder of all runs of this user."""
    return places.private(places.runtime_root() / "runs")


def read_record(file: Path) -> dict[str, Any] | None:
    """The JSON object in `file`, or None if there is no such file. Raises PlaceError for one that is damaged."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as problem:
        raise damaged(file, problem) from problem
    if not isinstance(record, dict):
        raise damaged(file, "it is not a JSON object")
    return record


def damaged(file: Path, problem: object) -> PlaceError:
    """The error for a record that can't be understood."""
    return PlaceError(
        f"the record {file} can't be read",
        why=str(problem),
        hint="remove it once nothing of pgsandbox runs any more, and run `pgsandbox prune`",
    )


def write_record(file: Path, record: dict[str, Any]) -> None:
    """Write `record` to `file`, mode 0600, so that a reader sees all of it or the one before."""
    fresh = file.with_name(f"{file.name}.{os.getpid()}.{time.monotonic_ns()}")
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            json.dump(record, stream)
        fresh.replace(file)
    except OSError as problem:
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise places.unusable(file.parent, problem) from problem
