"""How a run's server comes to be: joined, started in place, or started from a seed; once for all who need it."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgsandbox import engines, lease, places, tuning
from pgsandbox.cache import Cache, Entry
from pgsandbox.engines import Choice, Notice, Order, Progress, Running, Seeding, supervised
from pgsandbox.errors import PgsandboxError, PlaceError, SeedError, ServerError, first_line
from pgsandbox.run import Run, entries, write_record

if TYPE_CHECKING:
    from pgsandbox.fingerprint import Fingerprint
    from pgsandbox.server import Server
    from pgsandbox.settings import Settings
    from pgsandbox.template import Facts

_END_TIMEOUT = 5.0

RUNNING = "running.json"
"""The file in a server's folder that says how it is reached."""


def patience(settings: Settings) -> float:
    """Seconds to wait for another process of the run: it may itself wait for a pull, a start and every step."""
    return settings.timeout * (2 + len(settings.init)) + 600


class Launcher:
    """Starts the servers that one process of a run needs, and holds what is this process's alone until `release`.

    `choice` says on which engine, `mark` whether the template can be kept, and `spare` is a supervisor that was started
    ahead and waits for a server.
    """

    def __init__(
        self,
        run: Run,
        settings: Settings,
        *,
        root: Path,
        choice: Choice,
        mark: Fingerprint,
        progress: Progress,
        spare: supervised.Handle | None,
    ) -> None:
        self._run = run
        self._settings = settings
        self._root = root
        self._choice = choice
        self._mark = mark
        self._progress = progress
        self._spare = spare
        self._patience = patience(settings)
        self._own_lease: lease.Lease | None = None

    def shared(self, *, workers: int) -> tuple[Server, Facts]:
        """The run's one server: whoever comes first starts it and builds the template, the others wait for that.

        Raises PgsandboxError, in every process of the run the same.
        """
        if (record := _living(self._run)) is not None:
            return self._joined(record)
        with self._run.lock("server", timeout=self._patience):
            if (record := _living(self._run)) is not None:
                return self._joined(record)
            self._end_unfinished()
            try:
                server, facts = self._start_shared(workers)
            except PgsandboxError as problem:
                self._run.fail("server", problem)
                raise
            # Roles belong to the whole server: only where it is one worker's own may that worker make some.
            self._allow_roles(server, allowed=workers == 1)
            self._run.write("server", {"running": server.running.to_record(), "facts": facts.to_record()})
            return server, facts

    def own(self) -> tuple[Server, Facts]:
        """A server of this process's own, in which the template stands ready. Raises PgsandboxError."""
        server, facts = self._from_seed(held_by=None, workers=1)
        self._allow_roles(server, allowed=True)
        return server, facts

    def seed(self, *, instead_of: str | None = None, kept: bool = True) -> dict[str, Any]:
        """The run's seed and its facts: whoever comes first finds or makes it, the others wait for that.

        One that is no good, `instead_of` by what its record says of when it was made, is made anew; without `kept` for
        this run alone, so that nobody else can remove it. Raises PgsandboxError, in every process of the run the same.
        """
        record = self._run.read("seed")
        if record is not None and record["made"] != instead_of:
            return record
        with self._run.lock("seed", timeout=self._patience):
            record = self._run.read("seed")
            if record is not None and record["made"] == instead_of:
                if self._mark.key is not None:
                    Cache().drop(self._mark.key)
                record = None
            if record is None:
                if instead_of is None:
                    self._end_unfinished()
                try:
                    made = self._kept_seed() if kept else self._make_seed(Seeding.RUN, self._run.folder, "seed")
                    record = {**made, "made": places.new_token()}  # another image may have the same name and size
                except PgsandboxError as problem:
                    self._run.fail("seed", problem)
                    raise
                self._run.write("seed", record)
        return record

    def kept(self, key: str) -> Entry:
        """The template from the cache, or made for it. Raises PlaceError where it can't be kept, PgsandboxError."""
        cache = Cache()
        with cache.building(key, timeout=self._patience):
            entry, wrong = cache.find(key)
            if wrong is not None:
                self._progress(Notice(f"the kept template is damaged ({wrong}): it is built anew"))
            if entry is None:
                entry = self._keep(cache, key)
        return entry

    def _keep(self, cache: Cache, key: str) -> Entry:
        with self._run.keeping(self._choice.engine, cache.prepare()):
            made = self._make_seed(Seeding.KEPT, cache.folder, key)
            version, facts = self._choice.version, made["facts"]
            entry = Entry.of(key, made["seed"], choice=self._choice, version=version, facts=facts, root=self._root)
            cache.keep(entry, limit=self._settings.cache_size)
        return entry

    def release(self) -> None:
        """Give up what is this process's alone: its own server ends, and a supervisor without a server."""
        if self._own_lease is not None:
            self._own_lease.release()
            self._own_lease = None
        self._discard_spare()

    def _start_shared(self, workers: int) -> tuple[Server, Facts]:
        if self._mark.key is not None:
            return self._from_seed(held_by=self._run.folder, workers=workers)
        server = self._launch(held_by=self._run.folder, workers=workers)
        try:
            return server, self._build(server)
        except BaseException:
            server.close()
            raise

    def _from_seed(self, *, held_by: Path | None, workers: int) -> tuple[Server, Facts]:
        """A server in which the template stands ready. A seed that turns out to be damaged is made anew, once.

        And once more where somebody was quick enough to remove that, too.
        """
        record = self.seed()
        try:
            return self._launch(held_by=held_by, workers=workers, seed=record["seed"]), _facts(record["facts"])
        except ServerError as problem:
            said = problem.message if isinstance(problem, SeedError) else "no server starts from the kept template"
            self._progress(Notice(f"{said} ({first_line(problem.why, 'it did not say why')}): it is built anew"))
        record = self.seed(instead_of=record["made"])
        try:
            return self._launch(held_by=held_by, workers=workers, seed=record["seed"]), _facts(record["facts"])
        except SeedError:
            record = self.seed(instead_of=record["made"], kept=False)
        return self._launch(held_by=held_by, workers=workers, seed=record["seed"]), _facts(record["facts"])

    def _kept_seed(self) -> dict[str, Any]:
        """The seed from the cache, or made for it; where the cache can't be used, one for this run."""
        key = self._mark.key
        if key is None:
            return self._make_seed(Seeding.RUN, self._run.folder, "seed")
        try:
            entry = self.kept(key)
            return {"seed": entry.seed, "facts": entry.facts}
        except PlaceError as problem:
            self._progress(Notice(f"the template is not kept: {problem.message} ({problem.why})"))
            return self._make_seed(Seeding.RUN, self._run.folder, "seed")

    def _make_seed(self, seeding: Seeding, folder: Path, name: str) -> dict[str, Any]:
        server = self._launch(held_by=self._run.folder, workers=1, seeding=seeding)
        try:
            facts = self._build(server)
            layout = server.make_spare()
            server.roles.forget_password()
        finally:
            server.close()
        engine = engines.named(server.engine)
        running = replace(server.running, detail={**server.running.detail, "layout": layout})
        note = {"key": name, "parts": self._mark.parts, "version": self._choice.version, "facts": facts.to_record()}
        seed = engine.bake(running, folder=folder, name=name, note=note, timeout=self._settings.timeout)
        return {"seed": seed, "facts": facts.to_record()}

    def _launch(
        self,
        *,
        held_by: Path | None,
        workers: int,
        seed: dict[str, Any] | None = None,
        seeding: Seeding = Seeding.NONE,
    ) -> Server:
        """Start one server, kept alive by the lease on `held_by`, or with None by one of this process's own."""
        token = places.new_token()
        places.private(self._run.folder / "servers")
        folder = places.private(self._run.folder / "servers" / token)
        if held_by is None:
            self._own_lease = lease.hold(folder)
        order = Order(
            token=token,
            folder=folder,
            run=self._run.id,
            flags=tuning.flags(self._settings, workers=workers, is_baked=seeding is not Seeding.NONE),
            timeout=self._settings.timeout,
            lease=held_by or folder,
            seed=seed,
            seeding=seeding,
            supervisor=self._spare,
            meanwhile=_import_what_follows,
        )
        try:
            running = engines.named(self._choice.engine).start(self._choice, order, self._progress)
        except PgsandboxError:  # there may be another attempt, for which nobody should wait at the end of this one
            if held_by is None:
                self.release()
            supervised.end(folder, timeout=_END_TIMEOUT)
            raise
        finally:
            self._discard_spare()  # it has a server now, or is of no use
        write_record(folder / RUNNING, running.to_record())
        server = self._server(running)
        if server.is_ours:
            server.running.detail["born"] = server.birth()
        else:
            server.connect()
        return server

    def _end_unfinished(self) -> None:
        """End what a builder that died has left, at a time when nobody can have a server of the run yet."""
        supervised.end(*entries(self._run.folder / "servers"), timeout=_END_TIMEOUT)

    def _build(self, server: Server) -> Facts:
        from pgsandbox import template

        return template.build(server, self._settings, self._root, self._progress)

    def _allow_roles(self, server: Server, *, allowed: bool) -> None:
        if server.is_ours:
            server.roles.allow_making(allowed)

    def _joined(self, record: dict[str, Any]) -> tuple[Server, Facts]:
        return self._server(Running.from_record(record["running"])), _facts(record["facts"])

    def _server(self, running: Running) -> Server:
        return _server(running, timeout=self._settings.timeout)

    def _discard_spare(self) -> None:
        """Leave the supervisor that was started ahead to itself: it has its server, or others have theirs."""
        if self._spare is not None:
            self._spare.detach()
            self._spare = None


def _import_what_follows() -> None:
    """What speaks to a server is of no use before there is one, and takes as long to import as that to start."""
    import pgsandbox.isolation.clone
    import pgsandbox.template  # noqa: F401


def shared_server(run: Run, *, timeout: float) -> Server | None:
    """The one server of the run's workers, if it has one by now; none where it could not be started."""
    with contextlib.suppress(PgsandboxError):
        if (record := _living(run)) is not None:
            return _server(Running.from_record(record["running"]), timeout=timeout)
    return None


def _server(running: Running, *, timeout: float) -> Server:
    from pgsandbox.server import Server

    return Server(running, timeout=timeout)


def _living(run: Run) -> dict[str, Any] | None:
    """The record of the run's server, unless that has ended since nobody held it for a moment: all workers crashed."""
    record = run.read("server")
    if record is None:
        return None
    folder = Path(record["running"]["folder"])
    return record if folder.exists() and not (folder / supervised.ENDED).exists() else None


def _facts(record: dict[str, Any]) -> Facts:
    from pgsandbox.template import Facts

    return Facts.from_record(record)
