"""The server ends in the middle of a run: each later test says why, at once; or PostgreSQL recovers, and they go on."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from conftest import Inner, Target
from engines import DOCKER, LOCAL, errors, plain, suite, troubles
from machine import own_daemon

RUN_AGAIN = "  hint: run again; if nobody ended it on purpose, did memory run out?"


@pytest.mark.parametrize(
    ("on", "deed", "why"),
    [
        pytest.param(
            LOCAL,
            "os.kill(postmaster(pgsandbox_server), signal.SIGKILL)",
            "postgres was killed by SIGKILL",
            id="postmaster",
        ),
        pytest.param(
            DOCKER,
            'docker(pgsandbox_server, "kill")',
            "the container pgsandbox-# was killed by SIGKILL",
            id="kill",
            marks=pytest.mark.docker,
        ),
        pytest.param(
            DOCKER,
            'docker(pgsandbox_server, "rm", "--force")',
            "the container pgsandbox-# was killed by SIGKILL",
            id="rm",
            marks=pytest.mark.docker,
        ),
    ],
)
def test_a_server_that_was_killed_is_mourned_with_the_same_words_by_every_test(
    pytester: pytest.Pytester, inner: Inner, on: Target, deed: str, why: str
) -> None:
    pytester.makepyfile(suite(deed))
    result = inner(*on.flags)
    result.assert_outcomes(passed=2, errors=2)
    said = f"pgsandbox: the {on.engine} server at 127.0.0.1:# has ended\n  why: {why}\n{RUN_AGAIN}"
    assert errors(result) == [said, said]
    assert troubles(result) == [f"the {on.engine} server at 127.0.0.1:# has ended ({why})"]


def test_a_test_that_loses_its_server_is_told_what_became_of_it(pytester: pytest.Pytester, inner: Inner) -> None:
    """Beside what its driver says; and its neighbours on other workers, with servers of their own, go on."""
    deed = """
connection = pgsandbox.connect()
os.kill(postmaster(pgsandbox_server), signal.SIGKILL)
connection.execute("SELECT pg_sleep(60)")
"""
    pytester.makepyfile(suite(deed), test_neighbour="def test_it(pgsandbox_connection): pass")
    result = inner("-n2", "--dist=loadfile")
    result.assert_outcomes(passed=2, failed=1, errors=2)
    assert errors(result) == 3 * [
        "pgsandbox: the local server at 127.0.0.1:# has ended\n  why: postgres was killed by SIGKILL\n" + RUN_AGAIN
    ]


CRASH = """
connection = pgsandbox.connect(autocommit=True)
connection.execute("CREATE UNLOGGED TABLE t AS SELECT 1 a")
os.kill(connection.info.backend_pid, signal.SIGKILL)
with pytest.raises(psycopg.OperationalError):
    connection.execute("SELECT 1")
"""


@pytest.mark.parametrize("scope", ["session", "worker"])
@pytest.mark.parametrize("isolation", ["reset", "clone"])
def test_a_crash_costs_no_test_but_its_own(pytester: pytest.Pytester, inner: Inner, isolation: str, scope: str) -> None:
    """PostgreSQL ends all sessions and recovers; databases are cloned anew, whatever was in them."""
    pytester.makepyfile(suite(CRASH))
    result = inner(f"--pgsandbox-isolation={isolation}", f"--pgsandbox-scope={scope}")
    result.assert_outcomes(passed=4)
    if isolation == "reset":
        result.stdout.fnmatch_lines(["cloned: 2 times *"])
    assert troubles(result) in ([], ["PostgreSQL crashed, and recovered (who or what killed one of its processes?)"])


def test_after_a_crash_no_test_starts_without_what_unlogged_tables_had(pytester: pytest.Pytester, inner: Inner) -> None:
    """Recovery empties them in all databases, the template too: there is no baseline any more."""
    pytester.makefile(".sql", schema="CREATE UNLOGGED TABLE u AS SELECT 1 a; CREATE UNLOGGED TABLE empty (a int)")
    pytester.makepyfile(suite(CRASH))
    result = inner("--pgsandbox-init=schema.sql")
    result.assert_outcomes(passed=2, errors=2)
    said = (
        "pgsandbox: PostgreSQL crashed, and the content of unlogged tables with it: tests can't start from their"
        " baseline\n"
        "  why: recovery empties them, in the template, too: u\n"
        "  hint: run again; who or what killed one of its processes?"
    )
    assert errors(result) == [said, said]


def test_unlogged_tables_that_were_empty_lose_nothing(pytester: pytest.Pytester, inner: Inner) -> None:
    pytester.makefile(".sql", schema="CREATE UNLOGGED TABLE empty (id serial, a int)")
    pytester.makepyfile(suite(CRASH))
    inner("--pgsandbox-init=schema.sql").assert_outcomes(passed=4)


DAEMON = """
import sys, time
from pathlib import Path
from pgsandbox import Sandbox
from pgsandbox.errors import PgsandboxError

with Sandbox(engine="docker", version=15, image=sys.argv[1], timeout="20s", cache=False) as sandbox:
    database = sandbox.database()
    Path(sys.argv[2], "running").touch()
    while not Path(sys.argv[2], "restarted").exists():
        time.sleep(0.02)
    for _ in range(2):
        try:
            began = time.monotonic()
            database.reset()
        except PgsandboxError as problem:
            print(problem)
    print("done", time.monotonic() - began < 10)
    sandbox.stop()
"""


@pytest.mark.docker
def test_a_daemon_that_is_restarted_takes_its_containers_with_it(runtime: Path, tmp_path: Path) -> None:
    """Its own words on them are lost, too; afterwards nothing is left."""
    with own_daemon(DOCKER.settings["image"]) as daemon:
        process = daemon.popen("-c", DAEMON, DOCKER.settings["image"], str(tmp_path))
        deadline = time.monotonic() + 60
        while not (tmp_path / "running").exists():
            assert process.poll() is None, process.communicate(timeout=10)
            assert time.monotonic() < deadline
            time.sleep(0.05)
        daemon.restart()
        (tmp_path / "restarted").touch()
        said, _ = process.communicate(timeout=60)
        lines = said.splitlines()
        assert lines[-1] == "done True"
        assert lines[:3] == lines[3:6], said
        assert lines[0].startswith("pgsandbox: the docker server at ")
        assert lines[0].endswith(" has ended")
        assert plain(lines[1]) in (  # whoever looked first: the session that watches beside a test, or the test
            "  why: docker: no engine answers (no such file)",
            "  why: docker: no engine answers (connection refused)",
            "  why: the container pgsandbox-# has gone: somebody removed it, or the daemon was restarted",
        )
        assert lines[2] == RUN_AGAIN
        deadline = time.monotonic() + 20
        while left := [*(runtime / "runs").iterdir(), *daemon.docker("ps", "--all", "--quiet").stdout.split()]:
            assert time.monotonic() < deadline, left
            time.sleep(0.1)
