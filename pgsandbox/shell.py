"""How a program of ours behaves in a shell: its signals, its commands' exit codes, the width of its terminal."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pgsandbox.errors import PgsandboxError

if TYPE_CHECKING:
    from types import FrameType

INTERRUPTED = 130
_NOT_FOUND, _NOT_EXECUTABLE = 127, 126


class ProgramError(PgsandboxError):
    """A command of the user's can't be run; `exit_code` is what a shell would return."""

    def __init__(self, program: str, why: str, exit_code: int, *, looked_at: tuple[str, ...] = ()) -> None:
        super().__init__(f"{program} can't be run", why=why, looked_at=looked_at)
        self.exit_code = exit_code  # type: ignore[misc]


def interruptible() -> None:
    """Have Ctrl-C end what is being done, and a second one end us at once: the kernel lets go of what we hold."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
    raise KeyboardInterrupt


def check_program(program: str) -> None:
    """Raise ProgramError, as a shell would, if there is no such program or it may not be run."""
    if shutil.which(program) is not None:
        return
    if "/" not in program:
        raise ProgramError(program, "there is no such program", _NOT_FOUND, looked_at=("PATH",))
    if not Path(program).exists():
        raise ProgramError(program, "there is no such file", _NOT_FOUND)
    raise ProgramError(program, "it is a folder" if Path(program).is_dir() else "it is not executable", _NOT_EXECUTABLE)


def run_program(command: Sequence[str], environ: dict[str, str]) -> int:
    """Run it to its end, and hand on the signals that reach us; its exit code, or 128 + N where signal N ended it.

    Raises ProgramError.
    """
    process: subprocess.Popen[bytes] | None = None
    pending: list[int] = []

    def forward(number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and _in_foreground():
            return  # the terminal sends it to both
        if process is None:
            pending.append(number)
        else:
            process.send_signal(number)

    numbers = [number for name in ("SIGTERM", "SIGHUP", "SIGINT") if (number := getattr(signal, name, None))]
    heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]  # nohup ignores one
    before = {number: signal.signal(number, forward) for number in heard}
    try:
        process = subprocess.Popen(command, env=environ)
        for number in pending:
            process.send_signal(number)
        code = process.wait()
    except OSError as problem:
        raise ProgramError(command[0], problem.strerror or str(problem), _NOT_EXECUTABLE) from problem
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def _in_foreground() -> bool:
    """Whether a terminal sends its Ctrl-C to us, and so to a command of ours."""
    try:
        with Path("/dev/tty").open() as terminal:
            return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except (OSError, AttributeError):  # no terminal; Windows
        return False


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines for standard output: columns where a terminal is wide enough for them, else a line for each value.

    Nothing is ever cut off.
    """
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    room = shutil.get_terminal_size().columns if sys.stdout is not None and sys.stdout.isatty() else None
    if room is None or sum(widths) + 2 * (len(widths) - 1) <= room:
        for row in (header, *rows):
            yield "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        return
    label = max(map(len, header))
    for row in rows:
        for name, text in zip(header, row, strict=True):
            yield f"{name.ljust(label)}  {text}".rstrip()
        yield ""
