"""What the dead left: found and removed only where the kernel itself says that nobody holds it any more."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pgsandbox import engines, lease
from pgsandbox.engines.supervised import SPEC
from pgsandbox.run import all_runs, read_record


def sweep(*, keep: Path | None = None) -> list[str]:
    """Remove what belonged to runs of this user that are provably dead; what was removed, in words.

    `keep` is a server's folder to leave alone whatever it looks like.
    """
    removed: list[str] = []
    for folder in _server_folders():
        if folder != keep and not lease.is_supervised(folder):
            removed.extend(_sweep_server(folder))
    for run_folder in all_runs().iterdir():
        servers = run_folder / "servers"
        is_empty = not servers.exists() or not any(servers.iterdir())
        if is_empty and _is_idle(run_folder) and lease.remove_if_dead(run_folder):
            removed.append(f"run {run_folder.name}")
    return removed


def _sweep_server(folder: Path) -> Iterator[str]:
    spec: dict[str, Any] | None = read_record(folder / SPEC)
    with lease.if_nobody_holds(Path(spec["lease"]) if spec else folder) as free:
        if not free or lease.is_supervised(folder):
            return
        if spec is not None:
            engines.ward(spec).remove()
        shutil.rmtree(folder, ignore_errors=True)
        yield f"{spec['engine'] if spec else 'unfinished'} server {folder.name}"


def _server_folders() -> list[Path]:
    return [folder for run in all_runs().iterdir() for folder in (run / "servers").glob("*") if folder.is_dir()]


def _is_idle(run_folder: Path) -> bool:
    """Whether the folder is older than a moment: a run that is just being made has its lease in the next one."""
    try:
        return time.time() - run_folder.stat().st_mtime > 5
    except FileNotFoundError:
        return False
