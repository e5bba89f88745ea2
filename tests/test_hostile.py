"""Names that were chosen to do harm, wherever one can be given: they are quoted, or refused in words."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest
from conftest import Inner, Target
from machine import needs_root, other_user, running
from psycopg import sql

from pgsandbox import Sandbox, named
from pgsandbox.errors import UsageError, printable
from pgsandbox.identity import RUN_VARIABLE, worker_identity

HOSTILE = [
    "",
    " ",
    ".",
    "..",
    "../../etc/passwd",
    "/etc/passwd",
    "a/b",
    "-rf",
    "--help",
    "it's",
    'a"; DROP DATABASE postgres; --',
    "a\\b",
    "a\n",
    "a\nb",
    "a\0b",
    "$(touch pwned)",
    "`touch pwned`",
    ";rm -rf .",
    "%s{0}",
    "e\u0301",  # é in two characters
    "\ufb01",  # ﬁ in one
    "\u202egnp",  # turns the direction of what follows
    "\u0663",  # a digit, but not ours
    "\udcff",  # a byte that is no text
    "x" * 100,
]


# Databases, workers, runs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_of_a_database_or_worker_is_refused(some_target: Target, runtime: Path, name: str) -> None:
    said = f"pgsandbox: {name!r} can't name a database\n  hint: use up to 30 letters, digits and underscores"
    for sandbox, asked in (
        (Sandbox(**some_target.settings), name),
        (Sandbox(**some_target.settings, worker=name), None),
    ):
        with pytest.raises(UsageError) as caught:
            sandbox.database(asked)
        sandbox.close()
        assert str(caught.value) == said
    assert list(runtime.rglob("*")) == []


@pytest.mark.parametrize("name", [name for name in HOSTILE if name])
def test_a_hostile_name_of_a_run_is_refused(some_target: Target, runtime: Path, name: str) -> None:
    sandbox = Sandbox(**some_target.settings, run=name)
    with pytest.raises(UsageError) as caught:
        sandbox.start()
    sandbox.close()
    assert str(caught.value) == (
        f"pgsandbox: {name!r} can't name a run\n  hint: use up to 80 letters, digits, and . _ - inside"
    )
    assert [path.name for path in runtime.rglob("*")] in ([], ["runs"])


# No single quote: execnet itself pastes that into its code.
WORKERS = ["main", "controller", "a-b", "owner", 'a"; DROP DATABASE postgres; --', "..", "x" * 100]


def test_workers_may_be_called_what_xdist_allows(inner: Inner, pytester: pytest.Pytester) -> None:
    """`main` and `controller` are words of ours: they are workers all the same, and end nobody's server."""
    pytester.makepyfile("def test_one(pgsandbox): pgsandbox.connect().close()")
    names = [word for name in WORKERS for word in ("--tx", f"popen//id={name}")]
    result = inner("--dist=each", *names, "--pgsandbox-scope=session", "-rN")
    result.assert_outcomes(passed=2, errors=5)
    text = result.stdout.str()
    for name in WORKERS[2:]:
        assert f"pgsandbox: {name!r} can't name a database\n" in text
    assert "Traceback" not in text + result.stderr.str()
    assert "trouble" not in text


@pytest.mark.parametrize(
    "announced",
    [
        *(name for name in HOSTILE if "\0" not in name),
        "run",
        "run/1",
        f"run/{os.getppid()}",
        f"run/{os.getppid()}/0",
        f"run/{os.getppid()}/x",
        f"run/{os.getppid()}/1/2",
        f"run/{os.getppid()}/1\n",
        f"../run/{os.getppid()}/1",
        f"/{os.getppid()}/1",
        "run/-1/1",
        f"run/{10**30}/1",
        "run/\u0663/1",
    ],
)
def test_who_was_announced_by_hand_is_a_run_of_its_own(monkeypatch: pytest.MonkeyPatch, announced: str) -> None:
    monkeypatch.setenv(RUN_VARIABLE, announced)
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")
    assert worker_identity() is None


def test_variables_that_were_set_by_hand_do_no_harm(
    inner: Inner, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makepyfile("def test_one(pgsandbox): pass\ndef test_two(pgsandbox): pass")
    monkeypatch.setenv("PYTEST_XDIST_TESTRUNUID", "../../x'; DROP DATABASE postgres; --\n")
    monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", "-1")
    for announced, worker, said in (
        ("..", "../gw0", None),
        (f"../{os.getpid()}/1", "gw0", "'..' can't name a run"),
        (f"run/{os.getpid()}/1", "../gw0", "'../gw0' can't name a database"),
    ):
        monkeypatch.setenv("PYTEST_XDIST_WORKER", worker)
        monkeypatch.setenv(RUN_VARIABLE, announced)
        result = inner("-rN")
        if said is None:
            result.assert_outcomes(passed=2)
        else:
            result.assert_outcomes(errors=2)
            result.stdout.fnmatch_lines([f"pgsandbox: {said}", "  hint: *"])
        assert "Traceback" not in result.stdout.str() + result.stderr.str()


# What is in a database ------------------------------------------------------------------------------------------------

NAMES = [name for name in HOSTILE if name and "\0" not in name and name != "\udcff" and len(name) < 60]


def test_what_a_users_schema_is_called_is_never_taken_for_sql(some_target: Target) -> None:
    """Schemas, tables, columns, sequences, indexes, roles: put back, compared, copied and dropped under any name."""

    def quoted(query: str, name: str) -> sql.Composed:
        return sql.SQL(query.replace("?", "{0}")).format(sql.Identifier(name))

    settings = {**some_target.settings, "scope": "worker", "verify": True}
    with running(**settings) as sandbox:
        database = sandbox.database()
        with database.connect(autocommit=True) as connection:
            connection.execute("CREATE TABLE canary ()")
            for name in NAMES:
                connection.execute(quoted("CREATE SCHEMA ? CREATE TABLE ? (? serial, n int)", name))
                connection.execute(quoted("CREATE UNLOGGED TABLE ?.unlogged (? int)", name))
                connection.execute(quoted("CREATE INDEX ON ?.? (?) WHERE ? > 0", name))
                connection.execute(quoted("INSERT INTO ?.? (n) VALUES (1), (2)", name))
        with database.baseline():
            for number, name in enumerate(NAMES):
                with database.connect(autocommit=True) as connection:
                    connection.execute(quoted("DELETE FROM ?.? WHERE n = 1", name))
                    connection.execute(quoted("INSERT INTO ?.? (n) VALUES (3)", name))
                    connection.execute(quoted("INSERT INTO ?.unlogged VALUES (3)", name))
                    if number % 5 == 0:
                        connection.execute(quoted("CREATE ROLE ?", name))
                        connection.execute(quoted("CREATE DATABASE ?", name))
            database.reset()
            with database.connect() as connection:
                for name in NAMES:
                    rows = connection.execute(quoted("SELECT ?, n FROM ?.? ORDER BY n", name)).fetchall()
                    assert rows == [(1, 1), (2, 2)]
                assert connection.execute("SELECT to_regclass('canary')").fetchone() == ("canary",)
        left = "SELECT datname FROM pg_database WHERE datname !~ '^(pgsandbox|postgres|template)'"
        assert sandbox.server.execute(left) == []


# Sandboxes with a name, and projects ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_of_a_sandbox_is_refused(runtime: Path, name: str) -> None:
    with pytest.raises(UsageError) as caught:
        named._checked(name, Path("/somewhere"))
    assert str(caught.value) == (
        f"pgsandbox: {name!r} can't name a sandbox\n  hint: use up to 40 letters, digits, and . _ - inside"
    )


@pytest.mark.parametrize("command", ["up", "down", "url", "psql", "logs"])
def test_every_command_refuses_one_and_shows_no_trace(cli: Any, project: Path, runtime: Path, command: str) -> None:
    for name in ("\x1b[31m../x\n", "\u202egnp", "$(touch pwned)"):
        done = cli(command, name)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == (
            f"pgsandbox: {name!r} can't name a sandbox\n  hint: use up to 40 letters, digits, and . _ - inside\n"
        )
    assert (list(project.glob("pwned")), list(runtime.rglob("*"))) == ([], [])


FOLDERS = [
    b'it\'s "q" $(touch pwned) `touch pwned`; touch pwned %s{0}\\n',
    b"-rf",
    b"new\nline\x1b[31m",
    b"[a]*?{b}",
    b"a:b,c=d",
    "u\u0308\u202egnp".encode(),
    b"\xff",
    b"x" * 200,
]

TEST = """
def test_it(pgsandbox_connection):
    found = "SELECT count(*) FROM pg_class WHERE relname IN ('one', 'two', 'three', 'four')"
    assert pgsandbox_connection.execute(found).fetchone() == (4,)
"""

MODULE = """
import psycopg

def load(url):
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE three ()")
"""

SCRIPT = """
import os, psycopg

with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
    connection.execute("CREATE TABLE four ()")
"""

INI = """\
[pytest]
pgsandbox_init =
    one.sql
    more/*.sql
    python:module:load
    command: python script.py
pgsandbox_watch = *.py
"""


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_project_may_lie_in_any_folder(tmp_path: Path, cli: Any, folder: bytes) -> None:
    where = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + folder))
    (where / "more").mkdir(parents=True)
    files = {"one.sql": "CREATE TABLE one ()", "more/two.sql": "CREATE TABLE two ()", "test_it.py": TEST}
    for name, text in (files | {"module.py": MODULE, "script.py": SCRIPT, "pytest.ini": INI}).items():
        (where / name).write_text(text)
    before = sorted(where.rglob("*"))
    if b"[" not in folder:  # pytest itself refuses to be started there
        command = [sys.executable, "-B", "-m", "pytest", "-p", "pgsandbox", "-p", "no:cacheprovider"]
        environ = {**os.environ, "PYTHONUTF8": "1"}
        done = subprocess.run(command, cwd=where, capture_output=True, check=False, env=environ)
        assert (done.returncode, b" 1 passed" in done.stdout) == (0, True), done.stdout + done.stderr
    up = cli("up", cwd=where)
    with psycopg.connect(up.stdout.strip()) as connection:
        assert connection.execute("SELECT to_regclass('four')").fetchone() == ("four",)
    listed = cli("ls", cwd=where)
    assert listed.stdout.splitlines()[1].endswith(f"  {printable(str(where))}")
    assert json.loads(cli("ls", "--json", cwd=where).stdout)[0]["project"] == str(where)
    assert cli("doctor", cwd=where).returncode == 0
    assert cli("down", cwd=where).returncode == 0
    missing = cli("url", cwd=where)
    assert (missing.returncode, f"\n  looked at: {printable(str(where))}\n" in missing.stderr) == (5, True)
    assert [path for path in sorted(where.rglob("*")) if "__pycache__" not in path.parts] == before
    assert list(tmp_path.rglob("pwned")) == []


@needs_root
@pytest.mark.parametrize("folder", ["a, b", 'it\'s "q"', "$(touch pwned)", "a\\b%s", "a\nb"])
def test_a_runtime_folder_may_have_any_name(some_target: Target, folder: str) -> None:
    """Where we are not root, the server's data and its socket are in there, unless a comma would make two paths."""
    code = (
        "import json, os, sys\nfrom pgsandbox import Sandbox\n"
        "with Sandbox(**json.loads(sys.argv[1]), run='r') as sandbox:\n"
        "    sandbox.database().connect().close()\n"
        "    print(os.path.dirname(sandbox.server.running.socket))\n"
        "    sandbox.stop()\n"
    )
    with other_user() as user:
        root = user.home / folder
        settings = {"_PGSANDBOX_ROOT": str(root), "PATH": os.environ["PATH"], "_PGSANDBOX_CACHE": str(user.home / "c")}
        done = user.python("-c", code, json.dumps(some_target.settings), **settings)
        assert done.returncode == 0, done.stderr
        assert (str(root) in done.stdout) == ("," not in folder)
        assert list(user.home.rglob("pwned")) == []


def test_what_a_terminal_would_obey_is_shown_and_not_done() -> None:
    assert printable("a\nb\x1b[31m\u202eü\udcff") == "a\\nb\\x1b[31m\\u202eü\\udcff"
