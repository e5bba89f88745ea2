"""Sandboxes that have a name and outlive the command that made them: found, started, ended."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import unicodedata
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from pgsandbox import engines, lease, places, sources, sweep
from pgsandbox.database import Address
from pgsandbox.engines import Notice, Running, supervised
from pgsandbox.errors import EngineError, NoSuchSandboxError, PgsandboxError, PlaceError, ServerError, UsageError
from pgsandbox.launch import RUNNING
from pgsandbox.run import Run, all_runs, damaged, entries, folder_of, read_record, write_record
from pgsandbox.sandbox import NAMED, Sandbox
from pgsandbox.settings import Settings, show_age, show_duration

if TYPE_CHECKING:
    from pgsandbox.engines import Progress

_UP = "up-"
"""Runs of `up` have ids that begin so."""

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
    key: str | None = None
    """The fingerprint of its template, where that can be kept."""
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
        return show_age(self.created)

    @property
    def shown_ttl(self) -> str:
        """The ttl in words."""
        return show_duration(self.ttl)

    def to_json(self) -> dict[str, Any]:
        """All of it, for programs."""
        return {**asdict(self), "env": self.env}


def up(name: str | None, settings: Settings, progress: Progress) -> Named:
    """The sandbox `name` of this project: the one that runs, else a new one. Raises PgsandboxError."""
    root = project()
    name = _checked(name, root)
    sandbox = Sandbox(settings, root=root, run=_run_id(root, name), progress=progress)
    with contextlib.closing(sandbox):
        run = sandbox.join()
        with run.lock("up", timeout=settings.timeout * 2 + 600):  # others that start it wait for us
            found = _read(run.folder, name)
            if found is not None:
                _check_agreement(found, settings)
                _tell_of_changes(found, sandbox, progress)
                return _granted_anew(found, settings)
            _forget_failures(run)
            sandbox.name(name, sandbox.database().url, ttl=settings.ttl)
            made = _read(run.folder, name)
    if made is None:
        raise ServerError(f"the sandbox {name} ended right after its start", hint="look at the disk and the memory")
    return made


def find(name: str | None) -> Named:
    """The sandbox or kept database `name` of this project. Raises NoSuchSandboxError."""
    root = project()
    wanted = _checked(name, root)
    for one in of_project():
        if one.name == wanted:
            return one
    raise _no_such(wanted, root)


def down(name: str | None) -> str:
    """End the sandbox `name` of this project; its name. Raises NoSuchSandboxError, ServerError."""
    try:
        found = find(name)
    except NoSuchSandboxError as problem:
        if others := [one.name for one in of_project()]:
            problem.hint = f"end what there is with `pgsandbox down {others[0]}`, or all of it with --all"
        raise
    _end(found)
    return found.name


def down_all() -> list[str]:
    """End all sandboxes and kept databases of this project; their names. Raises ServerError."""
    found = of_project()
    for one in found:
        _end(one)
    return [one.name for one in found]


def of_project() -> list[Named]:
    """All sandboxes and kept databases of this project whose servers live, by name."""
    here = str(project())
    return [one for one in listing()[0] if one.project == here]


def listing() -> tuple[list[Named], list[PgsandboxError]]:
    """All of this user whose servers live, by project and name; and for each damaged record an error."""
    found: list[Named] = []
    damaged: list[PgsandboxError] = []
    files = [file for folder in entries(all_runs()) for file in entries(folder)]
    for file in (file for file in files if file.name.startswith(NAMED) and file.suffix == ".json"):
        try:
            one = _named(file)
        except PgsandboxError as problem:
            damaged.append(problem)
        else:
            found.extend([one] if one else [])
    return sorted(found, key=lambda one: (one.project, one.name)), damaged


def project() -> Path:
    """The folder of the project that the working directory is in. Raises PlaceError when that is gone."""
    try:
        return sources.find_root(Path.cwd())
    except FileNotFoundError as problem:
        raise PlaceError(
            "the working directory is gone", why="it was removed or renamed", hint="cd to the project's folder"
        ) from problem


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
    if found.engine == "docker" and (client := _container_client()):
        variables = [word for name in ("PGUSER", "PGPASSWORD", "PGDATABASE") for word in ("--env", name)]
        inside = ["--env", "PGHOST=127.0.0.1", "--env", "PGPORT=5432"]
        terminal = ["--tty"] if sys.stdin.isatty() and sys.stdout.isatty() else []
        return [*client, "exec", "--interactive", *terminal, *variables, *inside, f"pgsandbox-{found.token}", "psql"]
    raise EngineError(
        "psql was not found", looked_at=("PATH", "the local binaries"), hint="install PostgreSQL's client"
    )


def _container_client() -> list[str]:
    """Docker's command, or Podman's, and what makes it speak to the daemon that we would; nothing where neither is."""
    has_docker, has_podman = shutil.which("docker"), shutil.which("podman")
    if not has_docker and not has_podman:
        return []
    from pgsandbox.engines.daemon import podman_instead

    instead = podman_instead()
    if has_docker:
        return ["docker", *(["--host", instead] if instead else [])]
    address = instead or os.environ.get("DOCKER_HOST")
    return ["podman", *(["--remote", "--url", address] if address else [])]


def logs(found: Named, lines: int) -> str:
    """The last `lines` lines of the server's log. Raises PgsandboxError."""
    return engines.named(found.engine).logs(_running(found), lines)


@contextlib.contextmanager
def sandbox_for_command(settings: Settings, progress: Progress) -> Iterator[Sandbox]:
    """A sandbox for as long as one command runs."""
    with Sandbox(settings, run=f"run-{places.new_token()}", progress=progress) as sandbox:
        yield sandbox


def prune() -> tuple[list[str], list[PgsandboxError]]:
    """Remove what is provably ours and dead, containers included; what was removed, and what could not be."""
    removed, trouble = sweep.sweep()
    with contextlib.suppress(EngineError):
        from pgsandbox.engines.daemon import connect
        from pgsandbox.engines.wards.docker import remove_orphans

        with contextlib.closing(connect()) as client:
            removed += remove_orphans(client)
    return removed, trouble


def _forget_failures(run: Run) -> None:
    """Begin again: what an earlier start that failed or was killed wrote down no longer counts."""
    supervised.end(*entries(run.folder / "servers"), timeout=_END_TIMEOUT)
    for file in entries(run.folder):
        if file.suffix == ".json":
            file.unlink(missing_ok=True)


def _read(folder: Path, name: str) -> Named | None:
    """The sandbox `name` of the run in `folder`, if its server lives and its record is whole."""
    with contextlib.suppress(PlaceError):
        return _named(folder / f"{NAMED}{name}.json")
    return None


def _named(file: Path) -> Named | None:
    """What the record `file` says, if there is one and its server lives. Raises PlaceError when it is damaged."""
    record = read_record(file)
    if record is None:
        return None
    try:
        one = Named(**record, run=file.parent.name)
        is_whole = bool(one.env["PGPORT"] and one.shown_ttl and one.age)
    except (TypeError, ValueError, AttributeError) as problem:
        raise damaged(file, problem) from problem
    folder = file.parent / "servers" / one.token
    return one if is_whole and lease.is_supervised(folder) and not (folder / supervised.ENDED).exists() else None


def _granted_anew(found: Named, settings: Settings) -> Named:
    """`found`, with another ttl if one was asked for."""
    if "ttl" not in settings.origins or settings.ttl == found.ttl:
        return found
    engines.named(found.engine).grant(_running(found), settings.ttl)
    file = folder_of(found.run) / f"{NAMED}{found.name}.json"
    write_record(file, {**(read_record(file) or {}), "ttl": settings.ttl})
    return replace(found, ttl=settings.ttl)


def _running(found: Named) -> Running:
    record = read_record(folder_of(found.run) / "servers" / found.token / RUNNING)
    if record is None:
        raise _no_such(found.name, Path(found.project))
    return Running.from_record(record)


def _end(found: Named) -> None:
    """End its server. Of a kept database whose server others need only the record goes, and what was granted for it."""
    run_folder = folder_of(found.run)
    folder = run_folder / "servers" / found.token
    record = run_folder / f"{NAMED}{found.name}.json"
    if any(one.token == found.token and one.name != found.name for one in listing()[0]):
        record.unlink(missing_ok=True)
    elif not found.run.startswith(_UP) and _is_in_use(folder):
        (folder / supervised.GRANT).unlink(missing_ok=True)
        record.unlink(missing_ok=True)
    elif supervised.end(folder, timeout=_END_TIMEOUT):
        raise supervised.not_ended(f"the sandbox {found.name}", folder, _END_TIMEOUT)


def _is_in_use(folder: Path) -> bool:
    spec = read_record(folder / supervised.SPEC)
    return spec is not None and lease.is_held(Path(spec["lease"]))


def _check_agreement(found: Named, settings: Settings) -> None:
    """Raise UsageError if the sandbox that runs is not the one that is asked for."""
    major = found.version.partition(".")[0]
    engine = "external" if settings.url else settings.engine
    image = settings.image.replace("{version}", major) if "image" in settings.origins else found.what
    for asked, has, what in (
        (settings.version and str(settings.version), major, "PostgreSQL"),
        (None if engine == "auto" else engine, found.engine, "the engine"),
        (image if found.engine == "docker" else None, found.what, "the image"),
    ):
        if asked and asked != has:
            raise UsageError(
                f"the sandbox {found.name} runs already, with {what} {has} instead of {asked}",
                hint=f"end it first: pgsandbox down {found.name}",
            )


def _tell_of_changes(found: Named, sandbox: Sandbox, progress: Progress) -> None:
    """Say so where the template of the sandbox that runs is no longer what it would be built from."""
    with contextlib.suppress(PgsandboxError):  # what is wrong with a step is no matter to one that was built before
        if found.key is not None and found.key != sandbox.fingerprint.key:
            changed = f"settings, migrations or init steps have changed since {found.name} was started"
            progress(Notice(f"{changed}: `pgsandbox down {found.name}` first to have them"))


def _checked(name: str | None, root: Path) -> str:
    if name is None:
        plain = unicodedata.normalize("NFKD", root.name.lower()).encode("ascii", "ignore").decode()
        return re.sub(r"[^a-z0-9_.-]+", "-", plain).strip("-.")[:40].rstrip("-.") or "sandbox"
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,39}", name):
        raise UsageError(f"{name!r} can't name a sandbox", hint="use up to 40 letters, digits, and . _ - inside")
    return name


def _run_id(root: Path, name: str) -> str:
    return f"{_UP}{places.digest(str(root))}-{name}"


def _no_such(name: str, root: Path) -> NoSuchSandboxError:
    others = ", ".join(one.name for one in of_project())
    return NoSuchSandboxError(
        f"there is no sandbox {name}",
        why=f"this project has {f'only {others}' if others else 'none'}",
        looked_at=(str(root),),
        hint=f"start it with `pgsandbox up {name}`; `pgsandbox ls` shows those of other projects, too",
    )
