"""The command line, what a user types and reads: stdout is data, stderr is narration, and the work is in `named`."""

# Hardly anything is imported here: whoever presses Ctrl-C while that goes on would see Python's trace.
from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pgsandbox.errors import PgsandboxError


def main() -> None:
    """Run the command line; the exit code says what kind of end it was (see `pgsandbox --help`)."""
    said, code = _run()
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.write(f"{said}\n" if said and stream is sys.stderr else "")
                stream.flush()
        except OSError:
            # Python would try once more at its end, and complain; whoever should have read this can't.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            code = code or 1
    sys.exit(code)


def _run() -> tuple[str, int]:
    """Do what the command line says; the last words, if there are any, and the exit code."""
    try:
        return "", _command()
    except KeyboardInterrupt:
        return "pgsandbox: interrupted", 130
    except BrokenPipeError:
        return "", 1  # the reader of our output has gone; there is nobody to tell
    except Exception as problem:
        from pgsandbox.errors import PgsandboxError

        error = problem if isinstance(problem, PgsandboxError) else _unforeseen(problem)
        return str(error), error.exit_code


def _command() -> int:
    from pgsandbox import shell

    shell.interruptible()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # a folder's name may be no text at all
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    import click

    from pgsandbox.cli.sandboxes import cli

    try:
        return int(cli.main(prog_name="pgsandbox", standalone_mode=False) or 0)
    except click.ClickException as problem:
        problem.show()
        return problem.exit_code
    except click.Abort:
        raise KeyboardInterrupt from None


def _unforeseen(problem: Exception) -> PgsandboxError:
    """Words for what no part of ours expected: the operating system refused something, or there is a bug."""
    from pgsandbox.errors import PgsandboxError

    if isinstance(problem, OSError) and problem.strerror:
        return PgsandboxError(f"{problem.filename or 'the output'}: {problem.strerror}")
    trace = problem.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return PgsandboxError(
        f"{type(problem).__name__}: {problem}",
        why=f"at {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else None,
        hint="this is a bug of pgsandbox: please report these lines",
    )
