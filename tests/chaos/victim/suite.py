"""The tests of a run: they write, wait, and die as they are told by the environment."""

import ctypes
import os
import resource
import threading
import time
from pathlib import Path

import pytest
from moments import HERE, reach

DEATH, UNTIL = os.environ["CHAOS_DEATH"], os.environ["CHAOS_UNTIL"]


@pytest.fixture(scope="session", autouse=True)
def at_the_end():
    yield
    reach("teardown")


def busy(database):
    with database.connect() as connection:
        connection.execute("SELECT pg_sleep(120)")


def die():
    if DEATH == "exit":
        os._exit(3)
    elif DEATH == "segfault":
        ctypes.string_at(0)
    elif DEATH == "memory":
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        before = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), before[1]))
        try:
            bytearray(1 << 30)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)
    elif DEATH == "oom":
        (Path(os.environ["CHAOS_CGROUP"]) / "cgroup.procs").write_text(str(os.getpid()))
        bytearray(os.urandom(1 << 20)) * (1 << 10)


@pytest.mark.parametrize("number", range(int(os.environ["CHAOS_TESTS"])))
def test_chaos(pgsandbox, number):
    reach("first-test")
    with pgsandbox.connect() as connection:
        connection.execute("INSERT INTO t VALUES (0)")
        if os.environ["CHAOS_STOP_AT"] == "mid-test":
            threading.Thread(target=busy, args=[pgsandbox], daemon=True).start()
        reach("mid-test")
        assert connection.execute("SELECT count(*) FROM t").fetchone() == (1001,)
        if number == 1:
            die()
    deadline = time.monotonic() + 60
    while UNTIL and not (HERE / UNTIL).exists() and time.monotonic() < deadline:
        with pgsandbox.connect() as connection:
            connection.execute("INSERT INTO t VALUES (0)")
        time.sleep(0.05)
