"""No wait without a deadline, in the source and in fact; and nobody waits for a lock whose owner is dead."""

from __future__ import annotations

import ast
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from children import child, eventually
from conftest import Inner
from test_architecture import modules

from pgsandbox import lease, locks
from pgsandbox.cache import Cache
from pgsandbox.engines import supervised
from pgsandbox.errors import NotReadyError
from pgsandbox.isolation.reset.quiet import Look
from pgsandbox.run import Run

# In the source --------------------------------------------------------------------------------------------------------

WAITS = {
    "wait": "a process, an event, another's answer",
    "join": "a thread",
    "communicate": "a process",
    "acquire": "a lock",
    "result": "a future",
    "get": "a queue",
    "run": "a process",
    "call": "a process",
    "check_call": "a process",
    "check_output": "a process",
    "select": "a file",
    "FileLock": "a lock",
    "create_connection": "a connection",
    "urlopen": "an answer",
    "wait_for": "whatever it is",
    "readline": "a pipe",
    "recv": "a socket",
    "accept": "a socket",
    "waitpid": "a process",
    "flock": "a lock",
    "lockf": "a lock",
    "run_until_complete": "a coroutine",
    "input": "somebody",
    "DockerClient": "a daemon",
}
"""Names of what can block, and for what."""

ENOUGH = {"wait": 1, "join": 1, "result": 1, "get": 1, "select": 4, "wait_for": 2}
"""With how many arguments one of them is the timeout."""

PLACES = {
    # Names of ours, or of what does not wait.
    "bake: self._sandbox.join()": "ours: to take part in a run",
    "named: sandbox.join()": "the same",
    "sandbox: self.join()": "the same",
    "session: self.sandbox.join()": "the same",
    "template: step.run(database, context)": "ours: each kind of step has the setting timeout",
    # What ends with somebody, of whom the kernel tells.
    "shell: process.wait()": "`pgsandbox run` lasts as long as the command that it was given",
    "supervisor: sys.stdin.readline()": "a pipe from its starter: the kernel closes it when that dies",
    "parcel: stream.readline(len(_MAGIC) + 20)": "a file that the user named; `-` ends with who writes to it",
    "parcel: stream.readline(_LONGEST)": "the same",
    # What returns at once.
    "lease: fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)": "LOCK_NB",
    "engines.supervised: os.waitpid(pid, os.WNOHANG)": "WNOHANG",
    # What has its deadline inside.
    "pools: loop.run_until_complete(asyncio.wait_for(pool.drain(), _DRAIN_TIMEOUT))": "wait_for",
}
"""Every call that may look as if it waited without a deadline, and why it does not."""

LOOPS = {
    "engines.container.remove": "fifty attempts",
    "lease.watch": "a thread that lives as long as the process whose parent it looks after",
    "lease.end_with": "which has that thread",
}
"""Functions that sleep and look at no clock, and what ends them."""

CLOCKS = {
    "cache.of": "when it was made, for people",
    "cache.find": "which one was used last: to be wrong costs a rebuild",
    "cache.keep": "the same",
    "sandbox.name": "when it was made, for people",
    "settings.show_age": "how long ago that was, for people",
}
"""Functions that look at the clock on the wall, which somebody may set: none of them decides what lives or waits."""


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Every call in a module, by the last part of its name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", None) or getattr(node.func, "id", None)
            if name is not None:
                yield name, node


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def waits_forever(name: str, call: ast.Call) -> bool:
    """Whether a call of this name has neither a timeout by name, nor one in the place where its kind takes one."""
    if any(word.arg in ("timeout", "timeout_seconds") for word in call.keywords):
        return False
    if name == "run" and ast.unparse(call.func).rpartition(".")[0] not in ("subprocess", "step"):
        return False
    return len(call.args) < ENOUGH.get(name, sys.maxsize)


def test_nothing_in_the_source_waits_without_a_deadline() -> None:
    found = {
        f"{module}: {ast.unparse(call)}"
        for module, tree in modules().items()
        for name, call in calls(tree)
        if name in WAITS and waits_forever(name, call)
    }
    assert found == set(PLACES)


def test_whoever_sleeps_looks_at_a_clock_that_nobody_sets() -> None:
    found = {
        f"{module}.{function.name}"
        for module, tree in modules().items()
        for function in functions(tree)
        if (names := {ast.unparse(call.func) for _, call in calls(function)})
        and "time.sleep" in names
        and "time.monotonic" not in names
    }
    assert found == set(LOOPS)


def test_the_clock_on_the_wall_decides_nothing() -> None:
    found = {
        f"{module}.{function.name}"
        for module, tree in modules().items()
        for function in functions(tree)
        for _, call in calls(function)
        if ast.unparse(call.func) in ("time.time", "datetime.now", "datetime.utcnow", "datetime.today")
    }
    assert found == set(CLOCKS)


def test_connections_of_our_own_are_bounded() -> None:
    """Only what a user gets is a plain connection."""
    found = {
        f"{module}: {ast.unparse(call.func)}"
        for module, tree in modules().items()
        for name, call in calls(tree)
        if name in ("connect", "aconnect") and "psycopg" in ast.unparse(call.func).lower()
    }
    assert found == {"database: psycopg.connect", "database: psycopg.AsyncConnection.connect"}


# In fact --------------------------------------------------------------------------------------------------------------

HOLD = """
import sys, time
from pathlib import Path
from pgsandbox import lease
from pgsandbox.cache import Cache
from pgsandbox.run import Run

def owner():
    print("ready", flush=True)
    time.sleep(60)

{}
"""


def of_run(name: str) -> Callable[[], AbstractContextManager[None]]:
    @contextlib.contextmanager
    def hold() -> Iterator[None]:
        run = Run("one")
        try:
            with run.lock(name, timeout=0.3):
                yield
        finally:
            run.leave()

    return hold


LOCKS: dict[str, tuple[str, Callable[[], AbstractContextManager[None]], str]] = {
    name: (
        f"with Run('one').lock({name!r}, timeout=5): owner()",
        of_run(name),
        f"pgsandbox: waited 0.3s for another process of this run that is working on: {name}",
    )
    for name in ("choice", "server", "seed", "up")
}
LOCKS["cache"] = (
    "with Cache().building('abc', timeout=5): owner()",
    lambda: Cache().building("abc", timeout=0.3),
    "pgsandbox: waited 0.3s for another run that builds the same template",
)


@pytest.mark.parametrize("kind", LOCKS)
def test_a_lock_whose_owner_was_killed_is_had_at_once(kind: str, own_cache: Path) -> None:
    code, again, _ = LOCKS[kind]
    with child(HOLD.format(code)) as owner:
        with pytest.raises(NotReadyError), again():
            pass
        owner.kill()
        owner.wait(5)
        with again():
            pass


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only there does the kernel tell who holds a lock")
@pytest.mark.parametrize("kind", LOCKS)
def test_a_lock_whose_owner_is_stopped_is_waited_for_with_a_deadline_that_names_it(kind: str, own_cache: Path) -> None:
    code, again, what = LOCKS[kind]
    with child(HOLD.format(code)) as owner:
        stop(owner.pid)
        with pytest.raises(NotReadyError) as caught, again():
            pass
        assert str(caught.value) == (
            f"{what}\n"
            f"  why: process {owner.pid} ({NAME}) holds the lock, and is stopped\n"
            f"  hint: let it go on with `kill -CONT {owner.pid}`, or end it with `kill -KILL {owner.pid}`:"
            " the next one takes over"
        )
        owner.kill()
        owner.wait(5)
        with again():
            pass


REMOVE = HOLD.format("with lease.if_nobody_holds(Path(sys.argv[1])): owner()")
SUPERVISE = HOLD.format("mark = lease.supervise(Path(sys.argv[1])); owner()")
KEEP = HOLD.format("held = lease.hold(Path(sys.argv[1])); owner()")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One that is ours alone."""
    found = tmp_path / "folder"
    found.mkdir(mode=0o700)
    return found


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only there does the kernel tell who holds a lock")
def test_a_lease_waits_for_a_remover_only_as_long_as_that_lives(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "_REMOVAL_DEADLINE", 0.3)
    with child(REMOVE, folder) as remover:
        stop(remover.pid)
        with pytest.raises(NotReadyError) as caught:
            lease.hold(folder)
        assert str(caught.value) == (
            f"pgsandbox: the lease on {folder} could not be had within 0.3s, while another process is removing it\n"
            f"  why: process {remover.pid} ({NAME}) holds the lock, and is stopped\n"
            f"  hint: let it go on with `kill -CONT {remover.pid}`, or end it with `kill -KILL {remover.pid}`:"
            " the next one takes over"
        )
        remover.kill()
        remover.wait(5)
        lease.hold(folder).release()


def test_whoever_removes_waits_for_no_holder_and_none_that_was_killed_is_one(folder: Path) -> None:
    with child(KEEP, folder) as holder:
        stop(holder.pid)
        assert not lease.remove_if_dead(folder)
        holder.kill()
        holder.wait(5)
        assert lease.remove_if_dead(folder)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only there does the kernel tell who holds a lock")
def test_a_supervisor_that_is_stopped_is_named_and_one_that_was_killed_is_none(folder: Path) -> None:
    with child(SUPERVISE, folder) as supervisor:
        stop(supervisor.pid)
        assert lease.supervise(folder) is None
        assert supervised.end(folder, timeout=0.2) == [folder]
        assert str(supervised.not_ended("the server x", folder, 0.2)) == (
            "pgsandbox: the server x did not end within 0.2s:"
            f" process {supervisor.pid} ({NAME}) holds the lock, and is stopped\n"
            "  hint: try `pgsandbox prune`"
        )
        supervisor.kill()
        supervisor.wait(5)
        assert supervised.end(folder, timeout=0.2) == []
        mark = lease.supervise(folder)
        assert mark is not None
        mark.release()


def test_nobody_is_named_where_the_kernel_tells_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_TABLE", folder / "none")
    with child(HOLD.format(LOCKS["seed"][0])), pytest.raises(NotReadyError) as caught, of_run("seed")():
        pass
    assert str(caught.value) == (
        f"{LOCKS['seed'][2]}\n"
        "  why: it is alive, but has not finished\n"
        "  hint: raise the setting timeout if the work is known to take longer"
    )
    Run("one").leave()


NAME = Path(sys.executable).name[:15]


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    assert eventually(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")


# The clock ------------------------------------------------------------------------------------------------------------

WALL = """
import itertools, time

real, jumps = time.time, itertools.cycle([0, -86400, 86400, -7 * 86400, 30 * 86400])
time.time = lambda: real() + next(jumps)
"""


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_clock_that_jumps_for_days_back_and_forth_disturbs_nothing(
    pytester: pytest.Pytester, inner: Inner, workers: str
) -> None:
    pytester.makeconftest("import jumping")
    pytester.makepyfile(
        jumping=WALL,
        test_it="""
        import pytest

        @pytest.mark.parametrize("number", range(6))
        def test_reset(pgsandbox_connection, number):
            pgsandbox_connection.execute("CREATE TABLE t AS SELECT 1")
        """,
    )
    inner("-p", "jumping", f"-n{workers}").assert_outcomes(passed=6)


def test_where_the_servers_clock_was_set_back_somebody_may_have_written() -> None:
    noon = datetime(2026, 11, 20, 12, tzinfo=UTC)
    parts: dict[str, Any] = {"before": 1, "flushed": 1, "after": 1, "busy": frozenset(), "moved": False}
    parts |= {"advisory": frozenset(), "there": frozenset(), "ended_before": 1, "ended_after": 1}
    before, later, earlier = (Look(at=noon + timedelta(seconds=by), **parts) for by in (0, 1, -1))
    assert not later.has_moved_since(before)
    assert earlier.has_moved_since(before)
