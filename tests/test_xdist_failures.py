"""Workers that crash, hang or are killed: who replaces them starts like any other, and finds nothing of theirs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from children import child, eventually, is_gone
from conftest import Inner, Target
from machine import running

from pgsandbox import Sandbox

pytestmark = pytest.mark.slow
TROUBLE = re.compile("^(trouble|leaked|kept)", re.MULTILINE)

CONFTEST = """
import ctypes, os, signal, subprocess, sys, time
from pathlib import Path
import pytest

WORKER = os.environ.get("PYTEST_XDIST_WORKER", "controller")
AT_IMPORT = os.environ["DATABASE_URL"]
HERE = Path(__file__).parent

DEATHS = {
    "exit": lambda: os._exit(1),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "segfault": lambda: ctypes.string_at(0),
}

def once(name):
    try:
        (HERE / name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True

def wait_for(claim, what, seconds=40):
    deadline = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < deadline, f"waited for {what}"
        time.sleep(0.02)

@pytest.fixture
def record(pgsandbox):
    assert AT_IMPORT == os.environ["DATABASE_URL"] == pgsandbox.url
    assert pgsandbox.name == f"pgsandbox_{WORKER}"
    with (HERE / f"{WORKER}.urls").open("a") as file:
        print(pgsandbox.url, file=file)
    return pgsandbox
"""


def urls() -> dict[str, set[str]]:
    """The URLs that each worker has seen."""
    return {file.stem: set(file.read_text().split()) for file in Path().glob("*.urls")}


def check_urls(workers: set[str]) -> None:
    """Each of `workers`, and nobody else, had one URL for all of its life, and no two had the same."""
    seen = urls()
    assert set(seen) == workers
    assert [len(found) for found in seen.values()] == [1] * len(workers)
    assert len(set.union(*seen.values())) == len(workers)


# Crashes --------------------------------------------------------------------------------------------------------------

LIKE_ANY = """
import pytest
from conftest import DEATHS, once, wait_for, HERE

@pytest.fixture(scope="module")
def three(pgsandbox_worker):
    with pgsandbox_worker.connect() as connection:
        connection.execute("INSERT INTO t SELECT generate_series(1, 3)")

@pytest.mark.parametrize("number", range(6))
def test_one(record, three, number):
    with record.connect() as connection:
        assert connection.execute("SELECT count(*) FROM t").fetchone() == (3,)
        connection.execute("INSERT INTO t VALUES (4)")
        connection.execute("CREATE TABLE left_behind ()")
        connection.commit()
        if number == 2 and once("crashed"):
            connection.execute("LOCK TABLE t")
            connection.execute("SELECT pg_advisory_lock(1)")
            DEATHS[{death!r}]()
        if (HERE / "crashed").exists() and not list(HERE.glob("gw2.urls")):
            connection.execute("SELECT pg_advisory_lock(1)")
            wait_for((HERE / "gw2.urls").exists, "the replacement")
"""


@pytest.mark.parametrize(
    ("death", "scope", "engine"),
    [
        ("exit", "worker", "local"),
        ("segfault", "session", "local"),
        pytest.param("kill", "session", "docker", marks=pytest.mark.docker),
    ],
)
def test_a_replacement_is_a_worker_like_any_other(
    inner: Inner, pytester: pytest.Pytester, death: str, scope: str, engine: str
) -> None:
    """Its URL is there when conftest files are imported, and a module's fixtures make its baseline again."""
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(LIKE_ANY.format(death=death))
    Path("schema.sql").write_text("CREATE TABLE t (n int)")
    result = inner("-n2", *Target(engine, 15).flags, f"--pgsandbox-scope={scope}", "--pgsandbox-init=schema.sql")
    result.assert_outcomes(passed=5, failed=1)
    result.stdout.fnmatch_lines([f"pgsandbox: PostgreSQL 15*, scope {scope}, 2 workers of 20 connections, *"])
    check_urls({"gw0", "gw1", "gw2"})
    assert not TROUBLE.search(result.stdout.str())


CRASHES = """
import os, re, subprocess, sys
import pytest
from conftest import HERE, wait_for

CLINGS = '''
import os, sys, time, psycopg
held = []
deadline = time.monotonic() + 60
try:
    for _ in range(20):
        held.append(psycopg.connect(os.environ["DATABASE_URL"], autocommit=True))
    print("ready", flush=True)
    while time.monotonic() < deadline:
        time.sleep(0.05)
        for number, connection in enumerate(held):
            try:
                connection.execute("SELECT 1")
            except psycopg.Error:
                held[number] = psycopg.connect(os.environ["DATABASE_URL"], autocommit=True)
except psycopg.OperationalError as problem:
    open(sys.argv[1], "w").write(str(problem))
'''

@pytest.mark.parametrize("number", range(6))
def test_that_leaves_a_program_with_all_its_connections(record, pgsandbox_factory, number):
    pgsandbox_factory()
    record.snapshot()
    words = [sys.executable, "-c", CLINGS, str(HERE / f"{number}.refused")]
    program = subprocess.Popen(words, stdout=subprocess.PIPE, start_new_session=True, text=True)
    assert program.stdout.readline() == "ready\\n"
    (HERE / f"{number}.crashed").touch()
    os._exit(1)

OURS = '''
SELECT datname FROM pg_database WHERE datname LIKE 'pgsandbox!_gw%' ESCAPE '!'
UNION ALL SELECT rolname FROM pg_roles WHERE rolname LIKE 'pgsandbox!_gw%' ESCAPE '!'
'''

def test_that_needs_its_whole_budget(record):
    wait_for(lambda: len(list(HERE.glob("*.refused"))) == 6, "programs that are refused")
    refusals = [file.read_text() for file in HERE.glob("*.refused")]
    assert all(re.search("authentication failed|not permitted to log in", text) for text in refusals), refusals
    held = [record.connect(autocommit=True) for _ in range(20)]
    wait_for(lambda: set(held[0].execute(OURS).fetchall()) == {(record.name,)}, "the dead to be buried")
    for connection in held:
        connection.close()
"""


def test_six_crashes_in_a_row_cost_nobody_a_connection(inner: Inner, pytester: pytest.Pytester) -> None:
    """Even where each leaves a program behind that clings to all it was allowed: 120 are more than there are spare."""
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(CRASHES)
    result = inner("-n1", "--max-worker-restart=6", "--pgsandbox-scope=session")
    result.assert_outcomes(passed=1, failed=6)
    check_urls({f"gw{number}" for number in range(7)})
    assert not TROUBLE.search(result.stdout.str())


ANY_MODE = """
import os, pytest
from conftest import once, WORKER

class TestA:
    @pytest.mark.parametrize("number", range(6))
    def test_one(self, record, number):
        with record.connect() as connection:
            connection.execute("CREATE TABLE t ()")
        if number in {crashing} and once(f"crashed{{number}}"):
            os._exit(1)

class TestB(TestA):
    pass
"""


@pytest.mark.parametrize(
    ("words", "crashing", "passed", "said"),
    [  # of a scope that crashed, all tests are run again
        ("-n2 --dist=loadscope --pgsandbox-scope=session", [2], 12, "replacing crashed worker gw?"),
        ("-n2 --dist=worksteal --pgsandbox-scope=worker", [2], 11, "replacing crashed worker gw?"),
        ("--dist=each --tx=2*popen --pgsandbox-scope=session", [2], None, "replacing crashed worker gw?"),
        ("-n1 --pgsandbox-scope=worker", [2, 4], 10, "replacing crashed worker gw1"),
        ("-n2 -x --pgsandbox-scope=session", [2], None, "*stopping after 1 failures*"),
        ("-n2 --maxfail=2 --pgsandbox-scope=worker", [1, 4], None, "*stopping after 2 failures*"),
        (
            "-n2 --max-worker-restart=0 --pgsandbox-scope=session",
            [2],
            None,
            "*worker gw? crashed and worker restarting disabled*",
        ),
        (
            "-n2 --max-worker-restart=1 --pgsandbox-scope=worker",
            [1, 4],
            None,
            "*maximum crashed workers reached: 1*",
        ),
    ],
)
def test_a_run_ends_as_xdist_was_told_to(
    inner: Inner, pytester: pytest.Pytester, words: str, crashing: list[int], passed: int | None, said: str
) -> None:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(ANY_MODE.format(crashing=crashing))
    result = inner(*words.split())
    result.stdout.fnmatch_lines([said])
    outcomes = result.parseoutcomes()
    assert outcomes["failed"] == len(crashing)
    if passed is not None:
        assert outcomes == {"passed": passed, "failed": len(crashing)}
    assert all(len(seen) == 1 for seen in urls().values())
    assert len(set.union(*urls().values())) == len(urls())
    assert not TROUBLE.search(result.stdout.str())
    assert "INTERNALERROR" not in result.stdout.str()


def test_a_run_in_which_pgsandbox_is_only_installed_buries_its_dead_too(
    inner: Inner, pytester: pytest.Pytester
) -> None:
    """Its controller has nothing to do with the server until then, which is not to end before somebody comes again."""
    pytester.makeconftest("import os, time; time.sleep(3 * (os.environ.get('PYTEST_XDIST_WORKER') == 'gw1'))")
    pytester.makepyfile(
        """
        import os, time
        from pathlib import Path

        def test_crash(pgsandbox):
            Path("url").write_text(pgsandbox.url)
            os._exit(1)

        def test_replacement(pgsandbox_connection):
            assert f":{pgsandbox_connection.info.port}/" in Path("url").read_text()
            dead = "SELECT 1 FROM pg_database WHERE datname = 'pgsandbox_gw0'"
            deadline = time.monotonic() + 10
            while pgsandbox_connection.execute(dead).fetchone():
                assert time.monotonic() < deadline
                time.sleep(0.02)
        """
    )
    result = inner("-n1", "--pgsandbox-scope=session", named=False)
    result.assert_outcomes(passed=1, failed=1)
    assert not TROUBLE.search(result.stdout.str())


KEPT = """
import os, pytest

def test_failing(pgsandbox_connection):
    pgsandbox_connection.execute("CREATE TABLE evidence AS SELECT 42 AS number")
    assert False

def test_crash(pgsandbox):
    os._exit(1)

def test_after(pgsandbox): pass
"""


def test_what_a_worker_kept_outlives_its_crash(
    inner: Inner, pytester: pytest.Pytester, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makepyfile(KEPT)
    result = inner("-n1", "--pgsandbox-keep=failed", "--pgsandbox-scope=session")
    result.assert_outcomes(passed=1, failed=2)
    [record] = runtime.glob("runs/*/named-*.json")
    kept = json.loads(record.read_text())
    try:
        import psycopg

        with psycopg.connect(kept["url"]) as connection:
            assert connection.execute("SELECT number FROM evidence").fetchone() == (42,)
    finally:
        down = subprocess.run([sys.executable, "-m", "pgsandbox", "down", "--all"], capture_output=True, check=False)
    assert down.returncode == 0


# The same name again --------------------------------------------------------------------------------------------------

DIES = """\
import json, os, subprocess, sys
from pgsandbox import Sandbox
CLINGS = '''
import os, sys, psycopg
connection = psycopg.connect(os.environ["DATABASE_URL"])
connection.execute("CREATE TABLE mine ()")
connection.execute("SELECT pg_advisory_lock(1)")
print("ready", flush=True)
connection.execute("SELECT pg_sleep(60)")
'''
sandbox = Sandbox(**json.loads(sys.argv[1]), run="same", worker="a", workers=2)
sandbox.start()
database = sandbox.database()
sandbox.fresh()
with database.connect() as connection:
    connection.execute("CREATE TABLE prepared ()")
    connection.execute("PREPARE TRANSACTION 'x'")
with database.connect(autocommit=True) as connection:
    connection.execute("SET ROLE pgsandbox_a")
    connection.execute("CREATE DATABASE its_own")
program = subprocess.Popen([sys.executable, "-c", CLINGS], env={**os.environ, **database.env}, stdout=subprocess.PIPE)
program.stdout.readline()
print(program.pid, flush=True)
os._exit(1)
"""


def test_a_name_that_is_used_again_has_nothing_of_who_had_it(some_target: Target) -> None:
    """Neither locks nor transactions, open or prepared; and who has a name that only begins like it loses nothing."""
    settings = {**some_target.settings, "scope": "session", "options": ["max_prepared_transactions=5"]}
    with running(**settings, run="same", worker="a_1", workers=2) as sandbox:
        other = sandbox.database()
        with child(DIES, json.dumps(settings), says=None) as process:
            assert process.stdout is not None
            clinging = int(process.stdout.readline())
            process.wait()
        again = sandbox.database("a")
        found = "SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = database WHERE datname = 'pgsandbox_a'"
        assert sandbox.server.execute(found) == [(0,)]
        assert sandbox.server.execute("SELECT gid FROM pg_prepared_xacts") == []
        assert eventually(lambda: is_gone(clinging))
        with again.connect() as connection:
            names = connection.execute("SELECT to_regclass('mine'), to_regclass('prepared')").fetchone()
            assert names == (None, None)
            made = "SELECT datname FROM pg_database WHERE datname ~ '^(pgsandbox_a|its)' ORDER BY 1"
            assert connection.execute(made).fetchall() == [("pgsandbox_a",), ("pgsandbox_a_1",)]
        other.connect().close()


# Hanging --------------------------------------------------------------------------------------------------------------

HANGS = """
import os, signal, time
import pytest
from conftest import HERE, once, wait_for

@pytest.mark.parametrize("number", range(4))
def test_one(record, number):
    with record.connect() as connection:
        connection.execute("CREATE TABLE t ()")
        connection.commit()
        if number == 0 and once("hung"):
            connection.execute("LOCK TABLE t")
            (HERE / "pid").write_text(str(os.getpid()))
            {hangs}
        if {waits}:
            wait_for((HERE / "go").exists, "whoever looks on", 100)
"""

STOPPED, SLEEPING = "os.kill(os.getpid(), signal.SIGSTOP)", "connection.execute('SELECT pg_sleep(600)')"
DEAF = "signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(600)"


def test_a_test_that_never_ends_costs_its_worker_and_nobody_else(inner: Inner, pytester: pytest.Pytester) -> None:
    """pytest-timeout ends the whole process, where it can't interrupt the test."""
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(HANGS.format(hangs=SLEEPING, waits=False))
    result = inner("-n2", "--pgsandbox-scope=session", "--timeout=3", "--timeout-method=thread")
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(["*worker 'gw?' crashed while running *"])
    assert not TROUBLE.search(result.stdout.str())


@contextlib.contextmanager
def hanging(words: Sequence[str], hangs: str, *, waits: bool = False) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A run, in a session of its own, and the pid of a worker of it that hangs; killed after the block."""
    Path("conftest.py").write_text(CONFTEST)
    Path("test_hangs.py").write_text(HANGS.format(hangs=hangs, waits=waits))
    command = [sys.executable, "-m", "pytest", "-p", "pgsandbox", "-p", "no:randomly", "-n2", *words]
    with Path("output").open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    try:
        assert eventually(lambda: Path("pid").exists() and Path("pid").read_text() != "", timeout=60), said()
        pid = int(Path("pid").read_text())
        yield process, pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def said() -> str:
    return Path("output").read_text()


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@pytest.mark.parametrize("scope", ["session", "worker"])
def test_a_stopped_worker_that_is_killed_is_replaced(
    inner: Inner, pytester: pytest.Pytester, runtime: Path, scope: str
) -> None:
    """As long as it is only stopped, it lives: all that is its own stays, and so does its server."""
    with hanging([f"--pgsandbox-scope={scope}"], STOPPED, waits=True) as (process, pid):
        assert eventually(lambda: is_stopped(pid))
        servers = set(runtime.glob("runs/*/servers/*"))
        pruned = subprocess.run([sys.executable, "-m", "pgsandbox", "prune"], capture_output=True, check=True)
        assert (pruned.stdout, set(runtime.glob("runs/*/servers/*"))) == (b"", servers)
        os.kill(pid, signal.SIGKILL)
        Path("go").touch()
        assert (process.wait(60), "1 failed, 3 passed" in said()) == (1, True), said()
    assert not TROUBLE.search(said())
    assert "gw2" in urls()


@pytest.mark.parametrize(("hangs", "scope"), [(STOPPED, "worker"), (DEAF, "session")], ids=["stopped", "deaf"])
def test_ctrl_c_ends_a_run_in_which_a_worker_hangs(
    inner: Inner, pytester: pytest.Pytester, runtime: Path, hangs: str, scope: str
) -> None:
    """xdist waits ten seconds for its workers, and then kills them; we add nothing to that but our own end."""
    with hanging([f"--pgsandbox-scope={scope}"], hangs) as (process, pid):
        begun = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(40) == pytest.ExitCode.INTERRUPTED, said()
        assert is_gone(pid)
        assert time.monotonic() - begun < 25, said()
    assert "trouble" not in said()


def test_a_server_that_ended_since_nobody_held_it_is_started_again(some_target: Target) -> None:
    """All workers crashed, and who replaces them was slow."""
    settings = {**some_target.settings, "scope": "session", "run": "same"}
    with running(**settings) as first:
        before = first.server.port, first.database().url
        with contextlib.closing(Sandbox(**settings, worker="late")) as late:
            late.join()  # its folder, with all that it says of the server, stays
            first.stop()
            after = late.server.port, late.database().url
            assert before[0] != after[0]
            late.database().connect().close()
            assert late.stop() == []
