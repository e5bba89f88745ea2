"""Runs that are made to be killed: start one, wait for a moment of its life, and strike.

run = ChaosRun.start(folder, flags, stop_at="template")
run.wait_for("template")
watch = Watch(runtime, [run])
run.strike("controller", "kill")
watch.wait_until_clean()
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from children import eventually

MOMENTS = (
    "start",
    "choice",
    "template",
    "bake",
    "packing",
    "commit",
    "first-test",
    "mid-test",
    "reset",
    "teardown",
    "end",
)
"""Where a run can be made to stop, in the order in which it gets there; it does not wait while it is packing.

From `template` to `commit` it only comes with a template that is made anew and kept. The reset is in its middle.
"""

DOCKER_MOMENTS = ("asked", "created")
"""Further ones: before the daemon is asked for a container, and between its creation and its start."""

VICTIMS: dict[str, str] = {
    "controller": "the controller; its workers are left to themselves",
    "worker": "one worker; the run goes on",
    "workers": "all workers; the controller lives, and starts others",
    "builder": "the process that builds the template",
    "step": "the init step's own process",
    "group": "the process group, as a terminal or a CI job would",
    "everything": "all processes but those that look after servers",
    "supervisors": "the supervisors, and everything with them",
}
"""Who can be struck."""

WAYS: dict[str, tuple[signal.Signals | float, ...]] = {
    "kill": (signal.SIGKILL,),
    "term": (signal.SIGTERM,),
    "int": (signal.SIGINT,),
    "int-int": (signal.SIGINT, 0.1, signal.SIGINT),
    "hup": (signal.SIGHUP,),
    "quit": (signal.SIGQUIT,),
    "stop-cont": (signal.SIGSTOP, 3.0, signal.SIGCONT),
    "stop-kill": (signal.SIGSTOP, 3.0, signal.SIGKILL),
}
"""How: signals, and seconds between them. Three are longer than any interval of ours."""

TIMEOUT = 90.0
"""Seconds within which a run gets wherever it goes."""

_MARK = "CHAOS_RUN"
_VICTIM = Path(__file__).parent / "victim"
_INI = """\
[pytest]
addopts = -p moments {named} -p no:randomly -p no:cacheprovider --basetemp=base
python_files = suite.py
pgsandbox_init = command: python step.py
pgsandbox_watch = step.py, salt
"""


@dataclass(eq=False)
class ChaosRun:
    """A pytest run in a session, a process group and a folder of its own."""

    folder: Path
    process: subprocess.Popen[bytes]
    mark: str
    engine: str
    began_at: float = field(default_factory=time.monotonic, init=False)
    struck_at: float = field(default=0.0, init=False)

    @classmethod
    def start(
        cls,
        folder: Path,
        flags: Sequence[str],
        *,
        stop_at: str = "",
        until: str = "",
        death: str = "",
        workers: int = 2,
        tests: int = 4,
        is_named: bool = True,
        salt: str = "",
        environ: Mapping[str, str] | None = None,
    ) -> ChaosRun:
        """Start one that stops at the moment `stop_at`, or whose tests work until the file `until` appears.

        With `death` its second test dies so. Without `is_named` the plugin is merely installed: then a worker builds
        the template. One of another `salt` has a template of its own.
        """
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for file in _VICTIM.glob("*.py"):
            shutil.copy(file, folder)
        (folder / "pytest.ini").write_text(_INI.format(named="-p pgsandbox" if is_named else ""))
        (folder / "salt").write_text(salt)
        (folder / "tmp").mkdir()
        mark = uuid.uuid4().hex
        chaos = {"STOP_AT": stop_at, "UNTIL": until, "DEATH": death, "TESTS": str(tests), "RUN": mark}
        chaos["ENGINE"] = engine = "docker" if "--pgsandbox-engine=docker" in flags else "local"
        with (folder / "output").open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "pytest", "-q", *(["-n", str(workers)] if workers else []), *flags],
                cwd=folder,
                env={
                    **os.environ,
                    "TMPDIR": str(folder / "tmp"),
                    **(environ or {}),
                    **{f"CHAOS_{name}": value for name, value in chaos.items()},
                },
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        return cls(folder, process, mark, engine)

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return (self.folder / "output").read_text(errors="replace")

    @property
    def ids(self) -> list[str]:
        """What pgsandbox calls it: its folder's name, and its label on containers."""
        return [file.name.partition(".")[2] for file in self.folder.glob("run-id.*")]

    def wait_for(self, moment: str | Callable[[], bool], *, workers: int = 1) -> None:
        """Wait until so many of its processes are at `moment`, or until that is true."""
        there = moment if callable(moment) else lambda: self.is_at(moment, workers=workers)
        assert eventually(lambda: there() or self.process.poll() is not None, timeout=TIMEOUT), self.output
        assert there(), self.output

    def is_at(self, moment: str, *, workers: int = 1) -> bool:
        """Whether so many of its processes have come to `moment`."""
        return len(list(self.folder.glob(f"{moment}.*"))) >= workers

    def strike(self, victim: str, way: str) -> None:
        """Send the signals of `way` to `victim`; what waits at a moment and has to go on afterwards does so."""
        pids = self.pids_of(victim)
        for part in WAYS[way]:
            if isinstance(part, signal.Signals):
                self.struck_at = time.monotonic()
                for pid in pids:
                    kill(pid, part)
            else:
                pause(part)
        if way != "kill" or victim not in ("controller", "group", "everything", "supervisors"):
            (self.folder / "go").touch()  # else who is left to himself would finish what was half made

    def end(self) -> None:
        """SIGKILL all that is left of it."""
        for pid in ([] if self.process.poll() is not None else [self.process.pid]) + self.pids():
            if pid not in self.supervisors():
                kill(pid)
        self.process.wait(TIMEOUT)

    def wait(self) -> int:
        """Its exit code."""
        return self.process.wait(TIMEOUT)

    # Who is who -------------------------------------------------------------------------------------------------------

    def pids_of(self, victim: str) -> list[int]:
        """The pids of one of VICTIMS; a negative one is a process group's."""
        controller = self.process.pid
        if victim in ("controller", "group"):
            return [controller if victim == "controller" else -controller]
        if victim in ("worker", "workers"):
            return self.workers()[: 1 if victim == "worker" else None]
        if victim in ("builder", "step"):
            return self._who_said("building" if victim == "builder" else "template")
        supervisors = self.supervisors()
        others = [pid for pid in self.pids() if pid not in supervisors]
        return others if victim == "everything" else [*supervisors, *others]

    def workers(self) -> list[int]:
        """The pids of its xdist workers; supervisors and init steps have sessions of their own."""
        return [pid for pid in self.pids() if pid != self.process.pid and _session(pid) == self.process.pid]

    def supervisors(self) -> list[int]:
        """The pids of its servers' supervisors."""
        return [pid for pid in self.pids() if "pgsandbox.supervisor" in read(pid, "cmdline")]

    def pids(self) -> list[int]:
        """The pids of all processes that descend from it, whoever their parent is now, but for those of PostgreSQL."""
        return [pid for pid in all_pids() if f"{_MARK}={self.mark}\0" in read(pid, "environ")]

    def _who_said(self, moment: str) -> list[int]:
        """Who came to `moment`; where nobody did, it is the controller's affair."""
        return [int(file.read_text()) for file in self.folder.glob(f"{moment}.*")] or [self.process.pid]


def kill(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to a process that may be gone already."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def pause(seconds: float) -> None:
    """Let time pass: that is what some of the ways are made of."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        time.sleep(left)


def all_pids() -> list[int]:
    """The pids of all processes of this machine."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def read(pid: int, what: str) -> str:
    """What the kernel says of a process in one of its files; nothing if that has gone."""
    try:
        return Path(f"/proc/{pid}/{what}").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None
