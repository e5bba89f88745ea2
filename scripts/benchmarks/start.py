"""The whole run of one test, everything included, for pgsandbox, its peers and no database at all; and memory.

Side by side: A B C A B C …, after one round that is not counted (but shown: it builds pgsandbox's cache). All of them
run the same schema on the same PostgreSQL 15, those on Docker the same image, in one virtual environment,
.cache/bench, which the first call makes. What a run leaves is reported, and removed where it is proven to be the run's.

  scripts/bench start --tables 50 --tables 300 --rounds 5
  scripts/bench start --only 'pgsandbox, local' --only pytest-pg --no-memory
"""

from __future__ import annotations

import argparse
import os
import statistics
from typing import TYPE_CHECKING

from benchmarks import bed, environment, memory, processes, runs
from benchmarks.peers import MAJOR, PEERS
from benchmarks.report import difference, ratio, say, spread, table

if TYPE_CHECKING:
    from benchmarks.runs import Series

_NOTHING = "no database"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What can be asked for."""
    parser.add_argument("--rounds", type=int, default=5, help="counted runs of each (default: 5)")
    parser.add_argument("--tables", type=int, action="append", help="size of the schema; may be repeated (default: 50)")
    names = [peer.name for peer in PEERS]
    everybody = "; ".join(names)
    parser.add_argument("--only", action="append", choices=names, metavar="WHO", help=f"may be repeated: {everybody}")
    bed.add_arguments(parser)
    parser.add_argument("--patience", type=float, default=0, help="seconds to wait before a run while others are busy")
    parser.add_argument("--no-memory", action="store_true", help="leave out the table of memory")


def run(given: argparse.Namespace) -> int:
    """Measure, and print the tables."""
    sizes = given.tables or [50]
    with bed.made(given.image, given.binaries) as where:
        missing = environment.prepare()
        peers = [peer for peer in PEERS if not given.only or peer.name in (*given.only, _NOTHING)]
        every = [runs.prepare(peer, size, where, missing) for size in sizes for peer in peers]
        others = _rounds(every, where, given.rounds, given.patience)
        _show(every, sizes, given.rounds, others)
        if not given.no_memory:
            print(f"\n{memory.measured(where, sizes[0])}", flush=True)
    return 0


def _rounds(every: list[Series], where: bed.Bed, rounds: int, patience: float) -> list[float]:
    """All rounds; how busy others kept the machine before each run that counts."""
    others = []
    for turn in range(rounds + 1):
        say(f"round {turn} of {rounds}")
        for series in every:
            if series.failure:
                continue
            share = processes.calm(patience if turn else 0)
            runs.once(series, where, counts=turn > 0)
            if turn:
                others.append(share)
    return others


def _show(every: list[Series], sizes: list[int], rounds: int, others: list[float]) -> None:
    print(f"pgsandbox {environment.checkout()}; {environment.versions()}; PostgreSQL {MAJOR}")
    busy = f"{statistics.median(others):.0%} (median), {max(others):.0%} (most)" if others else "unknown"
    print(f"{os.cpu_count()} processors, busy with others' work before the runs: {busy}")
    for size in sizes:
        here = [series for series in every if series.tables == size]
        smallest = {one.peer.name: one for one in every if one.tables == sizes[0] and not one.failure}
        whole = [series for series in here if not series.failure]
        base = next((series for series in whole if series.peer.name == _NOTHING), None)
        rivals = [series for series in whole if series.peer.needs and not series.peer.is_ours]
        best = min(rivals, key=lambda one: statistics.median(one.seconds), default=None)
        print(f"\nwhole run of one test, {size} tables, {rounds} rounds: seconds; ratios round by round, their median")
        head = ["", "median", "min-max", "uncounted", "to best peer", "to no database", "more", "leftovers"]
        if size != sizes[0]:
            head.insert(-1, f"to {sizes[0]} tables")
        rows = []
        for one in here:
            if one.failure:
                rows.append([one.peer.name, *[""] * (len(head) - 2), one.failure])
                continue
            row = [one.peer.name, f"{statistics.median(one.seconds):.2f}", spread(one.seconds), f"{one.first:.2f}"]
            row.append(ratio(one.seconds, best.seconds) if best else "")
            row += [ratio(one.seconds, base.seconds), difference(one.seconds, base.seconds)] if base else ["", ""]
            if size != sizes[0]:
                small = smallest.get(one.peer.name)
                row.append(ratio(one.seconds, small.seconds) if small else "")
            rows.append([*row, _leftovers(one)])
        print(table(head, rows), flush=True)


def _leftovers(one: Series) -> str:
    """What stayed, in how many of the runs; or how long it took to go."""
    parts = [f"{what} after {one.left.count(what)} of {len(one.gone_after)} runs" for what in dict.fromkeys(one.left)]
    if not parts:
        slowest = max(one.gone_after)
        parts.append(f"none after {slowest:.1f} s" if slowest >= 0.2 else "none")
    if one.kept:
        parts.append(f"kept as a cache: {', '.join(one.kept)}")
    return "; ".join(parts)
