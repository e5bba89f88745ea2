"""Parallel runs in every manner that xdist has: a database for each worker, also where workers die and are replaced."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from conftest import Inner, Target

RECORDER = """
import os, time, pytest

WORKER = os.environ.get("PYTEST_XDIST_WORKER", "main")

@pytest.fixture
def record(request, pgsandbox):
    with open(f"{WORKER}.urls", "a") as file:
        print(pgsandbox.url, file=file)
    assert pgsandbox.name == f"pgsandbox_{WORKER}"
    with pgsandbox.connect() as connection:
        connection.execute("CREATE TABLE mine ()")
    assert os.environ["DATABASE_URL"] == pgsandbox.url
    time.sleep(0.05)  # so that every worker gets some
"""

EIGHT = """
import pytest

@pytest.mark.xdist_group("two")
@pytest.mark.parametrize("number", range(4))
def test_one(record, number): pass

@pytest.mark.parametrize("number", range(4))
def test_two(record, number): pass
"""


def _urls() -> dict[str, set[str]]:
    """The URLs that each worker has seen."""
    found: dict[str, set[str]] = defaultdict(set)
    for file in Path().glob("*.urls"):
        found[file.stem] |= set(file.read_text().split())
    return found


@pytest.mark.parametrize(
    ("words", "workers"),
    [
        ("-n0", 1),
        ("-p no:xdist", 1),
        ("-nauto --dist=loadgroup", 2),
        ("-n2 --dist=worksteal", 2),
        ("-n2 --dist=loadfile --pgsandbox-scope=session", 1),
        ("-d --tx=2*popen", 2),
    ],
)
def test_each_worker_has_one_database_for_its_whole_life(
    inner: Inner, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, words: str, workers: int
) -> None:
    monkeypatch.setenv("PYTEST_XDIST_AUTO_NUM_WORKERS", "2")
    pytester.makeini("[pytest]\nmarkers = xdist_group\nfilterwarnings = error")
    pytester.makeconftest(RECORDER)
    pytester.makepyfile(EIGHT)
    result = inner(*words.split())
    result.assert_outcomes(passed=8)
    assert not re.search("^(trouble|leaked|kept)", result.stdout.str(), re.MULTILINE)
    urls = _urls()
    assert len(urls) == workers
    assert all(len(seen) == 1 for seen in urls.values())
    assert len(set.union(*urls.values())) == len(urls)


@pytest.mark.parametrize(
    ("scope", "servers", "named"),
    [("session", 1, True), ("worker", 2, False)],
    ids=["session, named", "worker, installed"],
)
def test_a_template_is_built_once_whatever_the_scope(
    inner: Inner, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, scope: str, servers: int, named: bool
) -> None:
    monkeypatch.setenv("PGSANDBOX_INIT", "command: sh -c 'echo built >>built'")
    monkeypatch.setenv("PGSANDBOX_CACHE", "false")
    pytester.makepyfile(
        """
        import pathlib, pytest, time

        @pytest.mark.parametrize("number", range(2))
        def test_one(pgsandbox_server, pgsandbox, number):
            pathlib.Path(f"{pgsandbox_server.port}.port").touch()
            time.sleep(0.2)
        """
    )
    inner("-n2", f"--pgsandbox-scope={scope}", named=named).assert_outcomes(passed=2)
    assert Path("built").read_text() == "built\n"
    assert len(list(Path().glob("*.port"))) == servers


@pytest.mark.parametrize("words", ["-x", "--maxfail=2 -n2"])
def test_a_run_that_stops_early_leaves_nothing(inner: Inner, pytester: pytest.Pytester, words: str) -> None:
    pytester.makepyfile(
        """
        import pytest, time

        @pytest.mark.parametrize("number", range(30))
        def test_one(pgsandbox_connection, number):
            time.sleep(0.05)
            pgsandbox_connection.execute("CREATE TABLE t ()")
            assert number % 5 != 3
        """
    )
    result = inner(*words.split())
    assert result.ret in (pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED)
    result.stdout.re_match_lines([r".*stopping after [12] failures.*|.*xdist.dsession.Interrupted: stopping after.*"])
    assert result.parseoutcomes()["failed"] >= 1
    assert result.errlines == []


def test_last_failed_runs_only_that_and_finds_the_baseline(inner: Inner, pytester: pytest.Pytester) -> None:
    pytester.makeconftest(RECORDER)
    pytester.makepyfile(EIGHT.replace("(record, number): pass", "(record, number): assert number != 2", 1))
    inner("-W", "ignore").assert_outcomes(passed=7, failed=1)
    inner("--lf", "-W", "ignore").assert_outcomes(failed=1)


CRASH = """
import os, pytest, time

@pytest.mark.parametrize("number", range(12))
def test_one(record, pgsandbox, number):
    if number == 3:
        open("crashed", "w").close()
        connection = pgsandbox.connect()
        connection.execute("CREATE TABLE left_behind ()")
        os._exit(1)
    deadline = time.monotonic() + 30
    while {waits} and os.path.exists("crashed") and not os.path.exists("gw2.urls"):
        assert time.monotonic() < deadline, "there is no replacement"
        time.sleep(0.01)
"""


@pytest.mark.parametrize("scope", ["session", "worker"])
def test_a_worker_that_crashed_is_replaced_by_one_with_its_own_database(
    inner: Inner, pytester: pytest.Pytester, scope: str
) -> None:
    pytester.makeconftest(RECORDER)
    pytester.makepyfile(CRASH.format(waits=True))
    result = inner("-n2", f"--pgsandbox-scope={scope}")
    result.assert_outcomes(passed=11, failed=1)
    result.stdout.fnmatch_lines(["*worker 'gw?' crashed while running*"])
    urls = _urls()
    assert set(urls) == {"gw0", "gw1", "gw2"}
    assert len(set.union(*urls.values())) == 3
    assert not re.search("^(trouble|leaked|kept)", result.stdout.str(), re.MULTILINE)


def test_a_worker_that_crashed_and_is_not_replaced_leaves_nothing(inner: Inner, pytester: pytest.Pytester) -> None:
    pytester.makeconftest(RECORDER)
    pytester.makepyfile(CRASH.format(waits=False))
    result = inner("-n2", "--max-worker-restart=0")
    assert result.parseoutcomes()["failed"] == 1
    result.stdout.fnmatch_lines(["*worker gw? crashed and worker restarting disabled*"])
    assert set(_urls()) == {"gw0", "gw1"}


PYTEST_INSIDE = """
import os, subprocess, sys, pytest

@pytest.mark.parametrize("how", ["process", "same process", "parallel"])
def test_outside(pgsandbox, how, tmp_path):
    with pgsandbox.connect() as connection:
        connection.execute("CREATE TABLE outside ()")
    environ = dict(os.environ)
    file = tmp_path / f"test_inside_{tmp_path.name}.py"
    file.write_text(INSIDE.format(url=pgsandbox.url))
    words = ["-p", "pgsandbox", "-p", "no:cacheprovider", f"--rootdir={tmp_path}", str(file)]
    if how == "same process":
        assert pytest.main(words) == 0
    else:
        more = ["-n2"] if how == "parallel" else []
        done = subprocess.run([sys.executable, "-m", "pytest", *words, *more], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    del environ["PYTEST_CURRENT_TEST"]  # pytest itself forgets it
    assert environ.items() <= os.environ.items()
    with pgsandbox.connect() as connection:
        assert connection.execute("SELECT to_regclass('outside')").fetchone() == ("outside",)

INSIDE = '''
import os
import re

def test_inside(pgsandbox_connection, pgsandbox_url):
    assert pgsandbox_url != "{url}"
    assert os.environ["DATABASE_URL"] == pgsandbox_url
    assert pgsandbox_connection.execute("SELECT to_regclass('outside')").fetchone() == (None,)
    pgsandbox_connection.execute("CREATE TABLE outside ()")
'''
"""


def test_a_pytest_inside_a_test_is_a_run_of_its_own_and_disturbs_nobody(
    inner: Inner, pytester: pytest.Pytester
) -> None:
    pytester.makepyfile(test_outside=PYTEST_INSIDE)
    inner("-n2", "-rN").assert_outcomes(passed=3)


def test_two_runs_at_once_in_one_checkout_never_meet(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, some_target: Target
) -> None:
    for name, value in some_target.environ.items():
        monkeypatch.setenv(name, value)
    pytester.makepyfile(
        """
        import os, pathlib, time, pytest

        ME, OTHER = os.environ["ME"], "ba"[os.environ["ME"] == "b"]

        def wait_for(name):
            deadline = time.monotonic() + 30
            while not pathlib.Path(name).exists():
                assert time.monotonic() < deadline
                time.sleep(0.01)

        @pytest.mark.parametrize("number", range(4))
        def test_one(pgsandbox_connection, number):
            pgsandbox_connection.execute("CREATE TABLE t ()")
            pathlib.Path(f"{ME}{number}").touch()
            wait_for(f"{OTHER}{number}")
            names = pgsandbox_connection.execute("SELECT count(*) FROM pg_class WHERE relname = 't'").fetchone()
            assert names == (1,)
        """
    )
    runs = []
    for me, words in (("a", ["-n2"]), ("b", [])):
        monkeypatch.setenv("ME", me)
        command = [sys.executable, "-m", "pytest", "-p", "pgsandbox", "-p", "no:randomly", *words]
        runs.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
    for run in runs:
        said, _ = run.communicate(timeout=90)
        assert run.returncode == 0, said
        assert not re.search("^(trouble|leaked|kept)", said, re.MULTILINE)
