"""The fixtures and the marker: what each gives, for how long, and in which state."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import Inner, Target

EVERY_SENTENCE = """
import asyncio, os, psycopg, pytest
from psycopg import sql

import pgsandbox as package

seen = {}

def tables(database):
    with database.connect() as connection:
        rows = connection.execute("SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace")
        return sorted(name for name, in rows)

def create(database, name):
    with database.connect() as connection:
        connection.execute(sql.SQL("CREATE TABLE {} ()").format(sql.Identifier(name)))

def test_the_database_has_what_the_template_has(pgsandbox):
    assert isinstance(pgsandbox, package.Database)
    assert tables(pgsandbox) == ["from_init"]
    create(pgsandbox, "mine")
    seen["url"] = pgsandbox.url

def test_it_is_at_its_baseline_and_has_the_same_url(pgsandbox):
    assert tables(pgsandbox) == ["from_init"]
    assert pgsandbox.url == seen["url"]
    create(pgsandbox, "mine")

def test_the_url_is_the_databases(pgsandbox_url, request):
    assert pgsandbox_url == seen["url"]
    assert tables(request.getfixturevalue("pgsandbox")) == ["from_init"]
    with psycopg.connect(pgsandbox_url) as connection:
        connection.execute("CREATE TABLE mine ()")

def test_the_connection_is_open_autocommit_and_at_the_baseline(pgsandbox_connection):
    assert isinstance(pgsandbox_connection, psycopg.Connection)
    assert pgsandbox_connection.autocommit
    assert pgsandbox_connection.execute("SELECT to_regclass('mine')").fetchone() == (None,)
    pgsandbox_connection.execute("CREATE TABLE mine ()")
    seen["connection"] = pgsandbox_connection

def test_it_is_closed_afterwards():
    assert seen["connection"].closed

@pytest.mark.parametrize("name", ["pgsandbox", "pgsandbox_url", "pgsandbox_connection"] * 2)
def test_a_fixture_asked_for_late_is_at_the_baseline_too(request, name):
    request.getfixturevalue(name)
    with psycopg.connect(seen["url"]) as connection:
        connection.execute("CREATE TABLE mine ()")

def test_late_fixtures_share_one_baseline(request):
    create(request.getfixturevalue("pgsandbox"), "once")
    assert request.getfixturevalue("pgsandbox_connection").execute("SELECT to_regclass('once')").fetchone() == ("once",)

@pytest.mark.usefixtures("pgsandbox")
def test_a_fixture_named_by_a_marker_counts():
    with psycopg.connect(seen["url"]) as connection:
        assert connection.execute("SELECT to_regclass('once')").fetchone() == (None,)

def test_the_workers_database_is_the_same_one(pgsandbox_worker, pgsandbox):
    assert pgsandbox_worker.url == pgsandbox.url == seen["url"]

def test_the_server_is_known(pgsandbox_server):
    assert isinstance(pgsandbox_server, package.Server)
    assert pgsandbox_server.version.startswith("15.")
    assert f":{pgsandbox_server.port}/" in seen["url"]
    assert f"@{pgsandbox_server.host}:" in seen["url"]

def test_urls_and_connections_of_all_kinds_lead_to_it(pgsandbox):
    user, password, host, port = (pgsandbox.env[f"PG{name}"] for name in ("USER", "PASSWORD", "HOST", "PORT"))
    tail = f"://{user}:{password}@{host}:{port}/{pgsandbox.name}"
    assert pgsandbox.url == pgsandbox.env["DATABASE_URL"] == "postgresql" + tail
    assert pgsandbox.sqlalchemy_url() == "postgresql+psycopg" + tail
    assert pgsandbox.sqlalchemy_url("asyncpg") == "postgresql+asyncpg" + tail
    assert pgsandbox.sqlalchemy_url(driver=None) == "postgresql" + tail
    assert set(pgsandbox.env) == {"DATABASE_URL", "PGHOST", "PGPORT", "PGUSER", "PGPASSWORD", "PGDATABASE"}
    assert password not in repr(pgsandbox)
    create(pgsandbox, "mine")
    for connection in (pgsandbox.connect(), psycopg.connect(pgsandbox.conninfo), psycopg.connect(pgsandbox.url)):
        with connection:
            assert connection.execute("SELECT to_regclass('mine')").fetchone() == ("mine",)

    async def asynchronous():
        async with await pgsandbox.aconnect(autocommit=True) as connection:
            return await (await connection.execute("SELECT to_regclass('mine')")).fetchone()

    assert asyncio.run(asynchronous()) == ("mine",)

def test_a_factory_gives_fresh_databases(pgsandbox, pgsandbox_factory, pgsandbox_server):
    create(pgsandbox, "mine")
    one, two = pgsandbox_factory(), pgsandbox_factory()
    create(one, "ones")
    assert tables(pgsandbox) == ["from_init", "mine"]
    assert (tables(one), tables(two)) == (["from_init", "ones"], ["from_init"])
    assert len({pgsandbox.url, one.url, two.url}) == 3
    one.reset()
    assert tables(one) == ["from_init"]
    kept = two.snapshot()
    create(two, "twos")
    two.restore(kept)
    assert tables(two) == ["from_init"]
    seen["factory"] = {one.name, two.name, kept.name}
    seen["open"] = one.connect()

def test_what_a_factory_gave_is_dropped_even_if_in_use(pgsandbox_server):
    rows = pgsandbox_server.execute("SELECT datname FROM pg_database UNION SELECT rolname FROM pg_roles")
    assert not seen["factory"] & {name for name, in rows}
    with pytest.raises(psycopg.OperationalError), seen.pop("open") as connection:
        connection.execute("SELECT 1")

def test_the_next_factory_gives_databases_of_other_names(pgsandbox_factory):
    assert pgsandbox_factory().name not in seen["factory"]

def test_a_snapshot_can_be_restored_more_than_once(pgsandbox):
    create(pgsandbox, "one")
    before = pgsandbox.snapshot()
    for _ in range(2):
        create(pgsandbox, "two")
        pgsandbox.restore(before)
        assert tables(pgsandbox) == ["from_init", "one"]
    pgsandbox.reset()
    assert tables(pgsandbox) == ["from_init"]
    pgsandbox.restore(before)
    assert tables(pgsandbox) == ["from_init", "one"]

def test_a_snapshot_is_not_the_baseline(pgsandbox):
    assert tables(pgsandbox) == ["from_init"]
    assert pgsandbox.url == seen["url"]
"""


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        pytest.param("local", ("--pgsandbox-scope=worker",), id="local"),
        pytest.param("local", ("--pgsandbox-scope=session", "-n2", "--dist=loadfile"), id="local-xdist-session"),
        pytest.param("docker", ("-n2", "--dist=loadfile"), id="docker-xdist", marks=pytest.mark.docker),
        pytest.param(
            "docker",
            ("--pgsandbox-scope=worker", "-n2", "--dist=loadfile"),
            id="docker-xdist-worker",
            marks=pytest.mark.docker,
        ),
    ],
)
def test_every_sentence_of_the_fixture_table_holds(
    inner: Inner, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, engine: str, words: tuple[str, ...]
) -> None:
    for name, value in Target(engine, 15).environ.items():
        monkeypatch.setenv(name, value)
    pytester.makefile(".sql", init="CREATE TABLE from_init ()")
    pytester.makepyfile(test_every_sentence=EVERY_SENTENCE)
    result = inner("--pgsandbox-init=init.sql", *words, named="-n2" in words)
    result.assert_outcomes(passed=21)
    assert "trouble" not in result.stdout.str()


def test_fixtures_have_the_scopes_that_are_promised(inner: Inner) -> None:
    listed = dict(
        re.findall(r"^(pgsandbox\w*)(?: \[(\w+) scope\])? -- ", inner("--fixtures").stdout.str(), re.MULTILINE)
    )
    assert listed == {
        "pgsandbox": "",
        "pgsandbox_url": "",
        "pgsandbox_connection": "",
        "pgsandbox_worker": "session",
        "pgsandbox_server": "session",
        "pgsandbox_factory": "",
    }


BASELINES = """
import pytest

def add(database, word):
    with database.connect() as connection:
        connection.execute("INSERT INTO words VALUES (%s)", [word])

def words(database):
    with database.connect() as connection:
        return [word for word, in connection.execute("SELECT word FROM words ORDER BY word")]

@pytest.fixture(scope="session", autouse=True)
def table(pgsandbox_worker):
    with pgsandbox_worker.connect() as connection:
        connection.execute("CREATE TABLE words (word text)")
    add(pgsandbox_worker, "session")
    with pgsandbox_worker.baseline():
        yield

@pytest.fixture(scope="class")
def further(pgsandbox_worker):
    add(pgsandbox_worker, "class")
    with pgsandbox_worker.baseline():
        yield

@pytest.fixture
def innermost(pgsandbox):
    add(pgsandbox, "function")
    with pgsandbox.baseline():
        yield

def test_the_session_baseline_holds(pgsandbox):
    assert words(pgsandbox) == ["session"]
    add(pgsandbox, "test")

@pytest.mark.parametrize("number", range(2))
class TestNested:
    def test_the_class_baseline_holds(self, further, pgsandbox, number):
        assert words(pgsandbox) == ["class", "session"]
        add(pgsandbox, "test")

    def test_it_is_what_a_reset_goes_back_to(self, further, pgsandbox, number):
        add(pgsandbox, "test")
        pgsandbox.reset()
        assert words(pgsandbox) == ["class", "session"]

    def test_a_third_level_holds(self, further, innermost, pgsandbox, number):
        assert words(pgsandbox) == ["class", "function", "session"]
        add(pgsandbox, "test")
        pgsandbox.reset()
        assert words(pgsandbox) == ["class", "function", "session"]

def test_the_session_baseline_is_back(pgsandbox):
    assert words(pgsandbox) == ["session"]

def test_a_failing_block_gives_the_baseline_back(pgsandbox):
    add(pgsandbox, "test")
    with pytest.raises(ZeroDivisionError), pgsandbox.baseline():
        assert words(pgsandbox) == ["session", "test"]
        add(pgsandbox, "inside")
        1 / 0
    assert words(pgsandbox) == ["session"]

def test_no_copy_is_left(pgsandbox_server, pgsandbox):
    names = pgsandbox_server.execute("SELECT datname FROM pg_database WHERE datname LIKE %s", [pgsandbox.name + "%"])
    assert len(names) == 2  # itself, and the session's baseline
"""


def test_baselines_nest(inner: Inner, pytester: pytest.Pytester) -> None:
    pytester.makepyfile(BASELINES)
    inner(named=False).assert_outcomes(passed=10)


MARKERS = '''
import os, psycopg, pytest

def made(name):
    """Whether it was there already; it is afterwards."""
    with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
        found = connection.execute("SELECT to_regclass(%s) IS NOT NULL", [name]).fetchone()[0]
        connection.execute(f"CREATE TABLE IF NOT EXISTS {name} ()")
        return found

def test_first(pgsandbox): assert not made("t")

@pytest.mark.pgsandbox(isolation="none")
def test_none_leaves_it_alone(): assert made("t")

def test_a_test_that_asks_for_nothing_gets_nothing(): assert made("t")

@pytest.mark.pgsandbox(isolation="reset")
def test_reset(): assert not made("t")

@pytest.mark.pgsandbox(isolation="clone")
def test_clone(): assert not made("t")

@pytest.mark.pgsandbox
def test_the_marker_alone_means_the_settings_isolation(): assert not made("t")

@pytest.mark.pgsandbox(isolation="none")
class TestClass:
    def test_the_markers_of_a_class_hold(self, pgsandbox): assert made("t")

    @pytest.mark.pgsandbox(isolation="reset")
    def test_the_nearest_marker_wins(self, pgsandbox): assert not made("t")

@pytest.mark.pgsandbox(connections=2)
def test_connections_lowers_the_budget(pgsandbox):
    with pgsandbox.connect(), pgsandbox.connect():
        with pytest.raises(psycopg.OperationalError, match='too many connections for role "pgsandbox_main"'):
            pgsandbox.connect()

def test_for_that_test_alone(pgsandbox):
    with pgsandbox.connect(), pgsandbox.connect(), pgsandbox.connect():
        with pytest.raises(psycopg.OperationalError, match='too many connections for role "pgsandbox_main"'):
            pgsandbox.connect()

@pytest.mark.pgsandbox(connections=3)
def test_the_budget_itself_may_be_asked_for(pgsandbox): pass
'''


def test_a_marker_changes_isolation_and_budget_for_one_test(inner: Inner, pytester: pytest.Pytester) -> None:
    pytester.makepyfile(MARKERS)
    inner("--pgsandbox-connections=3", "--strict-markers").assert_outcomes(passed=11)


MISUSE = {
    "pgsandbox('clone')": """\
pgsandbox: the marker pgsandbox does not take a positional argument
  hint: it takes isolation= and connections=""",
    "pgsandbox(isolate='clone', budget=1)": """\
pgsandbox: the marker pgsandbox does not take budget, isolate
  hint: it takes isolation= and connections=""",
    "pgsandbox(isolation='copy')": "pgsandbox: isolation='copy' is not one of reset, clone, rollback, none",
    "pgsandbox(connections=0)": "pgsandbox: connections=0 is not a whole number of 1 or more",
    "pgsandbox(connections='2')": "pgsandbox: connections='2' is not a whole number of 1 or more",
    "pgsandbox(connections=True)": "pgsandbox: connections=True is not a whole number of 1 or more",
    "pgsandbox(connections=4)": """\
pgsandbox: connections=4 would raise the budget of 3
  hint: a marker may only lower it""",
    "pgsandbox(isolation='rollback')": """\
pgsandbox: isolation = rollback can't isolate the fixture pgsandbox_url
  why: it hands out a URL, and what is committed through that stays
  hint: use pgsandbox_connection, or isolation = reset""",
}


def test_a_marker_that_is_misused_fails_its_test_with_a_sentence(inner: Inner, pytester: pytest.Pytester) -> None:
    tests = [f"@pytest.mark.{marker}\ndef test_{n}(pgsandbox_url): pass" for n, marker in enumerate(MISUSE)]
    pytester.makepyfile("\n".join(["import pytest", *tests, "def test_after(pgsandbox): pass"]))
    result = inner("--pgsandbox-connections=3", "-rN", named=False)
    result.assert_outcomes(errors=len(MISUSE), passed=1)
    said = re.split(r"^_+ ERROR at setup of test_\d+ _+\n", result.stdout.str(), flags=re.MULTILINE)[1:]
    said[-1] = re.split(r"^=", said[-1], flags=re.MULTILINE)[0]
    assert [text.rstrip() for text in said] == list(MISUSE.values())


ISOLATED = '''
import os, psycopg, unittest

def create():
    """
    >>> create()
    """
    with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
        connection.execute("CREATE TABLE t ()")

def test_one(): create()
def test_two(): create()

class TestOfTheOldKind(unittest.TestCase):
    def test_three(self): create()
    def test_four(self): create()

def test_fixtures_may_still_be_named(pgsandbox_connection): create()
'''


@pytest.mark.parametrize("autouse", [True, False])
def test_autouse_isolates_tests_that_name_no_fixture(inner: Inner, pytester: pytest.Pytester, autouse: bool) -> None:
    """Without it, a class of unittest still begins at the baseline, as any fixture of wider scope does."""
    pytester.makepyfile(ISOLATED)
    result = inner("--doctest-modules", f"--pgsandbox-autouse={autouse}")
    result.assert_outcomes(**({"passed": 6} if autouse else {"passed": 2, "failed": 4}))


@pytest.mark.parametrize(("isolation", "passed"), [("clone", 3), ("none", 1)])
def test_the_setting_isolation_is_what_tests_get_by_default(
    inner: Inner, pytester: pytest.Pytester, isolation: str, passed: int
) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.parametrize("number", range(3))
        def test_one(pgsandbox_connection, number):
            pgsandbox_connection.execute("CREATE TABLE t ()")
        """
    )
    result = inner(f"--pgsandbox-isolation={isolation}", named=False)
    result.assert_outcomes(passed=passed, failed=3 - passed)


def test_fixtures_of_wider_scope_find_the_baseline_too(inner: Inner, pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        def create(database):
            with database.connect() as connection:
                connection.execute("CREATE TABLE t ()")

        def test_first(pgsandbox): create(pgsandbox)

        @pytest.fixture(scope="module")
        def loaded(pgsandbox_worker): create(pgsandbox_worker)

        def test_second(loaded, pgsandbox): pass
        """
    )
    inner(named=False).assert_outcomes(passed=2)


def test_a_plugin_named_by_a_conftest_file_gives_its_fixtures(
    inner: Inner, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makeconftest("pytest_plugins = ['pgsandbox.plugin']")
    pytester.makepyfile("def test_one(pgsandbox_connection): pgsandbox_connection.execute('SELECT 1')")
    inner(named=False).assert_outcomes(passed=1)
    assert Path("conftest.py").exists()
