"""The budget is a contract: who overdraws fails alone and learns who holds the connections, and leaks are named."""

from __future__ import annotations

import contextlib
import re
import threading

import psycopg
import pytest
from conftest import Inner, Target
from machine import running

import pgsandbox


@pytest.mark.parametrize("scope", ["session", "worker"])
def test_a_worker_may_open_as_many_connections_as_its_budget(some_target: Target, scope: str) -> None:
    with pgsandbox.Sandbox(**some_target.settings, connections=3, scope=scope, workers=2) as sandbox:
        database = sandbox.database("a")
        with contextlib.ExitStack() as stack:
            for _ in range(3):
                stack.enter_context(database.connect())
            with pytest.raises(psycopg.OperationalError, match='FATAL:  too many connections for role "pgsandbox_a"'):
                database.connect()
        database.reset()  # cut off, so that none of them lags
        database.connect().close()


def test_further_databases_count_towards_their_workers_budget(some_target: Target) -> None:
    with pgsandbox.Sandbox(**some_target.settings, connections=2, worker="a", scope="session", workers=2) as sandbox:
        further = sandbox.fresh()
        with sandbox.database().connect(), further.connect():
            with pytest.raises(psycopg.OperationalError, match='FATAL:  too many connections for role "pgsandbox_a"'):
                further.connect()
            with pytest.raises(psycopg.OperationalError, match='FATAL:  too many connections for role "pgsandbox_a"'):
                sandbox.database().connect()
        sandbox.drop(further)


def test_a_greedy_worker_never_takes_a_connection_from_its_neighbour(some_target: Target) -> None:
    with pgsandbox.Sandbox(**some_target.settings, connections=3, scope="session", workers=2) as sandbox:
        greedy, neighbour = sandbox.database("greedy"), sandbox.database("neighbour")
        refused: list[str] = []
        done = threading.Event()

        def overdraw() -> None:
            while not done.is_set():
                try:
                    greedy.connect().close()
                except psycopg.OperationalError as problem:
                    refused.append(str(problem))

        threads = [threading.Thread(target=overdraw) for _ in range(12)]
        with contextlib.ExitStack() as held:
            for _ in range(3):
                held.enter_context(greedy.connect())
            for thread in threads:
                thread.start()
            try:
                for _ in range(10):
                    with neighbour.connect() as one, neighbour.connect() as two, neighbour.connect() as three:
                        for connection in (one, two, three):
                            connection.execute("SELECT 1")
                    neighbour.reset()  # a slot just closed may lag; a reset waits for that
            finally:
                done.set()
                for thread in threads:
                    thread.join()
        assert refused
        assert all('too many connections for role "pgsandbox_greedy"' in said for said in refused)


GREEDY = """
import psycopg, pytest

held = []

def test_greedy(pgsandbox):
    held.append(pgsandbox.connect(application_name="the pool"))
    held[-1].execute("SELECT 'first'")
    held.append(pgsandbox.connect(autocommit=True))
    held[-1].execute("SELECT 'second'")
    held.append(pgsandbox.connect(autocommit=True))

@pytest.mark.pgsandbox(connections=1)
def test_lowered(pgsandbox):
    held.append(pgsandbox.connect(autocommit=True))
    pgsandbox.connect()

def test_factory(pgsandbox_factory):
    database = pgsandbox_factory()
    held.extend(database.connect(autocommit=True) for _ in range(3))

def test_caught(pgsandbox):
    held.extend(pgsandbox.connect(autocommit=True) for _ in range(2))
    with pytest.raises(psycopg.OperationalError):
        pgsandbox.connect()

def test_about_another_server(pgsandbox):
    raise ConnectionError('too many connections for role "somebody else"')
"""


def test_who_has_held_them_is_not_told_where_nobody_does_any_more(some_target: Target) -> None:
    """A list of connections that the failure itself took apart."""
    with running(**some_target.settings, connections=3) as sandbox:
        assert sandbox.holders(sandbox.database().name) == (
            "all of the 3 connections of pgsandbox_main have been closed since, as the test failed or before\n"
            "the setting connections raises the budget"
        )


def test_the_test_that_overdraws_names_who_holds_the_connections(inner: Inner, pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        test_greedy=GREEDY,
        test_neighbour="def test_neighbour(pgsandbox):\n    for _ in range(50): pgsandbox.connect().close()",
    )
    flags = ("--pgsandbox-connections=2", "--pgsandbox-scope=session", "--pgsandbox-isolation=clone")
    result = inner("-n2", "--dist=loadfile", *flags)
    result.assert_outcomes(passed=2, failed=4)
    said = re.findall(r"^-+ pgsandbox -+\n(.*?)\n(?=_____|=====)", result.stdout.str(), re.MULTILINE | re.DOTALL)
    shown = [re.sub(r"pid \d+", "pid 7", re.sub(r"gw\d", "gw0", re.sub(r"\d+\.\d+s", "0.1s", text))) for text in said]
    hint = "a connection that was just closed may still count for a moment; the setting connections raises the budget"
    expected = [
        [
            "test_greedy.py::test_greedy on gw0 asked for more connections than it may have",
            "2 of the 2 connections of pgsandbox_gw0 are held:",
            "  pid 7, idle in transaction for 0.1s, the pool: SELECT 'first'",
            "  pid 7, idle for 0.1s, unnamed: SELECT 'second'",
            hint,
        ],
        [
            "test_greedy.py::test_lowered on gw0 asked for more connections than it may have",
            "1 of the 1 connections of pgsandbox_gw0 are held:",
            "  pid 7, idle for 0.1s, unnamed: no statement yet",
            hint,
        ],
        [
            "test_greedy.py::test_factory on gw0 asked for more connections than it may have",
            "2 of the 2 connections of pgsandbox_gw0 are held:",
            "  pid 7, idle for 0.1s, unnamed: no statement yet",
            "  pid 7, idle for 0.1s, unnamed: no statement yet",
            hint,
        ],
    ]
    assert [text.splitlines() for text in shown] == expected


LEAKS = """
import pytest

open_ = []

def test_in_a_transaction(pgsandbox):
    open_.append(pgsandbox.connect())
    open_[-1].execute("SELECT 'first'")

def test_two(pgsandbox):
    test_in_a_transaction(pgsandbox)
    open_.append(pgsandbox.connect())
    with pytest.raises(Exception):
        open_[-1].execute("SELECT 1/0")

def test_idle_ones_are_a_pool(pgsandbox):
    open_.append(pgsandbox.connect(autocommit=True))
    open_[-1].execute("SELECT 1")

@pytest.mark.parametrize("number", range(25))
def test_what_is_closed_is_no_leak(pgsandbox, number):
    connection = pgsandbox.connect()
    connection.execute("SELECT 1")
    connection.close()

def test_the_connection_fixture_is_no_leak(pgsandbox_connection):
    pgsandbox_connection.execute("BEGIN")

@pytest.fixture
def broken(pgsandbox):
    yield
    raise RuntimeError("the teardown's own error")

def test_broken_teardown(pgsandbox, broken):
    test_in_a_transaction(pgsandbox)
"""

LEAKED = {
    "test_in_a_transaction": "1 connection (idle in transaction: SELECT 'first')",
    "test_two": "2 connections (idle in transaction: SELECT 'first'; idle in transaction (aborted): SELECT 1/0)",
    "test_broken_teardown": "1 connection (idle in transaction: SELECT 'first')",
}


@pytest.mark.parametrize(
    ("what", "words"), [("report", ()), ("report", ("-n2", "--dist=loadfile")), ("fail", ()), ("ignore", ())]
)
def test_connections_that_are_left_in_a_transaction_are_leaks(
    inner: Inner, pytester: pytest.Pytester, what: str, words: tuple[str, ...]
) -> None:
    pytester.makepyfile(test_leaks=LEAKS)
    result = inner(f"--pgsandbox-leaks={what}", "-rN", *words)
    result.assert_outcomes(passed=30, errors=3 if what == "fail" else 1)
    summary = [line for line in result.outlines if line.startswith("leaked: ")]
    expected = [f"leaked: test_leaks.py::{test}: {leak}" for test, leak in LEAKED.items()]
    assert summary == ([] if what == "ignore" else expected)
    assert ("= pgsandbox =" in result.stdout.str()) == (what != "ignore")
    errors = [line for line in result.outlines if line.startswith(("pgsandbox: this test leaked", "E  "))]
    masked = [f"pgsandbox: this test leaked {leak}" for leak in list(LEAKED.values())[:2]] if what == "fail" else []
    assert errors == [*masked, "E       RuntimeError: the teardown's own error"]
