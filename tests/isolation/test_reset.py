"""Reset: what a test did is undone where that is proven, and else cloned; who was connected lives on if anybody can."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import psycopg
import pytest
from children import child, eventually
from conftest import Inner, Target
from machine import running
from traps import CLONED, ENDED, SCHEMA, UNDONE, Connections

from pgsandbox.isolation.reset import quiet
from pgsandbox.isolation.reset.past import Past
from pgsandbox.isolation.reset.watch import Watch
from pgsandbox.isolation.verify import VerifiedIsolation

if TYPE_CHECKING:
    from pgsandbox import Database, Sandbox
    from pgsandbox.isolation.reset.quiet import Look

OPTIONS = ["max_prepared_transactions=5"]
AT_ONCE = 12
"""Traps between two proofs by dump, where not each is proven by itself: a dump takes many times what a reset does."""
BOTH = {"resting", "doing"}
FILLED = "CREATE TABLE filled (id serial, name text); INSERT INTO filled (name) VALUES ('a')"


@pytest.fixture
def sandbox(some_target: Target) -> Iterator[Sandbox]:
    with running(**some_target.settings, init=[str(SCHEMA)], options=OPTIONS) as sandbox:
        yield sandbox


@pytest.fixture
def database(sandbox: Sandbox) -> Database:
    return sandbox.database()


def _reasons(database: Database) -> list[str]:
    """Why it was made anew since this was last asked."""
    reasons = list(database.isolation.made_anew)
    database.isolation.made_anew.clear()
    return reasons


# The traps ------------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(300)
def test_everything_is_undone_or_cloned_for_the_reason_given(target: Target) -> None:
    """Whatever it was, verify finds no difference; and sessions that rest live on wherever it isn't cloned."""
    expected: dict[str, tuple[str | None, set[str]]] = dict.fromkeys(UNDONE.strip().splitlines(), (None, BOTH))
    expected |= {line: (None, {"resting"}) for line in ENDED.strip().splitlines()}
    clones = CLONED if target in (Target("local", 15), Target("local", 18)) else dict(list(CLONED.items())[::6])
    expected |= {line: (reason, set()) for line, reason in clones.items()}
    at_once = 3 if target == Target("local", 18) else AT_ONCE
    with running(**target.settings, init=[str(SCHEMA)], options=OPTIONS, verify=True) as sandbox:
        database = sandbox.database()
        verified = database.isolation
        assert isinstance(verified, VerifiedIsolation)
        with contextlib.closing(Connections(database)) as connections:
            for number, (line, (reason, living)) in enumerate(expected.items()):
                connections.play(line)
                if (number + 1) % at_once:
                    verified._inner.reset()
                else:
                    verified.reset()
                assert (_reasons(database), connections.alive()) == ([reason] if reason else [], living), line
        verified.reset()


# Connections that are at work -----------------------------------------------------------------------------------------


def _rest(database: Database) -> psycopg.Connection[tuple[object, ...]]:
    connection = database.connect(autocommit=True)
    connection.execute("SELECT 1")
    return connection


def test_who_is_at_work_is_ended_within_a_moment_and_who_rests_lives(database: Database) -> None:
    resting, waiting, working = _rest(database), database.connect(), database.connect(autocommit=True)
    waiting.execute("LOCK TABLE plain")
    said: list[BaseException] = []

    def work() -> None:
        try:
            working.execute("SELECT pg_sleep(60)")
        except psycopg.Error as problem:
            said.append(problem)

    thread = threading.Thread(target=work)
    thread.start()
    began = time.monotonic()
    database.reset()
    assert time.monotonic() - began < 5
    thread.join(10)
    assert [type(problem) for problem in said] == [psycopg.errors.AdminShutdown]
    with pytest.raises(psycopg.OperationalError):
        waiting.execute("SELECT 1")
    assert resting.execute("SELECT count(*) FROM plain").fetchone() == (3,)
    assert _reasons(database) == []
    for connection in (resting, waiting, working):
        connection.close()


KILLED = """
import sys, psycopg
connection = psycopg.connect(sys.argv[1], autocommit=True)
print("ready", flush=True)
connection.execute("INSERT INTO audit SELECT pg_sleep(60)::text")
"""


def test_what_a_killed_client_was_doing_is_not_done(sandbox: Sandbox, database: Database) -> None:
    with child(KILLED, database.url) as process, contextlib.closing(_rest(database)) as resting:
        at_work = "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'INSERT INTO audit SELECT pg_sleep%%'"
        assert eventually(lambda: bool(sandbox.server.execute(at_work)))
        os.kill(process.pid, signal.SIGKILL)
        database.reset()
        assert sandbox.server.execute(at_work) == []
        assert resting.execute("SELECT * FROM audit").fetchall() == []


def test_an_advisory_lock_from_before_the_baseline_is_left_alone(database: Database) -> None:
    holder = _rest(database)
    holder.execute("SELECT pg_advisory_lock(7)")
    with database.baseline():
        other = _rest(database)
        other.execute("SELECT pg_advisory_lock(8)")
        database.reset()
        held = "SELECT objid FROM pg_locks WHERE locktype = 'advisory'"
        assert holder.execute(held).fetchall() == [(7,)]
        with pytest.raises(psycopg.OperationalError):
            other.execute("SELECT 1")
    assert _reasons(database) == []
    for connection in (holder, other):
        connection.close()


class Busybody:
    """A thread that goes on doing `statement`, connecting again whenever it is cut off."""

    def __init__(self, database: Database, statement: bytes) -> None:
        self._stop = threading.Event()
        self.times = 0
        self._thread = threading.Thread(target=self._work, args=(database, statement))

    def _work(self, database: Database, statement: bytes) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(psycopg.OperationalError), database.connect(autocommit=True) as connection:
                while not self._stop.is_set():
                    connection.execute(statement)
                    self.times += 1

    def __enter__(self) -> Self:
        self._thread.start()
        deadline = time.monotonic() + 10
        while not self.times and time.monotonic() < deadline:
            time.sleep(0.001)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)


def test_a_thread_that_only_reads_leads_to_no_clone(some_target: Target, project: Path) -> None:
    (project / "init.sql").write_text(
        "CREATE TABLE t (id serial, name text); INSERT INTO t (name) SELECT 'a' FROM generate_series(1, 100)"
    )
    with running(**some_target.settings, init=["init.sql"]) as sandbox:
        database = sandbox.database()
        with Busybody(database, b"SELECT * FROM t WHERE id = 1") as reader, _rest(database) as connection:
            for _ in range(30):
                before = reader.times
                connection.execute("UPDATE t SET name = 'x' WHERE id < 10; INSERT INTO t (name) VALUES ('x')")
                database.reset()
                assert connection.execute("SELECT count(*), max(name) FROM t").fetchone() == (100, "a")
                assert eventually(lambda before=before: reader.times > before)
        assert _reasons(database) == []


def test_what_the_log_does_not_tell_is_not_taken_for_the_baseline(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody writes to an unlogged table in the very moment in which the next baseline is taken."""
    renew, writer = Watch.renew, _rest(database)

    def disturbed(watch: Watch, look: Look, **more: Any) -> None:
        writer.execute("INSERT INTO unlogged_empty DEFAULT VALUES")
        renew(watch, look, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Watch, "renew", disturbed)
        database.reset()
    assert _reasons(database) == ["somebody went on writing"]
    with database.connect() as connection:
        assert connection.execute("SELECT count(*) FROM unlogged_empty").fetchone() == (0,)
    writer.close()


@pytest.mark.parametrize(
    "statement",
    ["ALTER DATABASE {} SET work_mem = '7MB'", "COMMENT ON DATABASE {} IS 'mine'", "UPDATE filled SET name = ''"],
)
def test_what_is_done_while_all_is_put_back_is_undone_too(
    some_target: Target, project: Path, monkeypatch: pytest.MonkeyPatch, statement: str
) -> None:
    """By somebody who was idle when we looked."""
    (project / "init.sql").write_text(FILLED)
    state = (
        "SELECT current_setting('work_mem'), (SELECT max(name) FROM filled),"
        " shobj_description((SELECT oid FROM pg_database WHERE datname = current_database()), 'pg_database')"
    )
    with running(**some_target.settings, init=["init.sql"]) as sandbox:
        database, once = sandbox.database(), ["once"]
        with database.connect() as connection:
            before = connection.execute(state).fetchone()
        writer, renew = _rest(database), Watch.renew_at_once

        def disturbed(watch: Watch, *args: Any, **more: Any) -> Look:
            if once:
                once.clear()
                writer.execute(statement.format(f'"{database.name}"').encode())
            return renew(watch, *args, **more)

        monkeypatch.setattr(Watch, "renew_at_once", disturbed)
        with database.connect(autocommit=True) as connection:
            connection.execute("INSERT INTO filled (name) VALUES ('b')")
        database.reset()
        assert once == []
        with database.connect() as connection:
            assert connection.execute(state).fetchone() == before
        writer.close()


@pytest.mark.parametrize("where", [(Watch, "renew_at_once"), (Past, "change_places"), (Watch, "renew")])
def test_after_a_reset_that_was_interrupted_all_is_made_anew(
    some_target: Target, project: Path, monkeypatch: pytest.MonkeyPatch, where: tuple[type, str]
) -> None:
    """By Ctrl-C, or a time-out by signal; a reset that is in the middle of something knows no way on."""
    (project / "init.sql").write_text("CREATE TABLE filled AS SELECT n FROM generate_series(1, 9) n")
    done = getattr(*where)

    def interrupted(*args: Any, **more: Any) -> None:
        done(*args, **more)
        raise KeyboardInterrupt

    with running(**some_target.settings, init=["init.sql"]) as sandbox:
        database = sandbox.database()

        def use() -> Any:
            with database.connect(autocommit=True) as connection:
                found = connection.execute("SELECT count(*), sum(n) FROM filled").fetchone()
                # So many records that what they leave is vacuumed, which takes the longer way.
                connection.execute("UPDATE filled SET n = 0")
                for _ in range(30 if where[1] == "renew" else 0):
                    connection.execute("UPDATE filled SET n = n + 1")
            return found

        use()
        with monkeypatch.context() as patch:
            patch.setattr(*where, interrupted)
            with pytest.raises(KeyboardInterrupt):
                database.reset()
        database.reset()
        assert _reasons(database) == ["the last reset did not come to its end"]
        for _ in range(3):
            assert use() == (9, 45)
            database.reset()
        assert _reasons(database) == []


def test_the_past_keeps_no_lock_on_what_it_looked_at(
    some_target: Target, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor where somebody was at work meanwhile: a test's TRUNCATE would wait for us."""
    (project / "init.sql").write_text(FILLED)
    monkeypatch.setattr(quiet.Look, "has_moved_since", lambda *_: True)
    with running(**some_target.settings, init=["init.sql"]) as sandbox:
        database = sandbox.database()
        for _ in range(3):
            with database.connect(autocommit=True) as connection:
                connection.execute("SET lock_timeout = '100ms'")
                connection.execute("UPDATE filled SET name = 'b'; INSERT INTO filled (name) VALUES ('c')")
                connection.execute("TRUNCATE filled RESTART IDENTITY; INSERT INTO filled (name) VALUES ('d')")
                connection.execute("ALTER SEQUENCE filled_id_seq RESTART WITH 5")
            database.reset()
            with database.connect(autocommit=True) as connection:
                connection.execute("INSERT INTO filled (name) VALUES ('e')")
            database.reset()
        locks = "SELECT relation::regclass::text FROM pg_locks WHERE relation >= 16384 AND database = %s::oid"
        with sandbox.server.inside(database.name) as connection:
            [(oid,)] = connection.execute("SELECT oid FROM pg_database WHERE datname = current_database()").fetchall()
            assert connection.execute(locks, [oid]).fetchall() == []


def test_a_thread_that_goes_on_writing_never_leaves_anything(database: Database) -> None:
    """Cut off, it comes back and writes: what it wrote before a reset is gone, what it writes after is seen."""
    allowed = {
        "somebody went on writing",
        "connections came back as fast as they were ended",
        "files were written that belong to no relation",
    }
    marks = 0
    with Busybody(database, b"INSERT INTO audit VALUES ('busy')"), contextlib.suppress(psycopg.OperationalError):
        for _ in range(10):
            with database.connect(autocommit=True) as connection:
                connection.execute("INSERT INTO audit VALUES ('mark'); DELETE FROM filled")
            database.reset()
            with database.connect(autocommit=True) as connection:
                [(marks, filled)] = connection.execute(
                    "SELECT (SELECT count(*) FROM audit WHERE what = 'mark'), (SELECT count(*) FROM filled)"
                ).fetchall()
            assert (marks, filled) == (0, 500)
    database.reset()
    with database.connect() as connection:
        assert connection.execute("SELECT count(*) FROM audit").fetchone() == (0,)
    assert set(_reasons(database)) <= allowed


_SLOWLY = (
    (
        "OFFSET 0) early",
        "OFFSET 0) early CROSS JOIN LATERAL (SELECT pg_sleep(0.002) z, early.written y OFFSET 0) pause",
    ),
    ("CASE WHEN early.written IS NULL", "CASE WHEN pause.y IS NULL OR pause.z IS NULL"),
    ("min(early.written), (pg", "min(early.written), CASE WHEN pg_sleep(0.002) IS NOT NULL THEN 0 END + (pg"),
)
"""A look that takes its time before it looks at the sessions, and after that."""


@pytest.mark.parametrize("stays", [True, False], ids=["who stays", "who comes and goes"])
def test_who_writes_in_the_middle_of_a_look_is_not_overlooked(
    some_target: Target, project: Path, monkeypatch: pytest.MonkeyPatch, stays: bool
) -> None:
    """Neither by this reset nor by the next one. Nobody writes any more when that begins."""
    (project / "init.sql").write_text("CREATE TABLE t AS SELECT n, 0 AS times FROM generate_series(1, 100) n")
    for before, after in _SLOWLY:
        assert before in quiet._LOOK
        monkeypatch.setattr(quiet, "_LOOK", quiet._LOOK.replace(before, after, 1))
    chance = random.Random(17)
    with running(**some_target.settings, init=["init.sql"]) as sandbox, contextlib.ExitStack() as stack:
        database = sandbox.database()

        def write(connection: psycopg.Connection[Any] | None) -> psycopg.Connection[Any] | None:
            with contextlib.suppress(psycopg.OperationalError):  # it was cut off
                if connection is None or connection.closed:
                    connection = stack.enter_context(database.connect(autocommit=True))
                connection.execute("UPDATE t SET times = times + 1 WHERE n = %s", [chance.randint(1, 100)])
            if connection is None or stays:
                return connection
            connection.close()
            return None

        def work(is_over: threading.Event) -> None:
            connection: psycopg.Connection[Any] | None = None
            while not is_over.is_set():
                connection = write(connection)
                time.sleep(0.02 * chance.random())

        for number in range(60):
            is_over = threading.Event()
            thread = threading.Thread(target=work, args=[is_over])
            thread.start()
            for _ in range(3):
                database.reset()
            is_over.set()
            thread.join()
            database.reset()
            with database.connect() as connection:
                assert connection.execute("SELECT sum(times) FROM t").fetchone() == (0,), f"in round {number}"


@pytest.mark.parametrize(
    "statement", ["CREATE INDEX CONCURRENTLY made ON plain (n)", "REINDEX TABLE CONCURRENTLY plain"]
)
def test_a_concurrent_index_build_is_not_kept_waiting(database: Database, statement: str) -> None:
    with database.connect(autocommit=True) as connection:
        began = time.monotonic()
        connection.execute(statement.encode())
        assert time.monotonic() - began < 5
    database.reset()
    assert _reasons(database) == ["something waited for older snapshots, as a concurrent index build does"]


def test_values_that_a_session_has_cached_are_not_handed_out_again(database: Database) -> None:
    """`cached` has CACHE 10, and both sessions of a pool have taken some."""
    pool = [_rest(database) for _ in range(2)]
    for _ in range(3):
        assert [one.execute("SELECT nextval('cached')").fetchone() for one in pool] == [(1,), (11,)]
        pool.reverse()
        database.reset()
    assert _reasons(database) == []
    for connection in pool:
        connection.close()


# What is left in the files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [15, 16, 17, 18])
def test_rows_that_were_updated_often_are_sound_afterwards(binaries: None, version: int) -> None:
    """Chains of versions beside their old ones (HOT), pruned on the way: neither index, scan nor VACUUM stumbles."""
    with running(engine="local", version=version, init=[str(SCHEMA)], extensions=["amcheck"]) as sandbox:
        database = sandbox.database()
        with sandbox.server.inside(database.name) as admin, _rest(database) as connection:
            for times in (1, 3, 40, 250):
                for _ in range(times):
                    connection.execute(
                        "UPDATE filled SET id = id WHERE id < 4; UPDATE plain SET n = n + 1 WHERE id = 1"
                    )
                    connection.execute("SELECT * FROM filled WHERE id < 4; SELECT count(*) FROM plain")
                database.reset()
                connection.execute("SET enable_seqscan = off")
                assert connection.execute("SELECT name FROM filled WHERE id = 2").fetchall() == [("name 2",)]
                assert connection.execute("SELECT id, n FROM plain WHERE name = 'a'").fetchall() == [(1, 1)]
                connection.execute("RESET enable_seqscan")
                assert connection.execute("SELECT count(*), sum(id) FROM filled").fetchall() == [(500, 125250)]
                assert admin.execute(CORRUPT).fetchall() == []
            assert _reasons(database) == []
            connection.execute("VACUUM (FREEZE) filled")
            connection.execute("VACUUM (FREEZE) plain")
            assert connection.execute("SELECT count(*) FROM filled").fetchone() == (500,)
            assert admin.execute(CORRUPT).fetchall() == []


CORRUPT = """
SELECT relation, said.* FROM unnest(ARRAY['plain', 'filled']) relation, verify_heapam(relation::regclass) said
"""


def test_rows_come_in_the_order_of_a_fresh_clone(database: Database, sandbox: Sandbox) -> None:
    """Without ORDER BY, after many resets: tables empty, small, and of several pages, and what is put in next."""
    names = ("audit", "plain", "filled", "child")

    def orders(one: Database) -> list[object]:
        with one.connect(autocommit=True) as connection:
            found: list[object] = [connection.execute(f"SELECT * FROM {name}".encode()).fetchall() for name in names]
            connection.execute("INSERT INTO audit VALUES ('x'), ('y'); INSERT INTO plain (name) VALUES ('d'), ('e')")
            connection.execute("INSERT INTO audit VALUES ('z'); INSERT INTO child (plain) VALUES (3)")
            return found + [connection.execute(f"SELECT * FROM {name}".encode()).fetchall() for name in names]

    expected = orders(sandbox.fresh())
    assert orders(database) == expected
    with _rest(database) as connection:
        for number in range(60):
            connection.execute("INSERT INTO audit SELECT g::text FROM generate_series(1, 400) g")
            connection.execute("UPDATE plain SET n = 2; DELETE FROM filled WHERE id % 3 = 1")
            connection.execute("UPDATE filled SET name = 'x' WHERE id % 5 = 2; INSERT INTO child (plain) VALUES (1)")
            if number % 20 == 0:
                connection.execute("TRUNCATE audit, child")
            database.reset()
        assert _reasons(database) == []
        assert orders(database) == expected


SIZES = """
SELECT relname, pg_relation_size(oid) FROM pg_class
WHERE relname IN ('plain', 'child', 'filled', 'filled_pkey', 'audit', 'pg_class', 'pg_attribute', 'pg_statistic')
UNION ALL SELECT 'database', pg_database_size(current_database())
UNION ALL SELECT 'log', sum(size) FROM pg_ls_waldir()
"""


@pytest.mark.slow
def test_two_thousand_resets_leave_sizes_as_they_were(sandbox: Sandbox, database: Database) -> None:
    def sizes() -> dict[str, int]:
        return {name: int(size) for name, size in admin.execute(SIZES.encode()).fetchall()}

    took: list[float] = []
    early: dict[str, int] = {}
    # One that comes and goes might have written to an unlogged table on its way out: that is answered with a clone.
    with sandbox.server.inside(database.name) as admin, _rest(database) as connection:
        for number in range(2000):
            if 100 <= number < 500 and number % 20 == 0:
                early = {name: max(size, early.get(name, 0)) for name, size in sizes().items()}
            connection.execute(
                "INSERT INTO audit VALUES ('x'); UPDATE filled SET name = 'x' WHERE id = 7;"
                "INSERT INTO plain (name) VALUES ('d'); DELETE FROM child WHERE id = 1"
            )
            began = time.perf_counter()
            database.reset()
            took.append(time.perf_counter() - began)
        late = sizes()
    assert _reasons(database) == []
    print(f"a reset took {sorted(took[:100])[50] * 1e3:.1f} ms, and {sorted(took[-100:])[50] * 1e3:.1f} ms at the end")
    assert late.pop("log") <= 64 << 20  # what wal_keep_size and max_wal_size make of it
    assert {name: (early[name], size) for name, size in late.items() if size > 1.2 * early[name]} == {}


# Where it can't -------------------------------------------------------------------------------------------------------


def test_a_superuser_is_reset_like_anybody(some_target: Target) -> None:
    """Also from what only a superuser does."""
    lines = {
        "BEGIN; SET LOCAL session_replication_role = replica; DELETE FROM plain; COMMIT": (None, BOTH),
        "INSERT INTO plain (name) VALUES ('d')": (None, BOTH),
        "CREATE ROLE joe SUPERUSER": (None, BOTH),
        "REINDEX TABLE pg_class": (None, BOTH),
        "CREATE FUNCTION fires() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';"
        "CREATE EVENT TRIGGER made ON ddl_command_end EXECUTE FUNCTION fires()": (
            "the schema was changed (pg_depend, pg_event_trigger, pg_proc)",
            set(),
        ),
    }
    settings = {**some_target.settings, "superuser": True, "scope": "worker", "verify": True}
    with running(init=[str(SCHEMA)], **settings) as sandbox, contextlib.closing(Connections(sandbox.database())) as two:
        for line, (reason, living) in lines.items():
            two.play(line)
            sandbox.database().reset()
            assert (_reasons(sandbox.database()), two.alive()) == ([reason] if reason else [], living), line


def test_the_header_says_why_a_reset_clones(
    pytester: pytest.Pytester, inner: Inner, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makepyfile(
        sitecustomize="""
        from pgsandbox import template
        template._why_clone = lambda server: "the server lacks pg_walinspect"
        """,
        test_it="def test_it(pgsandbox_connection): pgsandbox_connection.execute('CREATE TABLE t ()')",
    )
    monkeypatch.setenv("PYTHONPATH", str(pytester.path))
    for named, words in ((True, ()), (False, ()), (True, ("-n1",))):
        result = inner("-W", "ignore", "--pgsandbox-cache=false", *words, named=named)
        result.assert_outcomes(passed=1)
        assert result.stdout.str().count("isolation clone (no reset: the server lacks pg_walinspect)") == 1
