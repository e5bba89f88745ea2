"""What the dead left: found and removed only where the kernel itself says that nobody holds it any more."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pgsandbox import engines, lease
from pgsandbox.engines.supervised import ENDED, SPEC
from pgsandbox.errors import PgsandboxError, PlaceError, ServerError
from pgsandbox.run import KEEPING, all_runs, entries, read_record

_GIVE_UP = 120.0
"""Seconds for an engine that does not answer: a daemon that is restarted is back by then."""

_POLL = 0.1


def sweep(*, keep: Path | None = None) -> tuple[list[str], list[PgsandboxError]]:
    """Remove what belonged to runs of this user that are provably dead; what was removed, and what could not be.

    `keep` is a server's folder to leave alone whatever it looks like.
    """
    removed: list[str] = []
    trouble: list[PgsandboxError] = []
    for run_folder in _folders(all_runs()):
        for folder in _folders(run_folder / "servers"):
            if folder == keep:
                continue
            try:
                removed.extend(_sweep_server(folder))
            except PgsandboxError as problem:  # an engine that does not answer: the next sweep tries again
                trouble.append(problem)
        if not _folders(run_folder / "servers") and _remove_run(run_folder):
            removed.append(f"run {run_folder.name}")
    return removed, trouble


def sweep_run(run_folder: Path) -> None:
    """Remove a run's folder as soon as nobody holds it, and what killed processes of that run left in it.

    Waits for that as long as somebody holds the run, but not while a server of it has a supervisor: that comes here,
    too. What can't be removed, since its engine does not answer, is left to the next start after two minutes.
    """
    refused_since: float | None = None
    while run_folder.exists() and (refused_since is None or time.monotonic() - refused_since < _GIVE_UP):
        servers = _folders(run_folder / "servers")
        if any(lease.is_supervised(folder) for folder in servers):
            return
        for folder in servers:
            try:
                list(_sweep_server(folder))
            except PgsandboxError:
                refused_since = refused_since or time.monotonic()
        if not _folders(run_folder / "servers") and _remove_run(run_folder):
            return
        # A daemon that is away is not asked ten times a second.
        time.sleep(_POLL if refused_since is None else 1.0)


def _sweep_server(folder: Path) -> Iterator[str]:
    """Remove one server and its folder, if it has no supervisor and nobody holds it; what it was."""
    spec = _spec(folder)
    run_folder = folder.parent.parent
    # Before there is a spec, its starter holds the run, the server's folder, or both.
    held_by = [Path(spec["lease"])] if spec else [run_folder, folder]
    if any(lease.is_held(one) for one in held_by) or lease.is_supervised(folder):
        return
    mark = lease.supervise(folder)
    if mark is None:
        return
    try:
        with lease.if_nobody_holds(held_by[-1]) as free:
            if not free or any(lease.is_held(one) for one in held_by[:-1]):
                return
            with contextlib.suppress(OSError):  # from here on nobody takes it for one that lives, or waits for us
                (folder / ENDED).touch(mode=0o600)
        if spec is not None:
            _remove(spec)
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        mark.release()
    yield f"{spec['engine'] if spec else 'unfinished'} server {folder.name}"


def _remove_run(run_folder: Path) -> bool:
    """Remove the folder of a run that nobody holds, and what its builder has not finished; whether it has gone."""
    if lease.is_held(run_folder):
        return False
    with contextlib.suppress(PgsandboxError, KeyError):
        if (unfinished := read_record(run_folder / KEEPING)) is not None:
            from pgsandbox.cache import Cache

            Cache(Path(unfinished["cache"])).tidy(unfinished["engine"])
            (run_folder / KEEPING).unlink(missing_ok=True)
    return lease.remove_if_dead(run_folder)


def _spec(folder: Path) -> dict[str, Any] | None:
    """What the server is; None where it has not been said yet, or so that nobody can tell any more."""
    with contextlib.suppress(PlaceError, KeyError, TypeError):
        spec = read_record(folder / SPEC)
        if spec is not None and spec["lease"] and engines.ward(spec):
            return spec
    return None


def _remove(spec: dict[str, Any]) -> None:
    try:
        engines.ward(spec).remove()
    except PgsandboxError:
        raise
    except Exception as problem:
        message = f"what is left of the {spec['engine']} server {spec['token']} could not be removed"
        hint = "the next start, or `pgsandbox prune`, tries again"
        raise ServerError(message, why=f"{type(problem).__name__}: {problem}", hint=hint) from problem


def _folders(parent: Path) -> list[Path]:
    """The folders in `parent`; a link leads to where we have removed nothing yet, and never shall."""
    return [folder for folder in entries(parent) if folder.is_dir() and not folder.is_symlink()]
