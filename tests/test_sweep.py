"""What the dead left is swept by the next start and by `prune`, and nothing else is."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from children import child, eventually
from conftest import Target, image, left_behind
from docker import from_env
from machine import data_of

from pgsandbox import Sandbox, lease, named, places
from pgsandbox.cache import Cache
from pgsandbox.engines import supervised
from pgsandbox.engines.wards.local import LocalWard
from pgsandbox.run import Run, all_runs, folder_of, read_record
from pgsandbox.sweep import sweep

HOLD = """\
import json, sys
from pgsandbox import Sandbox
with Sandbox(**json.loads(sys.argv[2]), run=sys.argv[1]) as sandbox:
    sandbox.database()
    print("ready", flush=True)
    sys.stdin.read()
"""

DOCKER = {"engine": "docker", "version": 15, "image": image(15), "scope": "session"}


def leave_dead(run: str, settings: dict[str, Any]) -> Path:
    """The folder of a server of `run` whose starter and supervisor were killed together."""
    with child(HOLD, run, json.dumps(settings)) as holder:
        [server] = (folder_of(run) / "servers").iterdir()
        record = read_record(server / supervised.PID)
        assert record is not None
        for pid in (record["pid"], holder.pid):
            os.kill(pid, signal.SIGKILL)
        holder.wait()
    assert eventually(lambda: not lease.is_supervised(server))  # killed, but gone a moment later
    return server


@pytest.fixture
def settings(some_target: Target) -> dict[str, Any]:
    return {**some_target.settings, "scope": "session"}


@pytest.fixture
def other_root(tmp_path: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The runtime folder of somebody else, for the length of whose `with` blocks we are them."""
    folder = tmp_path / "theirs"
    folder.mkdir(mode=0o700)
    yield folder
    assert eventually(lambda: not left_behind(folder))


@contextlib.contextmanager
def being(root: Path) -> Iterator[None]:
    before = os.environ["_PGSANDBOX_ROOT"]
    os.environ["_PGSANDBOX_ROOT"] = str(root)
    try:
        yield
    finally:
        os.environ["_PGSANDBOX_ROOT"] = before


def test_the_next_start_sweeps_what_a_dead_run_left(settings: dict[str, Any]) -> None:
    server = leave_dead("dead", settings)
    data = data_of(server)
    assert data.exists()
    with Sandbox(**settings):
        assert eventually(lambda: not data.exists() and not folder_of("dead").exists())


def test_prune_removes_what_is_dead_and_nothing_that_lives(settings: dict[str, Any], other_root: Path) -> None:
    with being(other_root):
        theirs = leave_dead("dead", settings)
    with Sandbox(**settings, run="living") as sandbox, child(HOLD, "held", json.dumps(settings)):
        server = leave_dead("dead", settings)
        data = data_of(server)
        before = sorted(path for path in all_runs().glob("*/servers/*") if path != server)
        assert named.prune() == ([f"local server {server.name}", "run dead"], [])
        assert (data.exists(), server.exists()) == (False, False)
        assert sorted(all_runs().glob("*/servers/*")) == before
        assert sandbox.server.execute("SELECT 1") == [(1,)]
        assert named.prune() == ([], [])
    assert data_of(theirs).exists()
    with being(other_root):
        assert named.prune() == ([f"local server {theirs.name}", "run dead"], [])
    assert not theirs.exists()


def test_what_a_dead_builder_had_half_made_for_the_cache_goes_with_its_run(own_cache: Path) -> None:
    """Not before all of its run are dead, and not what somebody else is just building."""
    cache = Cache()
    half, another = cache.prepare() / "0123.tar.4567", cache.folder / "1123.tar"
    for file in (half, another):
        file.touch()
    run = Run("dead")
    building = run.keeping("local", cache.folder)
    building.__enter__()  # and never left
    assert sweep() == ([], [])
    run.leave()
    assert (half.exists(), run.folder.exists()) == (True, True)
    with cache.building("1123", timeout=1):
        assert sweep() == (["run dead"], [])
    assert (half.exists(), another.exists()) == (False, True)


def test_a_run_whose_supervisor_alone_was_killed_is_left_to_its_holder(settings: dict[str, Any]) -> None:
    with child(HOLD, "held", json.dumps(settings)) as holder:
        [server] = (folder_of("held") / "servers").iterdir()
        record = read_record(server / supervised.PID)
        assert record is not None
        os.kill(record["pid"], signal.SIGKILL)
        assert eventually(lambda: not lease.is_supervised(server))
        assert named.prune() == ([], [])
        assert data_of(server).exists()
        holder.kill()
        holder.wait()
    assert named.prune() == ([f"local server {server.name}", "run held"], [])


def test_a_server_that_is_just_being_made_is_left_alone() -> None:
    """Between its folder and its spec it has no supervisor yet; whoever makes it holds the run."""
    run = Run("new")
    folder = run.folder / "servers" / "0123456789ab"
    folder.mkdir(parents=True, mode=0o700)
    assert sweep() == ([], [])
    assert folder.exists()
    run._lease.release()  # it was killed
    assert sweep() == (["unfinished server 0123456789ab", "run new"], [])


def test_no_start_is_disturbed_by_those_who_sweep(settings: dict[str, Any]) -> None:
    """Every start sweeps, so that one start is always in the middle of another's sweep."""
    done = threading.Event()

    def sweep_on() -> None:
        while not done.is_set():
            sweep()

    sweeper = threading.Thread(target=sweep_on)
    sweeper.start()
    try:
        for _ in range(8):
            with Sandbox(**settings) as sandbox:
                assert sandbox.server.execute("SELECT 1") == [(1,)]
                sandbox.stop()
    finally:
        done.set()
        sweeper.join()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"engine": "local"}', "\0\0\0"])
def test_a_damaged_record_neither_stops_a_sweep_nor_costs_a_living_server(settings: dict[str, Any], text: str) -> None:
    run = Run("damaged")
    folder = run.folder / "servers" / "0123456789ab"
    folder.mkdir(parents=True, mode=0o700)
    (folder / supervised.SPEC).write_text(text)
    dead = leave_dead("dead", settings)
    assert sweep() == ([f"local server {dead.name}", "run dead"], [])
    assert folder.exists()
    run._lease.release()
    assert sweep() == (["unfinished server 0123456789ab", "run damaged"], [])


def test_what_is_no_run_at_all_is_left_alone(runtime: Path) -> None:
    stray = all_runs() / "stray"
    stray.write_text("somebody's")
    assert sweep() == ([], [])
    assert stray.read_text() == "somebody's"
    stray.unlink()


@pytest.mark.docker
def test_a_dead_container_is_swept_by_prune_and_others_survive(
    settings: dict[str, Any], other_root: Path, runtime: Path
) -> None:
    """Those of others, and those that only look like ours: an image made of ours passes its labels on."""
    with being(other_root):
        theirs = leave_dead("dead", DOCKER)
        their_container = container_of(theirs)
    server = leave_dead("dead", DOCKER)
    ours = container_of(server)
    labels = [f"pgsandbox.owner={places.home_id()}", f"pgsandbox.server={server.name}", "pgsandbox.run=dead"]
    with (
        looking_like_ours(labels) as same_labels,
        looking_like_ours([labels[0], "pgsandbox.server=0123456789ab"]) as of_no_server,
        Sandbox(**DOCKER, run="living") as living,
    ):
        survivors = {same_labels, of_no_server, living.server.running.detail["container"]}
        assert eventually(lambda: ours not in containers())  # the start has swept already
        assert survivors <= containers()
        assert named.prune()[1] == []
        assert survivors <= containers()
        assert (living.server.execute("SELECT 1"), server.exists()) == ([(1,)], False)
    with being(other_root):
        removed, trouble = named.prune()
        assert (f"docker server {theirs.name}" in removed, trouble) == (True, [])
    assert their_container not in containers()


@pytest.mark.docker
@pytest.mark.podman
def test_a_container_without_a_folder_is_removed_whether_or_not_it_was_ever_started(runtime: Path) -> None:
    """Its supervisor died with all who knew of it, and then the machine's tmpfs was cleared."""
    token = places.new_token()
    labels = [f"pgsandbox.owner={places.home_id()}", f"pgsandbox.server={token}", "pgsandbox.run=dead"]
    flags = ["--name", f"pgsandbox-{token}", "--volume", "/var/lib/postgresql/data"]
    container = docker("create", *flags, *(f"--label={label}" for label in labels), image(15))
    volume = docker("inspect", "--format", "{{ range .Mounts }}{{ .Name }}{{ end }}", container)
    assert named.prune() == ([f"container pgsandbox-{token}"], [])
    assert container not in containers()
    assert docker("volume", "ls", "--quiet", "--filter", f"name={volume}") == ""


@pytest.mark.docker
def test_an_engine_that_does_not_answer_keeps_nobody_from_sweeping_the_rest(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    container = leave_dead("in-docker", DOCKER)
    with monkeypatch.context() as without:
        without.setenv("DOCKER_HOST", f"unix://{tmp_path}/nothing")
        local = leave_dead("local", settings)  # whose supervisor sweeps, too
        removed, trouble = named.prune()
        assert removed == [f"local server {local.name}", "run local"]
        [problem] = trouble
        assert str(problem) == (
            "pgsandbox: docker: no engine answers\n"
            "  why: no such file\n"
            f"  looked at: unix://{tmp_path}/nothing\n"
            "  hint: start Docker, or use --pgsandbox-engine=local"
        )
    assert container.exists()
    assert named.prune() == ([f"docker server {container.name}", "run in-docker"], [])


@pytest.mark.docker
def test_the_image_of_a_dead_runs_seed_is_removed(runtime: Path) -> None:
    token = places.new_token()
    container = docker("create", image(15))
    tags = [f"pgsandbox-seed:{token}", "somebodys-own-test-image:1"]
    for tag in tags:
        commit(container, token, tag=tag)
    docker("rm", "--volumes", container)
    try:
        assert named.prune() == ([f"image pgsandbox-seed:{token}"], [])
        assert docker("images", "--quiet", tags[0]) == ""
        assert docker("images", "--quiet", tags[1]) != "", "the same labels, but no name of ours"
    finally:
        for tag in tags:
            subprocess.run(["docker", "image", "rm", tag], capture_output=True, check=False)


@pytest.mark.docker
@pytest.mark.podman
def test_an_image_that_never_got_its_name_is_removed_and_somebodys_is_not(runtime: Path) -> None:
    """Of a daemon that was killed between commit and tag; who builds on an image of ours has its labels, too."""
    token = places.new_token()
    container = docker("create", image(15))
    ours, somebodys = (commit(container, token, message=message) for message in ("pgsandbox", "mine"))
    docker("rm", "--volumes", container)
    try:
        assert named.prune() == ([f"image {ours}"], [])
    finally:
        docker("image", "rm", somebodys)


def test_a_removal_that_takes_long_keeps_nobody_from_the_run(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of `up` always has the same name: it may begin again while what it had is still being removed."""
    server = leave_dead("dead", settings)
    goes_on, is_removing = threading.Event(), threading.Event()
    remove = LocalWard.remove

    def slowly(ward: LocalWard) -> None:
        is_removing.set()
        assert goes_on.wait(30)
        remove(ward)

    monkeypatch.setattr(LocalWard, "remove", slowly)
    sweeper = threading.Thread(target=sweep)
    sweeper.start()
    assert is_removing.wait(10)
    with contextlib.closing(Sandbox(**settings, run="dead")) as sandbox:
        sandbox.join()  # NotReadyError, if it had to wait
        goes_on.set()
        sweeper.join(30)
        assert not server.exists()


@pytest.mark.docker
def test_the_dead_of_an_engine_that_is_silent_hold_up_no_start(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither its template, which the supervisor packs, nor its end."""
    dead = leave_dead("dead", DOCKER)
    with monkeypatch.context() as patch, socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "silent"))
        silent.listen(100)
        patch.setenv("DOCKER_HOST", f"unix://{tmp_path / 'silent'}")
        begun = time.monotonic()
        with Sandbox(**settings, run="living", root=tmp_path, extensions=["pg_trgm", "unaccent"]) as living:
            assert living.server.execute("SELECT 1") == [(1,)]
            living.stop()
        assert time.monotonic() - begun < 30
        assert dead.exists()
    # Until the supervisor of the living has ended, its sweep waits for the silent one, with the dead in its hands.
    assert eventually(lambda: not lease.is_supervised(dead))
    removed, trouble = named.prune()
    assert (f"docker server {dead.name}" in removed, trouble) == (True, [])


def test_an_error_of_a_sweep_says_what_is_left(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, runtime: Path
) -> None:
    server = leave_dead("dead", settings)

    def refuse(_self: object) -> None:
        raise RuntimeError("the tape is torn")

    with monkeypatch.context() as broken:
        broken.setattr("pgsandbox.engines.wards.local.LocalWard.remove", refuse)
        removed, trouble = sweep()
    assert removed == []
    [problem] = trouble
    assert str(problem) == (
        f"pgsandbox: what is left of the local server {server.name} could not be removed\n"
        "  why: RuntimeError: the tape is torn\n"
        "  hint: the next start, or `pgsandbox prune`, tries again"
    )
    assert sweep() == ([f"local server {server.name}", "run dead"], [])


def container_of(server: Path) -> str:
    record = read_record(server / "container.json")
    assert record is not None
    return str(record["id"])


@contextlib.contextmanager
def looking_like_ours(labels: list[str]) -> Iterator[str]:
    """A container of somebody else's, running, with these labels; still there when the block ends."""
    flags = [f"--label={label}" for label in labels]
    container = docker("run", "--detach", "--entrypoint", "sleep", *flags, image(15), "600")
    try:
        yield container
        assert container in containers()
    finally:
        docker("rm", "--force", container)


def containers() -> set[str]:
    return set(docker("ps", "--all", "--quiet", "--no-trunc").split())


def commit(container: str, token: str, *, tag: str = ":", message: str | None = None) -> str:
    """An image of the container that is labelled as if it was made for the server `token`; its id."""
    changes = [f"LABEL pgsandbox.owner={places.home_id()}", f"LABEL pgsandbox.server={token}"]
    repository, _, version = tag.partition(":")
    with contextlib.closing(from_env()) as client:  # Podman 4 does not understand what Docker's command sends
        made = client.api.commit(
            container, repository=repository or None, tag=version or None, message=message, changes=changes
        )
        return str(client.images.get(made["Id"]).id)


def docker(*words: str) -> str:
    found = shutil.which("docker")
    assert found
    return subprocess.run([found, *words], capture_output=True, text=True, check=True).stdout.strip()
