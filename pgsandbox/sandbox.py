"""Sandbox: settings in, databases out, by way of an engine, the run's server and clones of its template."""

from __future__ import annotations

import dataclasses
import re
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pgsandbox import connections, engines, lease, places, scram, sources, steps, template, tuning
from pgsandbox.cache import Cache, Entry, Fingerprint, fingerprint
from pgsandbox.database import Address, Database
from pgsandbox.engines import Choice, Order, Progress, Running, Seeding, supervised
from pgsandbox.errors import PgsandboxError, PlaceError, SeedError, ServerError, UsageError
from pgsandbox.isolation.clone import CloneIsolation
from pgsandbox.run import Run, folder_of, write_record
from pgsandbox.server import Server
from pgsandbox.settings import Place, Settings, resolve, show_duration

NAMED = "named-"
"""Records of a run that begin so are what the command line finds by name."""

RUNNING = "running.json"
"""The file in a server's folder that says how it is reached."""

_END_TIMEOUT = 5.0


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
        self._facts = template.Facts()
        self._fingerprint: Fingerprint | None = None
        self._own_lease: lease.Lease | None = None
        self._spare: supervised.Handle | None = None
        self._databases: dict[str, tuple[Database, CloneIsolation]] = {}
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
            with run.lock("choice", timeout=self._patience):
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
            run = self.join()
            if self._is_shared:
                self._server = self._shared_server(run)
            else:
                self._server = self._own_server(run)
            self._discard_spare()
        return self._server

    def prepare(self) -> None:
        """Start what all workers of the run share, so that none of them has to wait for it. Raises PgsandboxError."""
        steps.checked(self.settings.init, self.root)
        run = self.join()
        if self._is_shared:
            self._server = self._shared_server(run)
        else:
            self._seed(run)

    @property
    def is_started(self) -> bool:
        """Whether this process has its server."""
        return self._server is not None

    @property
    def server(self) -> Server:
        """The server of this worker. Raises PgsandboxError when it can't be started."""
        return self.start()

    def close(self) -> None:
        """Give up what is held. A server that nobody else holds ends soon after; `stop` does not wait for that."""
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._own_lease is not None:
            self._own_lease.release()
            self._own_lease = None
        if self._run is not None:
            self._run.leave()
            self._run = None
        self._discard_spare()

    def stop(self, *, granted: bool = False) -> list[str]:
        """End every server of the run now, and close; what could not be ended, in words.

        Servers that were granted time, by `up` or for a kept database, are only ended with `granted`.
        """
        servers = (folder_of(self._run_id) / "servers").glob("*")
        left = supervised.end(
            *(folder for folder in servers if granted or not (folder / supervised.GRANT).exists()), timeout=_END_TIMEOUT
        )
        self.close()
        return [f"the server {folder.name} did not end within {_END_TIMEOUT:g}s" for folder in left]

    # Databases -------------------------------------------------------------------------------------------------------

    def database(self, name: str | None = None) -> Database:
        """The database of the worker `name` (this one's), a clone of the template, made when first asked for.

        `name` has letters, digits and underscores, and 40 characters at most. Raises PgsandboxError.
        """
        worker = self.worker if name is None else name
        if not re.fullmatch(r"[A-Za-z0-9_]{1,40}", worker):
            raise UsageError(f"{worker!r} can't name a database", hint="use up to 40 letters, digits and underscores")
        if worker not in self._databases:
            self._databases[worker] = self._make(self.server.names.database(worker))
        return self._databases[worker][0]

    def fresh(self) -> Database:
        """One more database, fresh from the template; `drop` it when it is no longer needed."""
        self._fresh += 1
        worker = f"{self.worker}_{self._fresh}"
        self._databases[worker] = self._make(self.server.names.database(worker))
        return self._databases[worker][0]

    def drop(self, database: Database) -> None:
        """Drop a database that `fresh` gave, and its role."""
        for worker, (known, isolation) in list(self._databases.items()):
            if known is database:
                del self._databases[worker]
                isolation.drop()
                self.server.drop_role(database.name)

    def limit(self, database: Database, budget: int | None) -> None:
        """Lower the budget of `database` to `budget` connections, or with None set it back."""
        if budget is not None and budget > self.budget:
            raise UsageError(
                f"connections={budget} would raise the budget of {self.budget}", hint="a marker may only lower it"
            )
        self.server.limit_login(database.name, self.budget if budget is None else budget)

    def leaked(self, database: Database) -> str | None:
        """The connections that were left in the middle of something, in words."""
        return connections.leaked(self.server, database.name)

    def holders(self, role: str) -> str | None:
        """Who holds the connections of `role`, a database's login, in words; None if there is no such role."""
        return connections.holders(self.server, role)

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
                "ttl": ttl,
                "created": time.time(),
            },
        )
        engines.named(running.engine).grant(running, ttl)

    def _make(self, name: str) -> tuple[Database, CloneIsolation]:
        server = self.server
        isolation = CloneIsolation(server, name, template=server.names.template, facts=self._facts, budget=self.budget)
        password = scram.new_password()
        if server.has_database(name):  # of a process of the same name that is gone: a worker that crashed
            server.drop_database(name)
        server.drop_role(name)
        server.make_login(name, password=password, budget=self.budget, superuser=self.settings.superuser)
        self._facts.apply_to_login(server, name)
        isolation.create()
        return Database(Address(server.host, server.port, name, password, name), isolation), isolation

    # Servers ---------------------------------------------------------------------------------------------------------

    @property
    def _is_shared(self) -> bool:
        """Whether the run has one server; with a single worker, its own is as good as shared."""
        return self.scope == "session" or self.workers == 1

    @property
    def _patience(self) -> float:
        """Seconds to wait for another process of the run: it may itself wait for a start and for every step."""
        return self.settings.timeout * (2 + len(self.settings.init)) + 600

    def join(self) -> Run:
        """This process's part in the run, taken when first asked for."""
        if self._run is None:
            folder = folder_of(self._run_id)
            if not folder.exists():  # before it does: from then on somebody must remove it if we are killed
                self._spare = supervised.ahead(folder)
            self._run = Run(self._run_id)
        return self._run

    def _discard_spare(self) -> None:
        """Leave the supervisor that was started ahead to itself: it has its server, or others have theirs."""
        if self._spare is not None:
            self._spare.detach()
            self._spare = None

    def _shared_server(self, run: Run) -> Server:
        """The run's one server: whoever comes first starts it and builds the template, the others wait for that."""
        with run.lock("server", timeout=self._patience):
            record = run.read("server")
            if record is not None:
                server = Server(Running.from_record(record["running"]))
                self._facts = template.Facts.from_record(record["facts"])
                return server
            try:
                server = self._start_shared(run)
            except PgsandboxError as problem:
                run.fail("server", problem)
                raise
            self._finish(server)
            run.write("server", {"running": server.running.to_record(), "facts": self._facts.to_record()})
            return server

    def _start_shared(self, run: Run) -> Server:
        if self.fingerprint.key is not None:
            return self._from_seed(run, held_by=run.folder, workers=self.workers)
        server = self._launch(run, held_by=run.folder, workers=self.workers)
        self._facts = self._build(server)
        return server

    def _own_server(self, run: Run) -> Server:
        """A server of this worker's own, started from the run's seed, in which the template stands ready."""
        server = self._from_seed(run, held_by=None, workers=1)
        self._finish(server)
        return server

    def _from_seed(self, run: Run, *, held_by: Path | None, workers: int) -> Server:
        """A server in which the template stands ready. A seed that turns out to be damaged is made anew, once."""
        record = self._seed(run)
        try:
            server = self._launch(run, held_by=held_by, workers=workers, seed=record["seed"])
        except SeedError as problem:
            self._progress(f"{problem.message}: it is built anew")
            record = self._seed(run, instead_of=record)
            server = self._launch(run, held_by=held_by, workers=workers, seed=record["seed"])
        self._facts = template.Facts.from_record(record["facts"])
        return server

    def _seed(self, run: Run, *, instead_of: dict[str, Any] | None = None) -> dict[str, Any]:
        """The run's seed: whoever comes first finds or makes it, the others wait for that."""
        with run.lock("seed", timeout=self._patience):
            record = run.read("seed")
            if record is not None and record == instead_of:
                if self.fingerprint.key is not None:
                    Cache().drop(self.fingerprint.key)
                record = None
            if record is None:
                try:
                    record = self._kept_seed(run)
                except PgsandboxError as problem:
                    run.fail("seed", problem)
                    raise
                run.write("seed", record)
        return record

    def _kept_seed(self, run: Run) -> dict[str, Any]:
        """The seed from the cache, or made for it; where the cache can't be used, one for this run."""
        key = self.fingerprint.key
        if key is None:
            return self._make_seed(run, Seeding.RUN, run.folder, "seed")
        cache = Cache()
        try:
            with cache.building(key, timeout=self._patience):
                entry = cache.find(key)
                if entry is not None:
                    return {"seed": entry.seed, "facts": entry.facts}
                record = self._make_seed(run, Seeding.KEPT, cache.prepare(), key)
                cache.keep(self._entry(key, record), limit=self.settings.cache_size)
                return record
        except PlaceError as problem:
            self._progress(f"the template is not kept: {problem.message}")
            return self._make_seed(run, Seeding.RUN, run.folder, "seed")

    def _entry(self, key: str, record: dict[str, Any]) -> Entry:
        return Entry(
            key=key,
            engine=self.choice.engine,
            version=self.choice.version,
            seed=record["seed"],
            facts=record["facts"],
            size=record["seed"]["size"],
            project=str(self.root),
            created=time.time(),
        )

    def _make_seed(self, run: Run, seeding: Seeding, folder: Path, name: str) -> dict[str, Any]:
        server = self._launch(run, held_by=run.folder, workers=1, seeding=seeding)
        try:
            facts = self._build(server)
            server.forget_password()
        finally:
            server.close()
        engine = engines.named(server.engine)
        seed = engine.bake(server.running, folder=folder, name=name, timeout=self.settings.timeout)
        return {"seed": seed, "facts": facts.to_record()}

    def _launch(
        self,
        run: Run,
        *,
        held_by: Path | None,
        workers: int,
        seed: dict[str, Any] | None = None,
        seeding: Seeding = Seeding.NONE,
    ) -> Server:
        token = places.new_token()
        places.private(run.folder / "servers")
        folder = places.private(run.folder / "servers" / token)
        if held_by is None:
            self._own_lease = lease.hold(folder)
        order = Order(
            token=token,
            folder=folder,
            run=run.id,
            flags=tuning.flags(self.settings, workers=workers),
            timeout=self.settings.timeout,
            lease=held_by or folder,
            seed=seed,
            seeding=seeding,
            supervisor=self._spare,
        )
        try:
            running = engines.named(self.choice.engine).start(self.choice, order, self._progress)
        finally:
            self._discard_spare()  # it has a server now, or is of no use
        write_record(folder / RUNNING, running.to_record())
        server = Server(running)
        server.connect()
        return server

    def _build(self, server: Server) -> template.Facts:
        return template.build(server, self.settings, self.root, self._progress)

    def _finish(self, server: Server) -> None:
        """Roles belong to the whole server: only where it is one worker's own may that worker make some."""
        if server.is_ours:
            server.allow_roles(self.scope == "worker" or self.workers == 1)
