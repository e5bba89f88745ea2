"""Somebody else's server: what is made there, that it is gone afterwards, and that nothing else is touched."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from machine import command_lines, running

from pgsandbox.engines.external import ExternalWard
from pgsandbox.errors import EngineError, ServerError, UsageError

if TYPE_CHECKING:
    from pgsandbox import Sandbox

GONE_DEADLINE = 5.0


class Somebodys:
    """A server that belongs to somebody else, with a superuser `boss` and a role `dev` that may make both."""

    def __init__(self, sandbox: Sandbox) -> None:
        server = sandbox.server
        self.version = int(server.version.partition(".")[0])
        self.address = f"{server.host}:{server.port}"
        self._execute = server.execute
        server.execute("CREATE ROLE boss LOGIN SUPERUSER PASSWORD 'boss'")
        server.execute("CREATE ROLE dev LOGIN CREATEDB CREATEROLE PASSWORD 'dev'")
        server.execute("CREATE ROLE reader LOGIN CREATEDB PASSWORD 'reader'")
        server.execute("CREATE ROLE nobody LOGIN PASSWORD 'nobody'")
        server.execute("CREATE ROLE pgsandboxer NOLOGIN")
        server.execute("CREATE DATABASE shop OWNER dev")
        server.execute("CREATE DATABASE pgsandbox_production OWNER boss")
        server.execute("ALTER DATABASE shop SET work_mem = '5MB'")

    def url(self, role: str, database: str = "shop", *, password: str | None = None) -> str:
        return f"postgresql://{role}:{role if password is None else password}@{self.address}/{database}"

    def everything(self) -> dict[str, Any]:
        """All that belongs to the whole server."""
        questions = {
            "databases": "SELECT to_jsonb(d) - 'datfrozenxid' - 'datminmxid' FROM pg_database d ORDER BY datname",
            "roles": "SELECT to_jsonb(r) FROM pg_authid r ORDER BY rolname",
            "members": "SELECT to_jsonb(m) FROM pg_auth_members m ORDER BY oid"
            if self.version >= 16
            else "SELECT to_jsonb(m) FROM pg_auth_members m ORDER BY roleid, member",
            "role settings": "SELECT to_jsonb(s) FROM pg_db_role_setting s ORDER BY setdatabase, setrole",
            "settings": "SELECT name, setting, source FROM pg_settings ORDER BY name",
            "dependencies": "SELECT to_jsonb(d) FROM pg_shdepend d WHERE dbid = 0 ORDER BY d::text",
            "comments": "SELECT to_jsonb(d) FROM pg_shdescription d ORDER BY d::text",
            "tablespaces": "SELECT to_jsonb(t) FROM pg_tablespace t ORDER BY oid",
        }
        return {name: self._execute(question) for name, question in questions.items()}

    def ours(self) -> list[str]:
        """The databases and roles that a run made."""
        names = "SELECT datname AS name FROM pg_database UNION ALL SELECT rolname FROM pg_roles"
        return [str(name) for (name,) in self._execute(names) if re.match("pgsandbox_[0-9a-f]{12}_", name)]

    def wait_until_clean(self) -> None:
        deadline = time.monotonic() + GONE_DEADLINE
        while left := self.ours():
            assert time.monotonic() < deadline, left
            time.sleep(0.02)


@pytest.fixture(scope="module", params=[15, 18])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Somebodys]:
    """Somebody's server, for all tests of this file."""
    folders = os.pathsep.join([os.environ.get(f"TEST_BIN_{request.param}", ""), os.environ["PATH"]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", folders)
        root = tmp_path_factory.mktemp("somebody")
        with running(root=root, engine="local", version=request.param, cache=False) as sandbox:
            yield Somebodys(sandbox)


@pytest.mark.parametrize("role", ["boss", "dev"])
def test_databases_and_roles_are_made_and_removed_and_nothing_else_is_changed(server: Somebodys, role: str) -> None:
    before = server.everything()
    with running(url=server.url(role), extensions=["pg_trgm"]) as sandbox:
        names = {sandbox.database("gw0").name, sandbox.database("gw1").name, sandbox.fresh().name}
        prefix = f"pgsandbox_{sandbox.server.running.token}_"
        assert all(name.startswith(prefix) for name in names)
        with sandbox.database("gw0").connect() as connection:
            connection.execute("CREATE TABLE t (word text); CREATE INDEX ON t USING gin (word gin_trgm_ops)")
            connection.execute("ALTER TABLE t ADD n int; TRUNCATE t; GRANT SELECT ON t TO PUBLIC")
        sandbox.database("gw0").reset()
        with sandbox.database("gw0").connect() as connection:
            assert connection.execute("SELECT to_regclass('t')").fetchone() == (None,)
        meanwhile = server.everything()
        for kind in ("databases", "roles"):
            key = {"databases": "datname", "roles": "rolname"}[kind]
            others = [row for row in meanwhile[kind] if not row[0][key].startswith(prefix)]
            assert others == before[kind]
        for kind in ("settings", "tablespaces", "comments"):
            assert meanwhile[kind] == before[kind]
    server.wait_until_clean()
    assert server.everything() == before


HOLDER = """\
import sys, time
from pgsandbox import Sandbox
with Sandbox(url=sys.argv[1]) as sandbox:
    with sandbox.database().connect() as connection:
        connection.execute("CREATE TABLE t ()")
        connection.commit()
        print("ready", flush=True)
        time.sleep(60)
"""


@pytest.mark.parametrize("role", ["boss", "dev"])
def test_a_killed_run_leaves_nothing_there(server: Somebodys, role: str) -> None:
    before = server.everything()
    with subprocess.Popen([sys.executable, "-c", HOLDER, server.url(role)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        assert server.ours()
        process.send_signal(signal.SIGKILL)
    server.wait_until_clean()
    assert server.everything() == before


def test_two_runs_there_do_not_meet(server: Somebodys) -> None:
    with running(url=server.url("dev")) as one:
        kept = one.database()
        with running(url=server.url("dev")) as other:
            assert {one.database().name, one.server.names.owner}.isdisjoint(
                {other.database().name, other.server.names.owner}
            )
        with kept.connect() as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
    server.wait_until_clean()


def test_a_template_is_built_there_with_steps_of_all_kinds(server: Somebodys, project: Path) -> None:
    (project / "schema.sql").write_text(
        "CREATE TABLE t (id int);\n"
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET work_mem = ''6MB''', current_database()); END $$"
    )
    (project / "insert.py").write_text(
        "import psycopg\n\n\ndef insert(url=''):\n"
        "    with psycopg.connect(url) as connection:\n        connection.execute('INSERT INTO t VALUES (7)')\n"
    )
    (project / "run.py").write_text("import insert; insert.insert()")
    init = ["schema.sql", "python:insert:insert", f"command: {sys.executable} run.py"]
    with running(url=server.url("dev"), init=init) as sandbox, sandbox.database().connect() as connection:
        rows = connection.execute("SELECT id, current_setting('work_mem') FROM t").fetchall()
        assert rows == [(7, "6MB")] * 2
    server.wait_until_clean()


def test_a_worker_is_held_to_its_budget_there(server: Somebodys) -> None:
    with running(url=server.url("dev"), connections=2) as sandbox:
        database = sandbox.database()
        full = pytest.raises(psycopg.OperationalError, match="too many connections for role")
        with database.connect(), database.connect(), full:
            database.connect()
    server.wait_until_clean()


def test_somebody_who_is_connected_there_is_seen(server: Somebodys) -> None:
    """What is made there by `up` lives on while somebody uses it."""
    with running(url=server.url("dev")) as sandbox:
        database = sandbox.database()
        ward = ExternalWard({"url": server.url("dev"), "token": sandbox.server.running.token})
        sandbox.server.disconnect(database.name)
        assert not ward.connected()
        with database.connect():
            assert ward.connected()


def test_what_others_write_there_is_not_taken_for_a_tests(server: Somebodys) -> None:
    """Else what a module's fixture loads would not be part of the baseline, depending on who else is at work."""
    with running(url=server.url("dev")) as sandbox, psycopg.connect(server.url("boss"), autocommit=True) as others:
        database = sandbox.database()
        for statement in ("CREATE TABLE one ()", "CREATE TABLE two ()"):
            others.execute("CREATE TABLE theirs ()")
            others.execute("DROP TABLE theirs")
            assert database.isolation.is_untouched()
            with database.connect() as connection:
                connection.execute("SELECT 1")
                assert not database.isolation.is_untouched()
                connection.execute(statement)
            assert not database.isolation.is_untouched()
            assert database.move_baseline(if_changed=True)


def test_a_budget_that_does_not_fit_is_lowered_to_what_does(server: Somebodys) -> None:
    with running(url=server.url("dev"), connections=10_000, workers=4) as sandbox:
        free = sandbox.choice.detail["available"]
        assert sandbox.budget == free // 4 - 3
    server.wait_until_clean()


def test_a_migration_that_makes_roles_is_told_what_to_do_there(server: Somebodys, project: Path) -> None:
    (project / "roles.sql").write_text("CREATE ROLE app")
    with pytest.raises(Exception) as caught, running(url=server.url("dev"), init=["roles.sql"]):
        pass
    why = "permission denied to create role"
    if server.version >= 16:
        why += "\n       Only roles with the CREATEROLE attribute may create roles."
    assert str(caught.value) == (
        "pgsandbox: init file roles.sql failed\n"
        f"  why: {why}\n"
        "  hint: the server is not ours: have its owner do that, once, and leave it out of the migrations"
    )
    server.wait_until_clean()


# Refusals -------------------------------------------------------------------------------------------------------------


def refusal(url: str, **settings: Any) -> str:
    with pytest.raises(EngineError) as caught, running(url=url, **settings):
        pass
    return str(caught.value)


def test_a_port_where_nobody_listens_is_said(server: Somebodys) -> None:
    assert refusal("postgresql://dev:secret@127.0.0.1:1/shop") == (
        "pgsandbox: external: no server answers at 127.0.0.1:1\n"
        "  why: connection refused\n"
        "  hint: is it running, and does it listen there?"
    )


def test_a_host_that_is_not_there_is_said() -> None:
    said = refusal("postgresql://dev:secret@nowhere.invalid:5432/shop")
    lines = said.splitlines()
    assert lines[0] == "pgsandbox: external: no server answers at nowhere.invalid:5432"
    assert lines[1].startswith("  why: ")
    assert "nowhere.invalid" in lines[1]
    assert lines[2:] == ["  hint: is it running, and does it listen there?"]


def test_a_wrong_password_is_said_and_not_repeated(server: Somebodys) -> None:
    assert refusal(server.url("dev", password="guessed")) == (
        f"pgsandbox: external: {server.address} refuses the password of dev\n"
        '  why: FATAL:  password authentication failed for user "dev"\n'
        "  hint: check user and password in url"
    )


def test_a_missing_password_is_said(server: Somebodys) -> None:
    assert refusal(f"postgresql://dev@{server.address}/shop") == (
        f"pgsandbox: external: {server.address} refuses the password of dev\n"
        "  why: no password was given\n"
        "  hint: check user and password in url"
    )


def test_a_database_that_does_not_exist_is_said(server: Somebodys) -> None:
    assert refusal(server.url("dev", "nothing")) == (
        f"pgsandbox: external: {server.address} refuses the connection\n"
        '  why: FATAL:  database "nothing" does not exist\n'
        "  hint: name a database in url that is there, such as postgres: ours are made beside it"
    )


@pytest.mark.parametrize(
    ("role", "lacks", "rights"),
    [("nobody", "CREATEDB and CREATEROLE", "CREATEDB CREATEROLE"), ("reader", "CREATEROLE", "CREATEROLE")],
)
def test_too_few_rights_are_said_in_one_message(server: Somebodys, role: str, lacks: str, rights: str) -> None:
    assert refusal(server.url(role)) == (
        f"pgsandbox: external: the role {role} may not do enough\n"
        f"  why: it lacks {lacks}, to make a database and a role for each worker\n"
        f'  hint: as a superuser there: ALTER ROLE "{role}" {rights}'
    )
    assert server.ours() == []


def test_another_version_than_asked_for_is_refused(server: Somebodys) -> None:
    with pytest.raises(EngineError) as caught, running(url=server.url("dev"), version=14):
        pass
    minor = caught.value.message.split()[5].rstrip(",")
    assert minor.startswith(f"{server.version}.")
    assert str(caught.value) == (
        f"pgsandbox: external: the server has PostgreSQL {minor}, but version = 14\n"
        "  hint: leave version out, or name another server in url"
    )


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("postgresql://dev:se%zzcret@127.0.0.1:1/shop", "invalid percent-encoded token"),
        ("postgresql://dev:secret@127.0.0.1:x/shop", "the port is not a number"),
        ("postgresql://dev:secret/x@127.0.0.1:1/shop", "the port is not a number"),
        ("postgresql://dev:secret@127.0.0.1:1/shop?nonsense=1", 'invalid URI query parameter: "nonsense"'),
    ],
)
def test_a_url_that_libpq_does_not_understand_is_said_without_its_password(url: str, why: str) -> None:
    said = refusal(url)
    assert said == (
        "pgsandbox: external: url can't be understood\n"
        f"  why: {why}\n"
        "  hint: write postgresql://user:password@host:port/database, and special characters as %XX"
    )
    assert "cret" not in said


def test_a_server_without_room_is_refused(server: Somebodys) -> None:
    with pytest.raises(ServerError) as caught, running(url=server.url("dev"), workers=500) as sandbox:
        sandbox.database()
    free = caught.value.message.split("for ")[1].split()[0]
    assert str(caught.value) == (
        f"pgsandbox: the server behind url has room for {free} more connections, too few for 500 workers\n"
        "  hint: raise its max_connections, or use fewer workers"
    )
    server.wait_until_clean()


def test_a_server_for_each_worker_is_not_to_be_had_there(server: Somebodys) -> None:
    with pytest.raises(UsageError) as caught, running(url=server.url("dev"), scope="worker"):
        pass
    assert str(caught.value) == (
        "pgsandbox: scope = worker needs servers of our own\n  why: url names a single server\n  hint: leave scope out"
    )


def test_the_password_is_in_no_command_line_and_in_no_record_that_others_can_read(
    server: Somebodys, runtime: Path
) -> None:
    with running(url=server.url("dev")) as sandbox:
        assert ":dev@" not in command_lines()
        assert "dev:dev" not in repr(sandbox.server.running) + repr(sandbox.choice)
        for path in (*runtime.rglob("*.json"), *(path for path in runtime.rglob("*") if path.is_dir())):
            assert path.stat().st_mode & 0o077 == 0, path
    server.wait_until_clean()
