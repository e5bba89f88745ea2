"""How long a copy of a template takes, in each way that PostgreSQL has, on the engines and versions that are here.

WAL_LOG copies block by block through the log, FILE_COPY file by file; since 18 the kernel can do that, which shares
blocks where the file system can (XFS, Btrfs, APFS). Medians in ms, all ways in turn in one server.

  scripts/bench clones --tables 50 --tables 300
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import bed, environment, helpers, schema
from benchmarks.report import say, spread, table

if TYPE_CHECKING:
    from benchmarks.bed import Bed

_VERSIONS = (15, 16, 17, 18)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What can be asked for."""
    parser.add_argument("--rounds", type=int, default=7, help="copies in each way (default: 7)")
    parser.add_argument(
        "--tables", type=int, action="append", help="size of the schema; may be repeated (default: 300)"
    )
    bed.add_arguments(parser)


def run(given: argparse.Namespace) -> int:
    """Measure, and print the table."""
    with bed.made(given.image, given.binaries) as where:
        environment.prepare()
        rows = []
        for tables in given.tables or [300]:
            folder = where.folder / f"clones-{tables}"
            folder.mkdir()
            (folder / "schema.sql").write_text(schema.sql(tables))
            (folder / "pytest.ini").write_text("[pytest]\n")
            for version in _VERSIONS:
                for engine, image in (("docker", os.environ.get(f"TEST_IMAGE_{version}", "")), ("local", "")):
                    if engine == "docker" and not (image and where.marked):
                        continue
                    say(f"{engine}, PostgreSQL {version}, {tables} tables")
                    rows += _rows(where, folder, [engine, image, str(version), str(given.rounds)], tables)
        print(table(["", "PostgreSQL", "tables", "way", "ms", "min-max", ""], rows))
    return 0


def _rows(where: Bed, folder: Path, words: list[str], tables: int) -> list[list[str]]:
    engine, _, version, _ = words
    try:
        process = helpers.started("copies.py", words, where=where, folder=folder)
        times: dict[str, list[float]] = json.loads(helpers.line_of(process, folder))
        process.wait(60)
    except LookupError as problem:
        return [[engine, version, str(tables), "", "", "", str(problem)]]
    return [
        [engine, version, str(tables), way, f"{statistics.median(ms):.0f}", spread(ms), ""] for way, ms in times.items()
    ]
