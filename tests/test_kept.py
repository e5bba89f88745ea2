"""What is kept, as its user sees it: listed, cleared, and explained; locks and images do not pile up."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
from conftest import Target

from pgsandbox import Sandbox, places
from pgsandbox.cache import Cache, Entry
from pgsandbox.engines import images, named
from pgsandbox.fingerprint import FORMAT

Cli = Callable[..., subprocess.CompletedProcess[str]]

DOCKER = Target("docker", 18)


@pytest.fixture
def entry(project: Path, own_cache: Path, some_target: Target) -> Entry:
    """One template that a run left in a cache of this test's own."""
    with Sandbox(root=project, **some_target.settings):
        pass
    [entry] = Cache().entries()
    return entry


# Seen and cleared -----------------------------------------------------------------------------------------------------


def test_ls_shows_what_is_kept(entry: Entry, cli: Cli, project: Path) -> None:
    header, row = cli("ls", "--cache").stdout.splitlines()
    assert header.split() == ["KEY", "ENGINE", "VERSION", "SIZE", "CREATED", "USED", "PROJECT"]
    key, engine, version, size, _, _, folder = row.split()
    assert (key, engine, version, folder) == (entry.key, "local", entry.version, str(project))
    assert size.endswith("MB")
    [found] = json.loads(cli("ls", "--cache", "--json").stdout)
    assert found["created"] <= found["used"] <= time.time()
    assert {**found, "created": 0, "used": 0} == {
        "key": entry.key,
        "engine": "local",
        "version": entry.version,
        "size": entry.size,
        "project": str(project),
        "created": 0,
        "used": 0,
        "where": entry.seed["archive"],
    }


def test_ls_of_an_empty_cache_says_so(own_cache: Path, cli: Cli, project: Path) -> None:
    done = cli("ls", "--cache")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "pgsandbox: no template is kept\n")
    assert cli("ls", "--cache", "--json").stdout == "[]\n"


def test_prune_clears_what_is_kept_and_says_how_much_it_was(entry: Entry, cli: Cli, project: Path) -> None:
    assert cli("prune").stderr == "pgsandbox: there was nothing to remove\n"
    done = cli("prune", "--cache")
    size = f"{entry.size / (1 << 20):.1f}".removesuffix(".0") + "MB"
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == (
        f"pgsandbox: removed template {entry.key} of {project}, {size}\npgsandbox: removed {size} in all\n"
    )
    assert [file for file in Cache().folder.glob("*") if file.is_file()] == []
    assert cli("prune", "--cache").stderr == "pgsandbox: there was nothing to remove\n"


def test_prune_leaves_alone_what_is_just_being_built(entry: Entry, cli: Cli) -> None:
    with Cache().building(entry.key, timeout=0):
        done = cli("prune", "--cache")
    assert done.stderr == (
        f"pgsandbox: template {entry.key} is just being built, and was left alone\n"
        "pgsandbox: there was nothing to remove\n"
    )
    assert Cache().entries() != []
    assert Path(entry.seed["archive"]).exists()


def test_doctor_says_whether_the_template_is_kept_and_where(entry: Entry, cli: Cli, project: Path) -> None:
    said = cli("doctor").stdout
    assert f"template: kept as {entry.key}, built already\n" in said
    size = f"{entry.size / (1 << 20):.1f}".removesuffix(".0") + "MB"
    assert f"cache: 1 template, {size} of 2GB, in {Cache().folder}\n" in said
    report = json.loads(cli("doctor", "--json", "--init", "command: true", "--cache-size", "1GB").stdout)
    assert report["template"] == {
        "kept": False,
        "says": "built in each run: 'command: true' may read anything, and the setting watch does not say what it "
        "reads; set watch to the files that its steps read",
    }
    assert report["cache"]["limit"] == 1 << 30
    assert "built in each run: cache = false" in cli("doctor", "--cache", "false").stdout
    assert "template: init file no.sql does not exist\n" in cli("doctor", "--init", "no.sql").stdout


# What does not pile up ------------------------------------------------------------------------------------------------


def test_locks_are_a_handful_however_many_templates_are_built(own_cache: Path) -> None:
    cache = Cache()
    for number in range(200):
        with cache.building(places.digest(str(number)), timeout=0):
            pass
    assert len(list((cache.folder / "locks").iterdir())) <= 16
    assert [file.name for file in cache.folder.iterdir()] == ["locks"]


def test_what_killed_builders_left_half_written_goes_with_the_next_build(own_cache: Path) -> None:
    cache = Cache()
    cache.prepare()
    half = ["aa.tar.0123456789ab", "bb.tar", "cc.json.1234.5678"]
    for name in half:
        (cache.folder / name).write_text("half")
    with cache.building("bb", timeout=0):
        cache.tidy("local")
        assert (cache.folder / "bb.tar").exists(), "somebody is at work on it"
        assert not (cache.folder / "aa.tar.0123456789ab").exists()
    cache.tidy("local")
    assert [file.name for file in cache.folder.iterdir() if file.is_file()] == []


@pytest.fixture
def client() -> Iterator[docker.DockerClient]:
    with contextlib.closing(docker.from_env()) as found:
        yield found


@pytest.fixture
def nameless(client: docker.DockerClient) -> Iterator[Callable[[], list[str]]]:
    """The images without a name that carry the mark of this test's cache; there is none afterwards."""

    def find() -> list[str]:
        return [
            one.id or "" for one in client.images.list(filters={"label": f"pgsandbox.cache={mark()}"}) if not one.tags
        ]

    yield find
    Cache().clear()
    assert find() == []


def mark() -> str:
    return images._cache_id(Cache().folder)


def bake(project: Path, **settings: Any) -> Entry:
    with contextlib.closing(Sandbox(root=project, **DOCKER.settings, **settings)) as sandbox:
        return sandbox.bake()


def gone(client: docker.DockerClient, id_: str) -> bool:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            client.images.get(id_)
        except docker.errors.NotFound:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.docker
@pytest.mark.podman
def test_an_image_that_must_go_goes_with_the_last_container_that_runs_on_it(
    project: Path, own_cache: Path, client: docker.DockerClient, nameless: Callable[[], list[str]]
) -> None:
    with Sandbox(root=project, **DOCKER.settings) as sandbox:
        [entry] = Cache().entries()
        id_ = str(client.images.get(entry.where).id)
        assert Cache().clear() == ([entry], [])
        assert sandbox.server.execute("SELECT 1") == [(1,)]
        assert images.tags_of(client.images.get(id_).attrs) == [f"pgsandbox-template:{id_[7:19]}-{mark()}"]
        assert nameless() == []
        assert sandbox.stop() == []
    assert gone(client, id_)


@pytest.mark.docker
def test_an_image_that_is_built_over_another_replaces_it(
    project: Path, own_cache: Path, client: docker.DockerClient, nameless: Callable[[], list[str]]
) -> None:
    """Of a builder that was killed before it wrote its record, or whose record was damaged."""
    first = bake(project)
    id_ = str(client.images.get(first.where).id)
    (Cache().folder / f"{first.key}.json").unlink()
    second = bake(project)
    assert (second.where, client.images.get(second.where).id != id_) == (first.where, True)
    assert gone(client, id_)
    assert nameless() == []


@pytest.mark.docker
def test_images_of_killed_builders_go_with_the_next_build(
    project: Path, own_cache: Path, client: docker.DockerClient, nameless: Callable[[], list[str]]
) -> None:
    """One with a name and no record; one whose daemon was killed between commit and tag; not somebody's own of it."""
    first = bake(project)
    (Cache().folder / f"{first.key}.json").unlink()
    container = client.api.create_container(first.where, command=["true"])["Id"]
    try:
        half, somebodys = (
            str(client.images.get(client.api.commit(container, message=said)["Id"]).id)
            for said in ("pgsandbox", "mine")
        )
    finally:
        client.api.remove_container(container, v=True)
    try:
        assert set(nameless()) == {half, somebodys}
        bake(project, extensions=["pg_trgm"])
        assert nameless() == [somebodys]
        assert len(named("docker").strays(Cache().folder, set())) == 1, "the one that was built now"
    finally:
        client.api.remove_image(somebodys)


@pytest.mark.docker
def test_two_who_tidy_up_at_once_do_not_stumble_over_each_other(
    own_cache: Path, client: docker.DockerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image that was there when they were listed, and is not when it is looked at."""
    listed = docker.APIClient.images

    def images_and_then_another_removes_them(api: docker.APIClient, *words: Any, **more: Any) -> Any:
        found = listed(api, *words, **more)
        gone = {"Id": f"sha256:{places.new_token():0>64}", "RepoTags": None, "Labels": {}}
        return [gone, *found] if more.get("filters") else found

    monkeypatch.setattr(docker.APIClient, "images", images_and_then_another_removes_them)
    assert named("docker").strays(Cache().folder, set()) == []


@pytest.mark.docker
def test_what_earlier_versions_kept_is_cleared_too(
    entry: Entry, own_cache: Path, cli: Cli, client: docker.DockerClient
) -> None:
    """They keep it in another format, in a folder beside ours, under a number that is smaller."""
    older = own_cache / "templates-1"
    newer, somebodys = own_cache / f"templates-{FORMAT + 1}", own_cache / "templates-mine"
    for folder in (older, newer, somebodys):
        folder.mkdir(mode=0o700)
        (folder / "0123.tar").touch()
    tag = images.tag_of(older, "0123")
    container = client.api.create_container(DOCKER.settings["image"])["Id"]
    images.commit(client, container, tag, images.labels_of_kept(older, {}))
    client.api.remove_container(container, v=True)
    assert cli("prune", "--cache").returncode == 0
    assert [one.name for one in sorted(own_cache.iterdir()) if one.name.startswith("templates")] == sorted(
        [Cache().folder.name, newer.name, somebodys.name]
    )
    assert client.images.list(name=tag) == []


@pytest.mark.parametrize("on", [Target("local", 15), pytest.param(DOCKER, marks=pytest.mark.docker)])
def test_what_was_finished_while_somebody_tidied_up_stays(
    project: Path, own_cache: Path, binaries: None, monkeypatch: pytest.MonkeyPatch, on: Target
) -> None:
    """He had looked which records there are before this one was written, and gets its key after that."""
    with Sandbox(root=project, **on.settings):
        pass
    cache = Cache()
    [entry] = cache.entries()
    with monkeypatch.context() as patch:
        patch.setattr(Cache, "entries", lambda _: [])
        cache.tidy(on.engine)
    assert cache.find(entry.key)[0] is not None
