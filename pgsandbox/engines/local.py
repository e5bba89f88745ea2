"""Servers on this machine, from installed or bundled binaries."""

from __future__ import annotations

import contextlib
import os
import platform
import pwd
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgsandbox import lease, places
from pgsandbox.engines import Choice, Order, Progress, Running, archive, kernel, supervised
from pgsandbox.engines.condition import Condition, last_word, over
from pgsandbox.engines.wards.local import LOG, tail
from pgsandbox.errors import EngineError
from pgsandbox.run import entries

if TYPE_CHECKING:
    from pgsandbox.settings import Settings

_LITTLE = 1 << 20
_LAST_WORD = 1.0
"""Seconds in which a supervisor notices the end of its server, and says why."""

_SOCKET_PATH_MAX = 103
"""The shortest limit of a unix socket's path among our platforms (macOS)."""


class LocalEngine:
    """Servers on this machine, each under a supervisor of its own, data on tmpfs where there is one."""

    name = "local"

    def find(self, settings: Settings, progress: Progress) -> Choice:
        """The binaries that would be used; raises EngineError."""
        from pgsandbox.engines import binaries

        found = binaries.find(settings.version)
        detail = {"source": found.source, "content": _content(found.folder)}
        return Choice(engine=self.name, version=found.version, what=str(found.folder), detail=detail)

    def start(self, choice: Choice, order: Order, progress: Progress) -> Running:
        """A running server; raises ServerError, NotReadyError or PlaceError."""
        from pgsandbox.engines import binaries

        account = _unprivileged()
        found = binaries.Binaries(Path(choice.what), choice.version, choice.detail["source"])
        folder = found.folder if account is None else binaries.enterable(found, account.pw_uid, account.pw_gid)
        data = _place_for(order, account)
        spec = {
            "engine": self.name,
            "binaries": str(folder),
            "major": found.major,
            "data": str(data),
            "flags": order.flags,
            "timeout": order.timeout,
            "account": account.pw_name if account else None,
            "seed": order.seed,
        }
        handle = supervised.start_for(order, spec)
        try:
            order.meanwhile()
            ready = handle.wait_for("ready", timeout=order.timeout, on=progress)
        finally:
            handle.detach()
        return Running(
            engine=self.name,
            token=order.token,
            folder=str(order.folder),
            version=choice.version,
            what=choice.what,
            host="127.0.0.1",
            port=ready["port"],
            socket=str(data),
            detail={"template_follows": order.seed is not None},
        )

    def bake(
        self, running: Running, *, folder: Path, name: str, note: dict[str, Any], timeout: float
    ) -> dict[str, Any]:
        """The data folder of `running` as an archive: one file is read faster than a thousand, and is whole or not."""
        file = folder / f"{name}.tar"
        whole = supervised.bake(Path(running.folder), file, layout=running.detail["layout"], timeout=timeout)
        supervised.end(Path(running.folder), timeout=timeout)
        return {"archive": str(file), **whole}

    def export(self, seed: dict[str, Any], order: Order) -> Iterator[bytes]:
        """The archive as it is."""
        return archive.content(seed)

    def adopt(
        self, content: Iterator[bytes], note: dict[str, Any], choice: Choice, order: Order, *, folder: Path, name: str
    ) -> dict[str, Any]:
        """The archive, written to `folder`."""
        return archive.write(content, folder / f"{name}.tar")

    def damage(self, seed: dict[str, Any]) -> str | None:
        """Whether the archive has the size that it was written with."""
        with contextlib.suppress(OSError):
            size = Path(seed["archive"]).stat().st_size
            return None if size == seed["size"] else f"its archive has {size} bytes instead of {seed['size']}"
        return "its archive has gone"

    def forget_seed(self, seed: dict[str, Any]) -> None:
        """Remove the archive; a server that is just being started from it has it open."""
        with contextlib.suppress(OSError):
            Path(seed["archive"]).unlink()

    def strays(self, folder: Path, known: set[str]) -> list[tuple[str, dict[str, Any]]]:
        """Archives, half-written ones too, of which nobody knows."""
        archives = [file for file in entries(folder) if file.is_file() and ".tar" in file.name]
        whole = {f"{name}.tar" for name in known}
        return [(file.name.partition(".")[0], {"archive": str(file)}) for file in archives if file.name not in whole]

    def grant(self, running: Running, seconds: float) -> None:
        """Let the server's supervisor wait for `seconds` with nobody holding it and nobody connected."""
        supervised.grant(Path(running.folder), seconds)

    def complete(self, running: Running) -> None:
        """Have the server's supervisor unpack the template."""
        supervised.complete(Path(running.folder))

    def logs(self, running: Running, lines: int) -> str:
        """The last `lines` lines of the server's log."""
        return tail(Path(running.folder) / LOG, lines)

    def condition(self, running: Running) -> Condition:
        """What its supervisor said of its end, or the kernel says of its processes."""
        folder = Path(running.folder)
        assert running.socket is not None
        deadline = time.monotonic() + _LAST_WORD
        while (pid := kernel.postmaster(Path(running.socket))) is None:
            if (said := last_word(folder)) is not None:
                return over(said)
            if not lease.is_supervised(folder) or time.monotonic() > deadline:
                return over("its processes are gone, and so is the one that looked after it")
            time.sleep(0.01)
        stopped = kernel.stopped(pid)
        if places.free(Path(running.socket)) < _LITTLE:  # a log that can't be written is the end of it
            why = f"no space is left on the file system of {Path(running.socket).parent}"
            return over(why, hint="free some there, or write less in one test; `pgsandbox ls` shows what of ours runs")
        if not stopped:
            return Condition(is_running=True, why=f"postgres (process {pid}) runs")
        numbers = " ".join(map(str, stopped))
        hint = f"let it go on with `kill -CONT {numbers}`, or run again"
        return Condition(is_halted=True, why=f"postgres is stopped, by SIGSTOP: {numbers}", hint=hint)


def _content(binaries: Path) -> str:
    """What tells builds of a version apart, wherever they are: a cluster serves only the build and C library it is of.

    The library says in which order texts are, and so what is in an index.
    """
    library = os.confstr("CS_GNU_LIBC_VERSION") if "CS_GNU_LIBC_VERSION" in os.confstr_names else platform.release()
    return f"{(binaries / 'postgres').stat().st_size} bytes, {library}"


def _unprivileged() -> pwd.struct_passwd | None:
    """The account that postgres runs as where we are root, which it refuses to be; None elsewhere."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise EngineError(
        "local: postgres refuses to run as root, and there is no account to run it as",
        looked_at=("the accounts postgres and nobody",),
        hint="create one with `useradd --system postgres`, or run as another user",
    )


def _place_for(order: Order, account: pwd.struct_passwd | None) -> Path:
    """Where the data goes: with the rest of the server, unless postgres runs as another user, who may not enter there.

    A socket's path must be short enough for the kernel, too, and for PostgreSQL and libpq a comma begins another path.
    """
    from pgsandbox.engines import binaries

    shortest = Path("/tmp") / f"pgsandbox-data-{order.token}"  # noqa: S108 -- made by us, 0700, under a random name
    ours = [] if account or not places.has_room(order.folder) else [order.folder / "data"]
    for folder in (*ours, places.data_folder(order.token)):
        socket_path = os.fsencode(folder / ".s.PGSQL.00000.lock")
        is_one = len(socket_path) <= _SOCKET_PATH_MAX and b"," not in socket_path
        if is_one and (account is None or binaries.may_enter(folder.parent, account.pw_uid, account.pw_gid)):
            return folder
    return shortest
