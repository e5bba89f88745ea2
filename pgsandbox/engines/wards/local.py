"""The only file that spawns postgres itself: one server from binaries, and its data folder, while they live."""

from __future__ import annotations

import contextlib
import os
import pwd
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pgsandbox import places
from pgsandbox.engines import WAL_SEGMENT, Layout, archive, kernel, memory
from pgsandbox.engines.condition import exit_in_words
from pgsandbox.errors import NotReadyError, ServerError

LOG = "server.log"
"""The file in a server's folder that PostgreSQL logs to."""

_PORTS = range(20000, 32000)
"""Below the range that the kernel takes for outgoing connections (32768 and up)."""

_PORT_ATTEMPTS = 20
_STOP_TIMEOUT = 30.0


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
        lines = [line for line in tail(self._folder / LOG, 50).splitlines() if grave.search(line)]
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
            raise _failed("PostgreSQL did not stop cleanly", tail(self._folder / LOG, 8), self._data)
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
        log = _open_log(self._folder / LOG)
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
            said = tail(self._folder / LOG, 20)
            if "Address already in use" not in said:
                hint = "look at the setting options if the log complains of a parameter"
                raise _failed("PostgreSQL ended while it was starting", _last(said, 8), self._data, hint)
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
            why=_last(tail(self._folder / LOG, 8), 8),
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


def tail(file: Path, lines: int) -> str:
    """The last `lines` lines of a log; nothing where there is none."""
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
