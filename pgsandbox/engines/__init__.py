"""Where a server can run: the protocol that every engine keeps, and the choice among them."""

from __future__ import annotations

import enum
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypedDict

from pgsandbox.errors import EngineError, PgsandboxError

if TYPE_CHECKING:
    from pgsandbox.engines.condition import Condition
    from pgsandbox.engines.supervised import Handle
    from pgsandbox.settings import Settings

WAL_SEGMENT = 1
"""MB of each WAL file in our own clusters: a new cluster has one of them in full, and it is copied at each start."""

Progress = Callable[[str], None]
"""Told, in a few words, what a long step is doing."""


class Notice(str):
    """What a `Progress` is told that the user should see, even where nobody follows the progress: one line."""

    __slots__ = ()


@dataclass(frozen=True, kw_only=True)
class Choice:
    """An engine that can serve, and why it was taken."""

    engine: str
    version: str
    """PostgreSQL's version as far as known before a start: `15.18`, or `18` from an image's tag."""
    what: str
    """The image, the binaries' folder, or the server's address."""
    why: str = ""
    """What else the user should know of it: why not another, and what answers where that isn't Docker."""
    detail: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def major(self) -> int | None:
        """The major version, or None where only a start will tell."""
        head = self.version.partition(".")[0]
        return int(head) if head.isdigit() else None


class Layout(TypedDict):
    """What a seed's databases are good for, by their oids, which are the names of their folders below `base`."""

    template: int
    spare: int
    """A clone of the template, for the first worker: copied by files, and so the same byte for byte."""
    late: list[int]
    """Those that neither a start needs nor the first worker; the template is one of them."""


class Seeding(enum.Enum):
    """What a server is started for: to be used, or to be baked, for this run or to be kept."""

    NONE = "none"
    RUN = "run"
    KEPT = "kept"


@dataclass(frozen=True, kw_only=True)
class Order:
    """One server to start; the caller holds the lease that it names."""

    token: str
    folder: Path
    """The server's folder below its run's."""
    run: str
    flags: dict[str, str]
    """Server settings by name."""
    timeout: float
    """Seconds until the server must answer."""
    lease: Path
    """The folder whose lease keeps it alive: its own, or its run's where all of the run use it."""
    seed: dict[str, Any] | None = None
    """A stopped, ready cluster that `bake` gave, to start from a copy of it."""
    seeding: Seeding = Seeding.NONE
    """Whether this server is started to be baked."""
    supervisor: Handle | None = None
    """A supervisor that was started ahead and waits for a server."""
    meanwhile: Callable[[], None] = lambda: None
    """What the starter has to do anyway, to be called once while the server is starting."""


@dataclass(frozen=True, kw_only=True)
class Running:
    """A server that was started (or is external): how to reach it as its superuser. Kept as a record, mode 0600."""

    engine: str
    token: str
    folder: str
    version: str
    what: str
    host: str
    port: int
    user: str = "postgres"
    password: str = field(default="", repr=False)
    socket: str | None = None
    """The folder of its unix socket, where the superuser needs no password (peer)."""
    detail: dict[str, Any] = field(default_factory=dict, repr=False)

    def to_record(self) -> dict[str, Any]:
        """This as JSON data."""
        return asdict(self)

    @staticmethod
    def from_record(record: dict[str, Any]) -> Running:
        """What `to_record` wrote down."""
        return Running(**record)


class Engine(Protocol):
    """A way to run PostgreSQL servers."""

    name: str

    def find(self, settings: Settings, progress: Progress) -> Choice:
        """What would serve; raises EngineError, with what was looked at, if nothing would."""
        ...

    def start(self, choice: Choice, order: Order, progress: Progress) -> Running:
        """A server that accepts connections; raises PgsandboxError. Whatever happens, its supervisor ends it."""
        ...

    def bake(
        self, running: Running, *, folder: Path, name: str, note: dict[str, Any], timeout: float
    ) -> dict[str, Any]:
        """End a server that was started to be baked, and give its cluster, stopped cleanly, as a seed for other starts.

        Its detail `layout` says what is in the cluster.

        A seed for one run lives as long as that; one to be kept (`Seeding.KEPT`) until `forget_seed`. What is a file
        of it goes to `folder`, all under `name`. `note` is what is to be known of it elsewhere, no secret among it.
        Raises PlaceError when it can't be written there, ServerError.
        """
        ...

    def export(self, seed: dict[str, Any], order: Order) -> Iterator[bytes]:
        """The cluster of a kept seed as a stream, for `adopt` on another machine. Raises PgsandboxError."""
        ...

    def adopt(
        self, content: Iterator[bytes], note: dict[str, Any], choice: Choice, order: Order, *, folder: Path, name: str
    ) -> dict[str, Any]:
        """A seed to be kept, of what `export` gave elsewhere; `note` is what came along.

        Nothing is left of it where reading `content` raises. Raises PgsandboxError.
        """
        ...

    def damage(self, seed: dict[str, Any]) -> str | None:
        """What is wrong with `seed`, as far as a look from outside tells; None if nothing is."""
        ...

    def forget_seed(self, seed: dict[str, Any]) -> None:
        """Remove a seed, as soon as nothing runs on it any more; harmless when it is gone."""
        ...

    def strays(self, folder: Path, known: set[str]) -> list[tuple[str, dict[str, Any]]]:
        """Seeds, by name, that were baked to be kept in `folder` and are none of `known`."""
        ...

    def grant(self, running: Running, seconds: float) -> None:
        """Let the server live for `seconds` with nobody holding it and nobody connected."""
        ...

    def complete(self, running: Running) -> None:
        """Have what a start from a seed left out put in place: the template. Does not wait for it."""
        ...

    def logs(self, running: Running, lines: int) -> str:
        """The last `lines` lines of the server's log."""
        ...

    def condition(self, running: Running) -> Condition:
        """How the server is doing, seen from outside, when it does not answer. Takes seconds at most, never raises."""
        ...


class Ward(Protocol):
    """What one supervisor looks after, seen from inside the supervisor's process."""

    def begin(self, report: Callable[[dict[str, Any]], None]) -> None:
        """Start what is the supervisor's own to start, reporting events to the starter."""
        ...

    def complete(self) -> None:
        """Put in place what a start from a seed left out. Never raises."""
        ...

    def alive(self) -> bool:
        """Whether there is still something to look after."""
        ...

    def last_word(self) -> str:
        """Why there is nothing to look after any more, and the server's own last lines. Asked once it is not alive."""
        ...

    def bake(self, to: Path, layout: Layout) -> dict[str, Any]:
        """Stop the server cleanly and pack its data into the file `to`; what proves that file whole."""
        ...

    def connected(self) -> bool:
        """Whether any client is connected, apart from leases; asked only while a granted time runs."""
        ...

    def end(self) -> None:
        """End it as far as that takes no time; the rest is for `remove`."""
        ...

    def remove(self) -> None:
        """End it and remove all of it; harmless when there is nothing."""
        ...


def named(name: str) -> Engine:
    """The engine `name`: docker, local or external. Raises EngineError where it can't run at all."""
    if name == "docker":
        from pgsandbox.engines.docker import DockerEngine

        return DockerEngine()
    if name == "local":
        if sys.platform == "win32":
            raise EngineError(
                "local: the local engine does not run on Windows",
                why="a server there can't be tied to the processes that use it",
                hint="use Docker, or WSL",
            )
        from pgsandbox.engines.local import LocalEngine

        return LocalEngine()
    from pgsandbox.engines.external import ExternalEngine

    return ExternalEngine()


def ward(spec: dict[str, Any]) -> Ward:
    """The ward that a supervisor was given as `spec`, by the name of its engine."""
    if spec["engine"] == "docker":
        from pgsandbox.engines.wards.docker import DockerWard

        return DockerWard(spec)
    if spec["engine"] == "local":
        from pgsandbox.engines.wards.local import LocalWard

        return LocalWard(spec)
    from pgsandbox.engines.external import ExternalWard

    return ExternalWard(spec)


def choose(settings: Settings, progress: Progress) -> Choice:
    """The engine that the settings ask for, or with `auto` docker where it can serve, else local.

    Raises EngineError that says of every engine why it can't.
    """
    if settings.url:
        return named("external").find(settings, progress)
    if settings.engine != "auto":
        return named(settings.engine).find(settings, progress)
    refusals: list[EngineError] = []
    for name in ("docker", "local"):
        try:
            choice = named(name).find(settings, progress)
        except EngineError as refusal:
            refusals.append(refusal)
        else:
            return replace(choice, why="; ".join([*(r.message for r in refusals), *filter(None, [choice.why])]))
    raise _none_serves(settings, refusals)


def _none_serves(settings: Settings, refusals: list[EngineError]) -> PgsandboxError:
    what = "no engine can run PostgreSQL here"
    hint = "start Docker, or install PostgreSQL, or `pip install 'pgsandbox[embedded]'`"
    if settings.version is not None:
        what = f"no engine has PostgreSQL {settings.version}"
        hint = f"name an image that has it, or install PostgreSQL {settings.version}, or change the setting version"
    return EngineError(
        what,
        why="\n".join(f"{r.message}" + (f" ({r.why})" if r.why else "") for r in refusals),
        looked_at=tuple(place for r in refusals for place in r.looked_at),
        hint=hint,
    )
