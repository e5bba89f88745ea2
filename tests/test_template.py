"""The template: what the steps make, that clones have all of it, and that it is made exactly once."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from conftest import Target
from machine import running

from pgsandbox import scram, template
from pgsandbox.errors import TemplateError
from pgsandbox.isolation.clone import CloneIsolation
from pgsandbox.settings import Settings

if TYPE_CHECKING:
    from pgsandbox.server import Server


class Workshop:
    """A server in which templates are built and cloned, one after the other."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server = server
        self.folder = folder

    def build(self, sql: str = "", **settings: Any) -> template.Facts:
        """Build the template with `sql` as its only step, if there is any."""
        (self.folder / "step.sql").write_text(sql)
        init = ("step.sql",) if sql else ()
        return template.build(self.server, Settings(init=init, **settings), self.folder, lambda _text: None)

    def clone(self, facts: template.Facts) -> str:
        """Make the clone `pgsandbox_w`, and its role; how to connect."""
        login = self.server.names.database("w")
        password = scram.new_password()
        self.server.roles.make_login(login, password=password, budget=5)
        facts.apply_to_login(self.server, login)
        CloneIsolation(
            self.server, login, login=login, template=self.server.names.template, facts=facts, budget=5
        ).create()
        return f"host={self.server.host} port={self.server.port} dbname={login} user={login} password={password}"

    def tidy(self) -> None:
        """Remove the clone, and the roles that are not ours."""
        for name in ("pgsandbox_w", "pgsandbox_template"):
            self.server.drop_database(name)
        for (role,) in self.server.execute("SELECT rolname FROM pg_roles WHERE oid > 16383 ORDER BY rolcanlogin DESC"):
            self.server.roles.drop(role)


@pytest.fixture(scope="module", params=[15, 18])
def servers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", os.pathsep.join([os.environ.get(f"TEST_BIN_{request.param}", ""), os.environ["PATH"]]))
        root = tmp_path_factory.mktemp("shared")
        with running(root=root, engine="local", version=request.param, cache=False) as sandbox:
            yield sandbox.server


@pytest.fixture
def workshop(servers: Server, tmp_path: Path) -> Iterator[Workshop]:
    found = Workshop(servers, tmp_path)
    yield found
    found.tidy()


def asked(conninfo: str, *queries: str) -> Any:
    """The first row of the last query, in a connection of its own."""
    with psycopg.connect(conninfo, autocommit=True) as connection:
        for query in queries:
            cursor = connection.execute(query)
        return cursor.fetchone()


# What is made ---------------------------------------------------------------------------------------------------------


def test_steps_of_all_kinds_run_in_their_order(some_target: Target, project: Path) -> None:
    (project / "first.sql").write_text("CREATE TABLE step (number serial, said text);")
    (project / "sql").mkdir()
    for name in ("b", "a"):
        (project / f"sql/{name}.sql").write_text(f"INSERT INTO step (said) VALUES ('{name}.sql');")
    (project / "seeds.py").write_text(
        "import os, psycopg\n\n\n"
        "def load(url):\n"
        "    with psycopg.connect(url) as connection:\n"
        "        here = os.path.realpath('.') == os.path.dirname(os.path.realpath(__file__))\n"
        '        said = f\'python {here} {url == os.environ["DATABASE_URL"] == os.environ["APP_DSN"]}\'\n'
        "        connection.execute('INSERT INTO step (said) VALUES (%s)', [said])\n"
    )
    (project / "run.py").write_text("import os, seeds; seeds.load(os.environ['APP_DSN'])")
    init = ["first.sql", "sql/*.sql", "python: seeds:load", f"command: {sys.executable} run.py"]
    sandbox_ = running(**some_target.settings, init=init, env=["APP_DSN"])
    with sandbox_ as sandbox, sandbox.database().connect() as connection:
        rows = connection.execute("SELECT said FROM step ORDER BY number").fetchall()
    assert rows == [("a.sql",), ("b.sql",), ("python True True",), ("python True True",)]


def test_the_template_is_sealed_frozen_and_analysed(workshop: Workshop) -> None:
    facts = workshop.build("CREATE TABLE t AS SELECT n AS id FROM generate_series(1, 1000) n")
    [sealed] = workshop.server.execute(
        "SELECT datallowconn, datdba::regrole::text FROM pg_database WHERE datname = 'pgsandbox_template'"
    )
    assert sealed == (False, "pgsandbox_owner")
    with pytest.raises(Exception, match="is not currently accepting connections"):
        workshop.server.connect_admin("pgsandbox_template")
    conninfo = workshop.clone(facts)
    assert asked(conninfo, "SELECT reltuples FROM pg_class WHERE relname = 't'") == (1000,)
    assert asked(conninfo, "SELECT count(*) FROM pg_stats WHERE tablename = 't'") == (1,)
    # The oldest transaction that the table may still have to look up is younger than the one that wrote its rows.
    newest = "(SELECT max(xmin::text::bigint) FROM t)"
    frozen = f"SELECT relfrozenxid::text::bigint > {newest} FROM pg_class WHERE relname = 't'"
    assert asked(conninfo, frozen) == (True,)


def test_nobody_can_log_in_as_the_one_who_built_it(workshop: Workshop) -> None:
    workshop.build()
    query = "SELECT rolcanlogin, rolpassword FROM pg_authid WHERE rolname = 'pgsandbox_builder'"
    assert workshop.server.execute(query) == [(False, None)]
    assert workshop.server.execute("SELECT rolcanlogin FROM pg_roles WHERE rolname = 'pgsandbox_owner'") == [(False,)]


def test_what_a_dead_builder_left_is_replaced(workshop: Workshop) -> None:
    workshop.build("CREATE TABLE half (id int)")
    workshop.server.allow_connections("pgsandbox_template", True)
    facts = workshop.build("CREATE TABLE whole (id int)")
    assert asked(workshop.clone(facts), "SELECT to_regclass('half'), to_regclass('whole')::text") == (None, "whole")


# What clones are given ------------------------------------------------------------------------------------------------

ODD = 'it\'s "a" \\ b, c=d; ü $1 %s {} --'


def do(statement: str) -> str:
    """SQL that puts the database's name into `statement`, as a migration must: it can't know it."""
    return f"DO $do$ BEGIN EXECUTE format($f${statement}$f$, current_database()); END $do$;\n"


def test_clones_have_the_databases_settings(workshop: Workshop) -> None:
    quoted = ODD.replace("'", "''").replace("%", "%%")
    facts = workshop.build(
        'CREATE SCHEMA "Odd, ""one"""; CREATE SCHEMA b;\n'
        + do('ALTER DATABASE %I SET search_path = "$user", "Odd, ""one""", b, public')
        + do(f"ALTER DATABASE %I SET app.odd = '{quoted}'")
        + do("ALTER DATABASE %I SET app.empty = ''")
        + do("ALTER DATABASE %I SET work_mem = '5MB'")
        + do("ALTER DATABASE %I SET DateStyle = 'German, DMY'")
        + do("ALTER DATABASE %I SET TimeZone = 'Europe/Vienna'")
        + do("ALTER DATABASE %I SET default_transaction_isolation = 'serializable'")
        + do("ALTER DATABASE %I SET default_transaction_read_only = on")
        + do("ALTER DATABASE %I SET statement_timeout = '1h'"),
        superuser=True,  # PostgreSQL asks for that where a setting is nobody's
    )
    conninfo = workshop.clone(facts)
    assert asked(conninfo, "SHOW search_path") == ('"$user", "Odd, ""one""", b, public',)
    assert asked(conninfo, "SELECT current_schemas(false)::text[]") == (['Odd, "one"', "b", "public"],)
    assert asked(conninfo, "SHOW app.odd") == (ODD,)
    assert asked(conninfo, "SHOW app.empty") == ("",)
    names = ("work_mem", "DateStyle", "TimeZone", "default_transaction_isolation", "statement_timeout")
    shown = [asked(conninfo, f"SHOW {name}")[0] for name in names]
    assert shown == ["5MB", "German, DMY", "Europe/Vienna", "serializable", "1h"]
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        asked(conninfo, "CREATE TABLE t ()")


@pytest.mark.parametrize("path", ["''", '"a b"', "public", "a, public, pg_temp"])
def test_a_search_path_of_any_form_survives(workshop: Workshop, path: str) -> None:
    facts = workshop.build(do(f"ALTER DATABASE %I SET search_path = {path}"))
    expected = asked(f"{workshop.server.admin_conninfo()}", f"SET search_path = {path}", "SHOW search_path")
    assert asked(workshop.clone(facts), "SHOW search_path") == expected


def test_settings_of_roles_come_along(workshop: Workshop) -> None:
    """Those of the role that the steps run as become the worker's own: in a project's life they are one."""
    facts = workshop.build(
        "CREATE ROLE app;\n"
        + do("ALTER ROLE app IN DATABASE %I SET app.who = 'app here'")
        + do("ALTER ROLE CURRENT_USER IN DATABASE %I SET app.here = 'me here'")
        + "ALTER ROLE CURRENT_USER SET app.everywhere = 'me everywhere';\n"
        + "ALTER ROLE SESSION_USER SET app.session = 'me again';\n",
        superuser=True,
    )
    conninfo = workshop.clone(facts)
    for name, value in (("here", "me here"), ("everywhere", "me everywhere"), ("session", "me again")):
        assert asked(conninfo, f"SHOW app.{name}") == (value,)
    rows = workshop.server.execute(
        "SELECT setconfig FROM pg_db_role_setting s JOIN pg_database d ON d.oid = setdatabase"
        " WHERE datname = 'pgsandbox_w' AND setrole = 'app'::regrole"
    )
    assert rows == [(["app.who=app here"],)]


def test_a_role_that_the_database_sets_is_kept(workshop: Workshop) -> None:
    facts = workshop.build(
        "CREATE ROLE app; GRANT app TO CURRENT_USER;\n" + do("ALTER DATABASE %I SET role = 'app'"),
    )
    workshop.clone(facts)
    rows = workshop.server.execute(
        "SELECT setconfig FROM pg_db_role_setting s JOIN pg_database d ON d.oid = setdatabase"
        " WHERE datname = 'pgsandbox_w' AND setrole = 0"
    )
    assert rows == [(["role=app"],)]


def test_comment_and_owner_come_along(workshop: Workshop) -> None:
    facts = workshop.build(do("COMMENT ON DATABASE %I IS 'the shop''s own'"))
    conninfo = workshop.clone(facts)
    query = (
        "SELECT shobj_description(oid, 'pg_database'), datdba::regrole::text FROM pg_database"
        " WHERE datname = current_database()"
    )
    assert asked(conninfo, query) == ("the shop's own", "pgsandbox_owner")


def rights(workshop: Workshop, role: str) -> list[bool]:
    names = ("CONNECT", "TEMPORARY", "CREATE", "CREATE WITH GRANT OPTION")
    query = "SELECT " + ", ".join(f"has_database_privilege('{role}', 'pgsandbox_w', '{name}')" for name in names)
    return list(workshop.server.execute(query)[0])  # type: ignore[arg-type]


def test_grants_on_the_database_come_along(workshop: Workshop) -> None:
    facts = workshop.build(
        "CREATE ROLE app; CREATE ROLE reader; CREATE ROLE other;\n"
        + do("GRANT CONNECT ON DATABASE %I TO app")
        + do("GRANT CREATE ON DATABASE %I TO reader WITH GRANT OPTION")
    )
    workshop.clone(facts)
    assert rights(workshop, "app") == [True, True, False, False]
    assert rights(workshop, "reader") == [False, True, True, True]
    assert rights(workshop, "other") == [False, True, False, False]


def test_a_right_that_was_taken_from_all_is_taken_from_clones(workshop: Workshop) -> None:
    facts = workshop.build("CREATE ROLE other;\n" + do("REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC"))
    workshop.clone(facts)
    assert rights(workshop, "other") == [False, False, False, False]


# Extensions and roles -------------------------------------------------------------------------------------------------


def test_extensions_are_there_before_the_steps_with_all_that_they_need(workshop: Workshop) -> None:
    facts = workshop.build(
        "CREATE TABLE t (r int4range, n int, w text, EXCLUDE USING gist (r WITH &&, n WITH =));"
        "CREATE INDEX ON t USING gin (w gin_trgm_ops)",
        extensions=("btree_gist", "pg_trgm", "earthdistance"),
    )
    query = "SELECT string_agg(extname, ' ' ORDER BY extname) FROM pg_extension"
    assert asked(workshop.clone(facts), query) == ("btree_gist cube earthdistance pg_trgm plpgsql",)


def test_an_extension_that_is_not_available_is_said_to_be(workshop: Workshop) -> None:
    with pytest.raises(TemplateError) as caught:
        workshop.build(extensions=("pg_trgm", "no_such_thing"))
    why = 'extension "no_such_thing" is not available'
    assert str(caught.value) == (
        "pgsandbox: extension no_such_thing can't be created\n"
        f"  why: {why}\n"
        f"  looked at: local: {workshop.server.running.what}\n"
        "  hint: use an image, or install a package, that has it; `SELECT name FROM pg_available_extensions` lists "
        "what this server has"
    )


def test_a_template_that_can_not_be_sealed_is_said_to_be(workshop: Workshop) -> None:
    """To analyse an index on an expression is to run it: here one that reads another table, which no index should."""
    source = (
        "CREATE TABLE t (i int); CREATE TABLE u (i int);"
        "CREATE FUNCTION f(int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS"
        " $$ BEGIN IF EXISTS (SELECT FROM public.u) THEN RAISE 'not now'; END IF; RETURN $1; END $$;"
        "CREATE INDEX ON t (f(i)); INSERT INTO t VALUES (1); INSERT INTO u VALUES (1);"
    )
    with pytest.raises(TemplateError) as caught:
        workshop.build(source)
    assert str(caught.value) == (
        "pgsandbox: the template can't be sealed\n"
        "  why: not now\n"
        f"  looked at: local: {workshop.server.running.what}\n"
        "  hint: its tables are frozen and analysed: does an index, or a function that one uses, fail?"
    )


def test_migrations_may_make_roles_grant_to_them_and_act_as_them(workshop: Workshop) -> None:
    """A role's maker acts as it at once in 16 and later; before that it must be made a member, by itself."""
    member = "GRANT app TO CURRENT_USER;" if workshop.server.version_num < 160000 else ""
    facts = workshop.build(
        f"CREATE ROLE app NOLOGIN; CREATE ROLE login LOGIN PASSWORD 'x' IN ROLE app; {member}"
        "CREATE SCHEMA shop AUTHORIZATION app; CREATE TABLE t (id int); GRANT SELECT ON t TO app;"
        "SET ROLE app; CREATE TABLE shop.of_app (id int); SELECT * FROM t; RESET ROLE;"
        "ALTER ROLE login SET work_mem = '7MB'; ALTER TABLE shop.of_app ADD more int;"
    )
    conninfo = workshop.clone(facts)
    assert asked(conninfo, "SELECT tableowner::text FROM pg_tables WHERE tablename = 'of_app'") == ("app",)
    assert asked(conninfo, "SET ROLE app", "SELECT count(*) FROM shop.of_app") == (0,)


def test_before_16_the_maker_of_a_role_is_told_to_become_a_member(workshop: Workshop) -> None:
    if workshop.server.version_num >= 160000:
        pytest.skip("the maker of a role is a member")
    with pytest.raises(TemplateError) as caught:
        workshop.build("CREATE ROLE app; SET ROLE app;")
    assert str(caught.value) == (
        "pgsandbox: init file step.sql failed\n"
        '  why: permission denied to set role "app"\n'
        "  hint: before PostgreSQL 16 who makes a role is no member of it: GRANT it TO CURRENT_USER first"
    )


# Exactly once ---------------------------------------------------------------------------------------------------------

WORKER = """\
import json, sys
from pgsandbox import PgsandboxError, Sandbox
run, worker, workers, settings = sys.argv[1:]
try:
    with Sandbox(run=run, worker=worker, workers=int(workers), **json.loads(settings)) as sandbox:
        with sandbox.database().connect() as connection:
            print(connection.execute("SELECT said FROM built").fetchall(), flush=True)
        sys.stdin.readline()
except PgsandboxError as problem:
    print(str(problem), flush=True)
    sys.exit(problem.exit_code)
"""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(project: Path) -> Iterator[Start]:
    """`start(run, worker, workers, **settings)`: one process of a run."""
    started: list[subprocess.Popen[str]] = []

    def begin(run: str, worker: str, workers: int, **settings: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", WORKER, run, worker, str(workers), json.dumps(settings)]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, cwd=project, stdin=pipe, stdout=pipe, text=True))
        return started[-1]

    yield begin
    for process in started:
        with process:
            process.kill()


@pytest.fixture
def counted(project: Path) -> Path:
    """A project whose only step writes down each time it runs, slowly enough for others to come."""
    (project / "build.py").write_text(
        "import os, psycopg, time\n\n\n"
        "def build(url):\n"
        "    with open('runs', 'a') as file: file.write(f'{os.getpid()}\\n')\n"
        "    time.sleep(0.2)\n"
        "    with psycopg.connect(url) as connection:\n"
        "        connection.execute(\"CREATE TABLE built AS SELECT 'whole' AS said\")\n"
        "    while os.path.exists('stay'): time.sleep(0.05)\n"
        "    if os.path.exists('fail'): raise SystemExit('the seeds are rotten')\n"
    )
    return project


STEP = ["python:build:build"]


def finish(processes: Sequence[subprocess.Popen[str]]) -> list[str]:
    """What each of `processes` said, once all have; then they may end."""
    said = []
    for process in processes:
        assert process.stdout is not None
        said.append(process.stdout.readline())
    for number, process in enumerate(processes):
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        said[number] += process.stdout.read()
        process.wait(30)
    return said


@pytest.mark.parametrize("scope", ["session", "worker"])
@pytest.mark.parametrize("turn", range(2))
def test_of_eight_processes_that_race_one_builds(
    some_target: Target, start: Start, counted: Path, scope: str, turn: int
) -> None:
    settings = {**some_target.settings, "init": STEP, "scope": scope}
    said = finish([start(f"race-{turn}", f"gw{number}", 8, **settings) for number in range(8)])
    assert said == ["[('whole',)]\n"] * 8
    assert len((counted / "runs").read_text().splitlines()) == 1


@pytest.mark.parametrize("scope", ["session", "worker"])
def test_a_killed_builder_is_taken_over_by_the_next(
    some_target: Target, start: Start, counted: Path, scope: str, runtime: Path
) -> None:
    (counted / "stay").touch()
    settings = {**some_target.settings, "init": STEP, "scope": scope}
    builder = start("run", "gw0", 2, **settings)
    wait_until((counted / "runs").exists)
    waiting = start("run", "gw1", 2, **settings)
    wait_until(lambda: takes_part(waiting))
    (counted / "stay").unlink()
    builder.send_signal(signal.SIGKILL)
    assert waiting.stdout is not None
    assert waiting.stdout.readline() == "[('whole',)]\n"
    pids = (counted / "runs").read_text().split()
    assert len(pids) == 2
    assert not Path(f"/proc/{pids[0]}").exists()
    assert len(list((runtime / "runs/run/servers").iterdir())) == 1  # the dead builder's has gone
    assert waiting.stdin is not None
    waiting.stdin.close()
    assert waiting.wait(30) == 0


def test_a_failing_step_runs_once_and_every_process_says_the_same(
    some_target: Target, start: Start, counted: Path
) -> None:
    (counted / "fail").touch()
    settings = {**some_target.settings, "init": STEP, "scope": "session"}
    said = finish([start("run", f"gw{number}", 3, **settings) for number in range(3)])
    assert (
        said == ["pgsandbox: init step 'python:build:build' failed with exit code 1\n  why: the seeds are rotten\n"] * 3
    )
    assert len((counted / "runs").read_text().splitlines()) == 1


def wait_until(condition: Callable[[], bool], deadline: float = 30) -> None:
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def takes_part(process: subprocess.Popen[str]) -> bool:
    """Whether the process holds a lease on its run."""
    with contextlib.suppress(FileNotFoundError):
        files = [str(entry.readlink()) for entry in Path(f"/proc/{process.pid}/fd").iterdir()]
        return any(file.endswith("/runs/run/lease") for file in files)
    return False


def test_what_only_a_superuser_may_make_is_in_the_template(some_target: Target, project: Path) -> None:
    (project / "init.sql").write_text(
        "CREATE FUNCTION seen() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';"
        "CREATE EVENT TRIGGER watch ON ddl_command_end EXECUTE FUNCTION seen();"
    )
    with running(**some_target.settings, superuser=True, scope="worker", init=["init.sql"]) as sandbox:
        found = sandbox.server.execute("SELECT rolname FROM pg_roles WHERE rolsuper ORDER BY 1")
        assert [name for (name,) in found] == ["pgsandbox_builder", "postgres"]
        with sandbox.database().connect() as connection:
            assert connection.execute("SELECT evtowner::regrole::text FROM pg_event_trigger").fetchone() == (
                "pgsandbox_owner",
            )
