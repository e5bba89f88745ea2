"""What a test may do to a database: statements by kind, with places to be filled in.

Many fail, be it for what others did before them: that is part of a workload. `{i}` is the key of a row that may be
there, `{n}` a number, `{w}` a text, `{t}` a table, `{s}` a sequence, `{x}` a name for something new.
"""

# ruff: noqa: E501 -- a line is a statement

from __future__ import annotations

TABLES = (
    *("plain", '"empty"', "keyless", "reference", "roomy", '"Sel""ect ü"', '"Odd ""schema"" ü"."table"', "changed"),
    *("kinds", "left_hand", "right_hand", "numbered", "long", "unlogged", "unlogged_empty", "parted", "parted_1"),
    *("parted_2a", "loose", "ancestor", "heir", "node", "cascading", "nulled", "defaulted", "restricted", "deferred"),
    *("checked", "timed", "booking", "spot", "audit", "watched", "frozen", "ruled", "secret", "half_secret"),
)
SEQUENCES = (
    *("lone", "cached", "circle", "backwards", "used", "shared", "unlogged_sequence", "owned", "empty_id_seq"),
    *("numbered_id_seq", "numbered_also_seq", "unlogged_id_seq", "audit_id_seq"),
)
WORDS = ("'w'", "''", "NULL", "'it''s \"ü\" \\'", "repeat('long ', 2000)", "repeat(md5(random()::text), 300)")
NAMES = ("new", "other.new", '"New ü"', "new2")

ROWS = """
INSERT INTO plain VALUES ({i}00, {w}, {n})
INSERT INTO plain SELECT g, 'many ' || g FROM generate_series(1000, 1000 + {n} * 10) g
INSERT INTO plain VALUES ({i}, {w}) ON CONFLICT (id) DO UPDATE SET name = excluded.name, n = plain.n + 1
INSERT INTO plain VALUES ({i}, 'taken') ON CONFLICT DO NOTHING
INSERT INTO "empty" (name) VALUES ({w}), ({w})
INSERT INTO keyless VALUES ({i}, {w}), ({i}, {w})
INSERT INTO reference VALUES ({n}000, {w}, {n}, '[]', '{{}}')
INSERT INTO "Sel""ect ü" VALUES ({n}, {w}, {i})
INSERT INTO "Odd ""schema"" ü"."table" (t) VALUES ({w})
INSERT INTO "Odd ""schema"" ü"."table" (id, t) OVERRIDING SYSTEM VALUE VALUES ({n}, {w})
INSERT INTO changed (id, kept) VALUES ({n}0, {w})
INSERT INTO kinds (id, m, p, d, s) VALUES ({n}0, 'glad', ROW({n}, {w})::pair, {n}, 'x')
INSERT INTO left_hand (name) VALUES ({w})
INSERT INTO right_hand (name) SELECT 'r' FROM generate_series(1, {n})
INSERT INTO numbered (n) SELECT g FROM generate_series(1, {n}) g
INSERT INTO numbered (n, also) VALUES ({n}, {i}) RETURNING *
INSERT INTO long VALUES ({n}0, {w}, repeat(md5('x'), {n}00), {w})
INSERT INTO unlogged (what) VALUES ({w})
INSERT INTO unlogged_empty (long) VALUES (repeat('x', {n}000))
INSERT INTO parted VALUES ({n}00, {i}, {w})
INSERT INTO ancestor VALUES ({n}, {w})
INSERT INTO heir VALUES ({n}, {w}, {i})
INSERT INTO node VALUES ({n}0, {i}, {w})
INSERT INTO deferred VALUES ({n}0, {i}, {n})
INSERT INTO checked VALUES ({n}0, {n})
INSERT INTO timed VALUES ({n}, clock_timestamp())
INSERT INTO booking VALUES ('[1,2]', '[2030-01-{i}0, 2030-02-01)')
INSERT INTO spot VALUES ('({i},{i})')
INSERT INTO watched VALUES ({n}, {w})
INSERT INTO ruled VALUES ({n}, {w})
INSERT INTO secret (id, what) VALUES ({n}0, {w})
INSERT INTO half_secret VALUES ({n})
INSERT INTO ordinary_view VALUES ({n}, 'through a view')
UPDATE plain SET name = {w} WHERE id = {i}
UPDATE plain SET id = id + 1000 WHERE id > 10
UPDATE keyless SET b = {w}
UPDATE reference SET v = v + 1 WHERE id = {i}00
UPDATE reference SET code = 'c' || id, tags = '{{x}}' WHERE id % 50 = {i}
UPDATE roomy SET n = n + 1
UPDATE changed SET fast = {n}, late = {w} WHERE id = {i}
UPDATE kinds SET p.b = {w}, ms = ms || 'ok'::mood, j = j || '[1]', x = 'NaN' WHERE id = {i}
UPDATE numbered SET n = n * 2 WHERE id = {i}
UPDATE long SET outside = outside || {w}, squeezed = NULL WHERE id = {i}
UPDATE long SET plain = {w}
UPDATE unlogged SET what = {w}
UPDATE parted SET k = (k + 1) % 5 WHERE id < {n}
UPDATE parted_1 SET k = 3 WHERE id = {i}
UPDATE ancestor SET name = {w}
UPDATE ONLY ancestor SET id = id + 1
UPDATE node SET id = id + 100 WHERE id = {i}
UPDATE checked SET at = now() WHERE id = {i}
UPDATE watched SET name = {w} WHERE id = {i}
UPDATE secret SET what = {w}
DELETE FROM plain WHERE id = {i}
DELETE FROM reference WHERE id % 10 = {i}
DELETE FROM keyless WHERE ctid = '(0,{i})'
DELETE FROM long WHERE id = {i}
DELETE FROM node WHERE id = {i}
DELETE FROM parted WHERE k = {i}
DELETE FROM ancestor
DELETE FROM ONLY ancestor
DELETE FROM watched
DELETE FROM ruled
DELETE FROM frozen
DELETE FROM {t}
DELETE FROM secret RETURNING *
MERGE INTO plain p USING (VALUES ({i}, 'merged'), ({n}00, 'm')) v (id, name) ON p.id = v.id WHEN MATCHED AND p.id > 3 THEN DELETE WHEN MATCHED THEN UPDATE SET name = v.name WHEN NOT MATCHED THEN INSERT VALUES (v.id, v.name)
MERGE INTO roomy r USING generate_series({i}, {n}0) g ON r.id = g WHEN MATCHED THEN UPDATE SET n = g WHEN NOT MATCHED THEN INSERT VALUES (g, g)
WITH gone AS (DELETE FROM plain WHERE id > {n} RETURNING *) INSERT INTO plain SELECT id + 5000, 'moved ' || id FROM gone
CALL fill({i})
DO $$ BEGIN INSERT INTO plain VALUES ({n}00); RAISE 'undone'; EXCEPTION WHEN OTHERS THEN INSERT INTO audit (what) VALUES ('caught'); END $$
COPY plain (id, name) TO STDOUT
SELECT lo_from_bytea(0, '\\xdeadbeef')
SELECT lo_put(1000, {n}00, '\\x00010203')
SELECT lo_put(1001, 0, decode(repeat('cd', {n}00), 'hex'))
SELECT lo_unlink({i}000)
SELECT lo_truncate(lo_open(1000, 131072), {n})
"""
COPIES = {
    "COPY plain (id, name) FROM STDIN": "{n}00\tcopied\n{n}01\t\\N\n",
    "COPY reference FROM STDIN (FORMAT csv)": '{n}000,c,1.5,"{{""a"": 1}}","{{x,y}}"\n',
    "COPY keyless FROM STDIN": "1\tx\n\\N\t\\N\n",
    "COPY parted FROM STDIN": "{n}00\t{i}\tcopied\n",
    "COPY unlogged (what) FROM STDIN": "copied\n",
}

READS = """
SELECT * FROM plain
SELECT count(*) FROM reference WHERE code > {w}
SELECT * FROM {t} LIMIT {n}
SELECT * FROM plain WHERE id = {i} FOR UPDATE
SELECT * FROM reference WHERE id < {n} FOR KEY SHARE
SELECT * FROM summary
SELECT lo_get(1000)
SELECT sum(n) FROM roomy
SELECT nextval('no such sequence')
SELECT pg_notify('channel', {w})
"""

SEQUENCES_MOVED = """
SELECT nextval('{s}')
SELECT nextval('{s}') FROM generate_series(1, {n})
SELECT nextval('cached')
SELECT setval('{s}', {i})
SELECT setval('{s}', {n}, false)
SELECT currval('{s}')
ALTER SEQUENCE {s} RESTART
ALTER SEQUENCE {s} RESTART WITH {i}
ALTER SEQUENCE {s} INCREMENT {n} CACHE {i}
ALTER SEQUENCE {s} OWNED BY NONE
ALTER TABLE numbered ALTER also RESTART WITH {n}
DROP SEQUENCE {s}
DISCARD SEQUENCES
"""

TRUNCATES = """
TRUNCATE {t}
TRUNCATE {t} CASCADE
TRUNCATE {t} RESTART IDENTITY CASCADE
TRUNCATE ONLY ancestor
TRUNCATE left_hand, right_hand, "empty" RESTART IDENTITY
TRUNCATE reference
TRUNCATE unlogged, unlogged_empty
"""

SESSION = """
SET ROLE pg_read_all_data
SET ROLE NONE
RESET ROLE
RESET ALL
DISCARD ALL
DISCARD PLANS
SET search_path = other, public
SET search_path = pg_catalog
SET row_security = off
SET default_transaction_isolation = 'serializable'
SET default_transaction_read_only = on
SET timezone = 'Asia/Kathmandu'
LISTEN channel
NOTIFY channel, 'said'
UNLISTEN *
SELECT pg_advisory_lock({i})
SELECT pg_try_advisory_lock_shared({i}, {n})
SELECT pg_advisory_xact_lock({i})
SELECT pg_advisory_unlock_all()
CREATE TEMP TABLE passing (id serial PRIMARY KEY, t text) ON COMMIT DROP
CREATE TEMP TABLE emptied (id serial PRIMARY KEY, t text) ON COMMIT DELETE ROWS
CREATE TEMP TABLE staying AS SELECT * FROM plain
CREATE TEMP TABLE plain (LIKE public.plain INCLUDING ALL)
INSERT INTO pg_temp.emptied (t) VALUES ({w})
UPDATE pg_temp.staying SET name = {w}
DROP TABLE pg_temp.plain
CREATE TEMP VIEW glance AS SELECT * FROM plain
CREATE TEMP SEQUENCE brief
CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql AS 'SELECT 1'
PREPARE more AS INSERT INTO plain VALUES ($1, $2)
EXECUTE more ({n}00, {w})
DECLARE held CURSOR WITH HOLD FOR SELECT * FROM reference
FETCH {n} FROM held
CLOSE ALL
LOCK TABLE {t} IN SHARE MODE
LOCK TABLE {t}
"""

SCHEMA_CHANGES = """
CREATE TABLE {x} (id serial PRIMARY KEY, name text)
CREATE TABLE {x} AS SELECT * FROM plain
CREATE UNLOGGED TABLE {x} (id int)
CREATE TABLE {x} (LIKE kinds INCLUDING ALL)
CREATE TABLE {x} PARTITION OF parted FOR VALUES IN (8)
INSERT INTO {x} DEFAULT VALUES
DROP TABLE {x}
DROP TABLE {t}
DROP TABLE {t} CASCADE
ALTER TABLE {t} ADD COLUMN added int
ALTER TABLE {t} ADD COLUMN added_too text DEFAULT 'd' || random()
ALTER TABLE plain DROP COLUMN n CASCADE
ALTER TABLE roomy ALTER n TYPE bigint
ALTER TABLE changed DROP COLUMN fast
ALTER TABLE plain ALTER name SET NOT NULL
ALTER TABLE plain ALTER name SET DEFAULT 'other'
ALTER TABLE plain RENAME name TO title
ALTER TABLE {t} RENAME TO renamed
ALTER TABLE {t} SET SCHEMA other
ALTER TABLE plain ADD CONSTRAINT positive CHECK (id > 0)
ALTER TABLE checked VALIDATE CONSTRAINT not_negative
ALTER TABLE deferred DROP CONSTRAINT deferred_plain_fkey
ALTER TABLE restricted ALTER CONSTRAINT restricted_plain_fkey DEFERRABLE
ALTER TABLE long ALTER plain SET STORAGE EXTERNAL
ALTER TABLE long ALTER outside SET COMPRESSION pglz
ALTER TABLE plain ALTER name SET STATISTICS 500
ALTER TABLE roomy SET (fillfactor = 90)
ALTER TABLE roomy CLUSTER ON roomy_pkey
ALTER TABLE roomy SET UNLOGGED
ALTER TABLE unlogged SET LOGGED
ALTER TABLE plain REPLICA IDENTITY FULL
ALTER TABLE watched DISABLE TRIGGER ALL
ALTER TABLE secret DISABLE ROW LEVEL SECURITY
ALTER TABLE plain ENABLE ROW LEVEL SECURITY
ALTER TABLE parted DETACH PARTITION parted_1
ALTER TABLE parted_2 DETACH PARTITION parted_2b CONCURRENTLY
ALTER TABLE parted ATTACH PARTITION loose FOR VALUES IN (7)
ALTER TABLE heir NO INHERIT ancestor
CREATE INDEX ON {t} USING brin ((1))
CREATE INDEX new_index ON plain (n)
CREATE UNIQUE INDEX CONCURRENTLY new_unique ON plain (n)
CREATE INDEX CONCURRENTLY new_index ON reference (v)
DROP INDEX reference_partial
DROP INDEX CONCURRENTLY reference_expression
ALTER INDEX reference_partial RENAME TO other_index
CREATE SCHEMA new_schema
DROP SCHEMA other CASCADE
DROP SCHEMA public CASCADE
DROP OWNED BY CURRENT_USER
CREATE TYPE new_type AS ENUM ('a')
ALTER TYPE mood ADD VALUE 'so so' BEFORE 'ok'
ALTER TYPE mood RENAME VALUE 'ok' TO 'fine'
ALTER TYPE pair ADD ATTRIBUTE c int
ALTER DOMAIN positive DROP CONSTRAINT positive_check
CREATE OR REPLACE FUNCTION twice(n int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT n * 3'
CREATE FUNCTION new_function() RETURNS int LANGUAGE sql AS 'SELECT 1'
DROP FUNCTION audited CASCADE
CREATE TRIGGER new_trigger BEFORE UPDATE ON plain FOR EACH ROW EXECUTE FUNCTION audited()
DROP TRIGGER frozen ON frozen
CREATE RULE new_rule AS ON UPDATE TO plain DO INSTEAD NOTHING
DROP RULE keep ON ruled
CREATE POLICY new_policy ON plain USING (id > 3)
CREATE OR REPLACE VIEW ordinary_view AS SELECT id, name FROM plain
DROP VIEW ordinary_view
CREATE VIEW new_view AS SELECT * FROM {t}
REFRESH MATERIALIZED VIEW summary
REFRESH MATERIALIZED VIEW CONCURRENTLY summary
REFRESH MATERIALIZED VIEW stale
REFRESH MATERIALIZED VIEW unfilled
CREATE MATERIALIZED VIEW new_summary AS SELECT count(*) FROM reference
CREATE STATISTICS new_statistics ON a, b FROM keyless
DROP STATISTICS reference_both
CREATE EXTENSION fuzzystrmatch
CREATE EXTENSION tablefunc
DROP EXTENSION hstore
CREATE PUBLICATION news FOR TABLE plain
CREATE COLLATION new_collation FROM "C"
CREATE AGGREGATE new_sum (int) (sfunc = int4pl, stype = int)
CREATE CAST (pair AS text) WITH INOUT
COMMENT ON TABLE {t} IS {w}
COMMENT ON COLUMN plain.name IS 'another'
COMMENT ON LARGE OBJECT 1000 IS 'large'
GRANT SELECT ON {t} TO PUBLIC
REVOKE ALL ON plain FROM PUBLIC
GRANT SELECT ON LARGE OBJECT 1000 TO PUBLIC
ALTER DEFAULT PRIVILEGES GRANT INSERT ON TABLES TO PUBLIC
ALTER DEFAULT PRIVILEGES IN SCHEMA other REVOKE SELECT ON TABLES FROM PUBLIC
REASSIGN OWNED BY CURRENT_USER TO CURRENT_USER
"""

MAINTENANCE = """
VACUUM {t}
VACUUM (FREEZE) {t}
VACUUM (FULL) {t}
ANALYZE {t}
VACUUM (ANALYZE) plain
ANALYZE
CLUSTER roomy USING roomy_pkey
REINDEX TABLE {t}
REINDEX INDEX CONCURRENTLY reference_partial
REINDEX TABLE CONCURRENTLY plain
"""

TRANSACTIONS = """
BEGIN
BEGIN ISOLATION LEVEL SERIALIZABLE
COMMIT
ROLLBACK
SAVEPOINT s
ROLLBACK TO s
RELEASE s
SET CONSTRAINTS ALL DEFERRED
SET CONSTRAINTS ALL IMMEDIATE
COMMIT PREPARED 'later'
ROLLBACK PREPARED 'later'
SELECT 1 / 0
"""

SUPERUSER = """
CHECKPOINT
SELECT pg_switch_wal()
VACUUM
VACUUM (FREEZE)
VACUUM (FULL) pg_class
REINDEX TABLE pg_attribute
ANALYZE
SET session_replication_role = replica; DELETE FROM watched; INSERT INTO cascading VALUES ({n}0, 999)
SET session_replication_role = replica; UPDATE plain SET id = id + 50
ALTER EVENT TRIGGER seen DISABLE
DROP EVENT TRIGGER seen
CREATE EVENT TRIGGER unseen ON sql_drop EXECUTE FUNCTION ddl_seen()
ALTER TABLE {t} OWNER TO CURRENT_USER
ALTER FUNCTION twice OWNER TO CURRENT_USER
UPDATE pg_proc SET procost = {n} WHERE proname = 'twice'
UPDATE pg_class SET reltuples = {n} WHERE relname = 'plain'
REVOKE EXECUTE ON FUNCTION pg_catalog.random() FROM PUBLIC
CREATE EXTENSION pageinspect
CREATE PUBLICATION everything FOR ALL TABLES
DELETE FROM pg_statistic WHERE starelid = 'reference'::regclass
"""
"""What a worker's role may only do with the setting superuser."""

SURROUNDINGS = """
DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET work_mem = ''{n}MB''', current_database()); END $$
DO $$ BEGIN EXECUTE format('ALTER DATABASE %I RESET ALL', current_database()); END $$
DO $$ BEGIN EXECUTE format('ALTER DATABASE %I CONNECTION LIMIT {n}', current_database()); END $$
DO $$ BEGIN EXECUTE format('COMMENT ON DATABASE %I IS ''{n}''', current_database()); END $$
DO $$ BEGIN EXECUTE format('GRANT CREATE ON DATABASE %I TO PUBLIC', current_database()); END $$
DO $$ BEGIN EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database()); END $$
DO $$ BEGIN EXECUTE format('ALTER ROLE CURRENT_USER IN DATABASE %I SET work_mem = ''{n}MB''', current_database()); END $$
"""
"""What belongs to the database but not to its files."""

OUTSIDE = """
SET ROLE NONE; ALTER ROLE CURRENT_USER SET work_mem = '{n}MB'; RESET ROLE
SET ROLE NONE; ALTER ROLE CURRENT_USER PASSWORD 'another'; RESET ROLE
ALTER ROLE CURRENT_USER SET work_mem = '{n}MB'
CREATE ROLE workload_role
CREATE ROLE workload_login LOGIN IN ROLE pg_monitor
GRANT SELECT ON plain TO workload_role
DROP ROLE workload_role
CREATE DATABASE workload_database
COMMENT ON ROLE CURRENT_USER IS 'mine'
"""
"""What a fresh copy of the database doesn't undo: roles and other databases."""

UNFINISHED = """
SELECT pg_sleep(30)
INSERT INTO reference SELECT g, md5(g::text) FROM generate_series(10000, 1000000) g
DO $$ BEGIN LOOP INSERT INTO "empty" (name) VALUES ('busy'); COMMIT; PERFORM pg_sleep(0.0001); END LOOP; END $$
UPDATE roomy SET n = CASE WHEN pg_sleep(0.01) IS NULL THEN n ELSE n + 1 END
DO $$ BEGIN LOOP PERFORM nextval('lone'); END LOOP; END $$
"""
"""What a background thread is still at when the test ends."""
