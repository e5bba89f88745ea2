"""Baselines on one another: what is moved for some tests is what they are reset to, and is taken back afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from conftest import Target
from machine import running

if TYPE_CHECKING:
    import psycopg

    from pgsandbox import Database

SCHEMA = """
CREATE TABLE place (id serial PRIMARY KEY, name text UNIQUE);
INSERT INTO place (name) VALUES ('hall'), ('barn');
CREATE TABLE visit (id serial, place int REFERENCES place, at text);
CREATE SEQUENCE cached CACHE 10;
CREATE MATERIALIZED VIEW places AS SELECT count(*) FROM place;
"""
STATE = """
SELECT (SELECT string_agg(name, ' ' ORDER BY id) FROM place), (SELECT string_agg(at, ' ' ORDER BY id) FROM visit),
       (SELECT last_value FROM place_id_seq), (SELECT is_called FROM visit_id_seq), to_regclass('made')::text,
       (SELECT last_value FROM cached)
"""
BOTTOM = ("hall barn", None, 2, False, None, 1)


@pytest.fixture
def database(some_target: Target, project: Path) -> Iterator[Database]:
    """With verify: each reset, and each return to a baseline, is proven."""
    (project / "init.sql").write_text(SCHEMA)
    with running(**some_target.settings, init=["init.sql"], verify=True) as sandbox:
        yield sandbox.database()


@pytest.fixture
def app(database: Database) -> Iterator[App]:
    with contextlib.closing(App(database)) as app:
        yield app


class App:
    """An application with one connection, that knows how often it had to make it anew."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: psycopg.Connection[Any] = database.connect(autocommit=True)
        self.cut = 0

    def __call__(self, *statements: str) -> None:
        import psycopg

        try:
            self._connection.execute("SELECT 1")
        except psycopg.OperationalError:
            self.cut += 1
            self._connection = self._database.connect(autocommit=True)
        for statement in statements:
            self._connection.execute(statement.encode())

    @property
    def state(self) -> tuple[Any, ...]:
        self()
        found = self._connection.execute(STATE.encode()).fetchone()
        assert found is not None
        return tuple(found)

    def close(self) -> None:
        self._connection.close()


def test_rows_are_moved_and_taken_back_with_every_connection_alive(database: Database, app: App) -> None:
    app("INSERT INTO place (name) VALUES ('shed')")
    with database.baseline():
        one = app.state
        assert one[:3] == ("hall barn shed", None, 3)
        app("INSERT INTO visit (place, at) VALUES (3, 'today')", "SELECT nextval('cached')")
        with database.baseline():
            two = app.state
            assert two == ("hall barn shed", "today", 3, True, None, 10)
            for spoil in ("DELETE FROM visit", "TRUNCATE place CASCADE", "INSERT INTO place (name) VALUES ('x')"):
                app(spoil)
                database.reset()
                assert app.state == two, spoil
        assert app.state == one
        app("INSERT INTO visit (place, at) VALUES (3, 'later')")
        database.reset()
        assert app.state == one
    assert app.state == BOTTOM
    app("INSERT INTO place (name) VALUES ('again')")
    assert app.state[:3] == ("hall barn again", None, 3)
    database.reset()
    assert (app.state, app.cut, database.isolation.made_anew) == (BOTTOM, 0, [])


def test_rows_of_below_that_were_changed_are_what_they_were_again(database: Database, app: App) -> None:
    """Also where the level has changed or removed what lies below."""
    for change, names in (("UPDATE place SET name = 'HALL' WHERE id = 1", "HALL barn"), ("DELETE FROM place", None)):
        app(change)
        with database.baseline():
            for spoil in ("UPDATE place SET name = name || 'x'", "INSERT INTO place (name) VALUES ('y')"):
                app(spoil)
                database.reset()
                assert app.state[0] == names
        assert app.state == BOTTOM
    assert (app.cut, database.isolation.made_anew) == (0, [])


def test_a_schema_that_is_changed_is_moved_as_a_copy(database: Database, app: App) -> None:
    app("CREATE TABLE made (id serial, name text)", "INSERT INTO made (name) VALUES ('a')")
    app("INSERT INTO place (name) VALUES ('shed')")
    with database.baseline():
        assert database.isolation.made_anew == [
            (
                "moving the baseline took a copy: the schema was changed"
                " (pg_attrdef, pg_attribute, pg_class, pg_depend, pg_index, pg_sequence, pg_type)"
            )
        ]
        database.isolation.made_anew.clear()
        one = app.state
        assert one == ("hall barn shed", None, 3, False, "made", 1)
        cut = app.cut
        app("INSERT INTO made (name) VALUES ('b')", "INSERT INTO visit (at) VALUES ('x')", "SELECT nextval('cached')")
        database.reset()
        assert (app.state, app.cut, database.isolation.made_anew) == (one, cut, [])
        app("TRUNCATE made, place CASCADE")
        database.reset()
        assert app.state == one
        app("DROP TABLE made")
        database.reset()
        assert app.state == one
        app("INSERT INTO visit (at) VALUES ('inner')")
        with database.baseline():
            app("DELETE FROM visit")
            database.reset()
            assert app.state[1] == "inner"
        assert app.state == one
    assert app.state == BOTTOM


def test_a_clone_that_was_needed_comes_back_to_the_moved_baseline(database: Database, app: App) -> None:
    app("INSERT INTO place (name) VALUES ('shed')", "SELECT nextval('cached')")
    with database.baseline():
        one = app.state
        app("INSERT INTO visit (place, at) VALUES (3, 'today')")
        with database.baseline():
            two = app.state
            for spoil in ("CREATE TABLE made ()", "DROP TABLE visit", "REFRESH MATERIALIZED VIEW places"):
                app(spoil)
                database.reset()
                assert app.state == two, spoil
                app("INSERT INTO place (name) VALUES ('x')", "DELETE FROM visit", "SELECT nextval('cached')")
                database.reset()
                assert app.state == two, spoil
            assert len(database.isolation.made_anew) == 3
        assert app.state == one
    assert app.state == BOTTOM


@pytest.mark.parametrize(
    "changes", ["INSERT INTO place (name) VALUES ('first')", "UPDATE place SET name = 'first'||id"]
)
def test_one_in_the_middle_goes_and_those_above_stay(database: Database, app: App, changes: str) -> None:
    """As when a fixture of a module is torn down while one of the session, set up later, lives on."""
    isolation = database.isolation
    app(changes)
    first = isolation.move_baseline()
    app("INSERT INTO visit (at) VALUES ('second')")
    second = isolation.move_baseline()
    isolation.return_baseline(first)
    state = app.state
    assert state[1] == "second"
    if changes.startswith("INSERT"):
        assert state[0] == "hall barn"
    app("DELETE FROM visit", "INSERT INTO place (name) VALUES ('x')")
    database.reset()
    assert app.state == state
    isolation.return_baseline(second)
    assert app.state == BOTTOM


def test_the_reference_rows_of_a_moved_baseline_come_back_after_truncate(database: Database, app: App) -> None:
    app("INSERT INTO place (name) SELECT 'p' || g FROM generate_series(1, 3000) g")
    with database.baseline():
        one = app.state
        for spoil in ("TRUNCATE place CASCADE", "TRUNCATE place, visit RESTART IDENTITY", "DELETE FROM place"):
            app(spoil)
            database.reset()
            assert app.state == one, spoil
    assert (app.state, app.cut) == (BOTTOM, 0)


def test_rows_that_lie_elsewhere_after_a_truncate_are_taken_out_all_the_same(database: Database, app: App) -> None:
    """One fixture after the other, as when it has parameters, with tests that truncate."""
    for name in ("one", "two", "three"):
        app(f"INSERT INTO place (name) VALUES ('{name}')")
        with database.baseline():
            app("TRUNCATE place CASCADE")
            database.reset()
            assert app.state[0] == f"hall barn {name}"
        assert app.state == BOTTOM


def test_a_row_that_was_updated_before_a_copy_is_found_by_index_after_a_reset(database: Database, app: App) -> None:
    app("CREATE TABLE made ()", "CREATE TABLE u AS SELECT 1 AS id, 'a' AS x", "CREATE INDEX ON u (id)")
    app("UPDATE u SET x = 'b'", "UPDATE u SET x = 'c'")
    with database.baseline():
        for spoil in ("DELETE FROM u", "UPDATE u SET x = 'd'", "UPDATE u SET id = 2"):
            app(spoil)
            database.reset()
            app("SET enable_seqscan = off", "DO $$ BEGIN ASSERT (SELECT x = 'c' FROM u WHERE id = 1); END $$")


def test_a_snapshot_that_is_restored_is_not_the_baseline(database: Database, app: App) -> None:
    app("INSERT INTO visit (at) VALUES ('kept')", "CREATE TABLE made ()")
    snapshot = database.snapshot()
    kept = app.state
    database.reset()
    assert app.state == BOTTOM
    app("DELETE FROM place")
    database.reset()
    assert app.state == BOTTOM
    database.restore(snapshot)
    assert app.state == kept
    database.reset()
    assert app.state == BOTTOM
    assert database.isolation.made_anew == ["a copy was made or restored (a snapshot, or keep = failed)"] * 2
    database.restore(snapshot)
    with database.baseline():
        app("INSERT INTO visit (at) VALUES ('more')")
        database.reset()
        assert app.state == kept
    assert app.state == BOTTOM


def test_nothing_is_moved_where_nothing_was_changed(database: Database, app: App) -> None:
    assert database.isolation.move_baseline(if_changed=True) is None
    app("SELECT 1", "INSERT INTO visit (at) VALUES ('x')")
    database.reset()
    assert database.isolation.move_baseline(if_changed=True) is None
    app("BEGIN", "INSERT INTO visit (at) VALUES ('x')")
    assert database.isolation.move_baseline(if_changed=True) is None
    app("COMMIT")
    assert database.isolation.move_baseline(if_changed=True) is not None
    assert app.cut == 0
