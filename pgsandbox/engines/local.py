"""The only file that spawns postgres itself: servers from installed or bundled binaries."""

from __future__ import annotations

import contextlib
import os
import platform
import pwd
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgsandbox import lease, places
from pgsandbox.engines import WAL_SEGMENT, Choice, Layout, Order, Progress, Running, archive, kernel, memory, supervised
from pgsandbox.engines.condition import Condition, exit_in_words, last_word, over
from pgsandbox.errors import EngineError, NotReadyError, ServerError
from pgsandbox.run import entries

if TYPE_CHECKING:
    from pgsandbox.settings import Settings

_LOG = "server.log"
_PORTS = range(20000, 32000)
"""Below the range that the kernel takes for outgoing connections (32768 and up)."""

_PORT_ATTEMPTS = 20
_STOP_TIMEOUT = 30.0
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
        return _tail(Path(running.folder) / _LOG, lines)

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


class LocalWard:
    """One postgres and its data folder, as its supervisor looks after them."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._binaries = Path(spec["binaries"])
        self._major: int = spec["major"]
        self._folder = Path(spec["folder"])
        self._data = Path(spec["data"])
        self._flags: dict[str, str] = spec["flags"]
        self._account = pwd.getpwnam(spec["account"]) if spec["account"] else None
        self._deadline = time.monotonic() + spec["timeout"]
        self._seed: dict[str, Any] | None = spec["seed"]
        self._process: subprocess.Popen[bytes] | None = None
        self._is_baked = False
        self._cluster: archive.Unpacking | None = None
        self._port = 0

    def begin(self, report: Callable[[dict[str, Any]], None]) -> None:
        """Make the cluster and start the server; reports `ready` with its port."""
        self._make_folder()
        if self._seed is None:
            report({"event": "making the cluster"})
            self._initdb()
            self._write_access()
            report({"event": "starting PostgreSQL"})
            self._launch()
            self._wait_until_ready()
            report({"event": "ready", "port": self._port})
        else:
            report({"event": "starting PostgreSQL from a kept cluster"})
            self._begin_from(self._seed, report)

    def _begin_from(self, seed: dict[str, Any], report: Callable[[dict[str, Any]], None]) -> None:
        owner = (self._account.pw_uid, self._account.pw_gid) if self._account else None
        self._cluster = archive.Unpacking(seed, self._data, owner=owner)
        self._write_access()
        self._launch()
        self._cluster.rest()
        self._wait_until_ready()
        report({"event": "ready", "port": self._port})

    def complete(self) -> None:
        """Unpack the template, too."""
        if self._cluster is not None:
            self._cluster.template()
            self._cluster.close()
            self._cluster = None

    def alive(self) -> bool:
        """Whether the server's process runs."""
        return self._is_baked or (self._process is not None and self._process.poll() is None)

    def last_word(self) -> str:
        """How postgres ended, and the end of its log."""
        code = self._process.returncode if self._process is not None else None
        how = "ended" if code is None else exit_in_words(code)
        grave = re.compile(r"(PANIC|FATAL): (?!.*terminating connection)")  # each session says that of its own end
        lines = [line for line in _tail(self._folder / _LOG, 50).splitlines() if grave.search(line)]
        return "\n".join([f"postgres {how}", *lines[-3:]])

    def bake(self, to: Path, layout: Layout) -> dict[str, Any]:
        """Stop the server and pack its data folder into the file `to`; the folder stays until `remove`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)  # fast shutdown: manual, chapter 18.5
        self._is_baked = True
        try:
            code = self._process.wait(_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            raise NotReadyError("PostgreSQL did not stop in time", hint="raise the setting timeout") from None
        if code != 0:
            raise _failed("PostgreSQL did not stop cleanly", _tail(self._folder / _LOG, 8), self._data)
        return archive.pack(self._data, to, layout=layout, leave_out=self._needless_wal())

    def _needless_wal(self) -> list[str]:
        """WAL files that a stopped cluster does not need: all but the one that its last checkpoint is in."""
        said = subprocess.run(
            [self._binaries / "pg_controldata", self._data],
            capture_output=True,
            text=True,
            check=False,
            timeout=_STOP_TIMEOUT,
        ).stdout
        needed = re.search(r"REDO WAL file:\s+([0-9A-F]{24})", said)
        if needed is None:
            return []
        wal = (file.name for file in (self._data / "pg_wal").iterdir() if file.is_file())
        return [f"pg_wal/{name}" for name in wal if name != needed[1]]

    def connected(self) -> bool:
        """Whether the kernel knows an established connection to the server, over TCP or its unix socket."""
        return kernel.is_connected(self._process.pid if self._process else 0, self._data, self._port)

    def end(self) -> None:
        """End the server at once: nothing in it is worth saving."""
        if self._process is not None:
            kernel.end(self._process)
        else:
            kernel.end_leftover(self._data)

    def remove(self) -> None:
        """End the server and remove its data, and what a killed one left in memory."""
        self.end()
        kernel.end_remains(self._data)
        memory.free(self._data)
        deadline = time.monotonic() + _STOP_TIMEOUT
        while self._data.exists() and time.monotonic() < deadline:  # a killed initdb's child may be writing still
            shutil.rmtree(self._data, ignore_errors=True)
            time.sleep(0.02)

    def _make_folder(self) -> None:
        try:
            self._data.mkdir(mode=0o700)
            self._data.chmod(0o700)
            if self._account:
                os.chown(self._data, self._account.pw_uid, self._account.pw_gid)
        except OSError as problem:
            raise places.unusable(self._data, problem) from problem

    def _initdb(self) -> None:
        command = [
            str(self._binaries / "initdb"),
            f"--pgdata={self._data}",
            "--username=postgres",
            "--encoding=UTF8",
            f"--locale={_locale()}",
            "--auth-local=peer",
            "--auth-host=scram-sha-256",
            "--no-sync",
            "--no-instructions",
            f"--wal-segsize={WAL_SEGMENT}",
            *(["--no-data-checksums"] if self._major >= 18 else []),
        ]
        self._run(command)

    def _run(self, command: list[str]) -> None:
        """Run a program as the server's user, to its end; raises ServerError with its last lines."""
        program = Path(command[0]).name
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env=self._environment(),
                cwd=self._data,
                timeout=max(0.1, self._deadline - time.monotonic()),
                preexec_fn=self._become(signal.SIGTERM),
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise NotReadyError(f"{program} was not done in time", hint="raise the setting timeout") from None
        except OSError as problem:
            raise ServerError(f"{program} can't be run", why=f"{command[0]}: {problem.strerror}") from problem
        if done.returncode != 0:
            raise _failed(f"{program} failed", _from_error(done.stdout, program), self._data)

    def _write_access(self) -> None:
        """Who may connect: the superuser by the kernel's word on its user, everybody else with a password."""
        users = {"root", pwd.getpwuid(os.geteuid()).pw_name} | ({self._account.pw_name} if self._account else set())
        (self._data / "pg_ident.conf").write_text(
            "".join(f'pgsandbox "{user}" postgres\n' for user in sorted(users)), encoding="utf-8"
        )
        (self._data / "pg_hba.conf").write_text(
            "local all postgres peer map=pgsandbox\n"
            "local all all scram-sha-256\n"
            "host all all 127.0.0.1/32 scram-sha-256\n"
            "host all all ::1/128 scram-sha-256\n",
            encoding="utf-8",
        )

    def _launch(self) -> None:
        self._port = _free_port()
        log = _open_log(self._folder / _LOG)
        try:
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment(),
                cwd=self._data,
                process_group=0,
                preexec_fn=self._become(signal.SIGQUIT),  # noqa: PLW1509 -- the supervisor has one thread
            )
        finally:
            os.close(log)

    def _wait_until_ready(self) -> None:
        for _ in range(_PORT_ATTEMPTS):
            if self._is_ready():
                return
            tail = _tail(self._folder / _LOG, 20)
            if "Address already in use" not in tail:
                hint = "look at the setting options if the log complains of a parameter"
                raise _failed("PostgreSQL ended while it was starting", _last(tail, 8), self._data, hint)
            self._launch()
        raise ServerError("no free port was found", looked_at=(f"{_PORTS.start} to {_PORTS.stop - 1}",))

    def _command(self) -> list[str]:
        flags = {
            **self._flags,
            "listen_addresses": "127.0.0.1",
            "port": str(self._port),
            "unix_socket_directories": str(self._data),
            "unix_socket_permissions": "0700" if self._account is None else "0777",  # the folder is 0700
            "dynamic_shared_memory_type": "mmap",  # in the data folder, so that it goes with it
        }
        command = [str(self._binaries / "postgres"), "-D", str(self._data)]
        for name, value in flags.items():
            if name == "client_connection_check_interval" and not sys.platform.startswith("linux"):
                continue  # manual, chapter 19.3: only where the kernel can tell
            command += ["-c", f"{name}={value}"]
        return command

    def _is_ready(self) -> bool:
        """Wait for the word `ready` in postmaster.pid (its eighth line); False if the server ended before."""
        assert self._process is not None
        while time.monotonic() < self._deadline:
            if self._process.poll() is not None:
                return False
            with contextlib.suppress(OSError, IndexError):
                lines = (self._data / "postmaster.pid").read_text(encoding="utf-8").splitlines()
                if lines[7].strip() == "ready":
                    return True
            time.sleep(0.003)
        raise NotReadyError(
            "PostgreSQL was not ready in time",
            why=_last(_tail(self._folder / _LOG, 8), 8),
            hint="raise the setting timeout",
        )

    def _environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("PG") and k != "LC_ALL"}
        return kept | {"LC_MESSAGES": "C", "HOME": str(self._data)}

    def _become(self, on_death: signal.Signals) -> Callable[[], None]:
        """What a child does before it runs postgres: drop root, and ask the kernel to end it with its supervisor."""
        account = self._account
        libc = kernel.libc()
        supervisor = os.getpid()

        def before_exec() -> None:
            os.umask(0o077)
            if account is not None:
                os.setgroups([])
                os.setgid(account.pw_gid)
                os.setuid(account.pw_uid)
            if libc is not None:
                libc.prctl(1, int(on_death))  # PR_SET_PDEATHSIG
                if os.getppid() != supervisor:  # it died before it could be heard
                    os._exit(1)

        return before_exec


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


def _locale() -> str:
    """C.UTF-8 where the C library has it: the same order of texts everywhere, and letters beyond ASCII."""
    import locale

    before = locale.setlocale(locale.LC_CTYPE)
    for name in ("C.UTF-8", "en_US.UTF-8"):
        with contextlib.suppress(locale.Error):
            locale.setlocale(locale.LC_CTYPE, name)
            locale.setlocale(locale.LC_CTYPE, before)
            return name
    return "C"


def _free_port() -> int:
    """A port that nobody listens on just now; should somebody be faster, the next is tried."""
    for port in random.sample(_PORTS, 50):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise ServerError("no free port was found", looked_at=(f"50 ports from {_PORTS.start} to {_PORTS.stop - 1}",))


def _open_log(file: Path) -> int:
    return os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def _tail(file: Path, lines: int) -> str:
    try:
        return _last(file.read_text(encoding="utf-8", errors="replace"), lines)
    except FileNotFoundError:
        return ""


def _last(text: str, lines: int) -> str:
    return "\n".join(text.rstrip().splitlines()[-lines:])


def _from_error(output: str, program: str) -> str:
    """The lines from the first error on, if `program` says which that is, as initdb does; at most eight."""
    lines = output.rstrip().splitlines()
    errors = [number for number, line in enumerate(lines) if line.startswith(f"{program}: error:")]
    return "\n".join(lines[errors[0] :][:8] if errors else lines[-8:])


def _failed(message: str, log: str, data: Path, hint: str | None = None) -> ServerError:
    if "No space left on device" in log:
        return ServerError(
            message,
            why=f"no space is left on the file system of {data.parent}",
            hint="free some space there; `pgsandbox ls` shows what of ours runs",
        )
    if "could not look up effective user ID" in log:
        hint = "PostgreSQL runs only as a user that has a name: add one to /etc/passwd, or run as another user"
    return ServerError(message, why=log, hint=hint)
