"""SIGKILL of runs, whole or in part, at every moment of their lives: five seconds later nothing of them is left."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from arena import BUILDING, Arena, Blow, tally
from conftest import Target
from runs import DOCKER_MOMENTS, MOMENTS, pause
from watch import Watch

pytestmark = pytest.mark.slow
LOCAL, DOCKER = Target("local", 15).flags, Target("docker", 15).flags


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_local_run_leaves_nothing(arena: Arena, moment: str) -> None:
    ways = [("session", "everything"), ("session", "controller"), ("worker", "controller"), ("worker", "group")]
    arena.play(LOCAL, *(Blow(scope, moment, victim) for scope, victim in ways))
    if moment in BUILDING:
        arena.is_green_afterwards(LOCAL, "worker")


@pytest.mark.docker
@pytest.mark.parametrize(
    "moment",
    [pytest.param(m, marks=[pytest.mark.podman] if m == "first-test" else []) for m in [*DOCKER_MOMENTS, *MOMENTS]],
)
def test_a_run_on_docker_leaves_nothing(arena: Arena, moment: str) -> None:
    """Neither a container that was never started, nor an image that the daemon went on to make."""
    arena.play(DOCKER, Blow("session", moment, "everything"), Blow("worker", moment, "controller"))
    if moment in BUILDING:
        arena.is_green_afterwards(DOCKER)


@pytest.mark.parametrize("moment", ["template", "bake", "packing", "first-test"])
@pytest.mark.parametrize(
    "flags", [pytest.param(LOCAL, id="local"), pytest.param(DOCKER, id="docker", marks=pytest.mark.docker)]
)
def test_a_run_that_keeps_no_template_leaves_nothing(arena: Arena, flags: list[str], moment: str) -> None:
    """With one server it is built in place; with one for each worker, all start from a seed of this run's own."""
    scopes = ["worker"] if moment in ("bake", "packing") else ["session", "worker"]
    arena.play([*flags, "--pgsandbox-cache=false"], *(Blow(scope, moment, "everything") for scope in scopes))


def test_whenever_it_is_killed_and_a_run_alongside_finishes_untouched(arena: Arena, runtime: Path) -> None:
    """What stands at no moment in particular: three runs at a time, killed anywhere between birth and end."""
    survivor = arena.start(LOCAL, "worker", until="finish")
    survivor.wait_for("mid-test", workers=2)
    for _ in range(4):
        victims = [arena.start(LOCAL, scope, until="never") for scope in ("session", "worker", "worker")]
        pause(random.uniform(0.2, 4.0))
        watch = Watch(runtime, victims)
        for run in victims:
            run.strike(random.choice(["everything", "controller", "group"]), "kill")
        watch.wait_until_clean()
    (survivor.folder / "finish").touch()
    assert (survivor.wait(), tally(survivor)) == (0, {"passed": 4}), survivor.output


@pytest.mark.docker
def test_a_run_on_docker_alongside_finishes_untouched(arena: Arena) -> None:
    survivor = arena.start(DOCKER, "session", until="finish")
    survivor.wait_for("mid-test", workers=2)
    arena.play(DOCKER, Blow("session", "mid-test", "group"), Blow("worker", "mid-test", "group"))
    (survivor.folder / "finish").touch()
    assert (survivor.wait(), tally(survivor)) == (0, {"passed": 4}), survivor.output
