"""What all tests share: the engines to test on, a runtime folder of each test's own, and that nothing is left there."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest
from children import eventually

from pgsandbox.cache import Cache

for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
    # As in a shell's background job, and under nohup. What is started here would not hear of it, either.
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

TARGETS = ("docker-15", "docker-18", "local-15", "local-16", "local-17", "local-18")
LEFT_DEADLINE = 5.0


@dataclass(frozen=True)
class Target:
    """One engine and PostgreSQL version that a test runs on."""

    engine: str
    version: int

    @property
    def settings(self) -> dict[str, Any]:
        """What to give to `Sandbox`."""
        found: dict[str, Any] = {"engine": self.engine, "version": self.version}
        if self.engine == "docker":
            found["image"] = image(self.version)
        return found

    @property
    def flags(self) -> list[str]:
        """What to give to pytest."""
        return [f"--pgsandbox-{name}={value}" for name, value in self.settings.items()]

    @property
    def environ(self) -> dict[str, str]:
        """What to give to the command line."""
        return {f"PGSANDBOX_{name.upper()}": str(value) for name, value in self.settings.items()}


def image(version: int) -> str:
    """The image to test with: ours where the official one can't be pulled (see scripts/images)."""
    return os.environ.get(f"TEST_IMAGE_{version}") or f"postgres:{version}-alpine"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--workloads", type=int, default=2000, help="how many random ones resets are tried on, in all")
    parser.addoption("--target", action="append", choices=TARGETS, help="an engine and version to test on; repeatable")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "target" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("--target") or TARGETS
        marks = {name: [pytest.mark.docker] if name.startswith("docker") else [] for name in TARGETS}
        metafunc.parametrize("target", [pytest.param(n, marks=marks[n], id=n) for n in chosen], indirect=True)


@pytest.fixture
def target(request: pytest.FixtureRequest, binaries: None) -> Target:
    """The engine and version that this test runs on; the test is repeated for each."""
    engine, _, version = request.param.partition("-")
    return Target(engine, int(version))


@pytest.fixture
def some_target(binaries: None) -> Target:
    """One engine, for what is the same on all: local binaries start fastest."""
    return Target("local", 15)


@pytest.fixture
def binaries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every PostgreSQL that scripts/binaries brought is on PATH."""
    folders = [folder for v in (15, 16, 17, 18) if (folder := os.environ.get(f"TEST_BIN_{v}"))]
    monkeypatch.setenv("PATH", os.pathsep.join([*folders, os.environ["PATH"]]))


@pytest.fixture(scope="session", autouse=True)
def kept() -> Iterator[Path]:
    """A cache that the whole session shares: initdb runs once for each engine and version. Cleared at the end.

    Fixtures of wider scope than a test's have it, too: the user's own is none of our business.
    """
    with pytest.MonkeyPatch.context() as patch, _cache(patch) as folder:
        yield folder


@pytest.fixture(autouse=True)
def runtime(kept: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runtime folder of this test's own; afterwards no run, process, data folder or container of it is left."""
    for name in ("CI", "BUILD_NUMBER"):  # there pytest prints its summary in another form
        monkeypatch.delenv(name, raising=False)
    for name in [name for name in os.environ if name.startswith(("PGSANDBOX_", "PYTEST_XDIST_", "PG"))]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("_PGSANDBOX_RUN", raising=False)
    folder = tmp_path_factory.mktemp("runtime")
    folder.chmod(0o700)
    monkeypatch.setenv("_PGSANDBOX_ROOT", str(folder))
    monkeypatch.setenv("_PGSANDBOX_CACHE", str(kept))
    yield folder
    deadline = time.monotonic() + LEFT_DEADLINE
    while (left := left_behind(folder)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left, f"still there after {LEFT_DEADLINE:g}s: {left}"
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def own_cache(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of this test's own, cleared afterwards: images are not in its folder."""
    with _cache(monkeypatch) as folder:
        yield folder


@contextlib.contextmanager
def _cache(patch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache for the length of the block, where the real one might be: who PostgreSQL runs as can get there.

    He has copies of binaries in it, if he can't read those that there are; pytest's own folders are closed to him.
    """
    folder = Path(tempfile.mkdtemp(prefix="pgsandbox-test-cache-"))
    folder.chmod(0o755)
    patch.setenv("_PGSANDBOX_CACHE", str(folder))
    try:
        yield folder
    finally:
        patch.setenv("_PGSANDBOX_CACHE", str(folder))
        Cache().clear()
        assert eventually(lambda: _is_removed(folder)), f"somebody still writes to {folder}"


def _is_removed(folder: Path) -> bool:
    shutil.rmtree(folder, ignore_errors=True)
    return not folder.exists()


def left_behind(runtime: Path) -> list[str]:
    """What is left of the runs in the runtime folder `runtime`: folders, processes, containers."""
    left = [str(path.relative_to(runtime)) for path in (runtime / "runs").glob("*")]
    left += [f"process: {line}" for line in processes(str(runtime))]
    mark = runtime / "id"
    if mark.exists():
        listing = ["docker", "ps", "--all", "--quiet", "--filter", f"label=pgsandbox.owner={mark.read_text()}"]
        found = subprocess.run(listing, capture_output=True, text=True, check=False)
        left += [f"container: {line}" for line in found.stdout.split()]
    return left


def processes(word: str) -> list[str]:
    """The command lines of other processes in which `word` occurs, or whose environment names it."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        if int(entry.name) in (os.getpid(), os.getppid()):
            continue
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            environ = (entry / "environ").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if word in line or (f"_PGSANDBOX_ROOT={word}" in environ and "supervisor" in line):
            found.append(f"{entry.name} {line[:120]}")
    return found


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project folder, which is the working directory."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "pytest.ini").write_text("[pytest]\n")
    return folder


@pytest.fixture
def arena(tmp_path: Path, runtime: Path, binaries: None) -> Iterator[Any]:
    """Where runs are struck (tests/chaos/arena.py); what is left of them is ended after the test."""
    from arena import Arena  # beside its tests, and found where those are

    found = Arena(tmp_path, runtime)
    yield found
    found.end()


class Inner(Protocol):
    """`inner("-n2")`: pytest with `-p pgsandbox` in processes of its own, in the folder of `pytester`.

    With `named=False` pgsandbox is merely installed.
    """

    def __call__(self, *words: str, named: bool = True) -> pytest.RunResult: ...


@pytest.fixture
def inner(pytester: pytest.Pytester, some_target: Target, monkeypatch: pytest.MonkeyPatch) -> Inner:
    """Runs the tests that `pytester` has made, in the order in which they are written."""
    for name, value in some_target.environ.items():
        monkeypatch.setenv(name, value)

    def run(*words: str, named: bool = True) -> pytest.RunResult:
        start = ("-p", "pgsandbox") if named else ()
        return pytester.runpytest_subprocess(*start, "-p", "no:randomly", *words, timeout=90)

    return run


@pytest.fixture
def cli(some_target: Target, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`cli("up", "name")`: run the command line in a process of its own; the finished process, its text captured."""
    for name, value in some_target.environ.items():
        monkeypatch.setenv(name, value)

    def run(*words: str, timeout: float = 60, **more: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pgsandbox", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, **more)

    return run
