"""SIGKILL of runs, whole or in part, wherever they are: five seconds later nothing of them is left."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from conftest import Target
from runs import DEADLINE, MOMENTS, ChaosRun, Watch, kill

pytestmark = pytest.mark.slow
LOCAL, DOCKER = Target("local", 15), Target("docker", 15)

Start = Callable[..., ChaosRun]


@pytest.fixture
def start(tmp_path: Path, binaries: None) -> Iterator[Start]:
    """`start(target, scope, stop_at="template")`: a run that can be killed; all are ended after the test."""
    started: list[ChaosRun] = []

    def start(target: Target, scope: str, *flags: str, **more: object) -> ChaosRun:
        words = [*target.flags, f"--pgsandbox-scope={scope}", *flags]
        started.append(ChaosRun.start(tmp_path / f"run{len(started)}", words, **more))  # type: ignore[arg-type]
        return started[-1]

    yield start
    for run in started:
        for pid in [] if run.process.poll() is not None else [run.process.pid, *run.workers()]:
            kill(pid)
        run.process.wait()


def kill_all(runtime: Path, victims: Sequence[tuple[ChaosRun, str]], *, spared: Sequence[Path] = ()) -> None:
    """Kill each in its way, at once, and wait until nothing of them is left."""
    watch = Watch(runtime, [run for run, _ in victims], spared=spared)
    for run, victim in victims:
        run.kill(victim)
    watch.wait_until_clean()


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_local_run_leaves_nothing(start: Start, runtime: Path, moment: str) -> None:
    ways = [("session", "everything"), ("session", "controller"), ("worker", "controller"), ("worker", "group")]
    victims = [(start(LOCAL, scope, stop_at=moment), victim) for scope, victim in ways]
    for run, _ in victims:
        run.wait_for(moment)
    kill_all(runtime, victims)


@pytest.mark.docker
@pytest.mark.parametrize(
    "moment",
    ["asked", "created", "template", "seeded", pytest.param("first-test", marks=pytest.mark.podman), "teardown"],
)
def test_a_run_on_docker_leaves_nothing(start: Start, runtime: Path, moment: str) -> None:
    """A container that was created and not yet started included."""
    scopes = ["worker"] if moment == "seeded" else ["session", "worker"]
    ways = zip(scopes, ["everything", "controller"], strict=False)
    victims = [(start(DOCKER, scope, *FRESH.get(moment, ()), stop_at=moment), victim) for scope, victim in ways]
    for run, _ in victims:
        run.wait_for(moment)
    kill_all(runtime, victims)


FRESH = {"seeded": ["--pgsandbox-cache=false"]}
"""Flags without which a run would not come to a moment."""


def test_whenever_it_is_killed_and_a_run_alongside_finishes_untouched(start: Start, runtime: Path) -> None:
    """What stands at no moment in particular: four runs at a time, killed anywhere between birth and end."""
    survivor = start(LOCAL, "worker", until="finish")
    survivor.wait_for("mid-test", workers=2)
    spared = Watch(runtime).run_folders()
    for _ in range(4):
        victims = [
            (start(LOCAL, scope, until="never"), random.choice(["everything", "controller", "group"]))
            for scope in ("session", "worker", "worker")
        ]
        wait_until(victims[-1][0].began_at + random.uniform(0.2, 4.0))
        kill_all(runtime, victims, spared=spared)
    (survivor.folder / "finish").touch()
    assert (survivor.wait(), "4 passed" in survivor.output) == (0, True), survivor.output


@pytest.mark.docker
def test_a_run_on_docker_alongside_finishes_untouched(start: Start, runtime: Path) -> None:
    survivor = start(DOCKER, "session", until="finish")
    survivor.wait_for("mid-test", workers=2)
    spared = Watch(runtime).run_folders()
    victims = [(start(DOCKER, scope, stop_at="mid-test"), "group") for scope in ("session", "worker")]
    for run, _ in victims:
        run.wait_for("mid-test")
    kill_all(runtime, victims, spared=spared)
    (survivor.folder / "finish").touch()
    assert (survivor.wait(), "4 passed" in survivor.output) == (0, True), survivor.output


@pytest.mark.parametrize(
    ("on", "scope"),
    [
        pytest.param(LOCAL, "session", id="local-session"),
        pytest.param(LOCAL, "worker", id="local-worker"),
        pytest.param(DOCKER, "worker", id="docker-worker", marks=pytest.mark.docker),
    ],
)
def test_a_killed_worker_takes_only_what_was_its_own(start: Start, runtime: Path, on: Target, scope: str) -> None:
    run = start(on, scope, stop_at="mid-test")
    run.wait_for("mid-test", workers=2)
    before = set(runtime.glob("runs/*/servers/*"))
    run.kill("worker")
    run.wait_for(lambda: "node down" in run.output)
    if scope == "worker":
        run.wait_for(lambda: len(before - set(runtime.glob("runs/*/servers/*"))) == 1)
        assert time.monotonic() - run.killed_at < DEADLINE
    run.go_on()
    assert (run.wait(), "1 failed, 3 passed" in run.output) == (1, True), run.output
    run.killed_at = time.monotonic()  # of the rest of it, the end is what counts
    Watch(runtime, [run]).wait_until_clean()


@pytest.mark.parametrize(
    "on", [pytest.param(LOCAL, id="local"), pytest.param(DOCKER, id="docker", marks=pytest.mark.docker)]
)
def test_a_run_that_is_stopped_for_three_seconds_goes_on_with_its_server(
    start: Start, runtime: Path, on: Target
) -> None:
    """Nothing has to say now and then that it is alive, so that nothing can be too late."""
    run = start(on, "session", stop_at="first-test")
    run.wait_for("first-test", workers=2)
    stopped = [run.process.pid, *run.workers()]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    wait_until(time.monotonic() + 3)
    for pid in stopped:
        os.kill(pid, signal.SIGCONT)
    run.go_on()
    assert (run.wait(), "4 passed" in run.output) == (0, True), run.output
    Watch(runtime, [run]).wait_until_clean()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("numbers", "codes"),
    [
        ([signal.SIGINT], {2}),
        ([signal.SIGINT, signal.SIGINT], {2, -signal.SIGINT}),
        ([signal.SIGTERM], {-signal.SIGTERM}),
    ],
    ids=["int", "int-int", "term"],
)
def test_an_interrupted_run_leaves_nothing(
    start: Start, runtime: Path, workers: int, numbers: list[signal.Signals], codes: set[int]
) -> None:
    """Ctrl-C reaches all of the process group, and a second one may hit pytest where it is no longer ready for it;
    whoever sends SIGTERM mostly means the controller."""
    run = start(LOCAL, "session", stop_at="mid-test", workers=workers)
    run.wait_for("mid-test")
    watch = Watch(runtime, [run])
    for number in numbers:
        if number == signal.SIGINT:
            os.killpg(run.process.pid, number)
        else:
            kill(run.process.pid, number)
        wait_until(time.monotonic() + 0.1)
    assert run.wait() in codes, run.output
    run.killed_at = time.monotonic()
    watch.wait_until_clean()


def wait_until(moment: float) -> None:
    while (left := moment - time.monotonic()) > 0:
        time.sleep(left)
