"""The plugin as pytest shows it: inert until asked, one header line, silent on success, and gone afterwards."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Inner, Target

HEADER = "pgsandbox: PostgreSQL 15.{minor}, local: {folder}, scope worker, {workers} of 20 connections, isolation reset"

OBSERVER = '''
import os, sys, threading

HEAVY = {"docker", "testcontainers", "psycopg", "filelock", "click", "rich", "pgsandbox.sandbox", "pgsandbox.engines"}

def changed():
    """The variables that differ from what the process was started with, but for those of pytest and xdist."""
    with open("/proc/self/environ", "rb") as file:
        pairs = (entry.partition(b"=") for entry in file.read().split(b"\\0") if entry)
        began = {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}
    began.pop("_PGSANDBOX_RUN", None)  # a controller's word to this worker, who has taken it out of sight
    names = {name for name in {*began, *os.environ} if began.get(name) != os.environ.get(name)}
    return {name for name in names if not name.startswith(("PYTEST_", "PYTHONPATH"))}

def started():
    return sorted(os.listdir(os.environ["_PGSANDBOX_ROOT"]))

def heavy():
    return sorted(HEAVY & set(sys.modules))

def threads():
    return [thread.name for thread in threading.enumerate() if "pgsandbox" in thread.name]
'''


def test_output_has_nothing_of_ours_but_the_header(inner: Inner, pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_one(pgsandbox_connection): pgsandbox_connection.execute('CREATE TABLE t ()')")
    result = inner()
    assert result.ret == 0
    ours = [line for line in result.outlines if "pgsandbox" in line and not line.startswith("plugins:")]
    assert ours == [_header("1 worker")]
    assert result.errlines == []


def _header(workers: str) -> str:
    folder = Path(os.environ["TEST_BIN_15"])
    said = subprocess.run([folder / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
    minor = re.search(r"15\.(\d+)", said)
    assert minor is not None
    return HEADER.format(minor=minor[1], folder=folder, workers=workers)


INERT = """
import observer, pytest

def test_no_variable_is_set(): assert observer.changed() == set()
def test_nothing_is_started(): assert observer.started() == []
def test_nothing_heavy_is_imported(): assert observer.heavy() == []
def test_no_thread_runs(): assert observer.threads() == []

@pytest.mark.skip(reason="on purpose")
def test_skipped(pgsandbox): pass

@pytest.mark.skipif("True", reason="on purpose")
def test_skipped_if(pgsandbox): pass

@pytest.mark.xfail(run=False)
def test_not_run(pgsandbox): pass

def test_a_skipped_test_starts_nothing(): assert observer.started() == []

def test_then_it_works(pgsandbox_connection):
    assert pgsandbox_connection.execute("SELECT 1").fetchone() == (1,)

def test_and_sets_no_variable(): assert observer.changed() == set()
"""


@pytest.mark.parametrize("words", [(), ("-n2", "--dist=loadfile")], ids=["alone", "xdist"])
def test_merely_installed_it_is_inert_until_a_fixture_is_asked_for(
    inner: Inner, pytester: pytest.Pytester, words: tuple[str, ...]
) -> None:
    pytester.makepyfile(observer=OBSERVER, test_inert=INERT)
    pytester.makeconftest(
        """
        import observer, pytest

        assert observer.changed() == set()

        @pytest.hookimpl(trylast=True)
        def pytest_collection_finish(session):
            assert observer.changed() <= {"_PGSANDBOX_RUN"}  # in the controller, for its workers
            assert (observer.started(), observer.heavy(), observer.threads()) == ([], [], [])
        """
    )
    result = inner(*words, named=False)
    result.assert_outcomes(passed=7, skipped=2, xfailed=1)
    assert not [line for line in result.outlines if "pgsandbox" in line and not line.startswith("plugins:")]


def test_skipped_tests_are_skipped_where_no_server_can_start(
    inner: Inner, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGSANDBOX_VERSION", "99")
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.skip(reason="on purpose")
        def test_skipped(pgsandbox): pass

        def test_needs_nothing(): pass
        """
    )
    inner().assert_outcomes(passed=1, skipped=1)


@pytest.mark.parametrize(
    "words",
    [
        ("--collect-only", "-q"),
        ("--collect-only", "-q", "-n2"),
        ("--help",),
        ("--version", "--version"),
        ("--fixtures", "-q"),
        ("--fixtures-per-test", "-q"),
        ("--markers",),
        ("--setup-plan",),
        ("--cache-show",),
    ],
    ids=" ".join,
)
def test_a_run_that_only_looks_starts_nothing_and_exports_a_url_that_says_so(
    inner: Inner, pytester: pytest.Pytester, runtime: Path, words: tuple[str, ...]
) -> None:
    pytester.makeconftest("import os; print(os.environ['DATABASE_URL'], os.environ['PGHOST'], file=open('seen', 'w'))")
    pytester.makepyfile("def test_one(pgsandbox): assert False")
    result = inner("-s", *words)
    assert result.ret == 0
    host = "no-test-is-run-so-there-is-no-database.pgsandbox.invalid"
    assert Path("seen").read_text().split() == [f"postgresql://pgsandbox@{host}:1/none", host]
    assert list(runtime.iterdir()) == []


def test_setup_only_runs_fixtures_and_therefore_has_a_database(inner: Inner, pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import os, psycopg, pytest

        @pytest.fixture
        def table(pgsandbox_connection):
            assert os.environ["DATABASE_URL"]
            with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
                connection.execute("CREATE TABLE t ()")

        def test_one(table): assert False
        """
    )
    result = inner("--setup-only")
    result.assert_outcomes()
    assert result.ret == 0


def test_the_header_says_which_postgresql_and_for_how_many_workers(inner: Inner, pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_one(): pass")
    assert _header("2 workers") in inner("-n2").outlines
    assert not [line for line in inner("-q").outlines if "PostgreSQL" in line]


FAILURE = re.compile(
    r"^(pgsandbox: PostgreSQL ended while it was starting\n"
    r"  why: [-0-9:. ]+ [A-Z]+ \[[0-9]+\] FATAL:  parameter \"jit\" requires a Boolean value\n"
    r"  hint: look at the setting options if the log complains of a parameter)$",
    re.MULTILINE,
)


@pytest.mark.parametrize(
    ("words", "named"),
    [((), True), (("-n2",), True), (("-n2",), False)],
    ids=["alone, named", "xdist, named", "xdist, installed"],
)
def test_a_server_that_cannot_start_fails_every_test_at_once_with_the_same_words(
    inner: Inner,
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    runtime: Path,
    words: tuple[str, ...],
    named: bool,
) -> None:
    monkeypatch.setenv("PGSANDBOX_OPTIONS", "jit=perhaps")
    pytester.makepyfile(
        """
        import pytest

        fixtures = "", "_url", "_connection", "_worker", "_server", "_factory"

        @pytest.mark.parametrize("name", fixtures * 4)
        def test_one(request, name):
            found = request.getfixturevalue(f"pgsandbox{name}")
            if name == "_factory":
                found()

        def test_without(): pass
        """
    )
    result = inner(*words, "--durations=0", "--durations-min=1", "--tb=short", named=named)
    counts = result.parseoutcomes()
    assert counts["passed"] == 1
    assert counts["failed"] + counts.get("errors", 0) == 24
    failures = FAILURE.findall(result.stdout.str())
    assert len(failures) == 24
    assert len(set(failures)) == 1, "it was tried more than once"
    result.stdout.no_fnmatch_line("*plugin.py*")
    result.stdout.no_fnmatch_line("*During handling*")
    slow = [line for line in result.outlines if re.match(r"[0-9.]+s (setup|call|teardown)", line)]
    assert len(slow) <= (0 if named else 2), "only the first test of each worker may have waited for the start"


@pytest.mark.parametrize("words", [(), ("-n2",)], ids=["alone", "xdist"])
def test_an_interrupted_run_ends_with_code_2_and_says_nothing_of_ours(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, some_target: Target, words: tuple[str, ...]
) -> None:
    for name, value in some_target.environ.items():
        monkeypatch.setenv(name, value)
    pytester.makepyfile(
        """
        import pathlib, time, pytest

        @pytest.mark.parametrize("number", range(4))
        def test_long(pgsandbox_connection, number):
            pathlib.Path(f"{number}.ready").touch()
            pgsandbox_connection.execute("SELECT pg_sleep(60)") if number % 2 else time.sleep(60)
        """
    )
    command = [sys.executable, "-m", "pytest", "-p", "pgsandbox", "-p", "no:randomly", *words]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    _wait(lambda: len(list(Path().glob("*.ready"))) == (2 if words else 1))
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    said, _ = process.communicate(timeout=30)
    assert process.returncode == pytest.ExitCode.INTERRUPTED, said
    assert "pgsandbox/" not in said.replace("/pgsandbox/", ""), said
    assert [line for line in said.splitlines() if line.startswith("=") and "pgsandbox" in line] == []


def _wait(condition: Callable[[], bool], timeout: float = 30.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


EVERYTHING = """
import pytest

@pytest.fixture(scope="module")
def loaded(pgsandbox_worker):
    with pgsandbox_worker.connect() as connection:
        connection.execute("CREATE TABLE t ()")
    with pgsandbox_worker.baseline():
        yield

def test_fixtures(loaded, pgsandbox, pgsandbox_url, pgsandbox_connection, pgsandbox_server, pgsandbox_factory):
    further = pgsandbox_factory()
    with further.connect() as connection:
        connection.execute("SELECT 1")
    assert pgsandbox.name != further.name
    assert pgsandbox_server.execute("SELECT 1") == [(1,)]

@pytest.mark.pgsandbox(isolation="rollback")
def test_rollback(loaded, pgsandbox_connection):
    pgsandbox_connection.execute("DROP TABLE t")

def test_failing(pgsandbox_connection):
    assert False
"""


@pytest.mark.parametrize("named", [True, False], ids=["named", "installed"])
@pytest.mark.parametrize("engine", ["local", pytest.param("docker", marks=pytest.mark.docker)])
def test_warnings_as_errors_find_nothing_of_ours(
    inner: Inner, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, engine: str, named: bool
) -> None:
    if engine == "docker":
        for name, value in Target("docker", 15).environ.items():
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONWARNINGS", "always::ResourceWarning")
    pytester.makeini("[pytest]\nfilterwarnings = error\n")
    pytester.makepyfile(EVERYTHING)
    result = inner("-ra", named=named)
    result.assert_outcomes(passed=2, failed=1)
    assert result.errlines == []
    result.stdout.no_fnmatch_line("*Warning*")


COUNTING = """
import os, sys, pytest
before = os.listdir("/proc/self/fd")
code = pytest.main(sys.argv[1:])
assert len(os.listdir("/proc/self/fd")) == len(before), "a file was left open"
sys.exit(code)
"""


def test_what_is_slow_is_told_on_a_terminal_and_leaves_no_file_open(
    inner: Inner, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, some_target: Target
) -> None:
    for name, value in some_target.environ.items():
        monkeypatch.setenv(name, value)
    pytester.makeini("[pytest]\nfilterwarnings = error\n")
    pytester.makepyfile("def test_one(pgsandbox): pass")
    pytester.makefile(".sql", slow="SELECT pg_sleep(1.6)", next="SELECT 1")
    command = [sys.executable, "-c", COUNTING, "-p", "pgsandbox", "-p", "no:randomly"]
    command += ["--pgsandbox-init=slow.sql,next.sql", "--pgsandbox-cache=false"]
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    said = _all_of(ours)
    assert process.wait(10) == 0, said
    assert "pgsandbox: next.sql\r\n" in said
    assert "Warning" not in said


def _all_of(terminal: int) -> str:
    """All that is written to a pseudo-terminal until its other side is closed (Linux reports that as an error)."""
    chunks = []
    with open(terminal, "rb", buffering=0) as stream:
        while True:
            try:
                chunk = stream.read(4096)
            except OSError:
                break
            if not chunk:
                break
            chunks.append(chunk)
    return b"".join(chunks).decode()


@pytest.mark.parametrize(
    ("conftest", "test", "words", "code"),
    [
        ("1 / 0", "def test_one(): pass", (), pytest.ExitCode.USAGE_ERROR),
        ("", "1 / 0", (), pytest.ExitCode.INTERRUPTED),
        ("", "def test_one(): pass", ("no_such_file.py",), pytest.ExitCode.USAGE_ERROR),
        ("", "import pytest\ndef test_one(pgsandbox): pytest.exit('enough', 7)", (), 7),
        ("", "def test_one(pgsandbox): pass", ("-p", "no:terminal"), pytest.ExitCode.OK),
        (
            "def pytest_collection_modifyitems(): 1 / 0",
            "def test_one(pgsandbox): pass",
            (),
            pytest.ExitCode.INTERNAL_ERROR,
        ),
    ],
    ids=["conftest error", "collection error", "usage error", "exit", "no terminal", "internal error"],
)
def test_a_run_that_ends_in_an_unusual_way_leaves_nothing(
    inner: Inner, pytester: pytest.Pytester, conftest: str, test: str, words: tuple[str, ...], code: int
) -> None:
    pytester.makeconftest(conftest)
    pytester.makepyfile(test_it=test)
    result = inner(*words)
    assert result.ret == code
    assert "pgsandbox.errors" not in result.stdout.str() + result.stderr.str()
