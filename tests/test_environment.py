"""The exported variables: there before any conftest file is imported, explained where they lead nowhere, given back."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Inner, Target

from pgsandbox import invocation

CONTROLLER = "the-xdist-controller-has-no-database.pgsandbox.invalid"

CONFTEST = """
import os, pytest

SEEN = {name: value for name, value in os.environ.items() if name.startswith("PG") or name.endswith("_URL")}

with open(f"seen-by-{os.environ.get('PYTEST_XDIST_WORKER', 'first')}", "w") as file:
    print(os.environ["DATABASE_URL"], file=file)

if "the-xdist-controller" not in SEEN["PGHOST"]:
    import psycopg

    with psycopg.connect(os.environ["DATABASE_URL"]) as connection, psycopg.connect() as other:
        for each in (connection, other):
            assert each.info.dbname == SEEN["PGDATABASE"]
"""

TESTS = """
import conftest, os, psycopg, pytest

@pytest.mark.parametrize("number", range(4))
def test_the_variables_lead_to_the_workers_database(number, pgsandbox):
    assert pgsandbox.env.items() <= dict(os.environ).items()
    assert pgsandbox.env.items() <= conftest.SEEN.items()
    assert os.environ.get("SHOP_URL") == conftest.SEEN.get("SHOP_URL") == (pgsandbox.url if {env} else None)
    assert not {{"PGOPTIONS", "PGSERVICE", "PGHOSTADDR"}} & set(os.environ)
    with psycopg.connect() as connection:
        assert connection.info.dbname == pgsandbox.name
"""


@pytest.mark.parametrize(
    ("way", "words"),
    [
        ("-p", ()),
        ("-p", ("-n2",)),
        ("-p without autoload", ()),
        ("addopts", ()),
        ("addopts without autoload", ("-n2",)),
        ("PYTEST_ADDOPTS", ()),
        ("PYTEST_ADDOPTS", ("-n2",)),
        ("env", ()),
        ("env", ("-n2",)),
    ],
    ids=lambda value: value if isinstance(value, str) else "".join(value) or "alone",
)
def test_named_on_purpose_it_exports_the_url_before_conftest_files_are_imported(
    inner: Inner, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, way: str, words: tuple[str, ...]
) -> None:
    for name in ("PGOPTIONS", "PGSERVICE", "PGHOSTADDR"):
        monkeypatch.setenv(name, "elsewhere")
    more = ["-p", "pgsandbox"] if way.startswith("-p") else []
    if way.startswith("addopts"):
        pytester.makeini("[pytest]\naddopts = -p pgsandbox")
    if way == "PYTEST_ADDOPTS":
        monkeypatch.setenv("PYTEST_ADDOPTS", "-p pgsandbox")
    if way == "env":
        monkeypatch.setenv("PGSANDBOX_ENV", "SHOP_URL")
    if "without autoload" in way:
        monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
        more += ["-p", "xdist"]
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(TESTS.format(env=way == "env"))
    inner(*more, *words, named=False).assert_outcomes(passed=4)
    first = Path("seen-by-first").read_text()
    assert (CONTROLLER in first) == bool(words)


def test_the_controller_of_a_parallel_run_waits_for_nothing_while_the_server_starts(
    inner: Inner, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = "command: sh -c 'touch begun; until test -e controller-conftest-imported; do sleep 0.02; done'"
    monkeypatch.setenv("PGSANDBOX_INIT", wait)
    pytester.makeconftest(
        """
        import os, pathlib, time, pytest

        if "PYTEST_XDIST_WORKER" not in os.environ:
            assert os.environ["PGHOST"] == "the-xdist-controller-has-no-database.pgsandbox.invalid"
            assert not pathlib.Path("begun").exists()

            @pytest.hookimpl(tryfirst=True)
            def pytest_sessionstart():  # no worker has been started yet
                pathlib.Path("controller-conftest-imported").touch()
                deadline = time.monotonic() + 30
                while not pathlib.Path("begun").exists():
                    assert time.monotonic() < deadline, "the server is not being started"
                    time.sleep(0.01)
        """
    )
    pytester.makepyfile("def test_one(pgsandbox): pass")
    inner("-n2").assert_outcomes(passed=1)


def test_a_server_that_cannot_start_leaves_a_url_that_says_so(
    inner: Inner, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGSANDBOX_VERSION", "99")
    pytester.makeconftest("import os; print(os.environ['DATABASE_URL'], file=open('seen', 'w'))")
    pytester.makepyfile("def test_one(): pass")
    inner().assert_outcomes(passed=1)
    assert Path("seen").read_text() == "postgresql://pgsandbox@pgsandbox-could-not-start.invalid:1/none\n"


def test_a_run_that_xdist_decides_to_do_alone_has_its_database(inner: Inner, pytester: pytest.Pytester) -> None:
    pytester.makeconftest("def pytest_xdist_auto_num_workers(config): return 0")
    pytester.makepyfile(
        """
        import os
        def test_one(pgsandbox):
            assert pgsandbox.name == "pgsandbox_main"
            assert pgsandbox.url == os.environ["DATABASE_URL"]
        """
    )
    inner("-nauto").assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("options", "parallel"),
    [
        ({}, False),
        ({"numprocesses": None, "tx": [], "dist": "no", "distload": False}, False),
        ({"numprocesses": 0}, False),
        ({"numprocesses": 1}, True),
        ({"numprocesses": "auto"}, True),
        ({"numprocesses": "logical"}, True),
        ({"numprocesses": "auto", "usepdb": True}, False),
        ({"tx": ["2*popen"], "distload": True}, True),
        ({"tx": ["2*popen"], "dist": "loadfile"}, True),
        ({"tx": ["2*popen"], "dist": "no"}, False),
        ({"tx": [], "dist": "loadfile"}, False),
    ],
)
def test_whether_a_run_is_parallel_is_known_from_xdists_options(options: dict[str, object], parallel: bool) -> None:
    assert invocation.is_parallel(argparse.Namespace(**options)) is parallel


def test_no_run_is_parallel_where_xdist_is_told_that_there_are_no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_XDIST_AUTO_NUM_WORKERS", "0")
    assert invocation.is_parallel(argparse.Namespace(numprocesses="auto")) is False


TWICE = """
import os, sys, pytest

before = dict(os.environ)
for words in ([], ["-n2"], ["--collect-only"], ["--pgsandbox-connections=0"], ["-k", "nothing"]):
    pytest.main(["-p", "pgsandbox", *words])
    after = dict(os.environ)
    assert after == before, {name for name in {*after, *before} if after.get(name) != before.get(name)}
print("the same")
"""


def test_after_a_run_inside_a_process_the_variables_are_what_they_were(
    pytester: pytest.Pytester, some_target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = {"DATABASE_URL": "mine", "PGOPTIONS": "-c jit=off", "PGPASSWORD": "secret", "_PGSANDBOX_RUN": "no/1/1"}
    for name, value in {**some_target.environ, **mine}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    pytester.makepyfile("import os\ndef test_one(pgsandbox): assert os.environ['DATABASE_URL'] == pgsandbox.url")
    done = subprocess.run([sys.executable, "-c", TWICE], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.endswith("\nthe same\n"), done.stdout + done.stderr
    assert done.stdout.count(" 1 passed") == 2


OVERWRITTEN = """\
pgsandbox: DATABASE_URL is no longer what pgsandbox set it to
  why: it is postgresql://shop:***@localhost/shop now, as .env says: a dotenv loader won
  hint: load_dotenv() leaves alone what is set, load_dotenv(override=True) does not; if it is meant, leave out -p pgsandbox and the setting env, and use the fixture pgsandbox_url"""  # noqa: E501


@pytest.mark.parametrize("override", [True, False])
def test_a_url_that_dotenv_overwrote_is_an_error_that_names_the_file(
    inner: Inner, pytester: pytest.Pytester, override: bool
) -> None:
    Path(".env").write_text("# mine\nexport DATABASE_URL='postgresql://shop:secret@localhost/shop'\n")
    pytester.makeconftest(f"import dotenv; dotenv.load_dotenv('.env', override={override})")
    pytester.makepyfile(
        """
        def test_one(pgsandbox): pass
        def test_two(pgsandbox_connection): pass
        def test_without(): pass
        """
    )
    result = inner()
    if override:
        result.assert_outcomes(errors=3)
        assert result.stdout.str().count(OVERWRITTEN) == 3
        assert "secret" not in result.stdout.str()
    else:
        result.assert_outcomes(passed=3)
