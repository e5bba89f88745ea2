"""`pgsandbox bake`: a template built ahead of time, and brought from one machine to another."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from children import eventually
from conftest import Target, left_behind
from machine import needs_root, registry, with_mounts

from pgsandbox.bake import Baker, checked
from pgsandbox.cache import Cache
from pgsandbox.engines import Choice, named
from pgsandbox.engines.registry import _not_moved
from pgsandbox.errors import TemplateError
from pgsandbox.fingerprint import FORMAT
from pgsandbox.settings import Settings

TEST = """\
def test_what_was_baked_is_there(pgsandbox_connection):
    assert pgsandbox_connection.execute("SELECT i FROM t").fetchone() == (7,)
    assert pgsandbox_connection.execute("SHOW work_mem").fetchone() == ("7MB",)
"""
SCRIPT = """\
echo built >>builds
psql -qc "CREATE TABLE t AS SELECT 7 i" -c "ALTER DATABASE pgsandbox_template SET work_mem = '7MB'"
"""

DOCKER = pytest.param(Target("docker", 18), marks=pytest.mark.docker, id="docker-18")
LOCAL = pytest.param(Target("local", 15), id="local-15")


@pytest.fixture
def shop(project: Path, own_cache: Path, binaries: None) -> Path:
    """A project whose step counts how often it ran, and whose test needs what that made."""
    (project / "pyproject.toml").write_text("[tool.pgsandbox]\ninit = ['command: sh build.sh']\nwatch = ['*.sql']\n")
    (project / "build.sh").write_text(SCRIPT)
    (project / "migration.sql").write_text("-- one")
    (project / "test_it.py").write_text(TEST)
    return project


@pytest.fixture
def elsewhere(own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """`elsewhere()`: go on as on another machine, which has nothing in its cache."""

    def go() -> None:
        monkeypatch.setenv("_PGSANDBOX_CACHE", str(tmp_path / "elsewhere"))

    here = os.environ["_PGSANDBOX_CACHE"]
    yield go
    Cache().clear()
    monkeypatch.setenv("_PGSANDBOX_CACHE", here)


def bake(target: Target, *words: str, **more: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pgsandbox", "bake", *words]
    more = {"capture_output": True, "text": True, **more}
    return subprocess.run(command, timeout=60, check=False, env={**os.environ, **target.environ}, **more)


def baked(target: Target, *words: str) -> str:
    """What `pgsandbox bake` printed, which went well."""
    done = bake(target, *words)
    assert (done.returncode, done.stdout.count("\n")) == (0, 1), done.stderr
    return done.stdout.strip()


def check(project: Path, target: Target, *, builds: int) -> None:
    """That a run of pytest finds what was baked, and how often the step has run by then."""
    command = [sys.executable, "-m", "pytest", "-p", "pgsandbox", "-q", *target.flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "1 passed" in done.stdout, done.stdout
    assert len((project / "builds").read_text().splitlines()) == builds


# Ahead of time --------------------------------------------------------------------------------------------------------


def test_what_was_baked_is_what_runs_start_from(shop: Path, some_target: Target) -> None:
    where = baked(some_target)
    assert [entry.where for entry in Cache().entries()] == [where]
    again = bake(some_target)
    assert (again.stdout, again.stderr) == (f"{where}\n", "")
    check(shop, some_target, builds=1)


def test_bake_says_on_stderr_what_it_does_and_all_of_it_as_json(shop: Path, some_target: Target) -> None:
    done = bake(some_target, "--json")
    found = json.loads(done.stdout)
    assert (found["engine"], found["version"].partition(".")[0], found["project"]) == ("local", "15", str(shop))
    assert found["size"] == Path(found["where"]).stat().st_size
    assert "pgsandbox: sealing the template\n" in done.stderr


@pytest.mark.parametrize(
    ("flags", "why", "hint"),
    [
        (
            ["--init", "command: true"],
            "'command: true' may read anything, and the setting watch does not say what it reads",
            "set watch to the files that its steps read",
        ),
        (
            ["--init", "python:shop:load", "--watch", "nothing/*.py"],
            "'python:shop:load' may read anything, and the setting watch matches no file",
            "watch matches no file",
        ),
        (["--cache", "false"], "cache = false", "set cache = true"),
    ],
)
def test_a_template_that_can_not_be_kept_says_why_and_what_to_set(
    project: Path, some_target: Target, flags: list[str], why: str, hint: str
) -> None:
    done = bake(some_target, *flags)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"pgsandbox: this template can't be kept\n  why: {why}\n  hint: {hint}\n"


def test_a_server_that_is_not_ours_can_not_be_baked(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.closing(Baker(Settings(), project, lambda _text: None)) as baker:
        monkeypatch.setattr(baker._sandbox, "_choice", Choice(engine="external", version="18", what="it"))
        with pytest.raises(TemplateError) as caught:
            baker.bake()
    assert str(caught.value) == (
        "pgsandbox: this template can't be kept\n"
        "  why: the server is not ours\n"
        "  hint: leave url out: servers of our own start from a kept template"
    )


# To another machine, as a file ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("either", [DOCKER, LOCAL])
def test_a_file_brings_it_to_another_machine(
    shop: Path, either: Target, elsewhere: Callable[[], None], tmp_path: Path
) -> None:
    file = str(tmp_path / "template.bin")
    here = baked(either, "--output", file)
    elsewhere()
    there = baked(either, "--input", file)
    assert there != here
    check(shop, either, builds=1)
    assert "pgsandbox: this template is kept already\n" in bake(either, "--input", file).stderr


def test_a_pipe_will_do(shop: Path, some_target: Target, elsewhere: Callable[[], None]) -> None:
    sent = bake(some_target, "--output", "-", text=False)
    [entry] = Cache().entries()
    assert sent.stderr.decode().splitlines()[-1] == entry.where
    elsewhere()
    received = bake(some_target, "--input", "-", text=False, input=sent.stdout)
    assert received.stdout.decode().strip() == Cache().entries()[0].where
    check(shop, some_target, builds=1)


def truncated(content: bytes) -> bytes:
    return content[:-40000]


def without_checksum(content: bytes) -> bytes:
    return content[:-1]


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def of_another_version(content: bytes) -> bytes:
    return b"pgsandbox template 1\n" + content.partition(b"\n")[2]


def headless(content: bytes) -> bytes:
    return content.partition(b"\n")[0] + b"\nnothing\n" + content


DAMAGED = "hint: make it anew: pgsandbox bake --output FILE; nothing of it was taken over"
AND_THIS = f"and this version reads format {FORMAT}\n  hint: bake it anew, with the version that is to read it"
FOREIGN = "hint: make one with `pgsandbox bake --output FILE`"


@pytest.fixture(scope="module")
def parcels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What was baked once for each engine."""
    return {}


SHORT = f"{{}} is damaged\n  why: it ends too early\n  {DAMAGED}"
CHANGED = f"{{}} is damaged\n  why: its checksum is another\n  {DAMAGED}"


@pytest.mark.parametrize(
    ("damage", "said", "either"),
    [
        pytest.param(truncated, SHORT, *DOCKER.values, marks=DOCKER.marks, id="truncated-docker"),
        pytest.param(flipped, CHANGED, *DOCKER.values, marks=DOCKER.marks, id="flipped-docker"),
        pytest.param(truncated, SHORT, *LOCAL.values, id="truncated"),
        pytest.param(flipped, CHANGED, *LOCAL.values, id="flipped"),
        pytest.param(without_checksum, CHANGED, *LOCAL.values, id="without-checksum"),
        pytest.param(
            headless, f"{{}} is damaged\n  why: its head can't be read\n  {DAMAGED}", *LOCAL.values, id="headless"
        ),
        pytest.param(
            of_another_version,
            f"{{}} was written by another version of pgsandbox\n  why: it is of format 1, {AND_THIS}",
            *LOCAL.values,
            id="other-version",
        ),
        pytest.param(
            lambda _content: b"PK\x03\x04",
            f"{{}} is no template that pgsandbox wrote\n  why: it does not begin as such a file does\n  {FOREIGN}",
            *LOCAL.values,
            id="foreign",
        ),
        pytest.param(
            lambda _content: b"",
            f"{{}} is no template that pgsandbox wrote\n  why: it is empty\n  {FOREIGN}",
            *LOCAL.values,
            id="empty",
        ),
    ],
)
def test_a_damaged_file_is_said_to_be_and_leaves_the_cache_as_it_was(
    shop: Path,
    either: Target,
    parcels: dict[str, bytes],
    damage: Callable[[bytes], bytes],
    said: str,
    elsewhere: Callable[[], None],
) -> None:
    if either.engine not in parcels:
        parcels[either.engine] = bake(either, "--output", "-", text=False).stdout
    elsewhere()
    Path("template.bin").write_bytes(damage(parcels[either.engine]))
    done = bake(either, "--input", "template.bin")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith(f"pgsandbox: {said.format('template.bin')}\n"), done.stderr
    assert Cache().entries() == []
    assert [file.name for file in Cache().folder.glob("*") if file.is_file()] == []
    assert tags() == set()


def tags() -> set[str]:
    """The images that the present cache has, whether or not it knows."""
    return {seed["image"] for _, seed in named("docker").strays(Cache().folder, set())} if docker_answers() else set()


def docker_answers() -> bool:
    return subprocess.run(["docker", "version"], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda: Path("migration.sql").write_text("-- two"), "the files of init and watch"),
        (lambda: os.environ.update(PGSANDBOX_EXTENSIONS="pg_trgm"), "the setting extensions"),
    ],
    ids=["migration", "extensions"],
)
def test_a_file_of_another_template_is_refused(
    shop: Path, some_target: Target, change: Callable[[], None], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGSANDBOX_EXTENSIONS", "")
    baked(some_target, "--output", "template.bin")
    change()
    done = bake(some_target, "--input", "template.bin")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "pgsandbox: template.bin holds another template\n"
        f"  why: it was baked with another state of: {what}\n"
        "  hint: bake it anew from this checkout, with these settings; an image named by its digest never changes\n"
    )


def test_a_file_that_is_not_there_or_can_not_be_written_is_said(shop: Path, some_target: Target) -> None:
    done = bake(some_target, "--input", "no/template.bin")
    assert done.stderr == "pgsandbox: no/template.bin can't be read\n  why: No such file or directory\n"
    done = bake(some_target, "--output", "no/template.bin")
    assert done.stderr.endswith("pgsandbox: no/template.bin can't be written\n  why: No such file or directory\n")


@needs_root
def test_a_disk_that_the_file_fills_is_said_and_nothing_is_left_there(
    shop: Path, some_target: Target, tmp_path: Path
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    baked(some_target)
    words = [sys.executable, "-m", "pgsandbox", "bake", "--output", f"{small}/template.bin"]
    listing = ["sh", "-c", f'"$@"; echo "$? $(ls -A {small})"', "sh", *words]
    done = subprocess.run(
        [*with_mounts(f"-t tmpfs -o size=1m tmpfs {small}"), *listing],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **some_target.environ},
    )
    assert done.stdout == "1 \n"
    assert done.stderr == (
        f"pgsandbox: {small}/template.bin can't be written\n"
        "  why: no space is left there\n"
        "  hint: free some space, or remove what `pgsandbox ls` shows with `down`\n"
    )


# To another machine, by a registry ------------------------------------------------------------------------------------


def names(reference: str) -> list[str]:
    listing = ["docker", "images", "--format", "{{.Repository}}:{{.Tag}}", reference.rpartition(":")[0]]
    return subprocess.run(listing, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.docker
@pytest.mark.podman
def test_a_registry_brings_it_to_another_machine(
    shop: Path, elsewhere: Callable[[], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the user's credentials; a machine that has the image's layers already gets the rest, and no name is left."""
    target = Target("docker", 18)
    with registry(credentials="me:secret") as private:
        reference = f"{private.address}/shop/template:main"
        config = tmp_path / "config"
        config.mkdir()
        monkeypatch.setenv("DOCKER_CONFIG", str(config))
        where = baked(target)
        refused = bake(target, "--push", reference)
        assert (refused.returncode, refused.stdout) == (3, "")
        assert re.search(
            rf"^pgsandbox: docker: the template can't be pushed to {reference}\n"
            r"  why: (no basic auth credentials|.* unauthorized: authentication required)\n"  # Docker's words, Podman's
            rf"  hint: check the name and the network, or `docker login {private.address}`\n$",
            refused.stderr,
            re.MULTILINE,
        ), refused.stderr
        auth = {"auths": {private.address: {"auth": "bWU6c2VjcmV0"}}}
        (config / "config.json").write_text(json.dumps(auth))
        assert baked(target, "--push", reference) == where
        Cache().clear()
        elsewhere()
        assert baked(target, "--from", reference) != where
        assert names(reference) == []
        check(shop, target, builds=1)
        (shop / "migration.sql").write_text("-- two")
        other = bake(target, "--from", reference)
        assert (other.returncode, other.stdout) == (1, "")
        assert other.stderr.endswith(
            f"pgsandbox: the image {reference} holds another template\n"
            "  why: it was baked with another state of: the files of init and watch\n"
            "  hint: bake it anew from this checkout, with these settings; an image named by its digest never changes\n"
        )
        assert names(reference) == []


@pytest.mark.parametrize("flag", ["--push", "--from"])
@pytest.mark.parametrize("name", ["Bad Name", "", "-x", "shop/Template:main", "shop:a:b", "shop@sha256:beef"])
def test_what_can_name_no_image_is_refused_before_anything_is_done(
    shop: Path, some_target: Target, flag: str, name: str
) -> None:
    done = bake(some_target, f"{flag}={name}")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"pgsandbox: {name!r} can't name an image\n"
        "  hint: write HOST/PATH:TAG, as in registry.example.com/shop/template:main\n"
    )


@pytest.mark.parametrize(
    ("name", "login"),
    [("shop", "docker login"), ("me/shop:1", "docker login"), ("localhost:1/shop", "docker login localhost:1")],
)
def test_a_registry_is_named_where_there_is_one_to_log_in_to(name: str, login: str) -> None:
    assert checked(name) == name
    hint = f"check the name and the network, or `{login}`"
    assert _not_moved("pushed to", name, "denied").hint == hint


@pytest.mark.docker
def test_an_image_that_is_no_template_is_refused(shop: Path) -> None:
    with registry() as public:
        done = bake(Target("docker", 15), "--from", public.name)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.endswith(
            f"pgsandbox: the image {public.name} says nothing of a template\n  why: no 'facts' in it\n"
        )
        assert names(public.name) == []
        missing = f"{public.address}/nothing:1"
        done = bake(Target("docker", 15), "--from", missing)
        assert (done.returncode, done.stdout) == (3, "")
        assert re.search(
            rf"^pgsandbox: docker: the template can't be pulled from {missing}\n"
            r"  why: .*manifest unknown.*\n"
            rf"  hint: check the name and the network, or `docker login {public.address}`\n$",
            done.stderr,
            re.MULTILINE,
        )


@pytest.mark.parametrize("flag", ["--push", "--from"])
def test_images_are_for_docker(shop: Path, some_target: Target, flag: str) -> None:
    done = bake(some_target, flag, "registry.example.com/shop:1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith(
        f"pgsandbox: {flag} needs the engine docker\n"
        "  why: the engine local has no images\n"
        "  hint: use --output FILE and --input FILE\n"
    )


def test_it_comes_from_one_place(shop: Path, some_target: Target) -> None:
    done = bake(some_target, "--from", "a", "--input", "b")
    assert (done.returncode, "--from and --input exclude each other" in done.stderr) == (2, True)


# Killed in between ----------------------------------------------------------------------------------------------------


@pytest.mark.docker
def test_one_that_is_killed_while_it_takes_over_a_template_leaves_nothing(shop: Path, runtime: Path) -> None:
    target = Target("docker", 18)
    content = bake(target, "--output", "-", text=False).stdout
    Cache().clear()
    command = [sys.executable, "-m", "pgsandbox", "bake", "--input", "-"]
    environ = {**os.environ, **target.environ}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environ) as process:
        assert process.stdin is not None
        process.stdin.write(content[:-40000])
        process.stdin.flush()
        assert eventually(lambda: any("container" in line for line in left_behind(runtime)), timeout=20)
        process.kill()
    assert Cache().entries() == []
    assert tags() == set()
