"""`prune --cache` clears the templates of all projects of a user: also of one that is just being started from."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from children import child
from conftest import Target
from machine import running

from pgsandbox.cache import Cache
from pgsandbox.errors import PgsandboxError

pytestmark = pytest.mark.slow
LOCAL, DOCKER = Target("local", 15), Target("docker", 15)

WORKER = """\
import json, sys
from pgsandbox import Sandbox
with Sandbox(**json.loads(sys.argv[1]), run=sys.argv[2], worker=sys.argv[3], workers=2) as sandbox:
    with sandbox.database().connect() as connection:
        print(*connection.execute("SELECT count(*) FROM t").fetchone(), flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def schema(project: Path, own_cache: Path, binaries: None) -> Path:
    """A project whose template has one table, in a cache of its own."""
    file = project / "schema.sql"
    file.write_text("CREATE TABLE t AS SELECT generate_series(1, 100)")
    return file


def works(settings: dict[str, Any], progress: Callable[[str], None]) -> None:
    with running(**settings, init=["schema.sql"], scope="session", progress=progress) as sandbox:
        with sandbox.database().connect() as connection:
            assert connection.execute("SELECT count(*) FROM t").fetchone() == (100,)
        with sandbox.fresh().connect() as connection:  # for which the template itself is unpacked
            assert connection.execute("SELECT count(*) FROM t").fetchone() == (100,)


@pytest.mark.parametrize(
    ("on", "times"),
    [
        *((LOCAL, times) for times in (1, 2, 100)),
        *(pytest.param(DOCKER, times, marks=pytest.mark.docker) for times in (1, 100)),
    ],
)
def test_a_start_whose_template_goes_at_every_moment_works(schema: Path, on: Target, times: int) -> None:
    """However often it is removed, and be it right after it was built anew."""
    works(on.settings, lambda _text: None)
    left = times

    def clear(_text: str) -> None:
        nonlocal left
        if left:
            left -= 1
            Cache().clear()

    works(on.settings, clear)


@contextlib.contextmanager
def cleared_all_the_time() -> Iterator[list[PgsandboxError]]:
    """Somebody clears the cache over and over for the length of the block; what went wrong with that."""
    done, trouble = threading.Event(), list[PgsandboxError]()

    def clear() -> None:
        while not done.is_set():
            try:
                Cache().clear()
            except PgsandboxError as problem:
                trouble.append(problem)

    clearer = threading.Thread(target=clear)
    clearer.start()
    try:
        yield trouble
    finally:
        done.set()
        clearer.join()


@pytest.mark.parametrize(("on", "runs"), [(LOCAL, 4), pytest.param(DOCKER, 2, marks=pytest.mark.docker)])
def test_starts_work_while_somebody_clears_the_cache_over_and_over(schema: Path, on: Target, runs: int) -> None:
    """Two servers of a run in scope `worker`, which share a seed, among them."""
    settings = {**on.settings, "init": ["schema.sql"], "scope": "worker"}
    with cleared_all_the_time() as trouble:
        for number in range(runs):
            words = (WORKER, json.dumps(settings), f"run{number}")
            with child(*words, "gw0", says=None) as one, child(*words, "gw1", says=None) as two:
                assert [process.stdout.readline() for process in (one, two) if process.stdout] == ["100\n", "100\n"]
                for process in (one, two):
                    process.communicate("", timeout=30)
                    assert process.returncode == 0
    assert trouble == []
