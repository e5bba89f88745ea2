"""Sandboxes that have a name: which one a name means, what a kept database's end costs others, and killed starts."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from children import child, eventually
from conftest import Target, left_behind

from pgsandbox import Sandbox, named, sources
from pgsandbox.engines import supervised
from pgsandbox.errors import NoSuchSandboxError, UsageError

if TYPE_CHECKING:
    from pgsandbox.settings import Settings

# Starts a sandbox and is killed, or kills itself, on the way.
UP = """\
import json, os, signal, sys
from pgsandbox import engines, named, sources
from pgsandbox.engines.local import LocalEngine
if sys.argv[2] == "dies between record and grant":
    LocalEngine.grant = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
print("ready", flush=True)
named.up("shop", sources.load(cli=json.loads(sys.argv[1])), lambda _text: None)
"""


def silent(_text: str) -> None:
    pass


@pytest.fixture
def settings(some_target: Target) -> Settings:
    return sources.load(cli=some_target.settings)


@pytest.fixture
def run(project: Path, settings: Settings) -> Iterator[Sandbox]:
    """A run of the project that is alive."""
    with Sandbox(settings, root=project) as sandbox:
        yield sandbox
        sandbox.stop()


def answers(url: str) -> bool:
    try:
        with psycopg.connect(url, connect_timeout=5) as connection:
            return connection.execute("SELECT 1").fetchone() == (1,)
    except psycopg.OperationalError:
        return False


def names() -> list[str]:
    return [one.name for one in named.of_project()]


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("shop", "shop"),
        ("My Shop", "my-shop"),
        ("shop.io_v2", "shop.io_v2"),
        (".config", "config"),
        ("--shop--", "shop"),
        ("Café Ñandú", "cafe-nandu"),
        ("日本語", "sandbox"),
        ("...", "sandbox"),
        ("a" * 39 + "-b" * 30, "a" * 39),
        ("", "sandbox"),
    ],
)
def test_a_name_is_made_from_the_folder_and_is_one_that_could_be_given(folder: str, name: str) -> None:
    assert named._checked(None, Path("/home/somebody") / folder if folder else Path("/")) == name
    assert named._checked(name, Path("/")) == name


def test_two_folders_of_one_name_are_two_projects() -> None:
    ids = {named._run_id(Path(folder), "shop") for folder in ("/a/shop", "/b/shop", "/a/shop\udcff")}
    assert len(ids) == 3


def test_up_finds_what_runs_and_asks_no_engine(project: Path, settings: Settings) -> None:
    made = named.up("shop", settings, silent)
    said: list[str] = []
    found = named.up("shop", settings, said.append)
    assert (found, said) == (made, [])
    assert made.url not in repr(made)
    named.down("shop")
    with pytest.raises(NoSuchSandboxError):
        named.find("shop")


def test_a_sandbox_whose_server_died_is_none(project: Path, settings: Settings, runtime: Path) -> None:
    first = named.up("shop", settings, silent)
    [folder] = runtime.glob("runs/*/servers/*")
    os.kill(json.loads((folder / "supervisor.json").read_text())["pid"], signal.SIGKILL)
    assert eventually(lambda: names() == [])
    second = named.up("shop", settings, silent)
    assert (second.url != first.url, answers(second.url)) == (True, True)
    assert named.down_all() == ["shop"]


def test_a_kept_database_outlives_its_run_and_down_ends_it(
    project: Path, run: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = run.keep(run.database())
    [kept] = named.of_project()
    assert said == f"open it within 8h with `pgsandbox psql {kept.name}`"
    run.stop()
    assert answers(kept.url)
    assert named.logs(kept, 1) != ""
    named.down(kept.name)
    assert (names(), answers(kept.url)) == ([], False)


def test_the_end_of_a_kept_database_is_none_of_a_living_runs(project: Path, run: Sandbox, runtime: Path) -> None:
    """The run tests on the server that the kept database is in; that ends with the run then."""
    run.keep(run.database())
    assert named.down_all() != []
    assert (names(), run.server.execute("SELECT 1")) == ([], [(1,)])
    assert run.stop() == []
    assert eventually(lambda: not left_behind(runtime))


def test_of_two_kept_databases_in_one_server_one_can_go(project: Path, run: Sandbox) -> None:
    for _ in range(2):
        run.keep(run.database())
    run.stop()
    one, two = named.of_project()
    named.down(one.name)
    assert (names(), answers(two.url)) == ([two.name], True)
    named.down(two.name)
    assert not answers(two.url)


def test_a_start_killed_between_its_record_and_its_grant_leaves_nothing(
    project: Path, some_target: Target, runtime: Path
) -> None:
    with child(UP, json.dumps(some_target.settings), "dies between record and grant") as process:
        assert process.wait(30) == -signal.SIGKILL
    assert eventually(lambda: not left_behind(runtime))


def test_a_start_that_is_killed_anywhere_leaves_nothing_or_all_of_it(
    project: Path, some_target: Target, settings: Settings, runtime: Path
) -> None:
    """What stays can be found by its name, used and ended."""
    for number in range(6):
        with child(UP, json.dumps(some_target.settings), "lives") as process:
            eventually(lambda: process.poll() is not None, timeout=random.uniform(0.05, 0.15 * (number + 1)))
            process.kill()
            process.wait()
        deadline = time.monotonic() + 5
        while left_behind(runtime) and not names() and time.monotonic() < deadline:
            time.sleep(0.02)
        if names():
            assert (answers(named.find("shop").url), named.down("shop")) == (True, "shop")
        assert eventually(lambda: not left_behind(runtime))


def test_another_ttl_is_granted_anew_and_only_on_purpose(project: Path, settings: Settings, runtime: Path) -> None:
    made = named.up("shop", settings, silent)
    [grant] = runtime.glob(f"runs/*/servers/*/{supervised.GRANT}")
    assert (made.ttl, float(grant.read_text())) == (28800, 28800)
    longer = sources.load(cli={"ttl": "9h", "engine": "local"})
    assert (named.up("shop", longer, silent).ttl, float(grant.read_text())) == (32400, 32400)
    assert named.up("shop", settings, silent).ttl == named.find("shop").ttl == 32400
    named.down("shop")


def test_no_other_server_is_taken_for_the_one_that_is_asked_for(project: Path, settings: Settings) -> None:
    named.up("shop", settings, silent)
    with pytest.raises(UsageError) as caught:
        named.up("shop", sources.load(cli={"version": "18"}), silent)
    assert str(caught.value) == (
        "pgsandbox: the sandbox shop runs already, with PostgreSQL 15 instead of 18\n"
        "  hint: end it first: pgsandbox down shop"
    )
    named.down("shop")


def test_what_a_named_sandbox_shows_has_no_password(project: Path, settings: Settings) -> None:
    made = named.up("shop", settings, silent)
    password = made.env["PGPASSWORD"]
    assert password in made.url
    assert all(password not in shown for shown in (repr(made), made.address, made.what))
    named.down("shop")


def test_its_age_is_said_in_the_largest_unit(project: Path) -> None:
    fields: dict[str, Any] = {"name": "x", "url": "", "project": "", "engine": "", "version": "", "what": ""}
    for seconds, age in ((-5, "0s"), (59, "59s"), (60, "1m"), (3599, "59m"), (3600, "1h"), (90000, "25h")):
        one = named.Named(**fields, token="", ttl=90, created=time.time() - seconds)
        assert (one.age, one.shown_ttl) == (age, "90s")


def test_no_password_is_in_any_command_line(project: Path, settings: Settings) -> None:
    made = named.up("shop", settings, silent)
    listed = subprocess.run(["ps", "-A", "-o", "args="], capture_output=True, text=True, check=True).stdout
    assert made.env["PGPASSWORD"] not in listed
    assert sys.executable in listed
    named.down("shop")
