"""Sandbox: settings in, databases out, by way of an engine, the run's server and clones of its template."""

from __future__ import annotations

import dataclasses
import re
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import unquote, urlsplit

from pgsandbox import connections, engines, guard, places, scram, sources, steps, tuning
from pgsandbox.database import Address, Database
from pgsandbox.engines import Choice, Progress, supervised
from pgsandbox.errors import PgsandboxError, ServerError, UsageError
from pgsandbox.fingerprint import Fingerprint, fingerprint
from pgsandbox.launch import Launcher, patience, shared_server
from pgsandbox.run import Run, entries, folder_of
from pgsandbox.settings import Place, Settings, resolve, show_duration

if TYPE_CHECKING:
    from pgsandbox.cache import Entry
    from pgsandbox.isolation import Isolation
    from pgsandbox.isolation.clone import CloneIsolation
    from pgsandbox.isolation.reset import ResetIsolation
    from pgsandbox.server import Server
    from pgsandbox.template import Facts

NAMED = "named-"
"""Records of a run that begin so are what the command line finds by name."""

_END_TIMEOUT = 5.0
_GUARD_POLL = 1.0


def _silent(_text: str) -> None:
    pass


class Sandbox:
    """A real PostgreSQL for as long as the block lasts:

        with Sandbox(version=18, init=["schema.sql"]) as sandbox:
            url = sandbox.database("main").url

    `settings` default to those of the project at `root`, as pytest would see them; keywords override them. Several
    processes that name the same `run` share its server and template; each gives itself a `worker` name, and
    `workers` says how many of them the server must have room for.
    """

    _facts: Facts
    """The template's; known once there is a server."""

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        root: Path | None = None,
        run: str | None = None,
        worker: str = "main",
        workers: int = 1,
        progress: Progress = _silent,
        **overrides: Any,
    ) -> None:
        self.root = root or sources.find_root(Path.cwd())
        if overrides or settings is None:
            settings = (
                sources.load(cli=overrides, cli_name="{name}", root=self.root)
                if settings is None
                else resolve([Place("{name}", overrides)], base=settings)
            )
        self.settings = settings
        self.worker = worker
        self.workers = workers
        self._run_id = run or f"py-{places.new_token()}"
        self._progress = progress
        self._run: Run | None = None
        self._choice: Choice | None = None
        self._server: Server | None = None
        self._fingerprint: Fingerprint | None = None
        self._launching: Launcher | None = None
        self._spare: supervised.Handle | None = None
        self._guard: guard.Guard | None = None
        self._databases: dict[str, tuple[Database, CloneIsolation | ResetIsolation]] = {}
        self._fresh = 0

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # What is chosen --------------------------------------------------------------------------------------------------

    @property
    def choice(self) -> Choice:
        """The engine that serves and why; made once for all processes of the run. Raises EngineError."""
        if self._choice is None:
            run = self.join()
            record = run.read("choice")
            if record is None:
                with run.lock("choice", timeout=patience(self.settings)):
                    record = run.read("choice")
                    if record is None:
                        try:
                            choice = engines.choose(self.settings, self._progress)
                        except PgsandboxError as problem:
                            run.fail("choice", problem)
                            raise
                        record = dataclasses.asdict(choice)
                        run.write("choice", record)
            self._choice = Choice(**record)
        return self._choice

    @property
    def has_chosen(self) -> bool:
        """Whether it is known by now which engine serves."""
        return self._choice is not None

    @property
    def fingerprint(self) -> Fingerprint:
        """What the template is made of, as a name to keep it under; or why it can't be kept. Raises PgsandboxError."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint(self.settings, self.choice, self.root)
        return self._fingerprint

    @property
    def scope(self) -> str:
        """`session` or `worker`, what `auto` comes to here. Raises UsageError where it can't be had."""
        engine, asked = self.choice.engine, self.settings.scope
        if engine == "external":
            if asked == "worker":
                raise UsageError(
                    "scope = worker needs servers of our own", why="url names a single server", hint="leave scope out"
                )
            return "session"
        if asked != "auto":
            return asked
        return "worker" if engine == "local" or self.settings.superuser else "session"

    @property
    def budget(self) -> int:
        """How many connections each worker may open: the setting, or what an external server has room for."""
        if self.choice.engine != "external":
            return self.settings.connections
        free = int(self.choice.detail["available"])
        budget = tuning.fitting_budget(workers=self.workers, budget=self.settings.connections, available=free)
        if budget < 1:
            raise ServerError(
                f"the server behind url has room for {free} more connections, too few for {self.workers} workers",
                hint="raise its max_connections, or use fewer workers",
            )
        return budget

    # Start and end ---------------------------------------------------------------------------------------------------

    def start(self) -> Server:
        """The server, started or joined, its template built. Raises PgsandboxError, in every process the same."""
        if self._server is None:
            steps.checked(self.settings.init, self.root)
            launcher = self._launcher
            started = launcher.shared(workers=self.workers) if self._is_shared else launcher.own()
            self._server, self._facts = started
        return self._server

    def prepare(self) -> None:
        """Start what all workers of the run share, so that none of them has to wait for it. Raises PgsandboxError."""
        steps.checked(self.settings.init, self.root)
        is_shared = self._is_shared
        self._progress(f"{self.choice.engine}: {self.choice.what}")  # from here on there is something to end
        if is_shared:
            self._server, self._facts = self._launcher.shared(workers=self.workers)
        else:
            self._launcher.seed()

    def bake(self) -> Entry:
        """The kept template, made if need be; only for one that can be kept, as `fingerprint` says.

        Raises PlaceError where there is no room for it, PgsandboxError.
        """
        assert self.fingerprint.key is not None
        steps.checked(self.settings.init, self.root)
        return self._launcher.kept(self.fingerprint.key)

    @property
    def is_started(self) -> bool:
        """Whether this process has its server."""
        return self._server is not None

    @property
    def is_lost(self) -> bool:
        """Whether the server did not answer when it was last asked."""
        return self._server is not None and self._server.lost is not None

    @property
    def server(self) -> Server:
        """The server of this worker. Raises PgsandboxError when it can't be started."""
        return self.start()

    def close(self) -> None:
        """Give up what is held. A server that nobody else holds ends soon after; `stop` does not wait for that."""
        for _, isolation in self._databases.values():
            isolation.close()
        self._databases.clear()
        if self._guard is not None:
            self._guard.close()
            self._guard = None
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._launching is not None:
            self._launching.release()
            self._launching = None
        if self._run is not None:
            self._run.leave()
            self._run = None
        if self._spare is not None:  # nothing was ever started
            self._spare.detach()
            self._spare = None

    def stop(self, *, granted: bool = False) -> list[str]:
        """End every server of the run now, and close; what could not be ended, in words.

        What is left of them, a container or a folder, is being removed when this returns: nobody has to wait for that.
        Servers that were granted time, by `up` or for a kept database, are only ended with `granted`.
        """
        servers = entries(folder_of(self._run_id) / "servers")
        try:
            left = supervised.end(
                *(folder for folder in servers if granted or not (folder / supervised.GRANT).exists()),
                timeout=_END_TIMEOUT,
                removed=False,
            )
        finally:  # also when somebody is tired of waiting: nobody holds them any more, and so they end
            self.close()
        return [supervised.not_ended(f"the server {folder.name}", folder, _END_TIMEOUT).message for folder in left]

    # Databases -------------------------------------------------------------------------------------------------------

    def database(self, name: str | None = None) -> Database:
        """The database of the worker `name` (this one's), a clone of the template, made when first asked for.

        `name` has letters, digits and underscores, and 30 characters at most. Raises PgsandboxError.
        """
        worker = self.worker if name is None else name
        if worker in ("owner", "builder", "template", "spare"):
            raise UsageError(f"{worker!r} can't name a database", why="pgsandbox itself uses that name")
        if not re.fullmatch(r"[A-Za-z0-9_]{1,30}", worker):
            raise UsageError(f"{worker!r} can't name a database", hint="use up to 30 letters, digits and underscores")
        if worker not in self._databases:
            self._databases[worker] = self._make(self.server.names.database(worker))
        return self._databases[worker][0]

    def fresh(self) -> Database:
        """One more database, fresh from the template; `drop` it when it is no longer needed.

        It is entered by this worker's own role, and so its connections count towards this worker's budget.
        """
        login = self.database().address
        self._fresh += 1
        name = f"{login.name}-{self._fresh}"
        isolation = self._clones(name, login.user)
        isolation.create()
        address = dataclasses.replace(login, name=name)
        self._databases[name] = Database(address, self._verified(isolation, address)), isolation
        return self._databases[name][0]

    def drop(self, database: Database) -> None:
        """Drop a database that `fresh` gave."""
        for worker, (known, isolation) in list(self._databases.items()):
            if known is database:
                del self._databases[worker]
                isolation.drop()

    def bury(self) -> None:
        """Remove what this worker, whose process died, has left in the run's shared server, but for what was kept.

        A server of its own ends by itself. Raises PgsandboxError.
        """
        run = self.join()
        self._server = shared_server(run, timeout=self.settings.timeout)
        if self._server is not None:
            self._server.bury(self._server.names.database(self.worker), kept=self._kept(run))

    def _kept(self, run: Run) -> set[str]:
        """The databases of the run that can be found by name."""
        records = (run.read(file.stem) for file in entries(run.folder) if file.match(f"{NAMED}*.json"))
        return {unquote(urlsplit(record["url"]).path[1:]) for record in records if record is not None}

    @property
    def passwords(self) -> frozenset[str]:
        """The random ones of this process's databases, and of the superuser of a server of ours."""
        found = {database.address.password for database, _ in self._databases.values()}
        if self._server is not None and self._server.is_ours:
            found.add(self._server.running.password)
        return frozenset(found - {""})

    def limit(self, database: Database, budget: int | None) -> None:
        """Lower the budget of `database` to `budget` connections, or with None set it back."""
        if budget is not None and budget > self.budget:
            raise UsageError(
                f"connections={budget} would raise the budget of {self.budget}", hint="a marker may only lower it"
            )
        self.server.roles.limit_login(database.name, self.budget if budget is None else budget)

    def leaked(self, database: Database) -> str | None:
        """The connections that were left in the middle of something, in words."""
        return connections.leaked(self.server, database.name)

    def holders(self, role: str) -> str | None:
        """Who holds the connections of `role`, a database's login, in words; None if there is no such role."""
        return connections.holders(self.server, role)

    @property
    def why_clone(self) -> str | None:
        """Why a reset has to clone here, in words; None where it can undo, or the server has not started yet."""
        if self._choice is not None and self._choice.engine == "external":
            return "the server is not ours"
        return None if self._server is None else self._facts.why_clone

    def keep(self, database: Database) -> str:
        """Keep the state of `database` for the setting ttl, also after the run; how to open it."""
        copy = database.snapshot().name
        self.server.allow_connections(copy, True)
        name = f"{copy}_{self.server.running.token[:6]}"  # another run of this project may keep one of the same number
        self.name(name, dataclasses.replace(database.address, name=copy).url(), ttl=self.settings.ttl)
        return f"open it within {show_duration(self.settings.ttl)} with `pgsandbox psql {name}`"

    def name(self, name: str, url: str, *, ttl: float) -> None:
        """Let the command line find `url` under `name`, and let its server live for `ttl` seconds unheld.

        In this order: if we are killed in between, nothing that nobody can find goes on living.
        """
        running = self.server.running
        self.join().write(
            f"{NAMED}{name}",
            {
                "name": name,
                "url": url,
                "project": str(self.root),
                "engine": running.engine,
                "version": running.version,
                "what": running.what,
                "token": running.token,
                "key": self.fingerprint.key,
                "ttl": ttl,
                "created": time.time(),
            },
        )
        engines.named(running.engine).grant(running, ttl)

    def _make(self, name: str) -> tuple[Database, CloneIsolation | ResetIsolation]:
        from pgsandbox.contact import translated

        server = self.server
        password = scram.new_password()
        server.bury(name)  # what a process of the same name has left that is gone: a worker that crashed
        server.roles.make_login(name, password=password, budget=self.budget, superuser=self.settings.superuser)
        self._facts.apply_to_login(server, name)
        isolation = self._isolation(name, password)
        with translated():
            isolation.create()
        address = Address(server.host, server.port, name, password, name)
        return Database(address, self._verified(isolation, address)), isolation

    def _verified(self, isolation: Isolation, address: Address) -> Isolation:
        """What the database at `address` is reset by: `isolation`, with the setting verify watched at its work."""
        if not self.settings.verify:
            return isolation
        from pgsandbox.isolation.verify import VerifiedIsolation

        return VerifiedIsolation(isolation, self.server, address, is_alone=self._is_alone)

    def _isolation(self, name: str, password: str) -> CloneIsolation | ResetIsolation:
        clones = self._clones(name, name)
        if self.settings.isolation != "reset" or self._facts.why_clone is not None:
            if self.server.is_ours and self._guard is None:
                self._guard = guard.Guard(self.server, guard.is_there, poll=_GUARD_POLL)
            return clones

        def relogin() -> None:
            superuser = self.settings.superuser
            self.server.roles.restore_login(name, password=password, budget=self.budget, superuser=superuser)
            self._facts.apply_to_login(self.server, name)

        from pgsandbox.isolation.reset import ResetIsolation
        from pgsandbox.isolation.reset.shared import Shared

        shared = Shared(self.server, name, name, alone=self._is_alone, relogin=relogin)
        return ResetIsolation(clones, self.server, name, facts=self._facts, shared=shared)

    def _clones(self, name: str, login: str) -> CloneIsolation:
        from pgsandbox.isolation.clone import CloneIsolation

        template_ = self.server.names.template
        return CloneIsolation(self.server, name, login=login, template=template_, facts=self._facts, budget=self.budget)

    # The run ---------------------------------------------------------------------------------------------------------

    def join(self) -> Run:
        """This process's part in the run, taken when first asked for."""
        if self._run is None:
            folder = folder_of(self._run_id)
            if not folder.exists():  # before it does: from then on somebody must remove it if we are killed
                self._spare = supervised.ahead(folder)
            self._run = Run(self._run_id)
        return self._run

    @property
    def _is_alone(self) -> bool:
        """Whether nobody else uses the server: then whatever is done to it, this worker did."""
        return self.server.is_ours and (self.scope == "worker" or self.workers == 1)

    @property
    def _is_shared(self) -> bool:
        """Whether the run has one server; with a single worker, its own is as good as shared."""
        return self.scope == "session" or self.workers == 1

    @property
    def _launcher(self) -> Launcher:
        if self._launching is None:
            self._launching = Launcher(
                self.join(),
                self.settings,
                root=self.root,
                choice=self.choice,
                mark=self.fingerprint,
                progress=self._progress,
                spare=self._spare,
            )
            self._spare = None
        return self._launching
