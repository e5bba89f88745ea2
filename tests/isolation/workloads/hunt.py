"""Plays random workloads until one leaves something behind, and then finds the smallest that does.

A seed that has failed fails again: `--seed 17 --count 200` plays what was played then. All that is random comes from
the seed; what is not, such as how far a statement got that was still running, may need a second try.
"""

from __future__ import annotations

import argparse
import os
import random
import secrets
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence

from hypothesis import HealthCheck, Phase, given, seed, settings

from pgsandbox import Sandbox
from pgsandbox.errors import PgsandboxError
from workloads.arena import FOLDER, Arena, arena
from workloads.workload import KINDS, Workload, workloads

OPTIONS = {"init": ["schema.sql"], "options": ["max_prepared_transactions=20"], "timeout": 120}
"""Settings of a sandbox for workloads, whose root is `FOLDER`."""

UNDONE_BY_CLONES = tuple(kind for kind in KINDS if kind != "outside")
"""The kinds of statements whose effects a fresh copy of the database undoes."""

_BATCH = 200


class WorkloadError(AssertionError):
    """A workload after which the database was not at its baseline: the smallest that was found, as SQL."""


def hunt(
    ground: Arena,
    *,
    count: int,
    seed_: int,
    kinds: Sequence[str] = UNDONE_BY_CLONES,
    about: str = "",
    shrink: bool = True,
    words: Sequence[str] = (),
) -> None:
    """Play `count` workloads that the number `seed_` determines. Raises WorkloadError.

    They are of these `kinds` of statements, and of those that match the pattern `about`. `words` are the arguments of
    scripts/workloads that lead to the same ground.
    """
    last: list[Workload] = []

    @seed(seed_)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, *([Phase.shrink] if shrink else [])],
        report_multiple_bugs=False,
        print_blob=False,
    )
    @given(workloads(*kinds, about=about))
    def check(workload: Workload) -> None:
        last[:] = [workload]  # hypothesis ends with the smallest that fails
        ground.play(workload)

    try:
        check()
    except Exception as problem:
        again = shlex.join(["scripts/workloads", *words, "--seed", str(seed_), "--count", str(count)])
        raise WorkloadError(f"{last[0]}\n-- leaves this behind:\n{problem}\n-- play it again: {again}") from problem


def told(tally: Counter[str]) -> str:
    """What happened, in a line."""
    rounds, steps = max(1, tally["rounds"]), max(1, tally["done"] + tally["refused"])
    return (
        f"{tally['rounds']} resets, {tally['reset µs'] / rounds / 1000:.1f} ms each; of {steps} statements"
        f" {100 * tally['refused'] / steps:.0f}% were refused; of the sessions {tally['lives on']} lived on,"
        f" {tally['cut']} were cut at work, {tally['cut while idle']} at rest"
    )


def several(workers: int, *words: str, seed_: int) -> list[subprocess.CompletedProcess[str]]:
    """This program in `workers` processes that share one server, with the arguments `words`, until all have ended."""
    run = f"workloads-{secrets.token_hex(6)}"
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(FOLDER.parent), *sys.path])}
    command = [sys.executable, "-m", "workloads.hunt", *words, "--run", f"{run}/{workers}"]
    processes = [
        subprocess.Popen(
            [*command, "--worker", f"gw{n}", "--seed", str(seed_ + n)],
            env=environ,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for n in range(workers)
    ]
    try:
        return [
            subprocess.CompletedProcess(one.args, one.returncode, said)
            for one in processes
            for said, _ in [one.communicate()]
        ]
    finally:
        for one in processes:
            one.kill()
            one.wait()


def main(words: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, help="go on for so long, with one seed after another")
    parser.add_argument("--seed", type=int, help="the first seed; by default one at random")
    parser.add_argument("--count", type=int, default=_BATCH, help="workloads for each seed (%(default)s)")
    parser.add_argument("--engine", default="local", choices=("local", "docker"))
    parser.add_argument("--version", type=int, help="PostgreSQL's major version")
    parser.add_argument("--image", help="for docker")
    parser.add_argument("--isolation", default="reset", choices=("reset", "clone"))
    parser.add_argument("--workers", type=int, default=1, help="processes that share one server")
    parser.add_argument("--superuser", action="store_true", help="the sessions are superusers")
    parser.add_argument("--order", action="store_true", help="compare the order of an unordered SELECT, too")
    parser.add_argument("--kinds", nargs="*", choices=list(KINDS), default=list(UNDONE_BY_CLONES))
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--worker", default="main", help=argparse.SUPPRESS)
    given_ = parser.parse_args(words)
    if given_.workers > 1 and given_.run is None:
        first = given_.seed if given_.seed is not None else random.randrange(10**9)
        done = several(given_.workers, *(words if words is not None else sys.argv[1:]), seed_=first)
        for one in done:
            print(one.stdout, end="")
        return max(one.returncode for one in done)
    run, _, workers = (given_.run or "/1").partition("/")
    for name in [name for name in sorted(os.environ) if name.startswith("TEST_BIN_")]:  # what scripts/test brought
        os.environ["PATH"] = os.pathsep.join([os.environ[name], os.environ["PATH"]])
    choice = {"engine": given_.engine, "version": given_.version, "image": given_.image, "isolation": given_.isolation}
    sandbox = Sandbox(
        root=FOLDER,
        run=run or None,
        worker=given_.worker,
        workers=int(workers),
        scope="session" if workers != "1" else "auto",
        **{name: value for name, value in choice.items() if value is not None},
        superuser=given_.superuser,
        **OPTIONS,
    )
    again = ["--engine", given_.engine, "--version", str(sandbox.choice.version).partition(".")[0]]
    again += ["--superuser"] * given_.superuser + ["--order"] * given_.order
    number = given_.seed if given_.seed is not None else random.randrange(10**9)
    deadline = time.monotonic() + 3600 * (given_.hours or 0)
    with sandbox, arena(sandbox, alone=workers == "1", order=given_.order) as ground:
        while True:
            began = time.monotonic()
            try:
                hunt(ground, count=given_.count, seed_=number, kinds=given_.kinds, words=again)
            except WorkloadError as problem:
                print(f"{given_.worker}: seed {number} fails:\n{problem}", flush=True)
                return 1
            print(f"{given_.worker}: seed {number}: {time.monotonic() - began:.0f} s, {told(ground.tally)}", flush=True)
            ground.tally.clear()
            number += int(workers)
            if time.monotonic() >= deadline:
                return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PgsandboxError as problem_:
        sys.exit(str(problem_))
