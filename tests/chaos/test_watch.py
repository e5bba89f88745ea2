"""Whoever looks for what a run left sees each kind of it; otherwise all that is shown here would show nothing."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from conftest import Target
from runs import ChaosRun
from watch import LeftError, Watch

from pgsandbox.cache import Cache
from pgsandbox.engines import images


@pytest.fixture
def dead(tmp_path: Path) -> ChaosRun:
    """A run that has ended, and that pgsandbox called `pytest-dead`."""
    folder = tmp_path / "dead"
    (folder / "tmp").mkdir(parents=True)
    (folder / "run-id.pytest-dead").touch()
    run = ChaosRun(folder, subprocess.Popen([sys.executable, "-c", ""]), "deadbeef", "local")
    run.wait()
    return run


def left(runtime: Path, run: ChaosRun) -> str:
    """What there still is, as the error tells it, without the words in front."""
    with pytest.raises(LeftError) as caught:
        Watch(runtime, [run]).wait_until_clean(timeout=0)
    said = str(caught.value)
    assert said.startswith("still there after 0s: [")
    return said


def test_nothing_is_nothing(dead: ChaosRun, runtime: Path) -> None:
    assert Watch(runtime, [dead]).wait_until_clean(timeout=0) < 5


def test_a_process_is_seen(dead: ChaosRun, runtime: Path) -> None:
    with subprocess.Popen(["sleep", "60"], env={**os.environ, "CHAOS_RUN": dead.mark}) as process:
        assert f"process {process.pid}: " in left(runtime, dead)
        process.kill()


def test_folders_and_files_are_seen(dead: ChaosRun, runtime: Path) -> None:
    (folder := runtime / "runs" / "pytest-dead").mkdir(parents=True)
    assert f"folder {folder}" in left(runtime, dead)
    folder.rename(renamed := folder.with_name("pytest-dead.012345678901"))
    assert f"folder {renamed}" in left(runtime, dead), "in the middle of its removal"
    renamed.rmdir()
    (dead.folder / "tmp" / "forgotten").touch()
    assert "tmp/forgotten" in left(runtime, dead)


@pytest.fixture
def data(dead: ChaosRun, runtime: Path, tmp_path: Path) -> Iterator[Path]:
    """The data folder of its server."""
    server = runtime / "runs" / "pytest-dead" / "servers" / "012345678901"
    server.mkdir(parents=True)
    (folder := tmp_path / "data").mkdir()
    (server / "spec.json").write_text(json.dumps({"data": str(folder)}))
    yield folder
    (server / "spec.json").unlink()
    for path in (server, server.parent, server.parent.parent):
        path.rmdir()


def test_data_and_who_works_there_are_seen(dead: ChaosRun, runtime: Path, data: Path) -> None:
    assert f"data {data}" in left(runtime, dead)
    with subprocess.Popen(["sleep", "60"], cwd=data) as process:
        assert f"process {process.pid}: " in left(runtime, dead)
        process.kill()


def test_shared_memory_is_seen(dead: ChaosRun, runtime: Path, data: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    id_ = libc.shmget(ctypes.c_int(data.stat().st_ino & 0xFFFFFFFF), 56, 0o1600)
    try:
        assert f"shared memory {id_}" in left(runtime, dead)
    finally:
        libc.shmctl(id_, 0, None)


def test_a_half_made_template_is_seen(dead: ChaosRun, runtime: Path, own_cache: Path) -> None:
    (Cache().prepare() / "0123.tar.4567").touch()
    assert "half made " in left(runtime, dead)


@pytest.fixture
def client() -> Iterator[docker.DockerClient]:
    with contextlib.closing(docker.from_env()) as found:
        yield found


@pytest.mark.docker
def test_containers_volumes_and_nameless_images_are_seen(
    dead: ChaosRun, runtime: Path, own_cache: Path, client: docker.DockerClient
) -> None:
    dead.engine = "docker"
    image = Target("docker", 15).settings["image"]
    container = client.api.create_container(image, labels={"pgsandbox.run": "pytest-dead"})["Id"]
    try:
        watch = Watch(runtime, [dead])
        assert "container ['/" in left(runtime, dead)
        made = client.api.commit(container, conf={"Labels": images.labels_of_kept(Cache().folder, {})})["Id"]
    finally:
        client.api.remove_container(container)
    try:
        assert f"half made {made}" in left(runtime, dead).replace("['<none>:<none>']", made)
        assert [one.partition(" ")[0] for one in watch.left()] == ["volume"]
    finally:
        client.api.remove_image(made)
        for volume in watch._volumes:
            client.api.remove_volume(volume)
        watch.close()
    assert Watch(runtime, [dead]).wait_until_clean(timeout=5) < 5
