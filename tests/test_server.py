"""A running server, seen through its admin connection."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest
from children import eventually
from conftest import Target
from machine import running

from pgsandbox.errors import NotReadyError, ServerError
from pgsandbox.server import Names, Server, cloning, limit_with_ours


def test_names_in_somebody_elses_server_carry_the_runs_token() -> None:
    names = Names("pgsandbox_0123456789ab")
    assert (names.owner, names.builder) == ("pgsandbox_0123456789ab_owner", "pgsandbox_0123456789ab_builder")
    assert (names.template, names.database("gw0")) == ("pgsandbox_0123456789ab_template", "pgsandbox_0123456789ab_gw0")


def test_a_databases_limit_is_its_workers_and_what_we_need_ourselves(some_target: Target) -> None:
    with running(**some_target.settings, connections=4) as sandbox:
        name = sandbox.database().name
        limits = "SELECT datconnlimit, (SELECT rolconnlimit FROM pg_roles WHERE rolname = datname) FROM pg_database"
        assert sandbox.server.execute(limits + " WHERE datname = %s", [name]) == [(limit_with_ours(4), 4)]
        sandbox.server.roles.limit_login(name, 1)
        full = pytest.raises(psycopg.OperationalError, match=f'too many connections for role "{name}"')
        with sandbox.database().connect(), full:
            sandbox.database().connect()


def test_databases_come_and_go_under_their_names(some_target: Target) -> None:
    odd = 'odd "name" %s ; --'
    with running(**some_target.settings) as sandbox:
        server = sandbox.server
        server.create_database(odd)
        assert server.has_database(odd)
        [(may,)] = server.execute("SELECT has_database_privilege('pg_monitor', %s, 'CONNECT')", [odd])
        assert may is False
        with server.inside(odd) as connection:
            server.drop_database(odd)
            with pytest.raises(psycopg.OperationalError):
                connection.execute("SELECT 1")
        assert not server.has_database(odd)
        server.drop_database(odd)
        server.roles.drop("nobody of that name")


def test_since_18_the_kernel_copies_files(target: Target) -> None:
    with running(**target.settings) as sandbox:
        server = sandbox.server
        server.create_database("copy", template=server.names.template)
        if target.version >= 18:
            assert server.execute("SHOW file_copy_method") == [("clone",)]
        assert server.has_database("copy")
        server.drop_database("copy")


def test_where_the_file_system_cannot_clone_postgresql_copies(binaries: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(engine="local", version=18) as sandbox:
        server, execute, refused = sandbox.server, sandbox.server.execute, list[str]()

        def refuse_once(query: Any, *args: Any, **more: Any) -> Any:
            if not refused and "STRATEGY file_copy" in str(query):
                refused.append("once")
                raise ServerError("the server refused", why='could not clone file "base/5/1" to "base/6/1": no')
            return execute(query, *args, **more)

        monkeypatch.setattr(server, "execute", refuse_once)
        server.create_database("copy", template=server.names.template)
        assert (refused, server.has_database("copy")) == (["once"], True)
        assert server.execute("SHOW file_copy_method") == [("copy",)]
        server.drop_database("copy")


@pytest.mark.parametrize(
    ("engine", "major", "said"),
    [
        ("local", 14, "file by file, the one way that this version has: "),
        ("local", 17, "file by file (STRATEGY file_copy): "),
        ("docker", 18, "file by file (STRATEGY file_copy), by the kernel (file_copy_method = clone): "),
        ("external", 18, "as that server does by itself"),
    ],
)
def test_doctor_says_how_clones_are_made(engine: str, major: int, said: str) -> None:
    assert cloning(engine, major).startswith(said)


def test_what_a_test_prepared_and_left_is_rolled_back(some_target: Target) -> None:
    with running(**some_target.settings, options=["max_prepared_transactions=2"]) as sandbox:
        database = sandbox.database()
        with database.connect(autocommit=True) as connection:
            connection.execute("BEGIN; CREATE TABLE t (); PREPARE TRANSACTION 'it''s'")
        database.reset()
        with database.connect() as connection:
            assert connection.execute("SELECT to_regclass('t')").fetchone() == (None,)


def test_everybody_is_disconnected_whatever_they_are_doing(some_target: Target) -> None:
    with running(**some_target.settings, isolation="clone") as sandbox:  # a reset has two sessions of its own
        database = sandbox.database()
        connections = [database.connect() for _ in range(3)]
        connections[0].execute("CREATE TABLE t ()")
        assert sandbox.server.disconnect(database.name) == 3
        assert sandbox.server.disconnect(database.name) == 0
        for connection in connections:
            with pytest.raises(psycopg.OperationalError):
                connection.execute("SELECT 1")
            connection.close()


def test_who_cannot_be_disconnected_is_named(some_target: Target) -> None:
    """A stopped process answers no signal but one."""
    with running(**some_target.settings) as sandbox, contextlib.closing(sandbox.database().connect()) as connection:
        connection.execute("SELECT 'the last query'")
        pid = connection.info.backend_pid
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(NotReadyError) as caught:
                sandbox.server.disconnect("pgsandbox_main", timeout=0.3)
        finally:
            os.kill(pid, signal.SIGCONT)
        assert str(caught.value) == (
            "pgsandbox: 1 connections to pgsandbox_main did not end within 0.3s\n"
            f"  why: pid {pid} is idle in transaction: SELECT 'the last query'"
        )


def test_what_the_server_refuses_is_said_in_its_words(some_target: Target) -> None:
    with running(**some_target.settings) as sandbox:
        with pytest.raises(ServerError) as caught:
            sandbox.server.execute("SELECT 1/0")
        assert str(caught.value) == "pgsandbox: the server refused\n  why: division by zero"
        assert sandbox.server.execute("SELECT 1") == [(1,)]


def _refuses(server: Server) -> bool:
    try:
        server.execute("SELECT 1")
    except ServerError:
        return True
    return False


def test_a_server_that_is_gone_is_said_to_be(some_target: Target) -> None:
    with running(**some_target.settings) as sandbox:
        server = sandbox.server
        data = str(server.running.socket)
        os.kill(int(Path(data, "postmaster.pid").read_text().splitlines()[0]), signal.SIGKILL)
        wait_until_refused(server.port)
        # A backend that lives on for a moment after its postmaster answers once more.
        assert eventually(lambda: _refuses(server))
        with pytest.raises(ServerError) as caught:
            server.execute("SELECT 1")
        lines = str(caught.value).splitlines()
        assert lines[0] == f"pgsandbox: the local server at 127.0.0.1:{server.port} has ended"
        assert lines[1] == "  why: postgres was killed by SIGKILL"
        assert lines[-1] == "  hint: run again; if nobody ended it on purpose, did memory run out?"


def wait_until_refused(port: int) -> None:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            psycopg.connect(f"host=127.0.0.1 port={port} user=x dbname=x").close()
        except psycopg.OperationalError as problem:
            if "refused" in str(problem):
                return
        time.sleep(0.01)
    pytest.fail("the server is still there")


CLIENT = """\
import psycopg, sys
with psycopg.connect(sys.argv[1], autocommit=True) as connection:
    print(connection.info.backend_pid, flush=True)
    connection.execute("SELECT pg_sleep(60)")
"""


def test_a_killed_clients_statement_ends_within_moments(some_target: Target) -> None:
    with running(**some_target.settings) as sandbox:
        command = [sys.executable, "-c", CLIENT, sandbox.database().conninfo]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as client:
            assert client.stdout is not None
            backend = int(client.stdout.readline())
            busy = "SELECT state FROM pg_stat_activity WHERE pid = %s AND query ~ 'pg_sleep'"
            wait_for(lambda: bool(sandbox.server.execute(busy, [backend])))
            client.send_signal(signal.SIGKILL)
        wait_for(lambda: not sandbox.server.execute("SELECT 1 FROM pg_stat_activity WHERE pid = %s", [backend]))


def wait_for(condition: object, deadline: float = 4) -> None:
    assert callable(condition)
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_database_with_a_subscription_can_be_dropped(some_target: Target) -> None:
    with running(**some_target.settings, superuser=True, scope="worker") as sandbox:
        database = sandbox.database()
        with database.connect(autocommit=True) as connection:
            connection.execute(
                "CREATE SUBSCRIPTION news CONNECTION 'dbname=none' PUBLICATION all_of_it WITH (connect = false)"
            )
        database.reset()
        with database.connect() as connection:
            assert connection.execute("SELECT count(*) FROM pg_subscription").fetchone() == (0,)
