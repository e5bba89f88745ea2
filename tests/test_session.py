"""What a session says at its end: kept databases, trouble; and what it tells about variables that were overwritten."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Inner, Target

from pgsandbox.errors import UsageError
from pgsandbox.identity import Identity, worker_identity
from pgsandbox.session import Session
from pgsandbox.settings import Settings

KEPT = """
import os, pytest, time

@pytest.mark.parametrize("number", range(2))
def test_failing(pgsandbox_connection, number):
    time.sleep(0.1)  # so that each worker gets some
    pgsandbox_connection.execute("CREATE TABLE evidence AS SELECT %s AS number", [number])
    assert number % 2 == 0

def test_passing(pgsandbox_connection):
    assert pgsandbox_connection.execute("SELECT to_regclass('evidence')").fetchone() == (None,)
"""

KEPT_LINE = r"^kept: test_kept\.py::test_failing\[(\d)\]: open it within 15m with `(pgsandbox psql [\w-]+)`$"


@pytest.mark.parametrize(
    ("engine", "words"),
    [("local", ("-n2",)), pytest.param("docker", (), marks=pytest.mark.docker)],
)
def test_a_failed_tests_database_can_be_opened_afterwards(
    inner: Inner, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, engine: str, words: tuple[str, ...]
) -> None:
    for name, value in Target(engine, 15).environ.items():
        monkeypatch.setenv(name, value)
    pytester.makepyfile(test_kept=KEPT)
    commands: dict[str, str] = {}
    for more in (words, ()):  # a second run keeps its own beside the first one's
        result = inner("--pgsandbox-keep=failed", "--pgsandbox-ttl=15m", *more)
        result.assert_outcomes(passed=2, failed=1)
        lines = "\n".join(line for line in result.outlines if line.startswith("kept: "))
        found = re.findall(KEPT_LINE, lines, re.MULTILINE)
        assert [number for number, _ in found] == ["1"], lines
        commands |= {command: number for number, command in found}
    assert len(commands) == 2
    try:
        for command, number in commands.items():
            done = _pgsandbox(*shlex.split(command)[1:], "--", "-XAtc", "SELECT number FROM evidence")
            assert (done.stdout, done.stderr) == (f"{number}\n", "")
    finally:
        down = _pgsandbox("down", "--all")
    assert down.returncode == 0
    assert _pgsandbox("ls").stderr == "pgsandbox: there is no sandbox\n"


def _pgsandbox(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pgsandbox", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def test_nothing_is_kept_of_a_run_that_passes(inner: Inner, pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_one(pgsandbox): pass")
    result = inner("--pgsandbox-keep=failed", "-q")
    assert result.outlines[0].startswith(".")
    assert len(result.outlines) == 2


@pytest.mark.parametrize("words", [(), ("-n1",)], ids=["alone", "xdist"])
def test_trouble_in_tearing_down_is_told_once_at_the_end_and_fails_no_test(
    inner: Inner, pytester: pytest.Pytester, words: tuple[str, ...]
) -> None:
    pytester.makepyfile(
        test_trouble="""
        from psycopg import sql

        def test_undroppable(pgsandbox_factory):
            database = pgsandbox_factory()
            with database.connect(autocommit=True) as connection:
                connection.execute(sql.SQL("ALTER DATABASE {} IS_TEMPLATE true").format(sql.Identifier(database.name)))

        def test_next(pgsandbox): pass
        """
    )
    result = inner(*words)
    result.assert_outcomes(passed=2)
    [start] = [number for number, line in enumerate(result.outlines) if "= pgsandbox =" in line]
    assert result.outlines[start + 1 : -1] == [
        "trouble: after test_trouble.py::test_undroppable: the server refused (cannot drop a template database)"
    ]


# A Session alone ------------------------------------------------------------------------------------------------------


@pytest.fixture
def session(tmp_path: Path) -> Session:
    """One that starts nothing."""
    return Session(Settings(env=("SHOP_URL",)), tmp_path, Identity("pytest-1", "main", 1), lambda _text: None)


HINT = (
    "\n  hint: load_dotenv() leaves alone what is set, load_dotenv(override=True) does not; if it is meant, "
    "leave out -p pgsandbox and the setting env, and use the fixture pgsandbox_url"
)


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("DATABASE_URL", "postgresql://me:secret@db/shop", "it is postgresql://me:***@db/shop now"),
        ("DATABASE_URL", "sqlite:///shop.db", "it is sqlite:///shop.db now, as .env says: a dotenv loader won"),
        ("DATABASE_URL", None, "it is not set now"),
        ("SHOP_URL", "postgresql://db/shop", "it is postgresql://db/shop now"),
        ("PGHOST", "db", "it is db now"),
        ("PGPASSWORD", "secret", "it is *** now"),
    ],
)
def test_an_overwritten_variable_is_an_error_that_says_who_won(
    session: Session, tmp_path: Path, name: str, value: str | None, why: str
) -> None:
    (tmp_path / ".env").write_text('DATABASE_URL = "sqlite:///shop.db"\n')
    url = "postgresql://u:p@h:1/d"
    before = dict(os.environ)
    session.environment.export({"DATABASE_URL": url, "PGHOST": "h", "PGPASSWORD": "p"})
    assert os.environ["SHOP_URL"] == url
    session.environment.check()
    os.environ.pop(name)
    if value is not None:
        os.environ[name] = value
    with pytest.raises(UsageError) as raised:
        session.environment.check()
    session.close()
    assert str(raised.value) == f"pgsandbox: {name} is no longer what pgsandbox set it to\n  why: {why}{HINT}"
    assert dict(os.environ) == before


def test_a_worker_knows_its_run_by_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw3")
    monkeypatch.setenv("_PGSANDBOX_RUN", f"pytest-1/{os.getppid()}/4")
    assert worker_identity() == Identity("pytest-1", "gw3", 4)
    assert worker_identity() is None, "a second pytest in the same process is a run of its own"


@pytest.mark.parametrize(
    ("worker", "announced"),
    [(None, "pytest-1/{parent}/4"), ("gw3", None), ("gw3", "pytest-1/{self}/4")],
    ids=["no worker", "nothing announced", "of another parent"],
)
def test_who_was_not_announced_to_is_a_run_of_its_own(
    monkeypatch: pytest.MonkeyPatch, worker: str | None, announced: str | None
) -> None:
    if worker is not None:
        monkeypatch.setenv("PYTEST_XDIST_WORKER", worker)
    if announced is not None:
        monkeypatch.setenv("_PGSANDBOX_RUN", announced.format(parent=os.getppid(), self=os.getpid()))
    assert worker_identity() is None
