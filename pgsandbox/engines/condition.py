"""How a server is doing, as it looks from outside, and the last word on one that is over, left for all of its run."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from pgsandbox.errors import PgsandboxError
from pgsandbox.run import read_record, write_record


@dataclass(frozen=True, kw_only=True)
class Condition:
    """What can be told of a server without asking itself."""

    is_over: bool = False
    """Whether it has ended, for good."""
    is_running: bool = False
    is_halted: bool = False
    """Whether somebody has paused or stopped it: it may go on."""
    why: str = ""
    hint: str | None = None


def leave_word(folder: Path, why: str) -> None:
    """Tell the processes of its run why the server of `folder` is over: that folder is about to go. The first counts.

    Never raises.
    """
    with contextlib.suppress(PgsandboxError):
        file = _file(folder)
        if file.parent.is_dir() and not file.exists():
            write_record(file, {"why": why})


def last_word(folder: Path) -> str | None:
    """Why the server of `folder` is over, if somebody has said so."""
    with contextlib.suppress(PgsandboxError):
        record = read_record(_file(folder))
        return None if record is None else str(record.get("why"))
    return None


def over(why: str, *, hint: str | None = None) -> Condition:
    """The condition of a server that has ended."""
    return Condition(is_over=True, why=why, hint=hint)


def exit_in_words(code: int) -> str:
    """How a process ended, by its exit code: that of a shell (128 + N), or of Python (-N), for signal N."""
    import signal

    number = -code if code < 0 else code - 128
    with contextlib.suppress(ValueError):
        return f"was killed by {signal.Signals(number).name}"
    return f"ended with exit code {code}"


def _file(folder: Path) -> Path:
    """Beside the run's other records: it goes with them."""
    return folder.parent.parent / f"over-{folder.name}.json"
