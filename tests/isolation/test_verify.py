"""Verify: every kind of difference between a database and its baseline is seen, and named."""

# ruff: noqa: E501 -- messages are tested word for word

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import Inner, Target
from hypothesis import given, settings
from hypothesis.strategies import characters, lists, none, text
from machine import running
from psycopg import sql

from pgsandbox.errors import UsageError, VerifyError
from pgsandbox.isolation.verify import VerifiedIsolation
from pgsandbox.isolation.verify.differences import differences, parsed
from pgsandbox.isolation.verify.dump import Dump, dump

if TYPE_CHECKING:
    from pgsandbox import Database, Sandbox

SCHEMA = """
CREATE TABLE place (id int PRIMARY KEY, name text, size numeric, note text);
INSERT INTO place VALUES (1, 'hall', 1.0), (2, NULL, 2), (3, '', 3);
CREATE TABLE twice (a text COLLATE "C", b float8);
INSERT INTO twice VALUES ('x', 0), ('x', 0), ('y', 1);
CREATE TABLE empty (id int GENERATED ALWAYS AS IDENTITY, at text);
CREATE UNLOGGED TABLE seen (id serial, what text);
INSERT INTO seen (what) VALUES ('first');
CREATE TABLE long (id int PRIMARY KEY, text text);
ALTER TABLE long ALTER text SET STORAGE EXTERNAL;
INSERT INTO long VALUES (1, repeat('abc', 100000));
CREATE TABLE parent (id int, name text) PARTITION BY LIST (id);
CREATE TABLE leaf PARTITION OF parent FOR VALUES IN (1);
INSERT INTO parent VALUES (1, 'in the leaf');
CREATE TABLE heir () INHERITS (place);
CREATE MATERIALIZED VIEW names AS SELECT name FROM place;
CREATE MATERIALIZED VIEW unseen AS SELECT 1 WITH NO DATA;
CREATE TABLE "odd ""FROM"" name" ("a row of it" int, "a, b" text, " FROM " text);
INSERT INTO "odd ""FROM"" name" VALUES (1, 'x,"y"', '\\(1)');
CREATE TABLE none ();
INSERT INTO none DEFAULT VALUES;
CREATE SEQUENCE counter;
CREATE TYPE mood AS ENUM ('sad', 'glad');
CREATE INDEX partial ON place (name DESC NULLS LAST) WHERE size > 1;
CREATE INDEX expression ON place (lower(name), id);
CREATE FUNCTION one() RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE VIEW all_places AS SELECT * FROM place;
SELECT lo_from_bytea(4711, 'abc');
"""


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """One server for all tests of this file."""
    folder = tmp_path_factory.mktemp("verify")
    folder.chmod(0o700)
    (folder / "init.sql").write_text(SCHEMA)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{os.environ.get('TEST_BIN_15', '')}:{os.environ['PATH']}")
        patch.chdir(folder)
        options = ["max_prepared_transactions=5", "wal_level=logical", "max_wal_senders=5"]
        settings = {"engine": "local", "version": 15, "superuser": True, "options": options, "init": ["init.sql"]}
        with running(root=folder, **settings) as sandbox:
            yield sandbox


@pytest.fixture(scope="module")
def before(sandbox: Sandbox) -> Dump:
    """The state of `SCHEMA`."""
    return state(sandbox)


@pytest.fixture
def database(sandbox: Sandbox, before: Dump) -> Iterator[Database]:
    """A database at its baseline, and afterwards again, or the next test fails."""
    database = sandbox.database()
    yield database
    database.reset()
    assert differences(before, state(sandbox, before), order=True) == []


def state(sandbox: Sandbox, like: Dump | None = None) -> Dump:
    address = sandbox.database().address
    with sandbox.server.inside(address.name) as connection:
        return dump(connection, address, like=like, whole_server=True)


AMONG_OTHERS = "and so on"

CASES: dict[str, list[str]] = {
    # Rows
    "INSERT INTO empty (at) VALUES ('now')": [
        "public.empty: the row (id 1, at now) is there now",
        "public.empty_id_seq: log_cnt was 0, is 32",
        "public.empty_id_seq: is_called was f, is t",
    ],
    "INSERT INTO twice VALUES ('x', 0)": ["public.twice: the row (a x, b 0) is there now"],
    "DELETE FROM twice WHERE ctid = '(0,1)'": ["public.twice: the row (a x, b 0) is gone"],
    "UPDATE twice SET b = '-0' WHERE a = 'x'": [
        "public.twice: the row (a x, b 0) is gone",
        "public.twice: the row (a x, b 0) is gone",
        "public.twice: the row (a x, b -0) is there now",
        "public.twice: and 1 more",
    ],
    "UPDATE ONLY place SET size = '1.00' WHERE id = 1": ["public.place: (id 1) size was 1.0, is 1.00"],
    "UPDATE place SET name = '' WHERE name IS NULL": ["public.place: (id 2) name was NULL, is ''"],
    "UPDATE place SET name = 'a, \"b\" \\ c', note = repeat('x', 200) WHERE id = 1": [
        'public.place: (id 1) name was hall, is a, "b" \\ c',
        "public.place: (id 1) note was NULL, is xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx…",
    ],
    "DELETE FROM place WHERE id > 1": [
        "public.place: the row (id 2, name NULL, size 2, note NULL) is gone",
        "public.place: the row (id 3, name '', size 3, note NULL) is gone",
    ],
    "INSERT INTO place SELECT g, 'n' FROM generate_series(10, 20) g": [
        "public.place: the row (id 10, name n, size NULL, note NULL) is there now",
        "public.place: the row (id 11, name n, size NULL, note NULL) is there now",
        "public.place: the row (id 12, name n, size NULL, note NULL) is there now",
        "public.place: and 8 more",
    ],
    "INSERT INTO heir VALUES (1)": ["public.heir: the row (id 1, name NULL, size NULL, note NULL) is there now"],
    "UPDATE parent SET name = 'changed'": [
        "public.leaf: the row (id 1, name in the leaf) is gone",
        "public.leaf: the row (id 1, name changed) is there now",
    ],
    "UPDATE long SET text = text || 'd'": [
        "public.long: (id 1) text was another value than abcabcabcabcabcabcabcabcabcabcabcabcabcabcabcabcabcabcabcabc…"
    ],
    "INSERT INTO none DEFAULT VALUES": ['public."none": the row () is there now'],
    'UPDATE "odd ""FROM"" name" SET "a row of it" = 2': [
        'public."odd ""FROM"" name": the row (a row of it 1, a, b x,"y", FROM \\(1)) is gone',
        'public."odd ""FROM"" name": the row (a row of it 2, a, b x,"y", FROM \\(1)) is there now',
    ],
    "UPDATE seen SET what = 'second'": [
        "public.seen: the row (id 1, what first) is gone",
        "public.seen: the row (id 1, what second) is there now",
    ],
    "TRUNCATE seen": ["public.seen: the row (id 1, what first) is gone"],
    "INSERT INTO place VALUES (9, 'later'); REFRESH MATERIALIZED VIEW names; DELETE FROM place WHERE id = 9": [
        "pg_class: (oid …, relname names) reltoastrelid was another value than pg_toast_…",
        "pg_class: the row (oid …, relname pg_toast_…) is gone",
        "pg_class: the row (oid …, relname pg_toast_…_index) is gone",
        AMONG_OTHERS,
    ],
    "REFRESH MATERIALIZED VIEW unseen": [
        "pg_class: (oid …, relname unseen) relispopulated was f, is t",
        "materialized view public.unseen is there now",
    ],
    # Sequences
    "SELECT nextval('counter')": ["public.counter: log_cnt was 0, is 32", "public.counter: is_called was f, is t"],
    "SELECT setval('counter', 1, true)": ["public.counter: is_called was f, is t"],
    "SELECT nextval('seen_id_seq') FROM generate_series(1, 40)": [
        "public.seen_id_seq: last_value was 1, is 41",
        "public.seen_id_seq: log_cnt was 0, is 32",
    ],
    "ALTER SEQUENCE counter CACHE 10": ["pg_sequence: (seqrelid counter) seqcache was 1, is 10"],
    # Large objects
    "SELECT lo_put(4711, 0, 'x')": ["pg_largeobject: (loid 4711, pageno 0) data was \\x616263, is \\x786263"],
    "SELECT lo_create(4712)": ["pg_largeobject_metadata: the row (oid 4712) is there now"],
    "GRANT SELECT ON LARGE OBJECT 4711 TO PUBLIC": [
        "pg_largeobject_metadata: (oid 4711) lomacl was NULL, is {pgsandbox_owner=rw/pgsandbox_owner,=r/pgsandbox_owner}"
    ],
    # Catalogs
    "CREATE TABLE new (id int)": [
        "pg_class: the row (oid …, relname new) is there now",
        "table public.new is there now",
        AMONG_OTHERS,
    ],
    "DROP TABLE leaf": [
        "pg_class: the row (oid …, relname leaf) is gone",
        "pg_class: the row (oid …, relname pg_toast_…) is gone",
        "pg_class: the row (oid …, relname pg_toast_…_index) is gone",
        AMONG_OTHERS,
    ],
    "ALTER TABLE place ADD extra int DEFAULT 7": [
        "pg_attrdef: the row (oid …) is there now",
        "pg_attrdef: the row (oid …) is there now",
        "pg_class: (oid …, relname place) relnatts was 4, is 5",
        AMONG_OTHERS,
    ],
    "ALTER TABLE twice ALTER a SET NOT NULL": [
        "pg_attribute: (attrelid twice, attname a, attnum 1) attnotnull was f, is t"
    ],
    "ALTER TABLE seen SET LOGGED": [
        "pg_class: (oid …, relname seen_id_seq) relpersistence was u, is p",
        "pg_class: (oid …, relname seen) reltoastrelid was another value than pg_toast_…",
        "pg_class: (oid …, relname seen) relpersistence was u, is p",
        AMONG_OTHERS,
    ],
    "ALTER TABLE place RENAME TO site": [
        "pg_class: (oid …, relname place) relname was place, is site",
        "table public.place is gone",
        "table public.site is there now",
        AMONG_OTHERS,
    ],
    "ALTER TABLE twice SET (fillfactor = 50)": [
        "pg_class: (oid …, relname twice) reloptions was NULL, is {fillfactor=50}"
    ],
    "ALTER TABLE place DISABLE TRIGGER ALL; ALTER TABLE place ENABLE ROW LEVEL SECURITY": [
        "pg_class: (oid …, relname place) relrowsecurity was f, is t"
    ],
    "CREATE POLICY anybody ON place USING (true)": [
        "pg_policy: the row (oid …, polname anybody) is there now",
        AMONG_OTHERS,
    ],
    "GRANT SELECT ON place TO PUBLIC": [
        "pg_class: (oid …, relname place) relacl was NULL, is {pgsandbox_owner=arwdDxt/pgsandbox_owner,=r/pgsandbox_owner}"
    ],
    "REVOKE EXECUTE ON FUNCTION pg_catalog.random() FROM PUBLIC": [
        "pg_proc: (oid 1598, proname random) proacl was NULL, is {postgres=X/postgres}"
    ],
    "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC": ["pg_default_acl: the row (oid …) is there now"],
    "COMMENT ON COLUMN place.name IS 'what it is called'": [
        "pg_description: the row (objoid …, classoid pg_class, objsubid 2) is there now"
    ],
    "ALTER TYPE mood ADD VALUE 'so so'": ["pg_enum: the row (oid …) is there now"],
    "CREATE OR REPLACE FUNCTION one() RETURNS int LANGUAGE sql AS 'SELECT 2'": [
        "pg_proc: (oid …, proname one) prosrc was SELECT 1, is SELECT 2"
    ],
    "CREATE OR REPLACE VIEW all_places AS SELECT id, name, size, 'x' || note AS note FROM place": [
        "pg_rewrite: (oid …, rulename _RETURN) ev_action was another value than ({QUERY :commandType 1 :querySource 0 :canSetTag true :utili…"
    ],
    "CREATE SCHEMA other": ["pg_namespace: the row (oid …, nspname other) is there now"],
    "CREATE EXTENSION pg_trgm": [
        "pg_description: the row (objoid …, classoid pg_extension, objsubid 0) is there now",
        "pg_extension: the row (oid …, extname pg_trgm) is there now",
        "pg_opclass: the row (oid …, opcname gist_trgm_ops) is there now",
        AMONG_OTHERS,
    ],
    "CREATE RULE nothing AS ON DELETE TO twice DO INSTEAD NOTHING": [
        "pg_class: (oid …, relname twice) relhasrules was f, is t",
        "pg_rewrite: the row (oid …, rulename nothing) is there now",
        AMONG_OTHERS,
    ],
    "CREATE STATISTICS both_of_them ON a, b FROM twice": [
        "pg_statistic_ext: the row (oid …, stxname both_of_them) is there now",
        AMONG_OTHERS,
    ],
    "INSERT INTO empty (at) VALUES ('x'); ANALYZE empty; TRUNCATE empty RESTART IDENTITY": [
        "pg_statistic: the row (starelid empty, staattnum 1, stainherit f) is there now",
        "pg_statistic: the row (starelid empty, staattnum 2, stainherit f) is there now",
    ],
    "CREATE PUBLICATION news FOR TABLE place": [
        "pg_publication: the row (oid …, pubname news) is there now",
        "pg_publication_rel: the row (oid …) is there now",
        "pg_publication_rel: the row (oid …) is there now",
        AMONG_OTHERS,
    ],
    "ALTER TABLE parent DETACH PARTITION leaf": [
        "pg_class: (oid …, relname leaf) relispartition was t, is f",
        "pg_class: (oid …, relname leaf) relpartbound was {PARTITIONBOUNDSPEC :strategy l :is_default false :modulus 0…, is NULL",
        "pg_inherits: the row (inhrelid leaf, inhseqno 1) is gone",
        AMONG_OTHERS,
    ],
    # Indexes
    "CREATE INDEX ON twice (a)": [
        "pg_attribute: the row (attrelid twice_a_idx, attname a, attnum 1) is there now",
        "pg_class: (oid …, relname twice) relhasindex was f, is t",
        "pg_class: the row (oid …, relname twice_a_idx) is there now",
        "pg_index: the row (indexrelid twice_a_idx) is there now",
        AMONG_OTHERS,
    ],
    "DROP INDEX partial": [
        "pg_attribute: the row (attrelid partial, attname name, attnum 1) is gone",
        "pg_class: the row (oid …, relname partial) is gone",
        "pg_index: the row (indexrelid partial) is gone",
        AMONG_OTHERS,
    ],
    "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'place_pkey'::regclass": [
        "pg_index: (indexrelid place_pkey) indisvalid was t, is f"
    ],
    # The database and its roles
    "ALTER DATABASE pgsandbox_main SET work_mem = '1MB'": [
        "settings of role any in database pgsandbox_main ({work_mem=1MB}) is there now"
    ],
    "ALTER ROLE pgsandbox_main SET work_mem = '2MB'": [
        "settings of role pgsandbox_main in database any ({work_mem=2MB}) is there now"
    ],
    "ALTER ROLE pgsandbox_owner IN DATABASE pgsandbox_main SET work_mem = '3MB'": [
        "settings of role pgsandbox_owner in database pgsandbox_main ({work_mem=3MB}) is there now"
    ],
    "ALTER DATABASE pgsandbox_main CONNECTION LIMIT 7": ["the database: datconnlimit was 23, is 7"],
    "GRANT CREATE ON DATABASE pgsandbox_main TO PUBLIC": [
        'the database: datacl was ["pgsandbox_owner=CTc/pgsandbox_owner", "=T/pgsandbox_owner"…, is ["pgsandbox_owner=CTc/pgsandbox_owner", "=CT/pgsandbox_owner…'
    ],
    "COMMENT ON DATABASE pgsandbox_main IS 'mine'": ["comment on database pgsandbox_main (mine) is there now"],
    "ALTER ROLE pgsandbox_main VALID UNTIL '2100-01-01 UTC'": [
        "role pgsandbox_main: rolvaliduntil was NULL, is 2100-01-01T00:00:00+00:00"
    ],
    "CREATE TEMP TABLE was AS TABLE pg_authid; ALTER ROLE pgsandbox_main PASSWORD 'another'": [
        "the password of pgsandbox_main was the right one, is another"
    ],
    "GRANT pg_read_all_data TO pgsandbox_main": [
        'pgsandbox_main is a member of pg_read_all_data, granted by postgres ({"admin_option": false}) is there now'
    ],
    "ALTER ROLE pgsandbox_owner PASSWORD 'another'": [
        "role pgsandbox_owner: rolpassword was NULL, is verifier …",
    ],
    # The server
    "CREATE ROLE somebody": [
        "role somebody: rolname (somebody) is there now",
        "role somebody: rolsuper (false) is there now",
        "role somebody: rolinherit (true) is there now",
        "other roles: and 7 more",
    ],
    "CREATE DATABASE another": ["database another (postgres) is there now"],
    "GRANT SET ON PARAMETER work_mem TO PUBLIC": ["setting work_mem ({postgres=sA/postgres,=s/postgres}) is there now"],
    "ALTER SYSTEM SET work_mem = '5MB'": ["work_mem in …/postgresql.auto.conf (5MB) is there now"],
    # What is under way
    "BEGIN; INSERT INTO twice VALUES ('z', 1); PREPARE TRANSACTION 'later'": [
        "prepared transaction later (of postgres) is there now"
    ],
    "SELECT pg_advisory_lock(3)": ["advisory lock (0, 3, 1) (ExclusiveLock) is there now"],
    "SELECT pg_advisory_lock_shared(1, 2)": ["advisory lock (1, 2, 2) (ShareLock) is there now"],
    "SELECT pg_create_logical_replication_slot('reader', 'pgoutput')": [
        "replication slot reader (logical pgoutput) is there now"
    ],
}

UNDO = {
    "ALTER ROLE pgsandbox_main SET work_mem = '2MB'": "ALTER ROLE pgsandbox_main RESET work_mem",
    "ALTER ROLE pgsandbox_main VALID UNTIL '2100-01-01 UTC'": "UPDATE pg_authid SET rolvaliduntil = NULL",
    "CREATE TEMP TABLE was AS TABLE pg_authid; ALTER ROLE pgsandbox_main PASSWORD 'another'": (
        "UPDATE pg_authid a SET rolpassword = w.rolpassword FROM was w WHERE w.oid = a.oid"
    ),
    "GRANT pg_read_all_data TO pgsandbox_main": "REVOKE pg_read_all_data FROM pgsandbox_main",
    "ALTER ROLE pgsandbox_owner PASSWORD 'another'": "ALTER ROLE pgsandbox_owner PASSWORD NULL",
    "CREATE ROLE somebody": "DROP ROLE somebody",
    "CREATE DATABASE another": "DROP DATABASE another",
    "GRANT SET ON PARAMETER work_mem TO PUBLIC": "REVOKE SET ON PARAMETER work_mem FROM PUBLIC",
    "ALTER SYSTEM SET work_mem = '5MB'": "ALTER SYSTEM RESET work_mem",
    "SELECT pg_create_logical_replication_slot('reader', 'pgoutput')": "SELECT pg_drop_replication_slot('reader')",
}
"""What a fresh copy of the database doesn't undo."""


def said(found: list[str]) -> list[str]:
    """What was found, but for numbers that are others in every run."""
    numbers = {
        r"(oid|objid|refobjid) [0-9]{5,}": r"\1 …",
        "pg_toast_[0-9]+": "pg_toast_…",
        r"verifier \w+": "verifier …",
    }
    numbers |= {r"in /\S+/": "in …/"}
    for pattern, word in numbers.items():
        found = [re.sub(pattern, word, line) for line in found]
    return found


@pytest.mark.parametrize("statements", CASES)
def test_each_kind_of_difference_is_seen_and_named(
    sandbox: Sandbox, before: Dump, database: Database, statements: str
) -> None:
    with sandbox.server.inside(database.name) as connection:
        for statement in statements.split("; "):
            connection.execute(statement)
        found = said(differences(before, state(sandbox, before)))
        expected = CASES[statements]
        if AMONG_OTHERS in expected:
            expected = expected[:-1]
            found = [line for line in found if line in expected]
        assert found == expected
        if statements in UNDO:
            connection.execute(UNDO[statements])


@pytest.mark.parametrize(
    "statements",
    [
        "SELECT * FROM place",
        "ANALYZE twice",
        "VACUUM (FREEZE, ANALYZE) place",
        "REINDEX TABLE place",
        "TRUNCATE empty RESTART IDENTITY",
        "BEGIN; DROP TABLE place CASCADE; CREATE TABLE place (id text); ROLLBACK",
        "BEGIN; DELETE FROM place; SELECT lo_unlink(4711); ROLLBACK",
        "CREATE TEMP TABLE mine (id serial PRIMARY KEY, at text DEFAULT 'x' CHECK (at <> '') COLLATE \"C\")",
        "CREATE TEMP TABLE mine (at text); CREATE INDEX ON mine (at); COMMENT ON TABLE mine IS 'short-lived'",
        "CREATE TEMP VIEW mine AS SELECT 1 AS id; CREATE TYPE pg_temp.kind AS ENUM ('a')",
        "CREATE FUNCTION pg_temp.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "UPDATE ONLY place SET name = name WHERE id = 1",
        "ALTER ROLE pgsandbox_main CONNECTION LIMIT 5; ALTER ROLE pgsandbox_main CONNECTION LIMIT 20",
    ],
)
def test_what_leaves_the_same_state_is_no_difference(
    sandbox: Sandbox, before: Dump, database: Database, statements: str
) -> None:
    """Also what belongs to a session that lives on."""
    with sandbox.server.inside(database.name) as connection:
        for statement in statements.split("; "):
            connection.execute(statement)
        assert differences(before, state(sandbox, before)) == []


def test_another_order_is_told_if_it_is_asked_for(sandbox: Sandbox, before: Dump, database: Database) -> None:
    with database.connect(autocommit=True) as connection:
        connection.execute("UPDATE ONLY place SET name = name WHERE id = 1")
    after = state(sandbox, before)
    assert differences(before, after, order=True) == ["public.place: the same rows come in another order"]


@pytest.mark.parametrize(
    ("index", "wrong"),
    [
        ("place_pkey", "finds 3 rows of 4"),
        ("partial", "finds 2 rows of 3"),
        ("expression", "finds 3 rows of 4"),
    ],
)
def test_an_index_that_misses_a_row_is_noticed(
    sandbox: Sandbox, before: Dump, database: Database, index: str, wrong: str
) -> None:
    ready = "UPDATE pg_index SET indisready = {} WHERE indexrelid = '{}'::regclass"
    with sandbox.server.inside(database.name) as connection:
        connection.execute(ready.format("false", index))
    with sandbox.server.inside(database.name) as connection:
        connection.execute("INSERT INTO place VALUES (5, 'unseen', 5)")
        connection.execute(ready.format("true", index))
    found = differences(before, state(sandbox, before))
    assert found == [
        "public.place: the row (id 5, name unseen, size 5, note NULL) is there now",
        f"public.{index} {wrong}",
    ]


def test_two_dumps_need_not_know_of_each_other(sandbox: Sandbox, before: Dump, database: Database) -> None:
    with database.connect(autocommit=True) as connection:
        connection.execute("UPDATE place SET name = 'barn' WHERE id = 1")
    after = state(sandbox)
    assert differences(before, after) == ["public.place: (id 1) name was hall, is barn"]
    assert differences(after, before) == ["public.place: (id 1) name was barn, is hall"]


def test_of_large_tables_no_rows_are_kept(
    sandbox: Sandbox, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["pgsandbox.isolation.verify.dump"], "_KEPT_BYTES", 0)
    before = state(sandbox)
    with database.connect(autocommit=True) as connection:
        connection.execute("UPDATE place SET name = 'barn' WHERE id = 1")
        connection.execute("DELETE FROM twice WHERE a = 'y'")
    assert differences(before, state(sandbox, before)) == [
        "public.place: rows have changed",
        "public.twice: 3 rows were there, 2 are",
    ]


def test_what_a_migration_sets_for_the_database_does_not_change_a_dump(
    sandbox: Sandbox, before: Dump, database: Database
) -> None:
    settings = {"datestyle": "German", "timezone": "Asia/Tokyo", "search_path": "nowhere", "bytea_output": "escape"}
    settings |= {"extra_float_digits": "-5", "row_security": "off", "enable_seqscan": "off"}
    for name, value in settings.items():
        sandbox.server.execute(sql.SQL("ALTER DATABASE pgsandbox_main SET {} = {}").format(sql.Identifier(name), value))
    told = differences(before, state(sandbox, before), order=True)
    assert [line.partition(" (")[0] for line in told] == ["settings of role any in database pgsandbox_main"]


@settings(deadline=None, max_examples=60)
@given(lists(none() | text(characters(codec="utf-8", exclude_characters="\0"), max_size=10), min_size=1, max_size=5))
def test_a_record_is_read_as_postgresql_writes_it(sandbox: Sandbox, fields: list[str | None]) -> None:
    [(record,)] = sandbox.server.execute(
        sql.SQL("SELECT ROW({})::text").format(sql.SQL(", ").join(sql.SQL("%s::text") for _ in fields)),
        fields,
    )
    assert parsed(record, len(fields)) == tuple(fields)


# The setting ----------------------------------------------------------------------------------------------------------


def watched(database: Database) -> type:
    """The isolation that is verified."""
    [found] = [value for value in vars(database).values() if isinstance(value, VerifiedIsolation)]
    return type(found._inner)


@pytest.fixture
def verified(some_target: Target, project: Path) -> Iterator[Sandbox]:
    """A sandbox with the setting verify."""
    (project / "init.sql").write_text("CREATE TABLE place (name text)")
    with running(**some_target.settings, init=["init.sql"], verify=True) as sandbox:
        yield sandbox


def test_with_verify_a_reset_that_leaves_something_is_an_error(
    verified: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    for database in (verified.database(), verified.fresh()):
        with database.connect(autocommit=True) as connection:
            connection.execute("INSERT INTO place VALUES ('left')")
        with monkeypatch.context() as patch:
            patch.setattr(watched(database), "reset", lambda _: None)
            with pytest.raises(VerifyError) as caught:
                database.reset()
        assert str(caught.value) == (
            f"pgsandbox: the reset of {database.name} did not bring back its baseline\n"
            "  why: public.place: the row (name left) is there now\n"
            "  looked at: a dump of the baseline, a dump of the database afterwards\n"
            "  hint: this is a bug of pgsandbox: please report it, with these lines and what the test before them did;\n"
            "        until it is mended, isolation = clone starts each test with a fresh copy"
        )
        database.reset()


def test_every_version_has_its_own_catalogs(target: Target, project: Path) -> None:
    (project / "init.sql").write_text(SCHEMA)
    with running(**target.settings, init=["init.sql"], verify=True) as sandbox:
        database = sandbox.database()
        for statement in ("SELECT 1", "UPDATE place SET name = 'barn'", "DROP SCHEMA public CASCADE"):
            with database.connect(autocommit=True) as connection:
                connection.execute(statement)
            database.reset()


def test_with_verify_many_differences_are_told_in_part(verified: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    database = verified.database()
    monkeypatch.setattr(watched(database), "reset", lambda _: None)
    with database.connect(autocommit=True) as connection:
        for number in range(50):
            connection.execute(f"CREATE TABLE more_{number} ()")
    with pytest.raises(VerifyError) as caught:
        database.reset()
    lines = str(caught.value.why).splitlines()
    assert len(lines) == 41
    assert re.fullmatch("and [0-9]+ more", lines[-1])


def test_with_verify_baselines_move_and_snapshots_are_restored(
    verified: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = verified.database()

    def insert(name: str) -> None:
        with database.connect(autocommit=True) as connection:
            connection.execute("INSERT INTO place VALUES (%s)", [name])

    insert("loaded")
    with database.baseline():
        insert("more")
        database.reset()
        snapshot = database.snapshot()
        insert("later")
        database.restore(snapshot)
        with monkeypatch.context() as patch:
            patch.setattr(watched(database), "restore", lambda *_: None)
            insert("left")
            with pytest.raises(VerifyError, match="the restore of pgsandbox_main did not bring back its baseline"):
                database.restore(snapshot)
    with database.connect() as connection:
        assert connection.execute("SELECT * FROM place").fetchall() == []


def test_verify_looks_at_the_server_only_where_nobody_else_uses_it(some_target: Target, project: Path) -> None:
    """Whose is a database that appears in a server of several workers?"""
    for workers, told in ((1, "database another (pgsandbox_owner) is there now"), (2, None)):
        settings = {**some_target.settings, "scope": "session", "isolation": "clone"}  # which leaves the server alone
        with running(**settings, workers=workers, verify=True) as sandbox:
            database = sandbox.database()
            with database.connect(autocommit=True) as connection:
                connection.execute("CREATE DATABASE another")
            if told is None:
                database.reset()
            else:
                with pytest.raises(VerifyError, match=re.escape(told)):
                    database.reset()


def test_verify_without_a_superuser_says_so(sandbox: Sandbox) -> None:
    sandbox.server.execute("CREATE ROLE modest LOGIN CREATEDB CREATEROLE PASSWORD 'p'")
    server = sandbox.server
    url = f"postgresql://modest:p@{server.host}:{server.port}/postgres"
    with running(engine="external", url=url, verify=True) as modest:
        with pytest.raises(UsageError) as caught:
            modest.database()
        assert str(caught.value) == (
            "pgsandbox: verify needs a superuser\n"
            "  why: it reads every row of every table and catalog, passwords' verifiers too\n"
            "  hint: name a superuser in url, or leave verify out"
        )
    sandbox.server.roles.drop("modest")


def test_the_setting_reaches_each_test(inner: Inner, pytester: pytest.Pytester) -> None:
    """A reset that forgets is caught before the next test starts."""
    pytester.makeconftest(
        """
        from pgsandbox.isolation.clone import CloneIsolation
        CloneIsolation.reset = CloneIsolation.remake = lambda self: None
        """
    )
    pytester.makepyfile(
        """
        def test_one(pgsandbox_connection):
            pgsandbox_connection.execute("CREATE TABLE left_behind ()")

        def test_two(pgsandbox_connection):
            pass
        """
    )
    clone = "--pgsandbox-isolation=clone"
    inner(clone).assert_outcomes(passed=2)
    result = inner(clone, "--pgsandbox-verify")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*table public.left_behind is there now"])
