"""Who holds a lock on a file, by the kernel's own word, and the error for whoever has waited for it too long."""

from __future__ import annotations

import contextlib
from pathlib import Path

from pgsandbox.errors import NotReadyError

_TABLE = Path("/proc/locks")


def not_had(message: str, file: Path, *, otherwise: str, hint: str | None) -> NotReadyError:
    """The error for a lock on `file` that could not be had; `otherwise` says why where nobody knows who holds it."""
    found = holders(file)
    stopped = _stopped(found)
    if stopped:
        numbers = " ".join(map(str, stopped))
        hint = (
            f"let it go on with `kill -CONT {numbers}`, or end it with `kill -KILL {numbers}`: the next one takes over"
        )
    return NotReadyError(message, why=_in_words(found, stopped) or otherwise, hint=hint)


def held_by(file: Path) -> str | None:
    """Who holds a lock on `file`, and whether somebody has stopped it, in words; None where nobody knows."""
    found = holders(file)
    return _in_words(found, _stopped(found)) or None


def _in_words(pids: list[int], stopped: list[int]) -> str:
    return "; ".join(
        f"process {pid} ({_name(pid)}) holds the lock" + (", and is stopped" if pid in stopped else "") for pid in pids
    )


def _stopped(pids: list[int]) -> list[int]:
    return [pid for pid in pids if _state(pid) == "T"]


def holders(file: Path) -> list[int]:
    """The pids that hold a lock (flock) on `file`; none where the kernel does not tell."""
    found: set[int] = set()
    with contextlib.suppress(OSError, ValueError, IndexError):
        wanted = str(file.stat().st_ino)
        for line in _TABLE.read_text(encoding="ascii").splitlines():
            # 1: FLOCK  ADVISORY  WRITE 2345 00:19:67 0 EOF (proc(5)); who waits for one has an arrow in front.
            words = line.split()
            if words[1] == "FLOCK" and words[5].rpartition(":")[2] == wanted and has_open(int(words[4]), file):
                found.add(int(words[4]))
    return sorted(found)


def has_open(pid: int, file: Path) -> bool | None:
    """Whether a process has `file` open: other file systems have files of the same number. None if nobody tells."""
    if not Path("/proc/self/fd").is_dir():
        return None
    with contextlib.suppress(OSError):
        return any(link.exists() and link.samefile(file) for link in Path(f"/proc/{pid}/fd").iterdir())
    return False


def _state(pid: int) -> str:
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    return ""


def _name(pid: int) -> str:
    """The program's name, without its arguments: those may be secrets."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    return "gone by now"
