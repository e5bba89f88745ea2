"""What tests do to a database, and what a reset makes of it: undone in place, or cloned for the reason given."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

if TYPE_CHECKING:
    from pgsandbox import Database

SCHEMA = Path(__file__).parent / "schema.sql"

DATA = {"COPY plain": "x\ny\n", "COPY filled": "7001\tx\n"}
"""What `COPY … FROM STDIN` gets."""

UNDONE = """
INSERT INTO plain (name) VALUES ('d')
UPDATE plain SET name = 'x' WHERE id = 1
UPDATE plain SET id = 10 WHERE id = 1
DELETE FROM plain WHERE id = 2
INSERT INTO plain (name) VALUES ('d'); UPDATE plain SET n = n + 1; DELETE FROM plain
DELETE FROM plain; INSERT INTO plain (id, name) VALUES (1, 'a')
UPDATE plain SET n = n + 1; UPDATE plain SET n = n + 1; UPDATE plain SET n = n + 1; SELECT * FROM plain WHERE id = 1
INSERT INTO plain (name) VALUES ('a') ON CONFLICT (name) DO UPDATE SET n = 7
INSERT INTO plain (name) VALUES ('a') ON CONFLICT DO NOTHING
MERGE INTO plain USING audit ON true WHEN MATCHED THEN DELETE
MERGE INTO plain USING filled f ON f.id = plain.id WHEN MATCHED THEN DELETE WHEN NOT MATCHED THEN INSERT VALUES (f.id)
WITH gone AS (DELETE FROM filled WHERE id < 100 RETURNING *) INSERT INTO filled SELECT id + 5000, name FROM gone
COPY plain (name) FROM STDIN
BEGIN; TRUNCATE filled; COPY filled FROM STDIN (FREEZE); COMMIT
UPDATE filled SET name = 'x' WHERE id = 1000
UPDATE filled SET name = name || 'x'
DELETE FROM filled
BEGIN; INSERT INTO plain (name) VALUES ('d'); ROLLBACK
BEGIN; INSERT INTO plain (name) VALUES ('d'); SAVEPOINT s; DELETE FROM plain; ROLLBACK TO s; COMMIT
BEGIN; DELETE FROM child; SAVEPOINT s; INSERT INTO plain (name) VALUES ('d'); ROLLBACK TO s; DELETE FROM plain; COMMIT
INSERT INTO plain (name) VALUES ('e'); fails: INSERT INTO plain (name) VALUES ('f'), ('a')
fails: INSERT INTO plain (name, n) VALUES ('d', -1)
fails: INSERT INTO booking VALUES ('[2,3)')
INSERT INTO booking VALUES ('[5,6)'); DELETE FROM booking WHERE during = '[1,5)'
BEGIN; SET CONSTRAINTS ALL DEFERRED; DELETE FROM plain WHERE id = 2; INSERT INTO child (plain) VALUES (3); COMMIT
DELETE FROM plain WHERE id = 1; SELECT * FROM child
UPDATE plain SET id = 20 WHERE id = 2
BEGIN; SELECT * FROM plain FOR UPDATE; COMMIT
BEGIN; SELECT * FROM plain FOR KEY SHARE; SAVEPOINT s; SELECT * FROM plain FOR UPDATE; COMMIT
INSERT INTO child (plain) VALUES (3)
BEGIN; LOCK TABLE plain; COMMIT
SELECT nextval('lone')
SELECT nextval('cached')
SELECT nextval('used') FROM generate_series(1, 100)
SELECT setval('used', 5, false)
ALTER SEQUENCE lone RESTART WITH 100
BEGIN; SELECT nextval('lone'); ROLLBACK
TRUNCATE plain CASCADE
TRUNCATE plain, child RESTART IDENTITY
TRUNCATE audit
TRUNCATE filled; INSERT INTO filled VALUES (1, 'x')
BEGIN; TRUNCATE filled; ROLLBACK
BEGIN; TRUNCATE long; INSERT INTO long VALUES (1, repeat('x', 9000)); COMMIT
TRUNCATE ancestor, parted, numbered, secret, unlogged RESTART IDENTITY
INSERT INTO unlogged (name) VALUES ('v'); UPDATE unlogged SET name = 'w'
INSERT INTO unlogged_empty DEFAULT VALUES
TRUNCATE unlogged RESTART IDENTITY
DELETE FROM unlogged
UPDATE long SET content = content || 'x' WHERE id = 1
UPDATE long SET id = 10 WHERE id = 1
DELETE FROM long
INSERT INTO long VALUES (4, repeat('abc', 5000))
INSERT INTO parted VALUES (10, 1), (11, 2); UPDATE parted SET k = 2 WHERE k = 1; DELETE FROM parted WHERE k = 0
INSERT INTO heir VALUES (3); DELETE FROM ancestor; INSERT INTO ancestor VALUES (4)
INSERT INTO numbered (name) VALUES ('o'); INSERT INTO numbered OVERRIDING SYSTEM VALUE VALUES (1, 'p')
DELETE FROM numbered; INSERT INTO numbered (name) VALUES ('o')
DELETE FROM checked
UPDATE checked SET n = 1
DELETE FROM timed
INSERT INTO watched VALUES (3, 'x'); UPDATE watched SET name = 'y'; DELETE FROM watched
INSERT INTO ruled VALUES (2); UPDATE ruled SET id = 3; DELETE FROM ruled
INSERT INTO secret VALUES (3); UPDATE secret SET id = 4; DELETE FROM secret
REFRESH MATERIALIZED VIEW CONCURRENTLY stale
SELECT * FROM plain, filled, summary
BEGIN; CREATE TABLE made (i int); INSERT INTO made VALUES (1); ROLLBACK
BEGIN; ALTER TABLE plain ADD extra int; DROP TABLE child; ROLLBACK
BEGIN; CREATE EXTENSION hstore; ROLLBACK
CREATE TEMPORARY TABLE mine (i int PRIMARY KEY); DROP TABLE mine
CREATE TEMPORARY TABLE mine (i int); INSERT INTO mine VALUES (1); DISCARD TEMP
BEGIN; CREATE TEMPORARY TABLE mine (i serial, t text) ON COMMIT DROP; INSERT INTO mine (t) VALUES ('x'); COMMIT
ALTER TABLE filled DISABLE TRIGGER ALL
ALTER TABLE filled SET (fillfactor = 90); ALTER TABLE filled RESET (fillfactor)
CREATE TABLE made (i int); DROP TABLE made
COMMENT ON TABLE plain IS 'x'; COMMENT ON TABLE plain IS NULL
VACUUM FULL filled
CLUSTER filled USING filled_pkey; ALTER TABLE filled SET WITHOUT CLUSTER
REINDEX TABLE filled
REINDEX INDEX filled_pkey
LISTEN news; NOTIFY news, 'x'
SELECT pg_advisory_lock(1); SELECT pg_advisory_unlock_all()
BEGIN; SELECT pg_advisory_xact_lock(1); COMMIT
DECLARE reader CURSOR WITH HOLD FOR SELECT * FROM plain
PREPARE p AS SELECT 1; SET work_mem = '1MB'
SELECT pg_notify('news', 'x') FROM plain; SELECT txid_current()
CREATE ROLE joe
ALTER ROLE CURRENT_USER SET work_mem = '1MB'
BEGIN; INSERT INTO plain (name) VALUES ('d'); PREPARE TRANSACTION 'p'
BEGIN; CREATE TABLE made (i int); PREPARE TRANSACTION 'p'
BEGIN; INSERT INTO plain (name) VALUES ('d'); PREPARE TRANSACTION 'p'; COMMIT PREPARED 'p'
INSERT INTO plain (name) VALUES ('e'); REFRESH MATERIALIZED VIEW CONCURRENTLY stale
SET enable_seqscan = off; SELECT * FROM filled WHERE name = 'name 5'
"""
"""All connections live on."""

ENDED = """
CREATE TEMPORARY TABLE mine (i int)
CREATE TEMPORARY TABLE mine (id serial PRIMARY KEY, t text); INSERT INTO mine (t) VALUES (repeat('x', 9000))
CREATE TEMPORARY VIEW mine AS SELECT 1
CREATE TEMPORARY SEQUENCE mine
SELECT pg_advisory_lock(1)
SELECT pg_advisory_lock_shared(1, 2)
BEGIN
BEGIN; INSERT INTO plain (name) VALUES ('d')
BEGIN; LOCK TABLE plain IN ACCESS EXCLUSIVE MODE
BEGIN; SELECT nextval('lone'); fails: SELECT 1 / 0
BEGIN; DECLARE reader CURSOR FOR SELECT * FROM filled; FETCH 5 FROM reader
BEGIN; CREATE TABLE made (i int)
"""
"""So do all but the one that did it, which holds something that no reset could take from it."""

CLONED = {
    # What a copy of rows would not come through
    "TRUNCATE checked": 'new row for relation "checked" violates check constraint "checked_n_check"',
    "TRUNCATE timed": 'new row for relation "timed" violates check constraint "timed_at_check"',
    "TRUNCATE watched": "public.watched has triggers, rules or functions that would act on a copy of its rows",
    "BEGIN; TRUNCATE ruled; INSERT INTO ruled VALUES (7); COMMIT": (
        "public.ruled has triggers, rules or functions that would act on a copy of its rows"
    ),
    "REFRESH MATERIALIZED VIEW summary": "the materialized view public.summary was refreshed",
    # Tables and what is on them
    "CREATE TABLE made (i int)": "the schema was changed (pg_attribute, pg_class, pg_depend, pg_type)",
    "CREATE TEMPORARY TABLE mine (i int); CREATE TABLE made (i int)": (
        "the schema was changed (pg_attribute, pg_class, pg_depend, pg_type)"
    ),
    "ALTER TABLE plain ADD extra int": "the schema was changed (pg_attribute, pg_class)",
    "ALTER TABLE plain DROP doubled": "the schema was changed (pg_attrdef, pg_attribute, pg_depend, pg_statistic)",
    "ALTER TABLE plain RENAME TO renamed": "the schema was changed (pg_class, pg_type)",
    "ALTER TABLE filled SET (fillfactor = 90)": "the schema was changed (pg_class)",
    "ALTER TABLE unlogged SET LOGGED": "the schema was changed (pg_attribute, pg_class, pg_depend, pg_index)",
    "ALTER TABLE parted DETACH PARTITION parted_1": (
        "the schema was changed (pg_attribute, pg_class, pg_depend, pg_inherits)"
    ),
    "ALTER TABLE heir NO INHERIT ancestor": "the schema was changed (pg_attribute, pg_depend, pg_inherits)",
    "CREATE INDEX made ON plain (n)": "the schema was changed (pg_attribute, pg_class, pg_depend, pg_index)",
    "DROP INDEX filled_name_idx": "the schema was changed (pg_attribute, pg_class, pg_depend, pg_index)",
    "CREATE INDEX CONCURRENTLY made ON plain (n)": (
        "something waited for older snapshots, as a concurrent index build does"
    ),
    "REINDEX TABLE CONCURRENTLY filled": "something waited for older snapshots, as a concurrent index build does",
    "CREATE TRIGGER made AFTER INSERT ON plain FOR EACH ROW EXECUTE FUNCTION audited()": (
        "the schema was changed (pg_depend, pg_trigger)"
    ),
    "ALTER TABLE watched DISABLE TRIGGER ordinary": "the schema was changed (pg_trigger)",
    "CREATE RULE made AS ON UPDATE TO plain DO INSTEAD NOTHING": "the schema was changed (pg_depend, pg_rewrite)",
    "CREATE POLICY made ON secret USING (true)": "the schema was changed (pg_depend, pg_policy)",
    "ALTER TABLE secret DISABLE ROW LEVEL SECURITY": "the schema was changed (pg_class)",
    # Everything else that has a name
    "DROP TABLE child": (
        "the schema was changed (pg_attrdef, pg_attribute, pg_class, pg_constraint, pg_depend, pg_sequence,"
        " pg_statistic, pg_trigger, pg_type)"
    ),
    "DROP SCHEMA public CASCADE": "the schema was changed (pg_statistic)",
    "CREATE SCHEMA made": "the schema was changed (pg_namespace)",
    "CREATE VIEW made AS SELECT 1": ("the schema was changed (pg_attribute, pg_class, pg_depend, pg_rewrite, pg_type)"),
    "CREATE FUNCTION made() RETURNS int LANGUAGE sql AS 'SELECT 1'": "the schema was changed (pg_depend, pg_proc)",
    "CREATE SEQUENCE made": "the schema was changed (pg_attribute, pg_class, pg_depend, pg_sequence)",
    "ALTER SEQUENCE lone INCREMENT 5": "the schema was changed (pg_sequence)",
    "ALTER TYPE mood ADD VALUE 'odd'": "the schema was changed (pg_enum)",
    "ALTER DOMAIN positive ADD CHECK (VALUE < 9)": "the schema was changed (pg_constraint, pg_depend)",
    "COMMENT ON TABLE plain IS 'x'": "the schema was changed (pg_description)",
    "GRANT SELECT ON plain TO PUBLIC": "the schema was changed (pg_class)",
    "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC": "the schema was changed (pg_default_acl)",
    "CREATE EXTENSION hstore": (
        "the schema was changed (pg_amop, pg_amproc, pg_cast, pg_depend, pg_description, pg_extension, pg_opclass,"
        " pg_operator, pg_opfamily, pg_proc, pg_type)"
    ),
    "CREATE PUBLICATION made": "the schema was changed (pg_publication)",
    "CREATE STATISTICS made ON id, name FROM filled": "the schema was changed (pg_depend, pg_statistic_ext)",
    "SELECT lo_from_bytea(0, 'abc')": "the schema was changed (pg_largeobject, pg_largeobject_metadata)",
    "SELECT lo_put(1000, 0, 'xyz')": "the schema was changed (pg_largeobject)",
    "SELECT lo_unlink(1000)": "the schema was changed (pg_largeobject, pg_largeobject_metadata)",
    # Housekeeping that leaves something behind
    "INSERT INTO filled SELECT g FROM generate_series(10001, 10100) g; ANALYZE filled": (
        "the schema was changed (pg_statistic)"
    ),
    "VACUUM filled": "VACUUM, ANALYZE or CREATE INDEX left its counts",
    "CLUSTER filled USING filled_pkey": "the schema was changed (pg_index)",
    "VACUUM FULL pg_class": "system catalogs were rewritten (VACUUM FULL, REINDEX)",
    # What lies outside of the database
    "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET work_mem = ''1MB''', current_database());END $$": (
        "settings or rights of the database or its role were changed"
    ),
    "DO $$ BEGIN EXECUTE format('COMMENT ON DATABASE %I IS ''x''', current_database());END $$": (
        "settings or rights of the database or its role were changed"
    ),
    "DO $$ BEGIN EXECUTE format('GRANT CREATE ON DATABASE %I TO PUBLIC', current_database());END $$": (
        "settings or rights of the database or its role were changed"
    ),
    "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I CONNECTION LIMIT 5', current_database());END $$": (
        "settings or rights of the database or its role were changed"
    ),
    "SET ROLE NONE; ALTER ROLE CURRENT_USER SET work_mem = '1MB'": (
        "settings or rights of the database or its role were changed"
    ),
    "SET ROLE NONE; ALTER ROLE CURRENT_USER PASSWORD 'x'": (
        "settings or rights of the database or its role were changed"
    ),
    "CREATE ROLE joe; GRANT SELECT ON plain TO joe": "the schema was changed (pg_class)",
    # What takes longer to read than to clone
    "INSERT INTO filled SELECT g, repeat(md5(g::text), 25) FROM generate_series(10001, 35000) g": (
        "26 MB were written in the server"
    ),
}
"""The database is made anew, which cuts all connections, for this reason."""


class Connections:
    """One connection at rest, as an application's pool has it, and one that does things."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.pids: dict[str, int] = {}
        self.open()

    def open(self) -> None:
        """Open both, each with a statement prepared in the server, and let them rest."""
        self._named = {
            name: self._database.connect(autocommit=True, prepare_threshold=None) for name in ("resting", "doing")
        }
        for name, connection in self._named.items():
            connection.execute("PREPARE ready AS SELECT pg_backend_pid()")
            self.pids[name] = connection.info.backend_pid

    def alive(self) -> set[str]:
        """Which of them are the sessions that they were, and have their prepared statement; all are then open."""
        alive = set()
        for name, connection in self._named.items():
            with contextlib.suppress(psycopg.OperationalError):
                if connection.execute("EXECUTE ready").fetchone() == (self.pids[name],):
                    alive.add(name)
        if len(alive) < len(self._named):
            self.close()
            self.open()
        return alive

    def play(self, line: str) -> None:
        """Run the statements of `line`, those that say so in vain."""
        doing = self._named["doing"]
        for part in line.split("; "):
            statement = part.removeprefix("fails: ")
            with pytest.raises(psycopg.Error) if statement != part else contextlib.nullcontext():
                _execute(doing, statement)

    def close(self) -> None:
        """Close both."""
        for connection in self._named.values():
            connection.close()


def _execute(connection: psycopg.Connection[Any], statement: str) -> None:
    if "FROM STDIN" in statement:
        with connection.cursor().copy(statement.encode()) as copy:
            copy.write(DATA[" ".join(statement.split()[:2])])
    else:
        connection.execute(statement.encode())
