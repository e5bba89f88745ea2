"""Processes that a benchmark starts and talks to: scripts of this folder, in the benchmark's own environment."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import environment

if TYPE_CHECKING:
    from benchmarks.bed import Bed


def started(script: str, words: list[str], *, where: Bed, folder: Path) -> subprocess.Popen[str]:
    """The script of that name, running in `folder`, where its errors are gathered."""
    with (folder / "errors").open("a") as errors:
        return subprocess.Popen(
            [str(environment.PYTHON), str(Path(__file__).with_name(script)), *words],
            cwd=folder,
            env=where.environ({}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )


def line_of(process: subprocess.Popen[str], folder: Path) -> str:
    """The next line that it says. Raises LookupError with its last words when it has ended instead."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise LookupError(
            f"failed: {((folder / 'errors').read_text().strip().splitlines() or ['it said nothing'])[-1]}"
        )
    return line
