"""The server's file system is full: a worker whose server can't go on says so at once, and gives the space back."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from conftest import Target
from engines import plain
from machine import needs_root, with_mounts

SUITE = """
import psycopg, pytest


def test_fill(pgsandbox_connection):
    pgsandbox_connection.execute("CREATE TABLE big (a text)")
    with pytest.raises(psycopg.Error):
        while True:
            pgsandbox_connection.execute("INSERT INTO big SELECT repeat('x', 900) FROM generate_series(1, 20000)")


def test_after(pgsandbox_connection):
    pass


def test_long_after(pgsandbox_connection):
    pass
"""


@needs_root
def test_a_test_that_fills_the_disk_costs_its_worker_one_clear_error(
    pytester: pytest.Pytester, some_target: Target
) -> None:
    """A log that can't be written ends PostgreSQL (PANIC), and without space it can't recover."""
    pytester.makepyfile(SUITE)
    words = [sys.executable, "-m", "pytest", "-p", "pgsandbox", "-p", "no:randomly", *some_target.flags]
    environ = {**os.environ, "_PGSANDBOX_CACHE": str(pytester.mkdir("cache"))}
    done = subprocess.run(
        [*with_mounts("-t tmpfs -o size=560m tmpfs /dev/shm"), *words],
        cwd=pytester.path,
        env=environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    said = [plain(line) for line in done.stdout.splitlines()]
    assert "1 passed, 2 errors" in said[-1], done.stdout
    for line in (
        "pgsandbox: the local server at 127.0.0.1:# has ended",
        "  why: no space is left on the file system of /dev/shm",
        "  hint: free some there, or write less in one test; `pgsandbox ls` shows what of ours runs",
    ):
        assert said.count(line) == 2, done.stdout
