"""Init steps: what a user may write to build the template, and how each kind is run."""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pgsandbox import command, libpq
from pgsandbox.errors import PgsandboxError, StepError, TemplateError

if TYPE_CHECKING:
    import psycopg

    from pgsandbox.database import Database

_NOT_FOUND = "is it installed? PATH and the folder of the running Python are searched"
_CANCELLED = 5.0
"""Seconds in which a server that is there ends what it was told to end."""

KINDS = "file.sql, dir/*.sql, python:module:function, command: a command line"


class Step(Protocol):
    """One thing to do to a database on its way to be the template."""

    @property
    def text(self) -> str:
        """The step as the user wrote it."""
        ...

    @property
    def reads_more(self) -> bool:
        """Whether it may read files that it does not name itself."""
        ...

    def run(self, database: Database, context: Context) -> None:
        """Do it; raises StepError with the step's own output."""
        ...


@dataclass(frozen=True)
class Context:
    """What steps are run with."""

    root: Path
    """The project's folder: relative paths start there, programs run there."""
    environ: Mapping[str, str]
    """The environment for programs, the database's variables in it."""
    timeout: float
    """Seconds that one step may take."""
    is_ours: bool = True
    """Whether the server is ours, so that more rights could be had in it."""


def parse(texts: Sequence[str], root: Path) -> list[Step]:
    """The steps that `texts` name; raises TemplateError for one of no known kind or a file that is not there."""
    return [step for text in texts for step in _parse_one(text, root)]


def _parse_one(text: str, root: Path) -> list[Step]:
    if text.startswith("command:"):
        try:
            words = command.split(text.removeprefix("command:"))
        except ValueError as problem:
            raise TemplateError(f"init step {text!r} can't be split into words", why=str(problem)) from None
        if not words:
            raise TemplateError(f"init step {text!r} names no program", hint="write `command: alembic upgrade head`")
        return [CommandStep(text, tuple(words))]
    if text.startswith("python:"):
        match = re.fullmatch(r"python:\s*([\w.]+):(\w+)", text)
        if match is None:
            raise TemplateError(f"init step {text!r} is malformed", hint="write python:module:function")
        return [PythonStep(text, match[1], match[2])]
    if text.endswith(".sql"):
        return _sql_steps(text, root)
    raise TemplateError(f"init step {text!r} is of no known kind", hint=f"the kinds are {KINDS}")


def _sql_steps(text: str, root: Path) -> list[Step]:
    pattern = Path(text)
    if _is_pattern(text):
        base, relative = (
            (Path(pattern.anchor), pattern.relative_to(pattern.anchor)) if pattern.anchor else (root, pattern)
        )
        files = sorted(file for file in base.glob(str(relative)) if file.is_file())
        if not files:
            raise TemplateError(
                f"init step {text!r} matches no file", looked_at=(str(base),), hint="paths start at the project's root"
            )
        return [SqlStep(text, file) for file in files]
    file = root / pattern
    if not file.is_file():
        raise TemplateError(
            f"init file {text} does not exist", looked_at=(str(file),), hint="paths start at the project's root"
        )
    return [SqlStep(text, file)]


def _is_pattern(text: str) -> bool:
    return "*" in text or "?" in text


_READING = rb"^\s*\\((i|ir|include|include_relative|copy|gexec|o)\b|!)|`"
"""psql's commands after which a file's own text does not say all that it does."""


@dataclass(frozen=True)
class SqlStep:
    """A file of SQL, sent as it is; one with psql's own commands or COPY data is given to psql."""

    text: str
    file: Path

    @property
    def reads_more(self) -> bool:
        """Whether one of psql's own commands in it reads a file, or runs a program."""
        return re.search(_READING, self.file.read_bytes(), re.MULTILINE) is not None

    def run(self, database: Database, context: Context) -> None:
        """Run the file's statements as the owner; raises StepError with the line of the mistake."""
        try:
            source = self.file.read_text(encoding="utf-8-sig")  # with or without the mark that some editors write
        except UnicodeDecodeError as problem:
            raise TemplateError(
                f"init file {self._name} is not UTF-8", why=str(problem), hint="convert it: iconv -t UTF-8"
            ) from None
        if re.search(r"^\\", source, re.MULTILINE):
            self._with_psql(database, context)
            return
        import psycopg

        from pgsandbox.bounded import BoundedConnection, within

        silent = _too_slow(f"init file {self._name}", context, "PostgreSQL does not answer any more")
        with BoundedConnection.open(
            database.conninfo,
            ask=within(context.timeout + _CANCELLED, lambda _: silent),
            connect_timeout=math.ceil(context.timeout),
            client_encoding="utf8",
            **libpq.PLAIN,
        ) as connection:
            # Ours, not statement_timeout: that would count for each statement, and pg_dump's files set it to 0.
            deadline = time.monotonic() + context.timeout
            timer = threading.Timer(context.timeout, _cancel, (connection,))
            timer.start()
            try:
                connection.execute(source.encode())
            except psycopg.Error as problem:
                if isinstance(problem, psycopg.errors.QueryCanceled) and time.monotonic() >= deadline:
                    why = "PostgreSQL was still working on it"
                    raise _too_slow(f"init file {self._name}", context, why) from problem
                raise self._failed(source, problem, context) from problem
            finally:
                timer.cancel()

    @property
    def _name(self) -> str:
        """The file as the user wrote it; of those that a pattern matched, the one that it is."""
        return self.file.name if _is_pattern(self.text) else self.text

    def _with_psql(self, database: Database, context: Context) -> None:
        psql = shutil.which("psql")
        if psql is None:
            raise TemplateError(
                f"init file {self._name} needs psql",
                why="it has psql's own commands (lines that begin with a backslash) or data for COPY",
                looked_at=("PATH",),
                hint="install PostgreSQL's client programs, or use `pg_dump --inserts`",
            )
        words = (psql, "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", f"--file={self.file}")
        environ = {**context.environ, "PGCLIENTENCODING": "UTF8"}
        _run_program(self.text, words, replace(context, environ=environ))

    def _failed(self, source: str, problem: psycopg.Error, context: Context) -> StepError:
        said = problem.diag.message_primary or str(problem).strip()
        where = ""
        if problem.diag.statement_position:
            before = source[: int(problem.diag.statement_position)].rstrip()  # at the end of input: its last line
            line = before.count("\n") + 1
            text = source.split("\n")[line - 1].strip()
            where = f" at line {line}: {text[:120]}"
        return StepError(
            f"init file {self._name} failed{where}",
            why="\n".join(filter(None, [said, problem.diag.message_detail, problem.diag.context])),
            hint=hint_for(f"{problem.sqlstate} {said}", context) or problem.diag.message_hint,
        )


@dataclass(frozen=True)
class PythonStep:
    """A function, called with the database's URL in a Python of its own, so that no module keeps that URL."""

    text: str
    module: str
    function: str
    reads_more = True

    def run(self, database: Database, context: Context) -> None:
        """Call the function; raises StepError with the end of its traceback."""
        path = [str(context.root), *(p for p in sys.path if p)]
        words = (sys.executable, "-c", _CALL, self.module, self.function)
        environ = {**context.environ, "PYTHONPATH": os.pathsep.join(path)}
        _run_program(self.text, words, replace(context, environ=environ))


_CALL = """\
import importlib, os, sys
module, function = sys.argv[1:]
url = os.environ["DATABASE_URL"]  # not an argument: others can read those; and now, before the module can change it
try:
    found = importlib.import_module(module)
except ModuleNotFoundError as problem:
    if problem.name != module and not module.startswith(f"{problem.name}."):
        raise
    sys.exit(f"no module named {module}")
called = getattr(found, function, None)
if called is None:
    sys.exit(f"module {module} has no function {function}")
called(url)
"""


@dataclass(frozen=True)
class CommandStep:
    """A program of the user's, with the database's environment."""

    text: str
    words: tuple[str, ...]
    reads_more = True

    def run(self, database: Database, context: Context) -> None:
        """Run the program; raises StepError with its last lines."""
        _run_program(self.text, self.words, context)


def _cancel(connection: psycopg.Connection[Any]) -> None:
    with contextlib.suppress(Exception):  # a server that does not hear us does not answer us, either
        connection.cancel_safe(timeout=_CANCELLED)


def _run_program(text: str, words: Sequence[str], context: Context) -> None:
    outcome = command.run(words, environ=context.environ, folder=context.root, timeout=context.timeout)
    if outcome.exit_code == 0:
        return
    if outcome.exit_code is None:
        raise _too_slow(f"init step {text!r}", context, outcome.output or "it printed nothing")
    raise StepError(
        f"init step {text!r} failed with exit code {outcome.exit_code}",
        why=outcome.output or "it printed nothing",
        hint=_NOT_FOUND if outcome.exit_code == command.NOT_FOUND else hint_for(outcome.output, context),
    )


def _too_slow(what: str, context: Context, why: str) -> StepError:
    return StepError(
        f"{what} was not done within {context.timeout:g}s, and was ended",
        why=why,
        hint="raise the setting timeout, or look at what it waits for",
    )


def hint_for(said: str, context: Context) -> str | None:
    """What to do, where PostgreSQL's own words show that the owner's rights were not enough."""
    hint = next((hint for pattern, hint in _HINTS if re.search(pattern, said)), None)
    if hint is _MORE_RIGHTS and not context.is_ours:
        return "the server is not ours: have its owner do that, once, and leave it out of the migrations"
    return hint


_MORE_RIGHTS = "set superuser = true (with scope = worker), or leave what belongs to the whole server out of migrations"
_HINTS = (
    (
        r"extension .* is not available|could not open extension",
        "install it in the server (a package, or another image), and name it in the setting extensions",
    ),
    (
        "permission denied to create extension",
        "name it in the setting extensions: those are created by the superuser",
    ),
    (
        "permission denied to set role",
        "before PostgreSQL 16 who makes a role is no member of it: GRANT it TO CURRENT_USER first",
    ),
    (r"permission denied (to|for language)|must be superuser|Only roles with", _MORE_RIGHTS),
    ("cannot run inside a transaction block", "put that statement into a file of its own"),
)


def checked(texts: Sequence[str], root: Path) -> None:
    """Raise for steps that can't be parsed, before anything is started."""
    parse(texts, root)


def translate(problem: Any, text: str) -> PgsandboxError:
    """Any other failure of a step, in words."""
    return StepError(f"init step {text!r} failed", why=f"{type(problem).__name__}: {problem}")
