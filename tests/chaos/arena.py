"""Where runs are struck in tests: several at a time, watched until nothing of them is left, and followed by another."""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runs import DOCKER_MOMENTS, ChaosRun
from watch import Watch

BUILDING = ("template", "bake", "packing", "commit", *DOCKER_MOMENTS)
"""Moments to which only a run comes that builds its template."""


@dataclass(frozen=True)
class Blow:
    """What is done to a run, and when: `scope`, `moment`, `victim` and `way` are as in `runs`."""

    scope: str
    moment: str
    victim: str
    way: str = "kill"

    @property
    def needs_a_next_start(self) -> bool:
        """Whether nobody survives who could remove what is left."""
        return self.victim == "supervisors"

    def __str__(self) -> str:
        return f"{self.scope}-{self.moment}-{self.victim}-{self.way}"


@dataclass
class Arena:
    """Starts runs in folders of their own below `folder`; `end` kills what is left of them."""

    folder: Path
    runtime: Path
    started: list[ChaosRun] = field(default_factory=list)

    def start(self, flags: Sequence[str], scope: str, *more_flags: str, **more: Any) -> ChaosRun:
        """A run with these flags; what else `ChaosRun.start` takes is in `more`."""
        words = [*flags, f"--pgsandbox-scope={scope}", *more_flags]
        self.started.append(ChaosRun.start(self.folder / f"run{len(self.started)}", words, **more))
        return self.started[-1]

    def end(self) -> None:
        """Kill all that is left of the runs, and wait until they are gone."""
        for run in self.started:
            run.end()

    def play(self, flags: Sequence[str], *blows: Blow, **more: Any) -> list[ChaosRun]:
        """Strike as many runs, each when it has come to its moment, and wait until nothing of them is left.

        Whoever builds a template builds one that nobody else has; yet some may have to wait for others' locks.
        """
        runs = []
        for blow in blows:
            salt = uuid.uuid4().hex if blow.moment in BUILDING else ""
            runs.append(self.start(flags, blow.scope, stop_at=blow.moment, salt=salt, **more))
        watch = Watch(self.runtime, runs)
        waiting = list(zip(runs, blows, strict=True))
        while waiting:
            waiting[0][0].wait_for(lambda: any(run.is_at(blow.moment) for run, blow in waiting))
            for run, blow in [(run, blow) for run, blow in waiting if run.is_at(blow.moment)]:
                watch.note()
                run.strike(blow.victim, blow.way)
                waiting.remove((run, blow))
        watch.wait_until_clean()
        return runs

    def is_green_afterwards(self, flags: Sequence[str], scope: str = "session") -> None:
        """Fail unless one more run, of the same project, passes and leaves nothing."""
        run = self.start(flags, scope)
        assert (run.wait(), tally(run)) == (0, {"passed": 4}), run.output
        Watch(self.runtime, [run]).wait_until_clean()


def tally(run: ChaosRun) -> dict[str, int]:
    """How many of its tests passed, failed and so on, by pytest's last line."""
    last = next((line for line in reversed(run.output.splitlines()) if re.search(r" in [\d.]+s", line)), "")
    return {what: int(number) for number, what in re.findall(r"(\d+) (passed|failed|errors?|skipped)", last)}
