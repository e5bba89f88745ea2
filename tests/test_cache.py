"""Templates are kept between runs: found again when nothing has changed, never stale, never half."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import Target

from pgsandbox import Sandbox
from pgsandbox.cache import Cache, Entry

ONE_STEP = "command: sh -c 'echo built >>builds; psql -qc \"CREATE TABLE t (i int)\"'"


@pytest.fixture
def start(project: Path, own_cache: Path) -> Callable[..., list[str]]:
    """`start(target, **settings)`: start a sandbox in the project and end it; what it said it was doing."""

    def start(target: Target, **settings: Any) -> list[str]:
        said: list[str] = []
        with Sandbox(root=project, progress=said.append, **target.settings, **settings) as sandbox:
            database = sandbox.database()
            with database.connect() as connection:
                connection.execute("SELECT count(*) FROM pg_class")
        return said

    return start


def builds(project: Path) -> int:
    file = project / "builds"
    return len(file.read_text().splitlines()) if file.exists() else 0


@pytest.fixture
def watched(project: Path) -> dict[str, Any]:
    """A step that counts how often it runs, and what it reads."""
    (project / "migration.sql").write_text("-- one")
    return {"init": [ONE_STEP], "watch": ["*.sql"]}


def test_what_has_not_changed_is_not_built_again(
    target: Target, project: Path, watched: dict[str, Any], start: Callable[..., list[str]]
) -> None:
    assert "sealing the template" in start(target, **watched)
    assert "sealing the template" not in start(target, **watched)
    assert builds(project) == 1


def test_a_changed_file_under_watch_is_another_template(
    some_target: Target, project: Path, watched: dict[str, Any], start: Callable[..., list[str]]
) -> None:
    start(some_target, **watched)
    (project / "migration.sql").write_text("-- two")
    start(some_target, **watched)
    (project / "another.sql").write_text("")
    start(some_target, **watched)
    (project / "migration.sql").write_text("-- one")
    (project / "another.sql").unlink()
    start(some_target, **watched)
    assert builds(project) == 3, "and the first one is still there"


def test_a_changed_sql_step_is_another_template(some_target: Target, project: Path, own_cache: Path) -> None:
    for table in ("one", "two"):
        (project / "schema.sql").write_text(f"CREATE TABLE {table} (i int)")
        with (
            Sandbox(root=project, init=["schema.sql"], **some_target.settings) as sandbox,
            sandbox.database().connect() as connection,
        ):
            found = connection.execute("SELECT relname FROM pg_class WHERE relname IN ('one', 'two')")
            assert found.fetchall() == [(table,)]


@pytest.mark.parametrize(
    "other",
    [{"extensions": ["pg_trgm"]}, {"superuser": True}, {"options": ["work_mem=8MB"]}, {"version": 16}],
    ids=lambda other: next(iter(other)),
)
def test_another_setting_that_matters_is_another_template(
    some_target: Target, project: Path, own_cache: Path, other: dict[str, Any]
) -> None:
    keys = []
    for settings in ({}, other):
        with Sandbox(root=project, **{**some_target.settings, **settings}) as sandbox:
            keys.append(sandbox.fingerprint.key)
    assert keys[0] != keys[1]


def test_what_belongs_to_the_template_but_not_to_its_files_is_kept_too(
    some_target: Target, project: Path, own_cache: Path
) -> None:
    (project / "schema.sql").write_text(
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET work_mem = ''7MB''', current_database()); END $$"
    )
    for _ in range(2):
        with (
            Sandbox(root=project, init=["schema.sql"], **some_target.settings) as sandbox,
            sandbox.database().connect() as connection,
        ):
            assert connection.execute("SHOW work_mem").fetchone() == ("7MB",)


def test_a_program_that_may_read_anything_is_run_once_per_run(
    some_target: Target, project: Path, start: Callable[..., list[str]]
) -> None:
    for _ in range(2):
        start(some_target, init=[ONE_STEP])
    assert builds(project) == 2
    with Sandbox(root=project, init=["command: true"], **some_target.settings) as sandbox:
        assert sandbox.fingerprint.why_not == (
            "'command: true' may read anything, and the setting watch does not say what it reads"
        )


@pytest.mark.parametrize("line", ["\\ir part.sql", "\\copy t FROM 'part.csv'", "\\! date"])
def test_a_file_that_reads_others_needs_watch(some_target: Target, project: Path, own_cache: Path, line: str) -> None:
    (project / "schema.sql").write_text(f"SELECT 1;\n{line}\n")
    for settings, is_kept in (({}, False), ({"watch": ["schema.sql"]}, True)):
        sandbox = Sandbox(root=project, init=["schema.sql"], **some_target.settings, **settings)
        assert (sandbox.fingerprint.key is not None) is is_kept
        sandbox.close()


def test_without_the_cache_nothing_is_kept(
    some_target: Target, project: Path, own_cache: Path, watched: dict[str, Any], start: Callable[..., list[str]]
) -> None:
    start(some_target, cache=False, **watched)
    assert list(own_cache.iterdir()) == []


@pytest.mark.parametrize("damage", ["truncated", "flipped", "emptied"])
def test_a_damaged_entry_is_noticed_and_built_anew(
    some_target: Target,
    project: Path,
    own_cache: Path,
    watched: dict[str, Any],
    start: Callable[..., list[str]],
    damage: str,
) -> None:
    start(some_target, **watched)
    [archive] = own_cache.glob("*/*.tar")
    content = bytearray(archive.read_bytes())
    if damage == "truncated":
        archive.write_bytes(content[:-4096])
    elif damage == "emptied":
        archive.write_bytes(b"")
    else:
        content[len(content) // 2] ^= 1
        archive.write_bytes(content)
    said = start(some_target, **watched)
    assert builds(project) == 2
    if damage == "flipped":  # the others are seen from outside
        assert "the kept template is damaged (its checksum is another): it is built anew" in said
    start(some_target, **watched)
    assert builds(project) == 2


def test_a_damaged_record_is_dropped(
    some_target: Target, project: Path, own_cache: Path, watched: dict[str, Any], start: Callable[..., list[str]]
) -> None:
    start(some_target, **watched)
    for record in own_cache.glob("*/*.json"):
        record.write_text('{"engine": "local"')
    start(some_target, **watched)
    assert builds(project) == 2


def test_the_least_recently_used_go_when_there_is_no_more_room(own_cache: Path) -> None:
    cache = Cache()
    for number in range(4):
        archive = cache.prepare() / f"{number}.tar"
        archive.write_bytes(b"x" * 10)
        seed = {"archive": str(archive), "size": 10, "crc": 0}
        entry = Entry(str(number), "local", "15", seed, {}, size=10, project="", created=0.0)
        cache.keep(entry, limit=30)
        if number == 1:
            assert cache.find("0") is not None, "used again"
    assert {entry.key for entry in cache.entries()} == {"0", "2", "3"}
    assert {file.name for file in own_cache.glob("*/*.tar")} == {"0.tar", "2.tar", "3.tar"}


def test_two_runs_at_once_build_it_once(
    some_target: Target, project: Path, watched: dict[str, Any], start: Callable[..., list[str]]
) -> None:
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: start(some_target, **watched), range(3)))
    assert builds(project) == 1


def test_a_killed_builder_leaves_nothing_that_is_trusted(
    some_target: Target, project: Path, own_cache: Path, start: Callable[..., list[str]]
) -> None:
    (project / "migration.sql").write_text("")
    step = "command: sh -c 'echo built >>builds; test $(wc -l <builds) -gt 1 || sleep 60'"
    settings = {"init": [step], "watch": ["*.sql"]}
    program = f"from pgsandbox import Sandbox\nwith Sandbox(**{ {**some_target.settings, **settings}!r}): pass"
    builder = subprocess.Popen([sys.executable, "-c", program], cwd=project, start_new_session=True)
    deadline = time.monotonic() + 30
    while builds(project) == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(builder.pid, signal.SIGKILL)
    builder.wait()
    start(some_target, **settings)
    assert builds(project) == 2
    assert len(Cache().entries()) == 1


def test_a_cache_that_can_not_be_written_costs_time_and_nothing_else(
    some_target: Target, project: Path, watched: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "in-the-way").write_text("")
    monkeypatch.setenv("_PGSANDBOX_CACHE", str(project / "in-the-way"))
    said: list[str] = []
    with (
        Sandbox(root=project, progress=said.append, **some_target.settings, **watched) as sandbox,
        sandbox.database().connect() as connection,
    ):
        assert connection.execute("SELECT count(*) FROM t").fetchone() == (0,)
    assert any(line.startswith("the template is not kept: ") for line in said)
