"""One pytest process and its sandbox: when it starts, and what each test, and each fixture of several, gets."""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgsandbox import interrupts, pools
from pgsandbox.environment import Environment
from pgsandbox.errors import PgsandboxError, StepError, VerifyError, first_line
from pgsandbox.identity import RUN_VARIABLE, Identity
from pgsandbox.libpq import MISLEADING
from pgsandbox.masking import mask
from pgsandbox.notes import Notes

if TYPE_CHECKING:
    from collections.abc import Callable

    from pgsandbox.database import Database
    from pgsandbox.engines import Progress
    from pgsandbox.sandbox import Sandbox
    from pgsandbox.settings import Settings

_JOIN_TIMEOUT = 30.0
_LOOKING_TIMEOUT = 0.5
_BURIAL_TIMEOUT = 5.0
_LOST = (
    "server closed the connection|terminating connection|connection (is|was|has been) (lost|closed)"
    "|[Cc]onnection refused|connection failed|connection timeout|Connection reset|unexpected connection_lost"
)
"""What drivers say when a server has gone, or is going."""


class Session:
    """The sandbox of one pytest process, started when it is first needed."""

    def __init__(self, settings: Settings, root: Path, identity: Identity, progress: Progress) -> None:
        self.settings = settings
        self.identity = identity
        self.notes = Notes()
        self.environment = Environment(settings.env, root)
        self._root = root
        self._progress = progress
        self._sandbox: Sandbox | None = None
        self._failure: PgsandboxError | None = None
        self._background: threading.Thread | None = None
        self._end_putting_off: Callable[[], None] | None = None
        self._burials: list[threading.Thread] = []
        self._is_dirty = False
        self._last: str | None = None
        self._is_closing = False
        self._lowered = False
        self.isolates = False
        """Whether the test that is running is isolated."""
        self._has_told = False
        self._has_told_loss = False

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
        self.environment.put_aside(RUN_VARIABLE)
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
        self._end_putting_off = interrupts.put_off_in_imports()
        self._background = threading.Thread(target=prepare, name="pgsandbox-prepare", daemon=True)
        self._background.start()

    def bury(self, worker: str) -> None:
        """Remove what `worker`, a process that died, has left in the run's shared server. Does not wait; never raises.

        Programs that its tests had started may live on, and hold connections that others have a right to.
        """
        from pgsandbox.run import folder_of

        def told(problem: Exception) -> None:
            if not self._is_closing:  # else the server is just being ended
                self.notes.trouble.append(f"after the crash of {worker}: {_in_brief(problem)}")

        def bury() -> None:
            from pgsandbox.sandbox import Sandbox

            who = self.identity
            try:  # in a sandbox of this thread's own: a server that hangs must keep nobody waiting
                with contextlib.closing(Sandbox(self.settings, root=self._root, run=who.run, worker=worker)) as sandbox:
                    sandbox.bury()
            except Exception as problem:
                told(problem)

        if self._is_closing or not folder_of(self.identity.run).exists():
            return
        try:
            self.sandbox.join()  # if it was the last who held the server, that would end before it is replaced
        except Exception as problem:
            told(problem)
            return
        self._burials.append(threading.Thread(target=bury, name=f"pgsandbox-bury-{worker}", daemon=True))
        self._burials[-1].start()

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

    def masked(self, shown: Any) -> Any:
        """What pytest shows of a failure, without the passwords that were made up for this run."""
        return shown if self._sandbox is None else mask(shown, self._sandbox.passwords)

    # Environment -----------------------------------------------------------------------------------------------------

    def export(self) -> None:
        """Set DATABASE_URL, the PG* variables and those of the setting env to this worker's database.

        Where that can't be started, to a dead URL, so that what is imported early fails with a name that explains.
        """
        self.environment.put_aside(*MISLEADING)  # first: our own connections would be led astray, too
        try:
            environ = self.database.env
        except PgsandboxError:
            self.environment.export_dead("pgsandbox-could-not-start.invalid")
            return
        self.environment.export(environ)
        self._is_dirty = True  # from here on anybody may write to it, be it while conftest files are imported

    # Tests -----------------------------------------------------------------------------------------------------------

    def begin_test(self, *, isolation: str, connections: int | None) -> Database:
        """The database at its baseline, its budget lowered to `connections` if given. Raises PgsandboxError."""
        database = self.database
        if not self._has_told and self.sandbox.why_clone is not None:
            self.notes.isolated.append(self._isolation())
            self._has_told = True
        self.environment.check()
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
        if self.database.is_untouched():
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
            self._note_trouble(f"after fixture {name}", problem)

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
            self._note_trouble(f"after {test}", problem)
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
            self._note_trouble(f"after {test}", problem)

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

    def lost(self, said: str) -> str | None:
        """What has become of the server, in words, if `said`, a test's failure, is that it was lost and it is."""
        if self._sandbox is None or not self._sandbox.is_started or re.search(_LOST, said) is None:
            return None
        try:
            self._sandbox.server.connect()
        except PgsandboxError as problem:
            return None if problem.message in said else str(problem)
        return None

    def _note_trouble(self, where: str, problem: Exception) -> None:
        """What went wrong beside the tests; that the server is lost, only once."""
        if self._sandbox is not None and self._sandbox.is_lost:
            if self._has_told_loss:
                return
            self._has_told_loss = True
        self.notes.trouble.append(f"{where}: {_in_brief(problem)}")

    # End -------------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Give back the environment, and end the servers, or this worker's part in them. Never raises."""
        self.environment.give_back()
        self._is_closing = True
        if self._background is not None:
            # What it has begun to start must be known before it can be ended; while it looks for an engine, or pulls
            # an image, there is nothing, and the next that it says is its last word.
            is_looking = self._sandbox is not None and not self._sandbox.has_chosen
            self._background.join(_LOOKING_TIMEOUT if is_looking else _JOIN_TIMEOUT)
            self._background = None
        if self._end_putting_off is not None:
            self._end_putting_off()
            self._end_putting_off = None
        deadline = time.monotonic() + _BURIAL_TIMEOUT
        for burial in self._burials:  # one that has not begun needs the server; one that hangs ends with it
            burial.join(max(0.0, deadline - time.monotonic()))
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


def _in_brief(problem: Exception) -> str:
    if isinstance(problem, PgsandboxError):
        return f"{problem.message} ({first_line(problem.why)})" if problem.why else problem.message
    return f"{type(problem).__name__}: {problem}"
