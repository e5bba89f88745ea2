"""What a benchmark stands on: a folder, an image and binaries, and that no other benchmark runs on this machine."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks import processes
from benchmarks.containers import DockerProblem, Marked
from benchmarks.peers import MAJOR
from benchmarks.report import say

_FORGET = (
    "PG",
    "_PGSANDBOX",
    "PYTEST",
    "PYTHON",
    "POSTGRES",
    "PMR_",
    "TESTCONTAINERS_",
    "TC_",
    "RYUK_",
    "DATABASE_URL",
)
"""Variables that begin so would change what a peer does."""


@dataclass
class Bed:
    """Everything in it is gone when the benchmark ends."""

    folder: Path
    marked: Marked | None
    why_no_docker: str
    binaries: Path | None
    why_no_binaries: str
    runtime: Path
    """pgsandbox's folders of this benchmark's own, on the file systems that it would choose itself."""
    cache: Path
    _cached: int = 0

    @property
    def image(self) -> str:
        """The image that all users of Docker start."""
        return self.marked.image if self.marked else f"none:{MAJOR}"

    def grown(self) -> int:
        """By how many bytes pgsandbox's cache has grown since this was last asked."""
        before, self._cached = self._cached, sum(file.lstat().st_size for file in self.cache.rglob("*"))
        return max(0, self._cached - before)

    def environ(self, more: Mapping[str, str]) -> dict[str, str]:
        """The environment of a run: nothing that changes what a peer does but what is said here."""
        environ = {name: value for name, value in os.environ.items() if not name.startswith(_FORGET)}
        environ |= {"_PGSANDBOX_ROOT": str(self.runtime), "_PGSANDBOX_CACHE": str(self.cache)}
        environ |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "BENCH_IMAGE": self.image}
        if self.binaries:
            environ |= {"BENCH_BINARIES": str(self.binaries), "PATH": f"{self.binaries}:{environ['PATH']}"}
        return {**environ, **more}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What it is to stand on."""
    official, binaries = f"postgres:{MAJOR}-alpine", os.environ.get(f"TEST_BIN_{MAJOR}")
    image = os.environ.get(f"TEST_IMAGE_{MAJOR}") or official
    parser.add_argument("--image", default=image, help=f"default: $TEST_IMAGE_{MAJOR}, else {official}")
    parser.add_argument("--binaries", default=binaries, help=f"their folder; default: $TEST_BIN_{MAJOR}, else found")


@contextlib.contextmanager
def made(image: str, binaries: str | None) -> Iterator[Bed]:
    """A bed for the length of the block. Waits until no other benchmark is running: they would disturb each other."""
    processes.adopt_orphans()
    with contextlib.ExitStack() as stack:
        record = stack.enter_context(_alone())
        marked, why_no_docker = _marked(image, record)
        if marked:
            stack.callback(marked.remove)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pgsandbox-bench-")))
        folder.chmod(0o711)  # other users may pass: PostgreSQL doesn't run as root
        shared = Path("/dev/shm")  # noqa: S108 -- a name of our own is made in it
        runtime = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None)))
        found, why_no_binaries = _binaries(binaries)
        stack.callback(processes.outlive, 5.0)
        yield Bed(folder, marked, why_no_docker, found, why_no_binaries, runtime, folder / "cache")


def unprivileged(folder: Path) -> list[str]:
    """The beginning of a command line that runs as somebody other than root, who gets `folder`. Raises LookupError.

    He may read everything, as root may: our Python can be in a folder of root's.
    """
    if os.geteuid() != 0:
        return []
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise LookupError("PostgreSQL refuses to run as root, and there is no setpriv")
    known = {account.pw_name: account for account in pwd.getpwall()}
    account = known.get("postgres") or known["nobody"]
    for path in (folder, *folder.rglob("*")):
        os.chown(path, account.pw_uid, account.pw_gid)
    become = [setpriv, f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"]
    return [*become, "--inh-caps=-all,+dac_read_search", "--ambient-caps=+dac_read_search", "--"]


@contextlib.contextmanager
def _alone() -> Iterator[Path]:
    """Hold the machine's benchmark lock; the file has the mark of the last one that had it."""
    folder = Path(tempfile.gettempdir()) / f"pgsandbox-locks-{os.geteuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    record = folder / "bench"
    with record.open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another benchmark on this machine")
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield record


def _marked(image: str, record: Path) -> tuple[Marked | None, str]:
    try:
        if last := record.read_text().strip():
            Marked(last).remove()  # should it have been killed
        token = secrets.token_hex(6)
        record.write_text(token)
        return Marked.made_of(image, MAJOR, token), ""
    except DockerProblem as problem:
        return None, str(problem)


def _binaries(named: str | None) -> tuple[Path | None, str]:
    on_path = shutil.which("pg_ctl")
    candidates = [named, f"/usr/lib/postgresql/{MAJOR}/bin", str(Path(on_path).parent) if on_path else None]
    for folder in (Path(one) for one in candidates if one):
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            said = subprocess.run([folder / "pg_ctl", "--version"], capture_output=True, text=True, check=True).stdout
            if f" {MAJOR}." in said:
                return folder, ""
    return None, f"no pg_ctl of PostgreSQL {MAJOR}: name its folder with --binaries"
