"""Runs that are made to be killed: start one, wait for a moment of its life, kill it, wait until nothing is left.

run = ChaosRun.start(folder, flags, stop_at="template")
run.wait_for("template")
watch = Watch(runtime, spared=[...])
run.kill("controller")
watch.wait_until_clean()
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from children import eventually

DEADLINE = 5.0
"""Seconds after the kill until nothing may be left."""

MOMENTS = ("choice", "template", "first-test", "mid-test", "teardown")
"""Where a run can be made to stop, in the order in which it gets there."""

DOCKER_MOMENTS = ("asked", "created", "seeded")
"""Further ones: before the daemon is asked for a container, between its creation and its start, and once the daemon was
asked for the seed's image."""

VICTIMS: dict[str, str] = {
    "everything": "controller and workers, one after the other",
    "controller": "the controller; its workers are left to themselves",
    "group": "the process group, as a terminal or a CI job would",
    "worker": "one worker; the run goes on",
}
"""What `ChaosRun.kill` can kill."""

_MARK = "CHAOS_RUN"
_TIMEOUT = 60.0

_FILES = {
    "pytest.ini": """\
[pytest]
addopts = -p moments -p pgsandbox -p no:randomly -p no:cacheprovider
pgsandbox_init = command: python step.py
""",
    "moments.py": """\
import os, time
from pathlib import Path

HERE = Path(__file__).parent


def reach(moment):
    '''Say that this process is there; if it is where the run should stop, wait until told to go on.'''
    (HERE / f"{moment}.{os.environ.get('PYTEST_XDIST_WORKER', 'main')}").touch()
    while os.environ["CHAOS_STOP_AT"] == moment and not (HERE / "go").exists():
        time.sleep(0.02)


def before(owner, name, moment):
    '''Have every call of `owner.name` reach `moment` first.'''
    real = getattr(owner, name)

    def call(*args, **more):
        reach(moment)
        return real(*args, **more)

    setattr(owner, name, call)


def pytest_addoption():
    import pgsandbox.engines

    before(pgsandbox.engines, "choose", "choice")
    if "docker" in os.environ["CHAOS_ENGINE"]:
        import docker

        before(docker.APIClient, "create_container", "asked")
        before(docker.APIClient, "start", "created")
        before(docker.APIClient, "commit", "seeded")
""",
    "step.py": """\
import os, psycopg
from moments import reach

with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
    connection.execute("CREATE TABLE t AS SELECT n FROM generate_series(1, 1000) n")
    reach("template")
""",
    "test_chaos.py": """\
import os, threading, time
import pytest
from moments import HERE, reach


@pytest.fixture(scope="session", autouse=True)
def at_the_end():
    yield
    reach("teardown")


def busy(database):
    with database.connect() as connection:
        connection.execute("SELECT pg_sleep(120)")


@pytest.mark.parametrize("number", range(int(os.environ["CHAOS_TESTS"])))
def test_chaos(pgsandbox, number):
    reach("first-test")
    with pgsandbox.connect() as connection:
        connection.execute("INSERT INTO t VALUES (0)")
        if os.environ["CHAOS_STOP_AT"] == "mid-test":
            threading.Thread(target=busy, args=[pgsandbox], daemon=True).start()
        reach("mid-test")
        assert connection.execute("SELECT count(*) FROM t").fetchone() == (1001,)
    deadline = time.monotonic() + 60
    while os.environ["CHAOS_UNTIL"] and not (HERE / os.environ["CHAOS_UNTIL"]).exists() and time.monotonic() < deadline:
        with pgsandbox.connect() as connection:
            connection.execute("INSERT INTO t VALUES (0)")
        time.sleep(0.05)
""",
}


@dataclass
class ChaosRun:
    """A pytest run in a session, a process group and a folder of its own."""

    folder: Path
    process: subprocess.Popen[bytes]
    mark: str
    began_at: float = field(default_factory=time.monotonic, init=False)
    killed_at: float = field(default=0.0, init=False)

    @classmethod
    def start(
        cls, folder: Path, flags: Sequence[str], *, stop_at: str = "", until: str = "", workers: int = 2, tests: int = 4
    ) -> ChaosRun:
        """Start one that stops at the moment `stop_at`, or whose tests work until the file `until` appears."""
        folder.mkdir(parents=True)
        for name, text in _FILES.items():
            (folder / name).write_text(text)
        mark = uuid.uuid4().hex
        chaos = {"STOP_AT": stop_at, "UNTIL": until, "TESTS": str(tests), "RUN": mark, "ENGINE": " ".join(flags)}
        with (folder / "output").open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "pytest", "-q", *(["-n", str(workers)] if workers else []), *flags],
                cwd=folder,
                env={**os.environ, **{f"CHAOS_{name}": value for name, value in chaos.items()}},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        return cls(folder, process, mark)

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return (self.folder / "output").read_text(errors="replace")

    def wait_for(self, moment: str | Callable[[], bool], *, workers: int = 1) -> None:
        """Wait until so many of its processes are at `moment`, or until that is true."""
        there = moment if callable(moment) else lambda: len(list(self.folder.glob(f"{moment}.*"))) >= workers
        assert eventually(lambda: there() or self.process.poll() is not None, timeout=_TIMEOUT), self.output
        assert there(), self.output

    def go_on(self) -> None:
        """Let it go on from where it stopped."""
        (self.folder / "go").touch()

    def kill(self, victim: str) -> None:
        """SIGKILL one of VICTIMS."""
        self.killed_at = time.monotonic()
        controller = self.process.pid
        if victim == "group":
            os.killpg(controller, signal.SIGKILL)
        elif victim == "controller":
            os.kill(controller, signal.SIGKILL)
        elif victim == "worker":
            os.kill(self.workers()[0], signal.SIGKILL)
        else:
            for pid in (controller, *self.workers()):
                kill(pid)
        if victim != "worker":
            self.process.wait()

    def kill_supervisors_too(self) -> None:
        """SIGKILL all that is of this run except its servers, the supervisors first."""
        self.killed_at = time.monotonic()
        for pid in (*self.supervisors(), self.process.pid, *self.workers()):
            kill(pid)
        self.process.wait()

    def workers(self) -> list[int]:
        """The pids of its xdist workers; supervisors and init steps have sessions of their own."""
        return [pid for pid in self.pids() if pid != self.process.pid and _session(pid) == self.process.pid]

    def supervisors(self) -> list[int]:
        """The pids of its servers' supervisors."""
        return [pid for pid in self.pids() if "pgsandbox.supervisor" in _read(pid, "cmdline")]

    def pids(self) -> list[int]:
        """The pids of all processes that descend from it, whoever their parent is now."""
        return [pid for pid in map(int, _numbers(Path("/proc"))) if f"{_MARK}={self.mark}\0" in _read(pid, "environ")]

    def wait(self) -> int:
        """Its exit code."""
        return self.process.wait(_TIMEOUT)


class Watch:
    """All that the runs in the runtime folder `runtime` have on this machine, except for those in the folders `spared`.

    What is to be looked for is noted when it is made: right before the kill.
    """

    def __init__(self, runtime: Path, runs: Iterable[ChaosRun] = (), *, spared: Iterable[Path] = ()) -> None:
        self.runtime = runtime
        self._runs = list(runs)
        self._spared = {folder.name for folder in spared}
        self._data: set[Path] = set()
        self._volumes: set[str] = set()
        for spec in (spec for folder in self.run_folders() for spec in folder.glob("servers/*/spec.json")):
            with contextlib.suppress(OSError):
                self._data.add(Path(json.loads(spec.read_text()).get("data", "/nowhere")))
        for container in self._ours("ps", "--all"):
            self._volumes.update(_docker("inspect", "--format", _VOLUMES, container))

    def run_folders(self) -> list[Path]:
        """The folders of the runs that it watches."""
        return [folder for folder in (self.runtime / "runs").glob("*") if folder.name not in self._spared]

    def left(self) -> list[str]:
        """What is still there, in words; the daemon is asked, which takes a while, if there is nothing else."""
        here = [
            *(f"process {pid}: {_read(pid, 'cmdline')[:100]}" for run in self._runs for pid in run.pids()),
            *(f"folder {folder}" for folder in self.run_folders()),
            *(f"data {data}" for data in self._data if data.exists()),
        ]
        return here or [
            *(f"container {container}" for container in self._ours("ps", "--all")),
            *(f"image {image}" for image in self._ours("images", "--filter=reference=pgsandbox-seed")),
            *(f"volume {volume}" for volume in self._volumes if _docker("volume", "inspect", volume) != ["[]"]),
        ]

    def wait_until_clean(self, timeout: float = DEADLINE) -> float:
        """Fail if anything is left `timeout` seconds after the last kill; the seconds that it took."""
        begin = max([run.killed_at for run in self._runs if run.killed_at], default=time.monotonic())
        while left := self.left():
            assert time.monotonic() - begin < timeout, f"after {timeout:g}s: {left}"
            time.sleep(0.02)
        return time.monotonic() - begin

    def _ours(self, *listing: str) -> list[str]:
        """The ids that `docker ps` or `docker images` finds by our labels."""
        mark = self.runtime / "id"
        if not mark.exists():
            return []
        found = _docker(*listing, "--quiet", "--no-trunc", "--filter", f"label=pgsandbox.owner={mark.read_text()}")
        if not self._spared:
            return found
        run = '{{ index .Config.Labels "pgsandbox.run" }}'
        return [one for one in found if not self._spared.intersection(_docker("inspect", "--format", run, one))]


_VOLUMES = '{{ range .Mounts }}{{ if eq .Type "volume" }}{{ .Name }}\n{{ end }}{{ end }}'


def kill(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to a process that may be gone already."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _docker(*words: str) -> list[str]:
    try:
        return subprocess.run(["docker", *words], capture_output=True, text=True, check=False).stdout.split()
    except FileNotFoundError:
        return []


def _numbers(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir() if entry.name.isdigit()]


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def _read(pid: int, what: str) -> str:
    try:
        return Path(f"/proc/{pid}/{what}").read_bytes().decode(errors="replace")
    except OSError:
        return ""
