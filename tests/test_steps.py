"""Init steps: what may be written, what each kind does to a database, and what a failing one says."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from children import eventually
from machine import command_lines, running

from pgsandbox import Database, Sandbox, libpq, steps
from pgsandbox.errors import TemplateError

Run = Callable[..., Database]
ROOT = "paths start at the project's root"
SUPERUSER = "set superuser = true (with scope = worker), or leave what belongs to the whole server out of migrations"


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """One server for all tests of this file; each takes a database of its own from it."""
    folder = tmp_path_factory.mktemp("steps")
    folder.chmod(0o700)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{os.environ.get('TEST_BIN_15', '')}:{os.environ['PATH']}")
        with running(root=folder, engine="local", version=15) as sandbox:
            yield sandbox


@pytest.fixture
def run(sandbox: Sandbox, project: Path) -> Iterator[Run]:
    """`run("file.sql")`: run init steps in the project on a new database; that."""
    made = []

    def run(*texts: str, timeout: float = 20, **environ: str) -> Database:
        made.append(sandbox.fresh())
        env = libpq.environment(made[-1].env, {**os.environ, **environ})
        for step in steps.parse(texts, project):
            step.run(made[-1], steps.Context(project, env, timeout))
        return made[-1]

    yield run
    for database in made:
        sandbox.drop(database)


def rows(database: Database, query: str = "SELECT * FROM t ORDER BY 1") -> list[tuple[object, ...]]:
    with database.connect() as connection:
        return connection.execute(query.encode()).fetchall()


def failure(action: Callable[[], object]) -> str:
    with pytest.raises(TemplateError) as caught:
        action()
    return str(caught.value)


# What may be written --------------------------------------------------------------------------------------------------


def test_a_pattern_stands_for_its_files_in_order(project: Path) -> None:
    for name in ("b", "a10", "a9", "c"):
        (project / f"{name}.sql").touch()
    (project / "d.sql").mkdir()
    found = steps.parse(["?.sql", "a*.sql", str(project / "*9.sql")], project)
    assert [step.file.name for step in found if isinstance(step, steps.SqlStep)] == [
        "b.sql",
        "c.sql",
        "a10.sql",
        "a9.sql",
        "a9.sql",
    ]


def test_each_kind_is_told_by_how_it_is_written(project: Path) -> None:
    (project / "schema.sql").touch()
    found = steps.parse(["schema.sql", "python: app.db:create_all", "command: alembic -x 'a b' upgrade head"], project)
    assert found == [
        steps.SqlStep("schema.sql", project / "schema.sql"),
        steps.PythonStep("python: app.db:create_all", "app.db", "create_all"),
        steps.CommandStep(
            "command: alembic -x 'a b' upgrade head", ("alembic", "-x", "a b", "upgrade", "head")
        ),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "schema.ddl",
            (
                "init step 'schema.ddl' is of no known kind\n"
                "  hint: the kinds are file.sql, dir/*.sql, python:module:function, command: a command line"
            ),
        ),
        ("python:app", "init step 'python:app' is malformed\n  hint: write python:module:function"),
        ("python:app:f()", "init step 'python:app:f()' is malformed\n  hint: write python:module:function"),
        (
            "command:",
            "init step 'command:' names no program\n  hint: write `command: alembic upgrade head`",
        ),
        ("command: echo 'a", "init step \"command: echo 'a\" can't be split into words\n  why: No closing quotation"),
        (
            "none.sql",
            f"init file none.sql does not exist\n  looked at: {{project}}/none.sql\n  hint: {ROOT}",
        ),
        ("sql/*.sql", f"init step 'sql/*.sql' matches no file\n  looked at: {{project}}\n  hint: {ROOT}"),
        ("/none/*.sql", f"init step '/none/*.sql' matches no file\n  looked at: /\n  hint: {ROOT}"),
    ],
)
def test_what_is_no_step_is_refused_before_anything_is_started(project: Path, text: str, said: str) -> None:
    expected = f"pgsandbox: {said.format(project=project)}"
    assert failure(lambda: steps.checked([text], project)) == expected
    with pytest.raises(TemplateError) as caught:
        Sandbox(engine="external", url="postgresql://u:p@127.0.0.1:1/none", init=[text]).start()
    assert str(caught.value) == expected


# SQL ------------------------------------------------------------------------------------------------------------------


def test_a_file_is_run_as_it_is(run: Run, project: Path) -> None:
    (project / "schema.sql").write_text(
        "\N{BOM}CREATE TABLE t (a text);\r\n"
        "-- ünder; 'quotes\r\n"
        "INSERT INTO t VALUES ('100 %s, ∞; ok'), ($$a; b$$);\r\n"
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1; SELECT 2';\r\n",
        encoding="utf-8",
    )
    assert rows(run("schema.sql")) == [("100 %s, ∞; ok",), ("a; b",)]


def test_the_environment_does_not_change_a_files_letters(
    run: Run, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "a.sql").write_text("CREATE TABLE t AS SELECT 'ü' AS a", encoding="utf-8")
    (project / "b.sql").write_text("\\set x 1\nINSERT INTO t VALUES ('ß')\n", encoding="utf-8")
    monkeypatch.setenv("PGCLIENTENCODING", "latin1")
    assert rows(run("a.sql", "b.sql"), 'SELECT a FROM t ORDER BY a COLLATE "C"') == [("ß",), ("ü",)]


def test_an_empty_file_does_nothing(run: Run, project: Path) -> None:
    (project / "empty.sql").write_text("-- nothing yet\n")
    (project / "more.sql").write_text("")
    run("empty.sql", "more.sql")


@pytest.mark.parametrize(
    ("source", "where", "why"),
    [
        ("SELECT 1;\nSELEC 2;\n", " at line 2: SELEC 2;", ['syntax error at or near "SELEC"']),
        (
            "SELECT 1;\n\n  SELECT nothing FROM x\n",
            " at line 3: SELECT nothing FROM x",
            ['relation "x" does not exist'],
        ),
        ("SELECT 1;\nSELECT 2 FROM\n\n", " at line 2: SELECT 2 FROM", ["syntax error at end of input"]),
        ("SELECT 'ünï\x0c\x1c\u2028';\nSELECT (", " at line 2: SELECT (", ["syntax error at end of input"]),
        (
            "CREATE TABLE t (a int PRIMARY KEY);\nINSERT INTO t VALUES (1), (1)",
            "",
            ['duplicate key value violates unique constraint "t_pkey"', "Key (a)=(1) already exists."],
        ),
        (
            "DO $$\nBEGIN\n  RAISE EXCEPTION 'no';\nEND $$",
            "",
            ["no", "PL/pgSQL function inline_code_block line 3 at RAISE"],
        ),
    ],
)
def test_a_mistake_is_shown_where_it_is(run: Run, project: Path, source: str, where: str, why: list[str]) -> None:
    (project / "bad.sql").write_text(source, encoding="utf-8")
    said = "\n       ".join(why)
    assert failure(lambda: run("bad.sql")) == f"pgsandbox: init file bad.sql failed{where}\n  why: {said}"


def test_of_a_patterns_files_the_one_with_the_mistake_is_named(run: Run, project: Path) -> None:
    (project / "one.sql").write_text("SELECT 1")
    (project / "two.sql").write_text("SELECT (")
    for pattern in ("*.sql", "t??.sql"):
        assert failure(lambda text=pattern: run(text)) == (  # type: ignore[misc]
            "pgsandbox: init file two.sql failed at line 1: SELECT (\n  why: syntax error at end of input"
        )


def test_postgresqls_own_hint_is_passed_on(run: Run, project: Path) -> None:
    (project / "bad.sql").write_text("CREATE TABLE t (name text);\nSELECT nam FROM t")
    assert failure(lambda: run("bad.sql")) == (
        "pgsandbox: init file bad.sql failed at line 2: SELECT nam FROM t\n"
        '  why: column "nam" does not exist\n'
        '  hint: Perhaps you meant to reference the column "t.name".'
    )


def test_a_file_of_other_letters_than_utf_8_is_refused(run: Run, project: Path) -> None:
    (project / "old.sql").write_bytes("SELECT 'ü'".encode("latin-1"))
    assert failure(lambda: run("old.sql")) == (
        "pgsandbox: init file old.sql is not UTF-8\n"
        "  why: 'utf-8' codec can't decode byte 0xfc in position 8: invalid start byte\n"
        "  hint: convert it: iconv -t UTF-8"
    )


@pytest.mark.parametrize("first", ["", "SET statement_timeout = 0;\n"])
def test_a_file_that_takes_too_long_is_ended(run: Run, project: Path, first: str) -> None:
    (project / "slow.sql").write_text(f"{first}SELECT pg_sleep(0.2);\nSELECT pg_sleep(0.2);\nSELECT pg_sleep(300);\n")
    assert failure(lambda: run("slow.sql", timeout=0.5)) == (
        "pgsandbox: init file slow.sql was not done within 0.5s, and was ended\n"
        "  why: PostgreSQL was still working on it\n"
        "  hint: raise the setting timeout, or look at what it waits for"
    )


def test_a_time_limit_of_the_files_own_is_not_ours(run: Run, project: Path) -> None:
    (project / "slow.sql").write_text("SET statement_timeout = '10ms';\nSELECT pg_sleep(300);\n")
    assert failure(lambda: run("slow.sql")) == (
        "pgsandbox: init file slow.sql failed\n  why: canceling statement due to statement timeout"
    )


@pytest.mark.parametrize("version", [15, 18])
@pytest.mark.usefixtures("binaries")
def test_what_the_owner_may_not_do_is_told_apart_in_each_versions_words(version: int, project: Path) -> None:
    cases = {
        "CREATE EXTENSION pg_stat_statements": "name it in the setting extensions: those are created by the superuser",
        "CREATE EXTENSION nonsense": (
            "install it in the server (a package, or another image), and name it in the setting extensions"
        ),
        "CREATE ROLE somebody SUPERUSER": SUPERUSER,
        "ALTER ROLE postgres SET work_mem = '8MB'": SUPERUSER,
        "ALTER SYSTEM SET work_mem = '8MB'": SUPERUSER,
        "CREATE EVENT TRIGGER e ON ddl_command_start EXECUTE FUNCTION f()": SUPERUSER,
        "CREATE FUNCTION f() RETURNS int LANGUAGE c AS 'x', 'y'": SUPERUSER,
        "CREATE PUBLICATION p FOR ALL TABLES": SUPERUSER,
        "SELECT 1; VACUUM": "put that statement into a file of its own",
        "SELECT 1/0": None,
    }
    with running(engine="local", version=version) as sandbox:
        for source, hint in cases.items():
            (project / "step.sql").write_text(source)
            [step] = steps.parse(["step.sql"], project)
            with pytest.raises(TemplateError) as caught:
                step.run(sandbox.database(), steps.Context(project, os.environ, 10))
            assert (source, caught.value.hint) == (source, hint)
            assert caught.value.message == "init file step.sql failed"


# psql -----------------------------------------------------------------------------------------------------------------

needs_psql = pytest.mark.skipif(shutil.which("psql") is None, reason="psql is not installed")


@needs_psql
def test_a_file_with_psqls_commands_is_given_to_psql(run: Run, project: Path) -> None:
    (project / "dump.sql").write_text(
        "\\set answer 42\nCREATE TABLE t (a int, b text);\nCOPY t FROM stdin;\n1\tone\n2\t\\N\n\\.\n"
        "INSERT INTO t VALUES (:answer, 'set');\n"
    )
    assert rows(run("dump.sql")) == [(1, "one"), (2, None), (42, "set")]


@needs_psql
def test_psql_stops_at_the_first_mistake_and_says_where(run: Run, project: Path) -> None:
    (project / "bad.sql").write_text("\\set x 1\nSELECT nothing;\nCREATE TABLE t ();\n")
    assert failure(lambda: run("bad.sql")) == (
        "pgsandbox: init step 'bad.sql' failed with exit code 3\n"
        f'  why: psql:{project}/bad.sql:2: ERROR:  column "nothing" does not exist\n'
        "       LINE 1: SELECT nothing;\n"
        "                      ^"
    )


@needs_psql
def test_psql_is_not_led_to_another_server(run: Run, project: Path, tmp_path: Path) -> None:
    (tmp_path / "services").write_text("[production]\nhost=production.invalid\n")
    (project / "a.sql").write_text("\\set x 1\nCREATE TABLE t AS SELECT 1 AS a;\n")
    environ = {"PGSERVICE": "production", "PGSERVICEFILE": str(tmp_path / "services"), "PGHOSTADDR": "192.0.2.1"}
    assert rows(run("a.sql", PGSSLMODE="verify-full", PGOPTIONS="-c nonsense=1", **environ)) == [(1,)]


@needs_psql
def test_a_users_psqlrc_is_not_read(run: Run, project: Path, tmp_path: Path) -> None:
    (tmp_path / ".psqlrc").write_text("\\quit\n")
    (project / "a.sql").write_text("\\set x 1\nCREATE TABLE t AS SELECT 1 AS a;\n")
    assert rows(run("a.sql", HOME=str(tmp_path))) == [(1,)]


def test_without_psql_its_files_are_refused(run: Run, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "dump.sql").write_text("\\set x 1\n")
    monkeypatch.setenv("PATH", str(project))
    assert failure(lambda: run("dump.sql")) == (
        "pgsandbox: init file dump.sql needs psql\n"
        "  why: it has psql's own commands (lines that begin with a backslash) or data for COPY\n"
        "  looked at: PATH\n"
        "  hint: install PostgreSQL's client programs, or use `pg_dump --inserts`"
    )


# Python ---------------------------------------------------------------------------------------------------------------

BUILD = """\
import psycopg
def build(url):
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE t AS SELECT current_database()::text AS a")
"""


def test_a_function_is_called_with_the_url(run: Run, project: Path) -> None:
    (project / "app").mkdir()
    (project / "app" / "db.py").write_text(BUILD)
    database = run("python:app.db:build")
    assert rows(database) == [(database.name,)]


def test_the_projects_modules_come_before_installed_ones(run: Run, project: Path) -> None:
    (project / "click.py").write_text(BUILD)
    run("python:click:build")


def test_a_module_that_sets_database_url_itself_changes_nothing(run: Run, project: Path) -> None:
    override = "import os\nos.environ['DATABASE_URL'] = 'postgresql://production.invalid/x'\n"
    (project / "app.py").write_text(override + BUILD)
    database = run("python:app:build")
    assert rows(database) == [(database.name,)]


def test_no_process_list_shows_the_password(run: Run, project: Path) -> None:
    (project / "app.py").write_text(
        "import pathlib, time\n"
        "def build(url):\n"
        "    pathlib.Path('begun').touch()\n"
        "    while not pathlib.Path('seen').exists():\n"
        "        time.sleep(0.01)\n"
    )
    found: list[Database] = []
    thread = threading.Thread(target=lambda: found.append(run("python:app:build")))
    thread.start()
    try:
        assert eventually((project / "begun").exists)
        lines = command_lines()
    finally:
        (project / "seen").touch()
        thread.join()
    assert "importlib.import_module" in lines
    assert found[0].address.password not in lines


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("python:nothing:build", "no module named nothing"),
        ("python:app.nothing:build", "no module named app.nothing"),
        ("python:nothing.more:build", "no module named nothing.more"),
        ("python:app:nothing", "module app has no function nothing"),
    ],
)
def test_a_module_or_function_that_is_not_there_is_named(run: Run, project: Path, text: str, why: str) -> None:
    (project / "app").mkdir()
    (project / "app" / "__init__.py").write_text(BUILD)
    assert failure(lambda: run(text)) == f"pgsandbox: init step {text!r} failed with exit code 1\n  why: {why}"


def test_a_module_that_misses_another_one_shows_which(run: Run, project: Path) -> None:
    (project / "app.py").write_text("import nothing_of_that_name\n")
    said = failure(lambda: run("python:app:build"))
    assert said.startswith("pgsandbox: init step 'python:app:build' failed with exit code 1\n  why: Traceback (most ")
    assert said.endswith("ModuleNotFoundError: No module named 'nothing_of_that_name'")


def test_a_function_that_fails_shows_the_end_of_its_traceback(run: Run, project: Path) -> None:
    (project / "app.py").write_text("def build(url):\n    raise RuntimeError('no data')\n")
    said = failure(lambda: run("python:app:build"))
    assert said.splitlines()[0] == "pgsandbox: init step 'python:app:build' failed with exit code 1"
    assert said.splitlines()[-1] == "       RuntimeError: no data"
    assert f'File "{project}/app.py", line 2, in build' in said


# Commands -------------------------------------------------------------------------------------------------------------


def test_a_command_finds_the_database_in_its_environment(run: Run, project: Path) -> None:
    (project / "migrate.py").write_text(BUILD + "import os\nbuild('')\nassert os.environ['DATABASE_URL']\n")
    database = run("command: python migrate.py")
    assert rows(database) == [(database.name,)]


def test_a_command_that_fails_shows_its_last_lines(run: Run) -> None:
    text = "command: sh -c 'echo one; echo two >&2; exit 7'"
    assert failure(lambda: run(text)) == (
        f'pgsandbox: init step "{text}" failed with exit code 7\n  why: one\n       two'
    )


def test_a_command_that_fails_in_silence_is_said_to(run: Run) -> None:
    assert failure(lambda: run("command: false")) == (
        "pgsandbox: init step 'command: false' failed with exit code 1\n  why: it printed nothing"
    )


def test_a_commands_output_gives_the_same_hints(run: Run) -> None:
    text = "command: sh -c 'echo permission denied to create role; exit 1'"
    assert failure(lambda: run(text)).endswith(f"\n  hint: {SUPERUSER}")


def test_a_command_that_is_not_there_is_looked_for_where_it_should_be(run: Run) -> None:
    assert failure(lambda: run("command: no-such-program upgrade")) == (
        "pgsandbox: init step 'command: no-such-program upgrade' failed with exit code 127\n"
        "  why: no-such-program: No such file or directory\n"
        "  hint: is it installed? PATH and the folder of the running Python are searched"
    )


@pytest.mark.parametrize(("line", "why"), [("echo waiting; sleep 300", "waiting"), ("sleep 300", "it printed nothing")])
def test_a_command_that_hangs_is_ended_at_the_timeout(run: Run, line: str, why: str) -> None:
    text = f"command: sh -c '{line}'"
    assert failure(lambda: run(text, timeout=0.3)) == (
        f'pgsandbox: init step "{text}" was not done within 0.3s, and was ended\n'
        f"  why: {why}\n"
        "  hint: raise the setting timeout, or look at what it waits for"
    )
