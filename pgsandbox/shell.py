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

from pgsandbox.errors import NoSuchProgramError, ProgramError, printable

if TYPE_CHECKING:
    from types import FrameType

INTERRUPTED = 130


def interruptible() -> None:
    """Have Ctrl-C end what is being done, and a second one end us at once: the kernel lets go of what we hold."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
    raise KeyboardInterrupt


def check_program(program: str) -> None:
    """Raise ProgramError if `program` may not be run, NoSuchProgramError if there is none."""
    if shutil.which(program) is not None:
        return
    message = f"{program} can't be run"
    if os.sep not in program:
        hint = "is the virtual environment active that it is in?"
        raise NoSuchProgramError(message, why="there is no such program", looked_at=("PATH",), hint=hint)
    if not Path(program).exists():
        raise NoSuchProgramError(message, why="there is no such file")
    raise ProgramError(message, why="it is a folder" if Path(program).is_dir() else "it is not executable")


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
        raise ProgramError(f"{command[0]} can't be run", why=problem.strerror) from problem
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

    Nothing is ever cut off, and nothing is left that a terminal would obey.
    """
    rows = [[printable(text) for text in row] for row in rows]
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
