"""What fixtures of wider scope load is part of the baseline of the tests under them, and is gone afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Inner

INIT = """
CREATE TABLE t (id serial PRIMARY KEY, x text);
INSERT INTO t (x) VALUES ('a'), ('b');
CREATE TABLE log (x text);
"""

COMMON = """
import os
import psycopg
import pytest


def q(*statements):
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as connection:
        for statement in statements:
            cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else None


def names():
    return "".join(x for x, in q("SELECT x FROM t ORDER BY id"))
"""

SCOPES = """
from common import *


@pytest.fixture(scope="session", autouse=True)
def seeded():
    q("INSERT INTO t (x) VALUES ('S')")
    yield
    assert "S" in names()


@pytest.fixture(scope="module")
def loaded():
    q("INSERT INTO t (x) VALUES ('M')")


@pytest.fixture(scope="class")
def schema():
    q("CREATE TABLE y (i int)", "INSERT INTO y VALUES (1)")


@pytest.fixture(scope="class")
def updated():
    q("UPDATE t SET x = 'U' WHERE id = 1", "TRUNCATE log")


@pytest.fixture(scope="class", params=["1", "2"])
def numbered(request):
    q(f"INSERT INTO t (x) VALUES ('{request.param}')")
    return request.param


@pytest.fixture
def own():
    q("INSERT INTO t (x) VALUES ('F')")


def y():
    return "".join(str(i) for i, in q("SELECT i FROM y"))


def spoil():
    q("INSERT INTO t (x) VALUES ('!')", "DELETE FROM t WHERE id = 1", "INSERT INTO log VALUES ('!')")


def test_a(pgsandbox): assert names() == "abS"; spoil()
def test_b(pgsandbox): assert names() == "abS"; q("TRUNCATE t")
def test_own(pgsandbox, own): assert names() == "abSF"
def test_late(pgsandbox, request): request.getfixturevalue("loaded"); assert names() == "abSM"; spoil()
def test_c(pgsandbox, loaded): assert names() == "abSM"; q("TRUNCATE t")
def test_d(pgsandbox, loaded): assert names() == "abSM"; q("DROP TABLE log")


class TestSchema:
    def test_1(self, pgsandbox, schema): assert names() + y() == "abSM1"; spoil(); q("DELETE FROM y")
    def test_2(self, pgsandbox, schema): assert names() + y() == "abSM1"; q("DROP TABLE y")
    def test_3(self, pgsandbox, schema): assert names() + y() == "abSM1"


class TestUpdated:
    def test_1(self, pgsandbox, updated): assert names() == "UbSM"; spoil()
    def test_2(self, pgsandbox, updated): assert names() == "UbSM"


class TestNumbered:
    def test_1(self, pgsandbox, numbered): assert names() == f"abSM{numbered}"; spoil()
    def test_2(self, pgsandbox, numbered): assert names() == f"abSM{numbered}"


def test_last(pgsandbox):
    assert (names(), q("SELECT to_regclass('y')"), q("SELECT * FROM log")) == ("abSM", [(None,)], [])
"""


@pytest.fixture
def suite(pytester: pytest.Pytester) -> Path:
    """The folder of a project whose template is INIT; what its tests use is in `common`."""
    (pytester.path / "init.sql").write_text(INIT)
    pytester.makepyfile(common=COMMON)
    pytester.makeini("[pytest]\npgsandbox_init = init.sql\npythonpath = .\n")
    return pytester.path


@pytest.mark.parametrize(
    "words", [("--pgsandbox-verify=true",), ("-n2", "--dist=loadfile"), ("--pgsandbox-isolation=clone",)]
)
def test_every_scope_loads_for_its_tests_alone(
    suite: Path, pytester: pytest.Pytester, inner: Inner, words: tuple[str, ...]
) -> None:
    pytester.makepyfile(test_scopes=SCOPES)
    if "--pgsandbox-isolation=clone" in words:
        pytester.makepyfile(test_scopes=BY_HAND)
    result = inner("-W", "error", *words)
    result.assert_outcomes(passed=2 if words and "clone" in words[0] else 16)
    assert "trouble" not in result.stdout.str()


BY_HAND = """
from common import *


@pytest.fixture(scope="module")
def loaded(pgsandbox_worker):
    q("INSERT INTO t (x) VALUES ('M')")
    with pgsandbox_worker.baseline():
        yield


def test_1(pgsandbox, loaded): assert names() == "abM"; q("TRUNCATE t")
def test_2(pgsandbox, loaded): assert names() == "abM"
"""


def test_a_session_fixture_set_up_later_outlives_a_module_s(
    suite: Path, pytester: pytest.Pytester, inner: Inner
) -> None:
    pytester.makeconftest(
        """
        from common import *

        @pytest.fixture(scope="session", params=["1", "2"])
        def late(request):
            q(f"INSERT INTO t (x) VALUES ('{request.param}')")
            return request.param

        @pytest.fixture(scope="session")
        def latest():
            q("INSERT INTO log VALUES ('latest')")
        """
    )
    pytester.makepyfile(
        test_1="""
        from common import *

        @pytest.fixture(scope="module")
        def mine():
            q("INSERT INTO t (x) VALUES ('M')")

        def test_mine(pgsandbox, mine): assert names() == "abM"; q("DELETE FROM t")
        def test_both(pgsandbox, mine, request):
            request.getfixturevalue("latest")
            assert (names(), q("SELECT x FROM log")) == ("abM", [("latest",)])
            q("DELETE FROM t", "DELETE FROM log")
        """,
        test_2="""
        from common import *

        def logged(): return q("SELECT x FROM log") == [("latest",)]
        def test_without(pgsandbox): assert logged() and names() == "ab"; q("TRUNCATE t, log")
        def test_late(pgsandbox, late): assert logged() and names() == "ab" + late; q("TRUNCATE t")
        def test_again(pgsandbox, late): assert names() == "ab" + late
        """,
    )
    result = inner("-W", "error", "--pgsandbox-verify=true")
    result.assert_outcomes(passed=7)
    assert "trouble" not in result.stdout.str()


def test_a_fixture_may_keep_a_transaction_open(suite: Path, pytester: pytest.Pytester, inner: Inner) -> None:
    """What it has not committed is no baseline; it is ended like any other before the next test, and that is all."""
    pytester.makepyfile(
        """
        from common import *

        @pytest.fixture(scope="module")
        def open_one():
            with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
                connection.execute("INSERT INTO t (x) VALUES ('!')")
                yield connection
                connection.close()

        def test_1(pgsandbox, open_one): assert names() == "ab"; open_one.execute("SELECT 1")
        def test_2(pgsandbox): assert names() == "ab"
        """
    )
    result = inner("-W", "error")
    result.assert_outcomes(passed=2)


def test_a_failing_fixture_leaves_nothing(suite: Path, pytester: pytest.Pytester, inner: Inner) -> None:
    pytester.makepyfile(
        """
        from common import *

        @pytest.fixture(scope="module")
        def failing():
            q("INSERT INTO t (x) VALUES ('!')")
            raise RuntimeError("half done")

        def test_1(pgsandbox, failing): pass
        def test_2(pgsandbox): assert names() == "ab"
        """
    )
    inner("-W", "error").assert_outcomes(passed=1, errors=1)


def test_a_suite_that_names_no_fixture_is_isolated(suite: Path, pytester: pytest.Pytester, inner: Inner) -> None:
    pytester.makepyfile(
        """
        import unittest
        from common import *

        def setup_module(): q("INSERT INTO t (x) VALUES ('M')")
        def test_1(): assert names() == "abM"; q("TRUNCATE t")
        def test_2(): assert names() == "abM"

        class TestOld(unittest.TestCase):
            @classmethod
            def setUpClass(cls): q("INSERT INTO t (x) VALUES ('C')")
            def test_1(self): self.assertEqual(names(), "abMC"); q("DELETE FROM t")
            def test_2(self): self.assertEqual(names(), "abMC")

        def test_3(): assert names() == "abM"
        """
    )
    inner("-W", "error", "--pgsandbox-autouse=true", "--pgsandbox-verify=true").assert_outcomes(passed=5)


def test_isolations_mix(suite: Path, pytester: pytest.Pytester, inner: Inner) -> None:
    pytester.makepyfile(
        """
        from common import *

        mark = pytest.mark.pgsandbox

        @pytest.fixture(scope="module", autouse=True)
        def loaded(): q("INSERT INTO t (x) VALUES ('M')")

        def test_reset(pgsandbox): assert names() == "abM"; q("INSERT INTO t (x) VALUES ('1')")
        @mark(isolation="none")
        def test_none(): assert names() == "abM1"; q("INSERT INTO t (x) VALUES ('2')")
        @mark(isolation="clone")
        def test_clone(pgsandbox): assert names() == "abM"; q("INSERT INTO t (x) VALUES ('3')")
        @mark(isolation="rollback")
        def test_rollback(pgsandbox_connection):
            assert names() == "abM"
            pgsandbox_connection.execute("DELETE FROM t")
            assert names() == "abM"
        @mark(isolation="none")
        def test_none_again(): assert names() == "abM"; q("DROP TABLE t")
        def test_reset_again(pgsandbox): assert names() == "abM"
        """
    )
    inner("-W", "error", "--pgsandbox-verify=true").assert_outcomes(passed=6)


def test_a_suite_that_isolates_nothing_is_left_alone(suite: Path, pytester: pytest.Pytester, inner: Inner) -> None:
    pytester.makepyfile(
        """
        from common import *

        @pytest.fixture(scope="class")
        def loaded(): q("INSERT INTO t (x) VALUES ('C')")

        def test_1(): q("INSERT INTO t (x) VALUES ('1')")
        class Test:
            def test_2(self, loaded): assert names() == "ab1C"
        def test_3(): assert names() == "ab1C"
        """
    )
    inner("-W", "error").assert_outcomes(passed=3)
