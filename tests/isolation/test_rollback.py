"""Isolation by rollback: one connection, whose work is gone afterwards whatever was done to it."""

from __future__ import annotations

import pytest
from conftest import Inner, Target

from pgsandbox import Sandbox
from pgsandbox.isolation.rollback import rolled_back

ROLLED_BACK = """
import psycopg, pytest

def create(connection):
    connection.execute("CREATE TABLE t ()")

def test_what_is_done_is_seen_by_this_connection_alone(pgsandbox_connection, pgsandbox_worker):
    create(pgsandbox_connection)
    assert pgsandbox_connection.execute("SELECT to_regclass('t')").fetchone() == ("t",)
    with pgsandbox_worker.connect() as other:
        assert other.execute("SELECT to_regclass('t')").fetchone() == (None,)

def test_it_is_gone(pgsandbox_connection):
    create(pgsandbox_connection)
    assert pgsandbox_connection.info.transaction_status.name == "INTRANS"

def test_commit_is_refused(pgsandbox_connection):
    create(pgsandbox_connection)
    with pytest.raises(psycopg.ProgrammingError):
        pgsandbox_connection.commit()

def test_transactions_nest(pgsandbox_connection):
    with pgsandbox_connection.transaction():
        create(pgsandbox_connection)
    with pytest.raises(psycopg.errors.DuplicateTable), pgsandbox_connection.transaction():
        create(pgsandbox_connection)
    assert pgsandbox_connection.execute("SELECT to_regclass('t')").fetchone() == ("t",)

def test_an_aborted_transaction_is_no_error(pgsandbox_connection):
    create(pgsandbox_connection)
    with pytest.raises(psycopg.errors.DuplicateTable):
        create(pgsandbox_connection)

def test_a_connection_that_was_closed_is_no_error(pgsandbox_connection):
    create(pgsandbox_connection)
    pgsandbox_connection.close()

def test_a_connection_that_was_cut_off_is_no_error(pgsandbox_connection, pgsandbox_server):
    create(pgsandbox_connection)
    pgsandbox_server.execute("SELECT pg_terminate_backend(%s, 5000)", [pgsandbox_connection.info.backend_pid])

def test_a_commit_in_sql_is_put_back_too(pgsandbox_connection):
    create(pgsandbox_connection)
    pgsandbox_connection.execute("COMMIT")

def test_after_all_that_it_is_the_baseline(pgsandbox_connection):
    create(pgsandbox_connection)

@pytest.mark.pgsandbox(isolation="reset")
def test_another_isolation_for_one_test(pgsandbox_url, pgsandbox_connection):
    create(pgsandbox_connection)
    assert pgsandbox_connection.info.transaction_status.name == "IDLE"
"""


def test_what_is_done_through_the_connection_is_rolled_back(inner: Inner, pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_rolled=ROLLED_BACK)
    pytester.makeini("[pytest]\nfilterwarnings = error\n")
    result = inner("--pgsandbox-isolation=rollback", named=False)
    result.assert_outcomes(passed=10)


REFUSED = """\
pgsandbox: isolation = rollback can't isolate the fixture {fixture}
  why: it hands out a URL, and what is committed through that stays
  hint: use pgsandbox_connection, or isolation = reset
"""


def test_a_fixture_that_hands_out_a_url_is_refused(inner: Inner, pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.fixture
        def application(pgsandbox_url): pass

        def test_url(pgsandbox_url): pass
        def test_database(pgsandbox): pass
        def test_by_another_fixture(application): pass
        def test_late(request): request.getfixturevalue("pgsandbox")
        def test_connection(pgsandbox_connection): pass
        """
    )
    result = inner("--pgsandbox-isolation=rollback", named=False)
    result.assert_outcomes(errors=3, failed=1, passed=1)
    said = result.stdout.str()
    assert said.count(REFUSED.format(fixture="pgsandbox_url")) == 2
    assert said.count(REFUSED.format(fixture="pgsandbox")) == 2


def test_an_error_inside_the_block_is_not_masked(some_target: Target) -> None:
    with Sandbox(**some_target.settings) as sandbox:
        database = sandbox.database("one")

        def fail() -> None:
            with rolled_back(database) as connection:
                connection.execute("CREATE TABLE t ()")
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        with database.connect() as other:
            assert other.execute("SELECT to_regclass('t')").fetchone() == (None,)
