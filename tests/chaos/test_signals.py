"""What signals do to a run: whether it ends of them or goes on, nothing of it is left afterwards."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from arena import Arena, Blow, tally
from conftest import Target
from runs import kill, pause
from watch import Watch

pytestmark = pytest.mark.slow
LOCAL, DOCKER = Target("local", 15).flags, Target("docker", 15).flags
ENGINES = pytest.mark.parametrize(
    "flags", [pytest.param(LOCAL, id="local"), pytest.param(DOCKER, id="docker", marks=pytest.mark.docker)]
)

ENDS = [
    ("group", "int", {2}),
    ("group", "int-int", {2, -signal.SIGINT}),
    ("controller", "int", {2}),
    ("controller", "term", {-signal.SIGTERM}),
    ("group", "term", {-signal.SIGTERM}),
    ("group", "hup", {-signal.SIGHUP}),
    ("controller", "hup", {-signal.SIGHUP}),
    ("group", "quit", {-signal.SIGQUIT}),
]
"""Whom a signal is sent to, which, and what pytest may end with; a second Ctrl-C may hit it where it is not ready."""


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_that_is_told_to_end_leaves_nothing(arena: Arena, workers: int) -> None:
    """Ctrl-C and a closed terminal reach the whole group; whoever sends SIGTERM mostly means the controller."""
    blows = [Blow("session", "mid-test", victim, way) for victim, way, _ in ENDS]
    for first in range(0, len(blows), 4):
        runs = arena.play(LOCAL, *blows[first : first + 4], workers=workers)
        for run, (victim, way, codes) in zip(runs, ENDS[first : first + 4], strict=True):
            assert run.wait() in codes, f"{victim} {way}: {run.output}"


@pytest.mark.parametrize("moment", ["choice", "template", "packing", "reset", "teardown", "end"])
def test_whenever_it_is_told_so(arena: Arena, moment: str) -> None:
    """Where a run is over already, or takes it for the end of a background's work, it ends as if nothing had been."""
    blows = [Blow("session", moment, "group", "int"), Blow("worker", moment, "controller", "term")]
    arena.play(LOCAL, *blows, Blow("worker", moment, "group", "int-int"))


@pytest.mark.docker
@pytest.mark.parametrize("moment", ["asked", "template", "packing", "mid-test"])
def test_a_run_on_docker_that_is_told_to_end_leaves_nothing(arena: Arena, moment: str) -> None:
    arena.play(DOCKER, Blow("session", moment, "group", "int"), Blow("session", moment, "controller", "term"))


@ENGINES
def test_a_run_that_is_stopped_for_three_seconds_goes_on_with_its_server(arena: Arena, flags: list[str]) -> None:
    """Nothing has to say now and then that it is alive, so that nothing can be too late."""
    blows = [Blow("session", moment, "everything", "stop-cont") for moment in ("template", "first-test")]
    for run in arena.play(flags, *blows):
        assert (run.wait(), tally(run)) == (0, {"passed": 4}), run.output


@ENGINES
def test_a_run_that_is_stopped_and_then_killed_leaves_nothing(arena: Arena, flags: list[str]) -> None:
    """As a debugger does, or a machine that is short of memory."""
    arena.play(
        flags, Blow("session", "mid-test", "group", "stop-kill"), Blow("worker", "reset", "controller", "stop-kill")
    )


def test_a_stopped_supervisor_goes_on_where_it_was(arena: Arena, runtime: Path) -> None:
    """Everybody else is killed meanwhile."""
    run = arena.start(LOCAL, "session", stop_at="mid-test")
    run.wait_for("mid-test")
    watch = Watch(runtime, [run])
    supervisors = run.supervisors()
    for pid in supervisors:
        kill(pid, signal.SIGSTOP)
    run.strike("everything", "kill")
    pause(3)
    assert set(run.pids()) == set(supervisors)
    for pid in supervisors:
        kill(pid, signal.SIGCONT)
    watch.wait_until_clean()
