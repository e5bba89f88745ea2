"""Whatever happens to what is kept, a run goes on, at worst slower, and says so once where its user sees it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import docker
import pytest
from conftest import Inner, Target
from machine import eventually, needs_root, other_user, own_daemon, with_mounts

from pgsandbox import Sandbox, cache, fingerprint, lease
from pgsandbox.cache import Cache
from pgsandbox.engines import Notice, images
from pgsandbox.engines.docker import DockerEngine
from pgsandbox.errors import PlaceError

DOCKER = Target("docker", 18)

TESTS = """\
import pytest

@pytest.mark.parametrize("number", range(4))
def test_it(pgsandbox_connection, number):
    assert pgsandbox_connection.execute("SELECT count(*) FROM t").fetchone() == (0,)
"""


@pytest.fixture
def schema(project: Path, own_cache: Path) -> Path:
    """A project with a table, and a cache of its own."""
    (project / "schema.sql").write_text("CREATE TABLE t (i int)")
    return project


def notices(target: Target, root: Path, **settings: Any) -> list[str]:
    """What the user of a run that went well was told to see."""
    said: list[str] = []
    settings = {**target.settings, "init": ["schema.sql"], **settings}
    with Sandbox(root=root, progress=said.append, **settings) as sandbox:
        with sandbox.database().connect() as connection:
            assert connection.execute("SELECT count(*) FROM t").fetchone() == (0,)
        server = Path(sandbox.server.running.folder)
        assert sandbox.stop() == []
    assert eventually(lambda: not lease.is_supervised(server)), "what was started is removed, and its image free"
    return [text for text in said if isinstance(text, Notice)]


def damage(archive: Path) -> None:
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 1
    archive.write_bytes(content)


# Where the user sees it -----------------------------------------------------------------------------------------------


def test_a_run_says_once_that_its_template_was_damaged(
    pytester: pytest.Pytester, inner: Inner, own_cache: Path
) -> None:
    """Each of its workers finds that out by itself."""
    pytester.makefile(".sql", schema="CREATE TABLE t (i int)")
    pytester.makepyfile(TESTS)
    said = "the kept template is damaged (its checksum is another): it is built anew"
    for is_damaged in (False, True):
        if is_damaged:
            [archive] = own_cache.glob("*/*.tar")
            damage(archive)
        done = inner("-q", "--pgsandbox-init=schema.sql", "-n2")
        done.assert_outcomes(passed=4)
        assert done.stdout.str().count(said) == is_damaged, done.stdout.str()


def test_the_command_line_says_it_too(schema: Path, own_cache: Path, cli: Any) -> None:
    words = ("run", "--init", "schema.sql", "--", "true")
    cli(*words)
    [archive] = own_cache.glob("*/*.tar")
    archive.write_bytes(archive.read_bytes()[:-512])
    size = archive.stat().st_size
    said = "pgsandbox: the kept template is damaged ({}): it is built anew\n"
    assert cli(*words).stderr.count(said.format(f"its archive has {size} bytes instead of {size + 512}")) == 1
    archive.unlink()
    assert cli(*words).stderr.count(said.format("its archive has gone")) == 1
    assert "anew" not in cli(*words).stderr


# What can't be kept ---------------------------------------------------------------------------------------------------


@needs_root
@pytest.mark.parametrize(
    ("mount", "why"),
    [("-t tmpfs -o size=8m,mode=0755", "no space is left there"), ("-t tmpfs -o ro", "the file system is read-only")],
    ids=["full", "read-only"],
)
def test_a_cache_without_room_costs_time_and_one_line(
    pytester: pytest.Pytester, inner: Inner, own_cache: Path, mount: str, why: str
) -> None:
    pytester.makefile(".sql", schema="CREATE TABLE t (i int)")
    pytester.makepyfile(TESTS)
    command = [sys.executable, "-m", "pytest", "-p", "pgsandbox", "-q", "-n2", "--pgsandbox-init=schema.sql"]
    listing = ["sh", "-c", f'"$@"; find {own_cache} -type f', "sh", *command]
    done = subprocess.run(
        [*with_mounts(f"{mount} tmpfs {own_cache}"), *listing],
        capture_output=True,
        text=True,
        check=False,
        cwd=pytester.path,
        timeout=60,
    )
    assert "4 passed" in done.stdout, done.stdout
    assert done.stdout.count("the template is not kept: ") == 1
    assert f" can't be written ({why})\n" in done.stdout
    left = done.stdout.partition(" passed")[2].splitlines()[1:]
    assert [line for line in left if "/locks/" not in line] == [], "nothing is left of what did not fit"


@needs_root
def test_bake_says_that_there_is_no_room(schema: Path, own_cache: Path, some_target: Target) -> None:
    words = [sys.executable, "-m", "pgsandbox", "bake", "--init", "schema.sql"]
    done = subprocess.run(
        [*with_mounts(f"-t tmpfs -o size=8m,mode=0755 tmpfs {own_cache}"), *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **some_target.environ},
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith(
        f"pgsandbox: {Cache().folder} can't be written\n"
        "  why: no space is left there\n"
        "  hint: free some space, or remove what `pgsandbox ls` shows with `down`\n"
    )


@needs_root
def test_a_cache_that_belongs_to_somebody_else_costs_time_and_one_line(some_target: Target) -> None:
    with other_user() as user:
        (user.home / "cache").mkdir(mode=0o755)
        (user.home / "schema.sql").write_text("CREATE TABLE t (i int)")
        environ = {**some_target.environ, "_PGSANDBOX_CACHE": str(user.home / "cache")}
        done = user.python("-m", "pgsandbox", "run", "--init", "schema.sql", "--", "true", **environ)
    assert done.returncode == 0, done.stderr
    said = f"the template is not kept: {user.home}/cache/{Cache().folder.name} can't be written (permission denied)"
    assert done.stderr.count(said) == 1, done.stderr


def test_a_full_disk_is_no_reason_not_to_read(
    schema: Path, some_target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made up: that a template was used can't be written down."""
    assert notices(some_target, schema) == []
    [entry] = Cache().entries()

    def full(*_: object) -> None:
        raise PlaceError("no room")

    monkeypatch.setattr(cache, "write_record", full)
    assert Cache().find(entry.key) == (entry, None)
    assert Path(entry.where).exists()


@pytest.mark.docker
def test_a_daemon_without_room_costs_time_and_one_line(schema: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made up: the disk of a daemon that others use, too, is not ours to fill."""
    full = iter([True])
    commit = images.commit

    def no_room(client: Any, container: str, tag: str, labels: dict[str, str]) -> None:
        if next(full, False):
            said = b'{"message": "write /tmp/x: no space left on device"}'
            raise images._not_made(docker.errors.APIError("500", response=None, explanation=said.decode()))
        commit(client, container, tag, labels)

    monkeypatch.setattr(images, "commit", no_room)
    [said] = notices(DOCKER, schema)
    assert said.startswith("the template is not kept: the daemon has no space left for an image (")
    assert Cache().entries() == []


# What goes behind our back --------------------------------------------------------------------------------------------


@pytest.mark.docker
def test_an_image_that_goes_after_we_looked_is_built_anew(schema: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the moment between the look and the start, and long before."""
    assert notices(DOCKER, schema) == []
    [entry] = Cache().entries()
    look = DockerEngine.damage

    def look_and_lose(self: DockerEngine, seed: dict[str, Any]) -> str | None:
        found = look(self, seed)
        with contextlib.closing(docker.from_env()) as client, contextlib.suppress(docker.errors.APIError):
            client.api.remove_image(seed["image"])
        return found

    gone = f"somebody removed the image {entry.where}"
    with monkeypatch.context() as patch:
        patch.setattr(DockerEngine, "damage", look_and_lose)
        assert notices(DOCKER, schema) == [f"the kept template has gone ({gone}): it is built anew"]
    with contextlib.closing(docker.from_env()) as client:
        client.api.remove_image(entry.where)
    assert notices(DOCKER, schema) == [f"the kept template is damaged ({gone}): it is built anew"]


@pytest.mark.docker
def test_an_image_that_no_server_starts_from_is_built_anew(schema: Path) -> None:
    """What has its name is not what we made of it."""
    assert notices(DOCKER, schema) == []
    [entry] = Cache().entries()
    repository, _, tag = entry.where.partition(":")
    with contextlib.closing(docker.from_env()) as client:
        client.api.remove_image(entry.where)
        client.api.tag(DOCKER.settings["image"], repository, tag)
    [said] = notices(DOCKER, schema)
    assert said.startswith("no server starts from the kept template (")
    assert said.endswith("): it is built anew")
    assert notices(DOCKER, schema) == []


@needs_root
@pytest.mark.docker
@pytest.mark.dockerd("it starts a dockerd of its own, and restarts that")
def test_a_daemon_that_was_restarted_still_has_what_is_kept(
    schema: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in DOCKER.environ.items():
        monkeypatch.setenv(name, value)
    words = ("-m", "pgsandbox", "run", "--init", "schema.sql", "--", "true")
    with own_daemon(DOCKER.settings["image"]) as daemon:
        first = daemon.python(*words)
        assert (first.returncode, "pgsandbox: schema.sql\n" in first.stderr) == (0, True), first.stderr
        assert eventually(lambda: not list(runtime.glob("runs/*"))), (
            "what was started is removed while there is a daemon"
        )
        daemon.stop()
        daemon.start()
        second = daemon.python(*words)
        assert (second.returncode, second.stderr) == (0, f"pgsandbox: starting {DOCKER.settings['image']}\n")
        [entry] = Cache().entries()
        assert eventually(lambda: not list(runtime.glob("runs/*"))), (
            "what was started is removed while there is a daemon"
        )
        left = daemon.docker("images", "--format", "{{.Repository}}:{{.Tag}}").stdout.decode().split()
        assert sorted(left) == sorted([DOCKER.settings["image"], entry.where])
    with contextlib.closing(Sandbox(root=schema, init=["schema.sql"], **DOCKER.settings)) as sandbox:
        assert sandbox.fingerprint.key == entry.key, "whichever daemon it is that has the image"


# Two versions ---------------------------------------------------------------------------------------------------------


def test_versions_that_keep_in_other_formats_do_not_see_each_other(
    schema: Path, some_target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert notices(some_target, schema) == []
    [mine] = Cache().entries()
    with monkeypatch.context() as patch:
        for module in (cache, fingerprint):
            patch.setattr(module, "FORMAT", 99)
        assert Cache().entries() == []
        assert notices(some_target, schema) == []
        [theirs] = Cache().entries()
    assert (theirs.key != mine.key, Path(theirs.where).parent.name) == (True, "templates-99")
    assert [entry.key for entry in Cache().entries()] == [mine.key]
    assert notices(some_target, schema) == []


def test_a_record_that_says_more_than_we_know_is_not_trusted(schema: Path, some_target: Target) -> None:
    assert notices(some_target, schema) == []
    [record] = Cache().folder.glob("*.json")
    record.write_text(record.read_text().replace('"key"', '"of-the-future": 1, "key"'))
    assert notices(some_target, schema) == ["the kept template is damaged (its record is damaged): it is built anew"]
    assert notices(some_target, schema) == []
