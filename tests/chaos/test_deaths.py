"""Parts of a run that die alone: what was theirs goes with them, others take over, and the run ends as it should."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from arena import Arena, tally
from conftest import Target
from watch import DEADLINE, Watch

pytestmark = pytest.mark.slow
LOCAL, DOCKER = Target("local", 15).flags, Target("docker", 15).flags
ENGINES = pytest.mark.parametrize(
    "flags", [pytest.param(LOCAL, id="local"), pytest.param(DOCKER, id="docker", marks=pytest.mark.docker)]
)
SCOPES = ("session", "worker")

_MEMORY = Path("/sys/fs/cgroup/memory")


# Workers --------------------------------------------------------------------------------------------------------------


@ENGINES
def test_a_killed_worker_takes_only_what_was_its_own(arena: Arena, runtime: Path, flags: list[str]) -> None:
    runs = [arena.start(flags, scope, stop_at="mid-test") for scope in SCOPES]
    for run in runs:
        run.wait_for("mid-test", workers=2)
    watch = Watch(runtime, runs)
    before = [set(runtime.glob(f"runs/{run.ids[0]}/servers/*")) for run in runs]
    for run in runs:
        run.strike("worker", "kill")
    own = runs[1]
    own.wait_for(lambda: len(before[1] - set(runtime.glob("runs/*/servers/*"))) == 1)
    assert time.monotonic() - own.struck_at < DEADLINE
    for run in runs:
        assert (run.wait(), tally(run)) == (1, {"failed": 1, "passed": 3}), run.output
    watch.wait_until_clean()


@ENGINES
def test_when_all_workers_are_killed_others_finish(arena: Arena, runtime: Path, flags: list[str]) -> None:
    runs = [arena.start(flags, scope, stop_at="mid-test") for scope in SCOPES]
    for run in runs:
        run.wait_for("mid-test", workers=2)
    watch = Watch(runtime, runs)
    for run in runs:
        run.strike("workers", "kill")
    for run in runs:
        assert (run.wait(), tally(run)) == (1, {"failed": 2, "passed": 2}), run.output
    watch.wait_until_clean()


@ENGINES
def test_where_a_worker_that_builds_the_template_is_killed_another_takes_over(
    arena: Arena, runtime: Path, flags: list[str]
) -> None:
    """In the middle of its packing, or of the daemon's."""
    for scope in SCOPES:  # one after the other: nobody waits there
        salt = f"{flags}{scope}{time.time()}"
        run = arena.start(flags, scope, stop_at="packing", is_named=False, salt=salt)
        run.wait_for("packing")
        watch = Watch(runtime, [run])
        assert set(run.pids_of("builder")) <= set(run.workers())
        run.strike("builder", "kill")
        assert (run.wait(), tally(run)) == (1, {"failed": 1, "passed": 3}), run.output
        watch.wait_until_clean()


def test_a_killed_init_step_fails_the_run_in_words(arena: Arena, runtime: Path) -> None:
    run = arena.start(LOCAL, "session", stop_at="template", salt=str(time.time()))
    run.wait_for("template")
    watch = Watch(runtime, [run])
    run.strike("step", "kill")
    assert (run.wait(), tally(run)) == (1, {"errors": 4}), run.output
    assert "init step 'command: python step.py' failed with exit code 137" in run.output
    watch.wait_until_clean()


# The supervisors with all they look after -----------------------------------------------------------------------------


@ENGINES
def test_what_is_left_when_the_supervisors_die_with_all_others_goes_with_the_next_start(
    arena: Arena, runtime: Path, flags: list[str]
) -> None:
    moments = ("template", "packing", "mid-test")
    runs = [arena.start(flags, "worker", stop_at=moment, salt=f"{flags}{moment}{time.time()}") for moment in moments]
    watch = Watch(runtime, runs)
    for run, moment in zip(runs, moments, strict=True):
        run.wait_for(moment)
        watch.note()
        run.strike("supervisors", "kill")
        run.wait()
    arena.is_green_afterwards(flags, "worker")
    watch.wait_until_clean()


# From inside a test ---------------------------------------------------------------------------------------------------


@pytest.fixture
def cgroup(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A group of processes with little memory, which the test that is to die enters."""
    folder = _MEMORY / f"pgsandbox-test-{tmp_path.name}-{time.monotonic_ns()}"
    try:
        folder.mkdir()
    except OSError as problem:
        pytest.skip(f"this machine lets us make no control group of version 1: {problem.strerror}")
    try:
        (folder / "memory.limit_in_bytes").write_text(str(200 << 20))
        monkeypatch.setenv("CHAOS_CGROUP", str(folder))
        yield
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()


DEATHS = {"exit": 3, "segfault": -signal.SIGSEGV, "oom": -signal.SIGKILL}
"""By os._exit, by a segmentation fault, by the kernel for want of memory: and the exit code of pytest itself."""


def test_a_test_that_ends_its_worker_costs_itself(arena: Arena, runtime: Path, cgroup: None) -> None:
    runs = [arena.start(LOCAL, scope, death=death) for death, scope in zip(DEATHS, ["session", *SCOPES], strict=True)]
    watch = Watch(runtime, runs)
    for run in runs:
        assert (run.wait(), tally(run)) == (1, {"failed": 1, "passed": 3}), run.output
    watch.wait_until_clean()


def test_a_test_that_ends_its_run_leaves_nothing(arena: Arena, runtime: Path, cgroup: None) -> None:
    runs = [arena.start(LOCAL, "session", death=death, workers=0) for death in DEATHS]
    watch = Watch(runtime, runs)
    assert [run.wait() for run in runs] == list(DEATHS.values()), [run.output for run in runs]
    watch.wait_until_clean()


def test_a_test_that_may_have_no_more_memory_fails_alone(arena: Arena, runtime: Path) -> None:
    run = arena.start(LOCAL, "session", death="memory")
    watch = Watch(runtime, [run])
    assert (run.wait(), tally(run)) == (1, {"failed": 1, "passed": 3}), run.output
    assert "MemoryError" in run.output
    watch.wait_until_clean()
