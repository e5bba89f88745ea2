"""One pytest process and its sandbox: who it is, when it starts, what it exports, and what each test gets."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgsandbox import pools
from pgsandbox.errors import PgsandboxError, StepError, UsageError, VerifyError
from pgsandbox.libpq import MISLEADING
from pgsandbox.settings import masked

if TYPE_CHECKING:
    from pgsandbox.database import Database
    from pgsandbox.engines import Progress
    from pgsandbox.sandbox import Sandbox
    from pgsandbox.settings import Settings

RUN_VARIABLE = "_PGSANDBOX_RUN"
"""Tells workers their run: `id/controller's pid/number of workers`. A process of another parent is another run."""

_JOIN_TIMEOUT = 30.0
_SHOWN = 10
_LOOKING_TIMEOUT = 0.5


@dataclass(frozen=True)
class Identity:
    """Which process of which run this is."""

    run: str
    worker: str
    """`gw0` and so on, `main` without xdist, `controller` for the process that runs no test."""
    workers: int
    controller: int | None = field(default=None, compare=False)
    """The pid of the process that started this worker."""

    @property
    def is_worker(self) -> bool:
        """Whether it is an xdist worker."""
        return self.worker not in ("main", "controller")


def worker_identity() -> Identity | None:
    """Who this process is if it is an xdist worker of a run that its parent announced, else None.

    At the time conftest files are imported xdist has only set variables, which a pytest inside a test inherits:
    the parent's pid tells the two apart. What was announced is for this process alone, and taken out of its sight.
    """
    announced, worker = os.environ.get(RUN_VARIABLE), os.environ.get("PYTEST_XDIST_WORKER")
    if not announced or not worker:
        return None
    run, parent, workers = announced.split("/")
    if int(parent) != os.getppid() and _is_alive(int(parent)):
        return None
    del os.environ[RUN_VARIABLE]
    return Identity(run, worker, int(workers), int(parent))


def _is_alive(pid: int) -> bool:
    """Whether there is a process of that pid; an orphaned worker must not take itself for a run of its own."""
    if os.name != "posix":
        return True  # to ask like this would be to end it
    try:
        os.kill(pid, 0)
    except OSError as problem:
        return isinstance(problem, PermissionError)
    return True


def new_identity(worker: str, workers: int = 1) -> Identity:
    """A run of its own."""
    from pgsandbox import places

    return Identity(f"pytest-{places.new_token()}", worker, workers)


@dataclass
class Notes:
    """What the summary says: collected here, by workers sent to the controller."""

    failed: list[str] = field(default_factory=list)
    """What a failing init step said, in full: every test says that it failed, and this is said once."""
    notices: list[str] = field(default_factory=list)
    """What went otherwise than expected at the start, and was put right."""
    kept: list[str] = field(default_factory=list)
    leaked: list[str] = field(default_factory=list)
    cloned: list[str] = field(default_factory=list)
    """The tests after which the database had to be made anew, and why."""
    isolated: list[str] = field(default_factory=list)
    """How tests are isolated, where the header did not say that it is not as asked for."""
    trouble: list[str] = field(default_factory=list)

    def add(self, other: dict[str, list[str]]) -> None:
        """Take in what a worker sent."""
        for kind, lines in other.items():
            getattr(self, kind).extend(lines)

    def lines(self) -> list[str]:
        """All of it, a line each."""
        return [
            *dict.fromkeys(self.failed),
            *dict.fromkeys(self.notices),
            *(f"leaked: {line}" for line in self.leaked),
            *(f"kept: {line}" for line in self.kept),
            *_cloned(self.cloned),
            *dict.fromkeys(self.isolated),
            *(f"trouble: {line}" for line in self.trouble),
        ]


class Session:
    """The sandbox of one pytest process, started when it is first needed."""

    def __init__(self, settings: Settings, root: Path, identity: Identity, progress: Progress) -> None:
        self.settings = settings
        self.identity = identity
        self.notes = Notes()
        self._root = root
        self._progress = progress
        self._sandbox: Sandbox | None = None
        self._failure: PgsandboxError | None = None
        self._background: threading.Thread | None = None
        self._exported: dict[str, str] = {}
        self._before: dict[str, str | None] = {}
        self._is_dirty = False
        self._last: str | None = None
        self._is_closing = False
        self._lowered = False
        self.isolates = False
        """Whether the test that is running is isolated."""
        self._has_told = False

    # Start -----------------------------------------------------------------------------------------------------------

    @property
    def sandbox(self) -> Sandbox:
        """The sandbox, not necessarily started."""
        if self._sandbox is None:
            from pgsandbox.lease import end_with
            from pgsandbox.sandbox import Sandbox

            who = self.identity
            if who.controller is not None:
                end_with(who.controller)
            self._sandbox = Sandbox(
                self.settings,
                root=self._root,
                run=who.run,
                worker=who.worker,
                workers=who.workers,
                progress=self._hear,
            )
        return self._sandbox

    def _hear(self, text: str) -> None:
        from pgsandbox.engines import Notice

        if isinstance(text, Notice):
            self.notes.notices.append(str(text))
        if self._is_closing:  # the background's start goes no further
            raise PgsandboxError("the run is over")
        self._progress(text)

    def announce(self, workers: int) -> None:
        """Let the `workers` processes that this one is about to start know their run."""
        self.identity = replace(self.identity, workers=workers)
        self._put_aside(RUN_VARIABLE)
        os.environ[RUN_VARIABLE] = f"{self.identity.run}/{os.getpid()}/{workers}"

    def become_main(self) -> None:
        """Be the process that runs the tests, after all."""
        self.identity = replace(self.identity, worker="main")

    def prepare_in_background(self) -> None:
        """Start what all workers need while they themselves are still starting."""

        def prepare() -> None:
            with contextlib.suppress(PgsandboxError):  # recorded in the run: every worker raises it
                self.sandbox.prepare()

        self.sandbox.join()  # here, so that two threads don't each take part in the run
        self._background = threading.Thread(target=prepare, name="pgsandbox-prepare", daemon=True)
        self._background.start()

    @property
    def database(self) -> Database:
        """This worker's database. Raises PgsandboxError, the same one each time, at once."""
        if self._failure is not None:
            raise self._failure
        try:
            return self.sandbox.database()
        except StepError as problem:
            self.notes.failed.append(str(problem))
            self._failure = problem.brief()
            raise self._failure from None
        except PgsandboxError as problem:
            self._failure = problem
            raise

    def describe(self) -> str:
        """The header's line: which engine, version and scope, how many connections, and why that engine."""
        try:
            choice, scope, mark = self.sandbox.choice, self.sandbox.scope, self.sandbox.fingerprint
        except PgsandboxError as problem:
            return problem.message
        workers = f"{self.identity.workers} worker{'s' if self.identity.workers != 1 else ''}"
        why = f" ({choice.why})" if choice.why else ""
        return (
            f"PostgreSQL {choice.version}, {choice.engine}: {choice.what}{why}, scope {scope}, "
            f"{workers} of {self.settings.connections} connections, {self._isolation()}"
            + (f", template built in each run: {mark.hint}" if mark.hint and self.settings.cache else "")
        )

    def _isolation(self) -> str:
        """How tests are isolated, and why not as asked for, as far as is known: a controller has no server."""
        why = self._sandbox.why_clone if self._sandbox is not None else None
        if self.settings.isolation != "reset" or why is None:
            return f"isolation {self.settings.isolation}"
        self._has_told = not self.identity.is_worker  # whose header nobody sees
        return f"isolation clone (no reset: {why})"

    # Environment -----------------------------------------------------------------------------------------------------

    def export(self) -> None:
        """Set DATABASE_URL, the PG* variables and those of the setting env to this worker's database.

        Where that can't be started, to a dead URL, so that what is imported early fails with a name that explains.
        """
        self._put_aside(*MISLEADING)  # first: our own connections would be led astray, too
        try:
            environ = self.database.env
        except PgsandboxError:
            self.export_dead("pgsandbox-could-not-start.invalid")
            return
        self._export(environ)
        self._is_dirty = True  # from here on anybody may write to it, be it while conftest files are imported

    def export_dead(self, host: str) -> None:
        """Set them to a URL that leads nowhere, whose host says why."""
        url = f"postgresql://pgsandbox@{host}:1/none"
        environ = {"DATABASE_URL": url, "PGHOST": host, "PGPORT": "1", "PGUSER": "pgsandbox", "PGDATABASE": "none"}
        self._export(environ)
        self._exported = {}

    def _export(self, environ: dict[str, str]) -> None:
        self._exported = {**environ, **dict.fromkeys(self.settings.env, environ["DATABASE_URL"])}
        self._put_aside(*MISLEADING, *self._exported)
        os.environ.update(self._exported)

    def _put_aside(self, *names: str) -> None:
        """Unset variables, remembering what they were until `close`."""
        for name in names:
            self._before.setdefault(name, os.environ.pop(name, None))

    def check_environment(self) -> None:
        """Raise UsageError, saying who won, if a variable that was exported has been overwritten since."""
        for name, ours in self._exported.items():
            theirs = os.environ.get(name)
            if theirs != ours:
                raise UsageError(
                    f"{name} is no longer what pgsandbox set it to",
                    why=f"it is {_masked(name, theirs)} now{_written_in(name, theirs, self._root)}",
                    hint="load_dotenv() leaves alone what is set, load_dotenv(override=True) does not; if it is meant, "
                    "leave out -p pgsandbox and the setting env, and use the fixture pgsandbox_url",
                )

    # Tests -----------------------------------------------------------------------------------------------------------

    def begin_test(self, *, isolation: str, connections: int | None) -> Database:
        """The database at its baseline, its budget lowered to `connections` if given. Raises PgsandboxError."""
        database = self.database
        if not self._has_told and self.sandbox.why_clone is not None:
            self.notes.isolated.append(self._isolation())
            self._has_told = True
        self.check_environment()
        if isolation != "none" and self._is_dirty:
            self._clean(database, anew=isolation == "clone")
        if connections is not None:
            self.sandbox.limit(database, connections)
            self._lowered = True
        return database

    def _clean(self, database: Database, *, anew: bool = False) -> None:
        if anew:
            database.remake()
        else:
            database.reset()
        self._note_clones(database, self._last or "what ran before the first test")
        self._is_dirty = False

    def _note_clones(self, database: Database, cause: str) -> None:
        made_anew = database.isolation.made_anew
        self.notes.cloned += [f"{cause}: {reason}" for reason in made_anew]
        made_anew.clear()
        for pool in pools.untold():
            self.notes.trouble.append(f"after {cause}: a {pool} can't be told that its connections were cut off")

    # Fixtures --------------------------------------------------------------------------------------------------------

    def begin_fixture(self, name: str) -> bool:
        """Be at the baseline before a fixture that several tests share is set up; whether that is so.

        For a test that is not isolated the database stays as it is: those before it may have left there what it needs.
        Raises PgsandboxError.
        """
        if not self._moves_baselines:
            return False
        if self._is_dirty and self.isolates:
            self._clean(self.database)
            return True
        if self.database.isolation.is_untouched():
            return True
        if self.isolates:
            self.notes.trouble.append(
                f"fixture {name} was set up in the middle of a test that had written already: what it loads is gone"
                " after that test; name it in the test's arguments"
            )
        return False

    def settle_fixture(self, name: str) -> Any:
        """Make what the fixture `name` has just loaded part of the baseline; what `return_fixture` takes."""
        if not self._moves_baselines:
            return None
        moved = self.database.move_baseline(if_changed=True)
        self._note_clones(self.database, f"fixture {name}")
        return moved

    def return_fixture(self, moved: Any, name: str) -> None:
        """Take out of the baseline what a fixture had loaded, now that it is torn down. Raises VerifyError only."""
        if moved is None or self._sandbox is None or not self._sandbox.is_started:
            return
        try:
            self.database.return_baseline(moved)
            self._note_clones(self.database, f"the end of fixture {name}")
        except VerifyError:
            raise
        except Exception as problem:
            self.notes.trouble.append(f"after fixture {name}: {_in_brief(problem)}")

    @property
    def _moves_baselines(self) -> bool:
        return (
            self.settings.isolation in ("reset", "clone")
            and self._failure is None
            and self._sandbox is not None
            and self._sandbox.is_started
        )

    # After a test ----------------------------------------------------------------------------------------------------

    def end_test(self, test: str, *, failed: bool) -> str | None:
        """Note what the test leaves behind; what it leaked, in words. Never raises."""
        if self._sandbox is None or self._failure is not None or not self._sandbox.is_started:
            return None
        self._is_dirty, self._last = True, test
        leak: str | None = None
        try:
            database = self.database
            if self._lowered:
                self.sandbox.limit(database, None)
                self._lowered = False
            if self.settings.leaks != "ignore":
                leak = self.sandbox.leaked(database)
            if failed and self.settings.keep == "failed":
                self.notes.kept.append(f"{test}: {self.sandbox.keep(database)}")
        except Exception as problem:
            self.notes.trouble.append(f"after {test}: {_in_brief(problem)}")
        if leak:
            self.notes.leaked.append(f"{test}: {leak}")
        return leak

    def fresh(self) -> Database:
        """One more database, fresh from the template. Raises PgsandboxError, the same one each time, at once."""
        if self._failure is not None:
            raise self._failure
        return self.sandbox.fresh()

    def drop(self, database: Database, test: str) -> None:
        """Drop a database that `fresh` gave to `test`. Never raises."""
        try:
            self.sandbox.drop(database)
        except Exception as problem:
            self.notes.trouble.append(f"after {test}: {_in_brief(problem)}")

    def holders(self, test: str, said: str) -> str | None:
        """Who holds the connections, in words, if `said`, a test's failure, is that there were too many."""
        refused = re.search(r'too many connections for (?:role|database) "([^"]+)"', said)
        if refused is None or self._sandbox is None or not self._sandbox.is_started:
            return None
        with contextlib.suppress(PgsandboxError):
            held = self._sandbox.holders(refused[1])
            if held is not None:
                return f"{test} on {self.identity.worker} asked for more connections than it may have\n{held}"
        return None

    # End -------------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Give back the environment, and end the servers, or this worker's part in them. Never raises."""
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        self._before = {}
        self._is_closing = True
        if self._background is not None:
            # What it has begun to start must be known before it can be ended; while it looks for an engine, or pulls
            # an image, there is nothing, and the next that it says is its last word.
            is_looking = self._sandbox is not None and not self._sandbox.has_chosen
            self._background.join(_LOOKING_TIMEOUT if is_looking else _JOIN_TIMEOUT)
            self._background = None
        sandbox, self._sandbox = self._sandbox, None
        if sandbox is None:
            return
        try:
            if self.identity.is_worker:
                sandbox.close()
            else:
                self.notes.trouble.extend(sandbox.stop())
        except Exception as problem:
            self.notes.trouble.append(_in_brief(problem))


def _cloned(lines: list[str]) -> list[str]:
    """The clones, counted, and the first few of them."""
    if not lines:
        return []
    times = "once" if len(lines) == 1 else f"{len(lines)} times"
    shown = [f"  {line}" for line in lines[:_SHOWN]]
    more = [f"  and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    return [f"cloned: {times} a reset made the database anew, which takes longer and cuts connections:", *shown, *more]


def _in_brief(problem: Exception) -> str:
    if isinstance(problem, PgsandboxError):
        return f"{problem.message} ({problem.why})" if problem.why else problem.message
    return f"{type(problem).__name__}: {problem}"


def _masked(name: str, value: str | None) -> str:
    if value is None:
        return "not set"
    return "***" if name == "PGPASSWORD" else masked(value)


def _written_in(name: str, value: str | None, root: Path) -> str:
    """The `.env` file that has exactly this value for `name`, if one does."""
    for file in dict.fromkeys((Path.cwd() / ".env", root / ".env")):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            for line in file.read_text(encoding="utf-8").splitlines():
                key, _, text = line.removeprefix("export ").partition("=")
                if key.strip() == name and text.strip().strip("'\"") == value:
                    return f", as {file.name} says: a dotenv loader won"
    return ""
