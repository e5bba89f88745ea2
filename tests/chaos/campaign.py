"""Starts runs, several at once, and strikes each where chance picks: at which moment, whom, and how.

After each blow nothing of the run may be left five seconds after its end, and one more run of the same project has to
pass; while that works others are struck beside it, and it fails if any of that hurts it. The same seed picks the same
blows; when exactly each one falls, the machine decides.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arena import Blow, tally
from chances import AT_RANDOM, ENGINES, Report, pick, table
from conftest import Target
from runs import ChaosRun, pause
from watch import DEADLINE, LeftError, Watch

from pgsandbox.cache import Cache
from pgsandbox.fingerprint import FORMAT

_LIFE = 5.0
"""Seconds that a run lives which nobody strikes, as long as none has been seen."""


@dataclass
class Campaign:
    """`slots` runs at once, which share the runtime folder below `folder`; `tell` is told of each blow."""

    folder: Path
    engines: Sequence[str]
    seed: int
    slots: int = 4
    tell: Callable[[Report], None] = lambda report: None
    over: threading.Event = field(default_factory=threading.Event)
    reports: list[Report] = field(default_factory=list)
    _begun: int = 0
    _runs: set[ChaosRun] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def runtime(self) -> Path:
        """The folder that all runs share."""
        return self.folder / "runtime"

    def play(self, *, kills: int | None = None, seconds: float | None = None) -> None:
        """Strike so many times, or for so long. When it is interrupted, what it has started is killed and gone."""
        self.runtime.mkdir(mode=0o700)
        for slot in range(self.slots):
            (self.folder / f"cache{slot}").mkdir(mode=0o755)
        until = None if seconds is None else time.monotonic() + seconds
        threads = [threading.Thread(target=self._serve, args=(slot, kills, until)) for slot in range(self.slots)]
        for thread in threads:
            thread.start()
        try:
            while any(thread.is_alive() for thread in threads):
                threads[0].join(0.2)
                pause(0.1)
        finally:
            self.over.set()
            for run in list(self._runs):
                run.end()
            for thread in threads:
                thread.join()

    def clear(self) -> list[str]:
        """Remove the kept templates; what is left of all runs together, in words, as nobody attends to it any more."""
        before = os.environ.get("_PGSANDBOX_CACHE")
        for slot in range(self.slots):
            os.environ |= self._environ(slot)
            Cache().clear()
        del os.environ["_PGSANDBOX_CACHE"], os.environ["_PGSANDBOX_ROOT"]
        if before is not None:
            os.environ["_PGSANDBOX_CACHE"] = before
        deadline = time.monotonic() + DEADLINE
        while (left := [f"folder {path}" for path in self.runtime.glob("runs/*")]) and time.monotonic() < deadline:
            time.sleep(0.1)
        return left

    @contextlib.contextmanager
    def run(self, slot: int, name: str, flags: Sequence[str], **more: Any) -> Iterator[ChaosRun]:
        """A run in the folder `name` of a slot, ended after the block. Raises AssertionError when all is over."""
        assert not self.over.is_set()
        found = ChaosRun.start(self.folder / f"slot{slot}" / name, flags, environ=self._environ(slot), **more)
        self._runs.add(found)
        try:
            yield found
        finally:
            self._runs.discard(found)
            found.end()

    # One slot ---------------------------------------------------------------------------------------------------------

    def _serve(self, slot: int, kills: int | None, until: float | None) -> None:
        chance, life = random.Random(f"{self.seed}/{slot}"), _LIFE
        while not self.over.is_set() and (until is None or time.monotonic() < until) and self._is_wanted(kills):
            engine = chance.choice(self.engines)
            blow, when = pick(chance, engine)
            try:
                seconds, life, effect = self._strike(slot, engine, blow, when * life)
                report = Report(engine, blow, seconds=seconds, effect=effect)
            except LeftError as problem:
                report = Report(engine, blow, leak=str(problem))
            except (AssertionError, subprocess.TimeoutExpired) as problem:
                report = Report(engine, blow, effect=str(problem))
            if not self.over.is_set():
                with self._lock:
                    self.reports.append(report)
                    self.tell(report)

    def _is_wanted(self, kills: int | None) -> bool:
        with self._lock:
            self._begun += 1
            return kills is None or self._begun <= kills

    def _strike(self, slot: int, engine: str, blow: Blow, wait: float) -> tuple[float, float, str | None]:
        """Strike once: the seconds until nothing was left, those that an untouched run lives, and who else was hurt.

        Raises LeftError, and AssertionError where a run gets nowhere.
        """
        flags = [*Target(engine, 15).flags, f"--pgsandbox-scope={blow.scope}"]
        cache, salt = Cache(self.folder / f"cache{slot}" / f"templates-{FORMAT}"), uuid.uuid4().hex
        stop_at, is_named = "" if blow.moment == AT_RANDOM else blow.moment, blow.victim != "builder"
        with self.run(slot, "struck", flags, salt=salt, stop_at=stop_at, is_named=is_named) as run:
            if stop_at:
                run.wait_for(stop_at)
            else:
                pause(wait)
            watch = Watch(self.runtime, [run], cache=cache)
            run.strike(blow.victim, blow.way)
            run.wait()
            seconds = 0.0 if blow.needs_a_next_start else watch.wait_until_clean()
            effect = unexplained(run, blow)
            with self.run(slot, "next", flags, salt=salt) as again:
                if again.wait() != 0:
                    effect = f"the next run fails: {again.output}"
                life = time.monotonic() - again.began_at
                Watch(self.runtime, [again], cache=cache).wait_until_clean()
                if blow.needs_a_next_start:
                    seconds = watch.wait_until_clean()
        return seconds, life, effect

    def _environ(self, slot: int) -> dict[str, str]:
        return {"_PGSANDBOX_ROOT": str(self.runtime), "_PGSANDBOX_CACHE": str(self.folder / f"cache{slot}")}


def unexplained(run: ChaosRun, blow: Blow) -> str | None:
    """What failed in a run that has come to its end by itself, but for whom the blow hit; None if nothing did."""
    found, code = tally(run), run.process.returncode
    crashed = run.output.count("crashed while running")
    is_fine = code == 0 or (code == 1 and blow.way != "stop-cont" and found.get("failed", 0) <= crashed)
    is_over = code not in (0, 1) and blow.way != "stop-cont"
    if is_over or blow.victim == "step" or (is_fine and not found.get("errors", 0) + found.get("error", 0)):
        return None
    return f"exit code {code}: {run.output}"


# The command line -----------------------------------------------------------------------------------------------------


def main(words: Sequence[str] | None = None) -> int:
    """The command line; its exit code."""
    about = argparse.ArgumentParser(
        "scripts/chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    length = about.add_mutually_exclusive_group()
    length.add_argument("--kills", type=int, default=50, metavar="N", help="strike so many times (%(default)s)")
    length.add_argument("--minutes", type=float, metavar="N", help="strike for so long instead")
    about.add_argument("--seed", type=int, help="what chance picks; by default one at random, which is printed")
    about.add_argument("--engine", action="append", choices=ENGINES, help="both, unless named; repeatable")
    about.add_argument("--slots", type=int, default=4, metavar="N", help="runs at once (%(default)s)")
    asked = about.parse_args(words)
    for name in [name for name in sorted(os.environ) if name.startswith("TEST_BIN_")]:  # what scripts/test brought
        os.environ["PATH"] = os.pathsep.join([os.environ[name], os.environ["PATH"]])
    seed = random.randrange(10**9) if asked.seed is None else asked.seed
    folder = Path(tempfile.mkdtemp(prefix="pgsandbox-chaos-"))
    folder.chmod(0o755)  # an unprivileged user's copies of binaries are in it
    limit = "" if asked.minutes else f" of {asked.kills}"

    def tell(report: Report) -> None:
        print(f"\r{len(campaign.reports)}{limit}: {report}", end="\n" if report.is_bad else "\033[K", flush=True)

    campaign = Campaign(folder, asked.engine or ENGINES, seed, slots=asked.slots, tell=tell)
    print(f"seed {seed}", flush=True)
    code, left = 0, list[str]()
    try:
        campaign.play(
            kills=None if asked.minutes else asked.kills, seconds=60 * asked.minutes if asked.minutes else None
        )
    except KeyboardInterrupt:
        code = 130
    finally:
        left = campaign.clear()
        shutil.rmtree(folder, ignore_errors=True)
    print("\r\033[K" + table(campaign.reports))
    for line in left:
        print(f"left at the end: {line}")
    return code or int(bool(left) or any(report.is_bad for report in campaign.reports))


if __name__ == "__main__":
    sys.exit(main())
