"""What a test's role may do: everything in its own database, and in the server only what harms no neighbour."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest
from conftest import Inner, Target

import pgsandbox
from pgsandbox.errors import SettingsError

TEMPLATE = """
CREATE SCHEMA shop;
CREATE TYPE shop.state AS ENUM ('open', 'shut');
CREATE DOMAIN shop.positive AS int CHECK (VALUE > 0);
CREATE TABLE shop.place (id serial PRIMARY KEY, state shop.state, size shop.positive);
CREATE TABLE shop.visit (id int GENERATED ALWAYS AS IDENTITY, place int REFERENCES shop.place);
CREATE VIEW shop.open_place AS SELECT * FROM shop.place WHERE state = 'open';
CREATE MATERIALIZED VIEW shop.counts AS SELECT state, count(*) FROM shop.place GROUP BY state;
CREATE FUNCTION shop.nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER nothing BEFORE INSERT ON shop.visit FOR EACH ROW EXECUTE FUNCTION shop.nothing();
ALTER DEFAULT PRIVILEGES IN SCHEMA shop GRANT SELECT ON TABLES TO PUBLIC;
INSERT INTO shop.place (state, size) VALUES ('open', 1);
"""

ALL_KINDS_OF_DDL = """
ALTER TYPE shop.state ADD VALUE 'ajar'
ALTER DOMAIN shop.positive ADD CHECK (VALUE < 1000)
ALTER TABLE shop.place ADD COLUMN name text NOT NULL DEFAULT ''
ALTER TABLE shop.visit DISABLE TRIGGER nothing
ALTER TABLE shop.visit ALTER COLUMN id RESTART WITH 7
ALTER SEQUENCE shop.place_id_seq RESTART
REFRESH MATERIALIZED VIEW shop.counts
CREATE OR REPLACE FUNCTION shop.nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'
ALTER VIEW shop.open_place RENAME TO is_open
TRUNCATE shop.place CASCADE
CREATE INDEX CONCURRENTLY ON shop.place (name)
VACUUM FULL ANALYZE shop.place
BEGIN; LOCK TABLE shop.place; COMMIT
CREATE TABLE shop.more (id int)
GRANT SELECT ON shop.more TO PUBLIC
REVOKE ALL ON shop.more FROM PUBLIC
COMMENT ON TABLE shop.place IS 'here'
CREATE TEMPORARY TABLE scratch (id int)
CREATE EXTENSION pg_trgm
CREATE SCHEMA further CREATE TABLE t (id int)
DROP SCHEMA shop CASCADE
CREATE TABLE public.t (id int)
DROP SCHEMA public CASCADE
"""


def _ddl(connection: psycopg.Connection[tuple[object, ...]]) -> None:
    for statement in ALL_KINDS_OF_DDL.strip().splitlines():
        connection.execute(statement.encode())


def test_a_tests_role_owns_all_that_is_in_its_database(target: Target, project: Path) -> None:
    (project / "init.sql").write_text(TEMPLATE)
    with pgsandbox.Sandbox(**target.settings, init=["init.sql"]) as sandbox:
        database = sandbox.database("one")
        for _ in range(2):
            with database.connect(autocommit=True) as connection:
                assert connection.execute("SHOW is_superuser").fetchone() == ("off",)
                _ddl(connection)
            database.reset()
        with database.connect(autocommit=True) as connection:
            for reset in ("RESET ALL", "DISCARD ALL", "RESET ROLE"):
                connection.execute(reset)
                connection.execute("ALTER TABLE shop.place SET (fillfactor = 90)")
            connection.execute("CREATE DATABASE further")
            connection.execute("DROP DATABASE further")
            connection.execute("CREATE ROLE clerk")
            connection.execute("GRANT SELECT ON shop.place TO clerk")
            connection.execute("GRANT USAGE ON SCHEMA shop TO clerk")
            if target.version < 16:  # from 16 on, who makes a role is a member of it (createrole_self_grant)
                connection.execute("GRANT clerk TO CURRENT_USER")
            connection.execute("SET ROLE clerk")
            assert connection.execute("SELECT count(*) FROM shop.place").fetchone() == (1,)
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="permission denied for table place"):
                connection.execute("DELETE FROM shop.place")


def test_in_a_shared_server_no_worker_may_make_roles_or_enter_a_neighbours_database(some_target: Target) -> None:
    with pgsandbox.Sandbox(**some_target.settings, scope="session", workers=2) as sandbox:
        one, two = sandbox.database("one"), sandbox.database("two")
        with one.connect(autocommit=True) as connection:
            connection.execute("CREATE DATABASE further")
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match="permission denied to create role"):
                connection.execute("CREATE ROLE clerk")
            with pytest.raises(psycopg.errors.InsufficientPrivilege, match=r"must be superuser|permission denied"):
                connection.execute("ALTER SYSTEM SET jit = on")
        with pytest.raises(psycopg.OperationalError, match='password authentication failed for user "pgsandbox_two"'):
            one.connect(user=two.name)


def test_with_a_server_of_its_own_every_worker_may_make_roles_of_the_same_name(
    inner: Inner, pytester: pytest.Pytester
) -> None:
    pytester.makepyfile(
        """
        import pathlib, pytest, time

        @pytest.mark.parametrize("number", range(2))
        def test_one(pgsandbox_connection, worker_id, number):
            pgsandbox_connection.execute("CREATE ROLE clerk")
            pathlib.Path(worker_id).touch()
            while len(list(pathlib.Path().glob("gw?"))) < 2:
                time.sleep(0.01)
        """
    )
    inner("-n2", "--pgsandbox-scope=worker").assert_outcomes(passed=2)


def test_a_superuser_needs_a_server_of_its_own_and_gets_one(some_target: Target) -> None:
    with pgsandbox.Sandbox(**some_target.settings, superuser=True, workers=2) as sandbox:
        assert sandbox.scope == "worker"
        with sandbox.database("one").connect(autocommit=True) as connection:
            assert connection.execute("SHOW is_superuser").fetchone() == ("on",)
            connection.execute("ALTER SYSTEM SET jit = off")
            connection.execute("CREATE TABLE t ()")
        sandbox.database("one").reset()


def test_a_superuser_in_a_shared_server_is_refused(project: Path) -> None:
    with pytest.raises(SettingsError) as raised:
        pgsandbox.Sandbox(superuser=True, scope="session")
    assert str(raised.value) == (
        "pgsandbox: superuser = true needs a server of the worker's own\n"
        "  why: a superuser can't be held to its budget of connections, and scope = session shares the server\n"
        "  hint: set scope = worker, or leave scope out"
    )
