"""What chance may pick for a run that is struck, and the table of what came of it."""

from __future__ import annotations

import random
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from arena import Blow
from runs import DOCKER_MOMENTS, MOMENTS, WAYS

ENGINES = ("local", "docker")

AT_RANDOM = "any time"
"""The moment that is none in particular."""

_BUILDING = ("template", "bake", "packing", "commit")
_WITH_WORKERS = ("first-test", "mid-test", "reset", "teardown", AT_RANDOM)
_LIVES_ON = ("kill", "term", "hup", "quit", "stop-cont", "stop-kill")


def _pairs(moment: str) -> list[tuple[str, str]]:
    """Whom to strike at this moment, and how, so that the run either ends or goes on by itself."""
    found = [(victim, way) for victim in ("controller", "group") for way in WAYS]
    found += [("everything", way) for way in ("kill", "term", "stop-cont", "stop-kill")]
    found += [("supervisors", "kill")]
    if moment in _WITH_WORKERS:
        found += [(victim, way) for victim in ("worker", "workers") for way in _LIVES_ON]
    if moment in _BUILDING:
        found += [("builder", way) for way in _LIVES_ON]
    return [*found, ("step", "kill")] if moment == "template" else found


def pick(chance: random.Random, engine: str) -> tuple[Blow, float]:
    """A blow, and at which part of the run's life it falls where its moment is none in particular."""
    moments = [*MOMENTS, *(DOCKER_MOMENTS if engine == "docker" else ())]
    moment = AT_RANDOM if chance.random() < 0.4 else chance.choice(moments)
    victim, way = chance.choice(_pairs(moment))
    return Blow(chance.choice(["session", "worker"]), moment, victim, way), chance.random()


@dataclass(frozen=True)
class Report:
    """What came of one blow."""

    engine: str
    blow: Blow
    seconds: float | None = None
    """Until nothing was left; None where that never came, or was not seen."""
    leak: str | None = None
    """What was left, in words."""
    effect: str | None = None
    """What failed that nobody had struck, in words."""

    @property
    def is_bad(self) -> bool:
        """Whether it shows that something is wrong with us."""
        return (self.leak or self.effect) is not None

    def __str__(self) -> str:
        said = self.leak or self.effect or f"clean after {self.seconds or 0:.1f} s"
        return f"{self.engine} {self.blow}: {said}"


def table(reports: Sequence[Report]) -> str:
    """Moments by engines by ways: how many blows fell, what they left and whom else they hurt, seconds until clean."""
    head = [*WAYS, "kills", "leaks", "effects", "median s", "max s"]
    lines = [f"{'moment':12}{'engine':8}" + "".join(f"{name:>10}" for name in head)]
    for place in [(moment, engine) for moment in (*MOMENTS, *DOCKER_MOMENTS, AT_RANDOM) for engine in ENGINES]:
        found = [one for one in reports if (one.blow.moment, one.engine) == place]
        lines += ["{:12}{:8}".format(*place) + _row(found)] if found else []
    return "\n".join([*lines, f"{'all':20}" + _row(reports)])


def _row(reports: Sequence[Report]) -> str:
    ways = Counter(one.blow.way for one in reports)
    seconds = [one.seconds for one in reports if one.seconds is not None] or [0.0]
    leaks, effects = sum(one.leak is not None for one in reports), sum(one.effect is not None for one in reports)
    cells = [*(ways[name] or "" for name in WAYS), len(reports), leaks, effects]
    cells += [f"{statistics.median(seconds):.1f}", f"{max(seconds):.1f}"]
    return "".join(f"{cell:>10}" for cell in cells)
