"""Sandboxes that have a name and outlive the command that made them: found, started, ended."""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from pgsandbox import engines, lease, places, sources, sweep
from pgsandbox.database import Address
from pgsandbox.engines import Running, supervised
from pgsandbox.errors import EngineError, NoSuchSandboxError, PgsandboxError, ServerError, UsageError
from pgsandbox.run import Run, all_runs, folder_of, read_record
from pgsandbox.sandbox import NAMED, Sandbox
from pgsandbox.settings import SETTINGS, Settings, show_duration

if TYPE_CHECKING:
    from pgsandbox.engines import Progress

_END_TIMEOUT = 20.0


@dataclass(frozen=True)
class Named:
    """One sandbox or kept database, as its record says."""

    name: str
    url: str = field(repr=False)
    project: str
    """The folder of the project that it was made for."""
    engine: str
    version: str
    what: str
    token: str
    ttl: float
    """Seconds that it lives with nobody connected."""
    created: float
    """Unix time."""
    run: str = ""

    @property
    def env(self) -> dict[str, str]:
        """DATABASE_URL and the PG* variables."""
        parts = urlsplit(self.url)
        user, password, name = (unquote(text or "") for text in (parts.username, parts.password, parts.path[1:]))
        return Address(parts.hostname or "", parts.port or 5432, user, password, name).env

    @property
    def address(self) -> str:
        """`host:port/database`, without the password."""
        return self.url.rpartition("@")[2]

    @property
    def age(self) -> str:
        """How long ago it was made, in words."""
        seconds = max(0, int(time.time() - self.created))
        return next(
            f"{seconds // size}{unit}"
            for unit, size in (("h", 3600), ("m", 60), ("s", 1))
            if seconds >= size or size == 1
        )

    @property
    def shown_ttl(self) -> str:
        """The ttl in words."""
        return show_duration(self.ttl)

    def to_json(self) -> dict[str, Any]:
        """All of it, for programs."""
        return {**asdict(self), "env": self.env}


def up(name: str | None, settings: Settings, progress: Progress) -> Named:
    """The sandbox `name` of this project: the one that runs, else a new one. Raises PgsandboxError."""
    root = sources.find_root(Path.cwd())
    name = _checked(name, root)
    run_id = _run_id(root, name)
    with _taking_turns(run_id, settings):
        found = _read(folder_of(run_id), name)
        if found is not None:
            _check_agreement(found, settings)
            return found
        with Sandbox(settings, root=root, run=run_id, progress=progress) as sandbox:
            sandbox.name(name, sandbox.database().url, ttl=settings.ttl)
        made = _read(folder_of(run_id), name)
        if made is None:
            raise ServerError(f"the sandbox {name} ended right after its start")
        return made


def find(name: str | None) -> Named:
    """The sandbox `name` of this project, or the kept database of that name. Raises NoSuchSandboxError."""
    root = sources.find_root(Path.cwd())
    wanted = _checked(name, root)
    candidates = [one for one in all_named() if one.name == wanted]
    for one in sorted(candidates, key=lambda one: one.project != str(root)):
        return one
    raise _no_such(wanted, root)


def down(name: str | None) -> str:
    """End the sandbox `name` of this project; its name. Raises NoSuchSandboxError, ServerError."""
    found = find(name)
    _end(found)
    return found.name


def down_all() -> list[str]:
    """End all sandboxes and kept databases of this project; their names."""
    here = str(sources.find_root(Path.cwd()))
    found = [one for one in all_named() if one.project == here]
    for one in found:
        _end(one)
    return [one.name for one in found]


def all_named() -> list[Named]:
    """All sandboxes and kept databases of this user whose servers live, by project and name."""
    found = [
        one
        for folder in all_runs().iterdir()
        for file in folder.glob(f"{NAMED}*.json")
        if (one := _read(folder, file.stem.removeprefix(NAMED))) is not None
    ]
    return sorted(found, key=lambda one: (one.project, one.name))


def psql_command(found: Named) -> list[str]:
    """The psql to run: from PATH, beside the local binaries, or inside the container. Raises EngineError."""
    on_path = shutil.which("psql")
    if on_path:
        return [on_path]
    from pgsandbox.engines import binaries

    with contextlib.suppress(EngineError):
        beside = binaries.find(None).folder / "psql"
        if beside.is_file():
            return [str(beside)]
    if found.engine == "docker" and shutil.which("docker"):
        variables = [word for name in ("PGUSER", "PGPASSWORD", "PGDATABASE") for word in ("--env", name)]
        inside = ["--env", "PGHOST=127.0.0.1", "--env", "PGPORT=5432"]
        return ["docker", "exec", "--interactive", "--tty", *variables, *inside, f"pgsandbox-{found.token}", "psql"]
    raise EngineError(
        "psql was not found", looked_at=("PATH", "the local binaries"), hint="install PostgreSQL's client"
    )


def logs(found: Named, lines: int) -> str:
    """The last `lines` lines of the server's log. Raises PgsandboxError."""
    record = read_record(folder_of(found.run) / "server.json")
    if record is None:
        raise _no_such(found.name, Path(found.project))
    return engines.named(found.engine).logs(Running.from_record(record["running"]), lines)


@contextlib.contextmanager
def sandbox_for_command(settings: Settings, progress: Progress) -> Iterator[Sandbox]:
    """A sandbox for as long as one command runs."""
    with Sandbox(settings, run=f"run-{places.new_token()}", progress=progress) as sandbox:
        yield sandbox


def prune() -> list[str]:
    """Remove what is provably ours and dead, containers included; what was removed."""
    removed = sweep.sweep()
    with contextlib.suppress(EngineError):
        from pgsandbox.engines.docker import connect, remove_orphans

        with contextlib.closing(connect()) as client:
            removed += remove_orphans(client)
    return removed


def diagnose(settings: Settings) -> dict[str, Any]:
    """Every setting and its origin, what each engine says, and which one would serve; as JSON data."""
    says: list[dict[str, str]] = []
    names = ("external",) if settings.url else ("docker", "local")
    for name in names:
        try:
            choice = engines.named(name).find(settings, lambda _text: None)
            says.append({"name": name, "says": f"PostgreSQL {choice.version}, {choice.what}"})
        except PgsandboxError as problem:
            says.append({"name": name, "says": str(problem).removeprefix("pgsandbox: ")})
    try:
        serves = engines.choose(settings, lambda _text: None).engine
    except PgsandboxError:
        serves = ""
    return {
        "settings": [
            {"name": name, "value": settings.shown(name), "from": settings.origins.get(name, "default")}
            for name in SETTINGS
        ],
        "engines": says,
        "serves": serves,
        "folders": {"runtime folder": str(places.runtime_root()), "cache folder": str(places.cache_root())},
    }


@contextlib.contextmanager
def _taking_turns(run_id: str, settings: Settings) -> Iterator[None]:
    """Two commands that start the same sandbox take turns; what a dead or failed one left is forgotten first."""
    run = Run(run_id)
    try:
        with run.lock("up", timeout=settings.timeout * 2 + 600):
            if not any(lease.is_supervised(folder) for folder in (run.folder / "servers").glob("*")):
                for record in run.folder.glob("*.json"):
                    record.unlink(missing_ok=True)
            yield
    finally:
        run.leave()


def _read(folder: Path, name: str) -> Named | None:
    """What the run's record says of `name`, if its server is alive."""
    record = read_record(folder / f"{NAMED}{name}.json")
    if record is None or not lease.is_supervised(folder / "servers" / record["token"]):
        return None
    return Named(**record, run=folder.name)


def _end(found: Named) -> None:
    folder = folder_of(found.run) / "servers" / found.token
    if not supervised.end(folder, timeout=_END_TIMEOUT):
        raise ServerError(
            f"the sandbox {found.name} did not end within {_END_TIMEOUT:g}s", hint="try `pgsandbox prune`"
        )


def _check_agreement(found: Named, settings: Settings) -> None:
    major = found.version.partition(".")[0]
    for asked, has, what in (
        (settings.version and str(settings.version), major, "PostgreSQL"),
        (None if settings.engine == "auto" else settings.engine, found.engine, "the engine"),
    ):
        if asked and asked != has:
            raise UsageError(
                f"the sandbox {found.name} runs already, with {what} {has} instead of {asked}",
                hint=f"end it first: pgsandbox down {found.name}",
            )


def _checked(name: str | None, root: Path) -> str:
    if name is None:
        return re.sub(r"[^a-z0-9_.-]+", "-", root.name.lower()).strip("-.")[:40] or "sandbox"
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,39}", name):
        raise UsageError(f"{name!r} can't name a sandbox", hint="use up to 40 letters, digits, and . _ - inside")
    return name


def _run_id(root: Path, name: str) -> str:
    return f"up-{places.digest(str(root))}-{name}"


def _no_such(name: str, root: Path) -> NoSuchSandboxError:
    here = [one.name for one in all_named() if one.project == str(root)]
    return NoSuchSandboxError(
        f"there is no sandbox {name}",
        looked_at=(f"the sandboxes of this user; this project has {', '.join(here) or 'none'}",),
        hint=f"start it with `pgsandbox up {name}`",
    )
