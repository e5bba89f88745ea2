"""Sandbox: settings in, databases out, for one process and for the many of a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Target
from machine import running

import pgsandbox
from pgsandbox.errors import SettingsError, UsageError


def test_a_process_has_as_many_databases_as_it_asks_for(some_target: Target) -> None:
    with running(**some_target.settings) as sandbox:
        main, other, fresh = sandbox.database(), sandbox.database("other"), sandbox.fresh()
        assert [main.name, other.name, fresh.name] == ["pgsandbox_main", "pgsandbox_other", "pgsandbox_main-1"]
        assert sandbox.database() is main
        assert sandbox.database("other") is other
        with main.connect() as connection:
            connection.execute("CREATE TABLE t ()")
        for database in (other, fresh):
            with database.connect() as connection:
                assert connection.execute("SELECT to_regclass('t')").fetchone() == (None,)
        sandbox.drop(fresh)
        assert not sandbox.server.has_database(fresh.name)
        assert sandbox.fresh().name == "pgsandbox_main-2"


@pytest.mark.parametrize("name", ["", "a b", "a" * 41, 'a"b', "a-b", "ä"])
def test_a_name_that_cannot_be_a_databases_is_refused(some_target: Target, name: str) -> None:
    sandbox = pgsandbox.Sandbox(**some_target.settings)
    with pytest.raises(UsageError) as caught:
        sandbox.database(name)
    sandbox.close()
    assert str(caught.value) == (
        f"pgsandbox: {name!r} can't name a database\n  hint: use up to 30 letters, digits and underscores"
    )


@pytest.mark.parametrize("name", ["template", "owner", "builder"])
def test_a_name_that_is_our_own_is_refused(some_target: Target, name: str) -> None:
    with pgsandbox.Sandbox(**some_target.settings) as sandbox, pytest.raises(UsageError) as caught:
        sandbox.database(name)
    assert str(caught.value) == f"pgsandbox: {name!r} can't name a database\n  why: pgsandbox itself uses that name"


def test_keywords_are_settings_and_are_checked_like_any(some_target: Target) -> None:
    with pytest.raises(SettingsError, match="unknown setting verson"):
        pgsandbox.Sandbox(verson=18)
    with pytest.raises(SettingsError, match="is not a PostgreSQL major version"):
        pgsandbox.Sandbox(version="eighteen")


@pytest.mark.parametrize(
    ("engine", "asked", "superuser", "scope"),
    [("local", "auto", False, "worker"), ("local", "session", False, "session"), ("docker", "worker", False, "worker")],
)
def test_scope_is_what_was_asked_for_or_what_suits_the_engine(
    engine: str, asked: str, superuser: bool, scope: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox = pgsandbox.Sandbox(engine=engine, scope=asked, superuser=superuser)
    monkeypatch.setattr(sandbox, "_choice", pgsandbox.engines.Choice(engine=engine, version="18", what="it"))
    assert sandbox.scope == scope


MEMBER = """\
import json, sys
from pgsandbox import Sandbox
run, worker, settings = sys.argv[1:]
with Sandbox(run=run, worker=worker, workers=3, **json.loads(settings)) as sandbox:
    database = sandbox.database()
    with database.connect() as connection:
        seeded = connection.execute("SELECT string_agg(said, ',') FROM seed").fetchone()[0]
        connection.execute("INSERT INTO seed VALUES (%s)", [worker])
        connection.execute("CREATE TABLE of_mine (id serial)")
    database.reset()
    with database.connect() as connection:
        again = connection.execute("SELECT string_agg(said, ','), to_regclass('of_mine') FROM seed").fetchone()
    print(json.dumps([seeded, *again, database.name, sandbox.server.port, sandbox.scope]), flush=True)
    sys.stdin.readline()
"""


@pytest.mark.usefixtures("binaries")
@pytest.mark.parametrize("scope", ["session", "worker"])
@pytest.mark.parametrize(
    ("engine", "version"), [pytest.param("docker", 18, marks=pytest.mark.docker), ("local", 15), ("local", 18)]
)
def test_a_run_of_several_processes_is_the_same_to_each_in_both_scopes(
    scope: str, engine: str, version: int, project: Path
) -> None:
    target = Target(engine, version)
    (project / "seed.sql").write_text("CREATE TABLE seed (said text); INSERT INTO seed VALUES ('seeded')")
    settings = json.dumps({**target.settings, "scope": scope, "init": ["seed.sql"]})
    pipe = subprocess.PIPE
    members = [
        subprocess.Popen(
            [sys.executable, "-c", MEMBER, "run", f"gw{number}", settings],
            cwd=project,
            stdin=pipe,
            stdout=pipe,
            text=True,
        )
        for number in range(3)
    ]
    said = []
    for member in members:
        assert member.stdout is not None
        said.append(json.loads(member.stdout.readline()))
    for member in members:
        with member:
            pass
        assert member.returncode == 0
    assert [found[:3] for found in said] == [["seeded", "seeded", None]] * 3
    assert [found[3] for found in said] == [f"pgsandbox_gw{number}" for number in range(3)]
    assert {found[5] for found in said} == {scope}
    assert len({found[4] for found in said}) == (1 if scope == "session" else 3)


def test_the_environment_and_the_working_folder_are_left_alone(some_target: Target, project: Path) -> None:
    before, here = dict(os.environ), Path.cwd()
    with running(**some_target.settings) as sandbox:
        sandbox.database()
        assert (dict(os.environ), Path.cwd()) == (before, here)
    assert (dict(os.environ), Path.cwd()) == (before, here)


def test_close_and_stop_are_harmless_when_repeated(some_target: Target) -> None:
    sandbox = pgsandbox.Sandbox(**some_target.settings)
    sandbox.close()
    sandbox.start()
    assert sandbox.is_started
    assert sandbox.stop() == []
    assert not sandbox.is_started
    assert sandbox.stop() == []
    sandbox.close()
