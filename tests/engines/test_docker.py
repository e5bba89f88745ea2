"""Servers in containers: where they are published, who gets in, what they are made of, and which daemon runs them."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import docker
import psycopg
import pytest
from conftest import image
from machine import (
    command_lines,
    derived_image,
    forwarded_tcp,
    forwarded_unix,
    inspected,
    is_podman,
    own_address,
    registry,
    running,
)
from requests import Response

from pgsandbox import Sandbox, places
from pgsandbox.engines import daemon, named
from pgsandbox.engines.docker import DockerEngine
from pgsandbox.errors import EngineError
from pgsandbox.run import read_record
from pgsandbox.settings import Settings

pytestmark = pytest.mark.docker


def settings(version: int = 18, **more: Any) -> dict[str, Any]:
    return {"engine": "docker", "version": version, "image": image(version), **more}


def container_of(sandbox: Sandbox) -> dict[str, Any]:
    return inspected(sandbox.server.running.detail["container"])


@pytest.fixture
def client() -> Iterator[docker.DockerClient]:
    with contextlib.closing(docker.from_env()) as found:
        yield found


def silent(_text: str) -> None:
    pass


# How it is made -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[15, 18], ids=["15", "18-kept"])
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """A sandbox that several tests look at."""
    root = tmp_path_factory.mktemp("shared")
    more = {"cache": request.param == 18, "options": ["log_statement=all"]}
    with running(root=root, run="a-run", **settings(request.param, **more)) as sandbox:
        yield sandbox


def test_a_server_is_published_on_loopback_at_a_port_of_the_daemons_choice(shared: Sandbox) -> None:
    found = container_of(shared)
    [asked] = found["HostConfig"]["PortBindings"]["5432/tcp"]
    assert (asked["HostIp"], asked["HostPort"]) in [
        ("127.0.0.1", port)
        for port in ("", str(shared.server.port))  # Podman writes down there what it chose
    ]
    published = found["NetworkSettings"]["Ports"]
    assert published == {"5432/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(shared.server.port)}]}
    assert shared.server.host == "127.0.0.1"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((own_address(), shared.server.port))


@pytest.mark.podman
def test_the_data_is_on_a_tmpfs_and_there_is_no_volume(shared: Sandbox) -> None:
    found = container_of(shared)
    assert found["Mounts"] == []
    [(data,)] = shared.server.execute("SHOW data_directory")
    [mount] = found["HostConfig"]["Tmpfs"]
    assert f"{data}/".startswith(f"{mount}/")
    [(mounts,)] = shared.server.execute("SELECT pg_read_file('/proc/mounts', 0, 100000)")
    assert re.search(rf"^\S+ {mount} tmpfs ", mounts, re.MULTILINE)


@pytest.mark.podman
def test_it_has_shared_memory_and_labels_and_removes_itself(shared: Sandbox) -> None:
    found = container_of(shared)
    assert found["HostConfig"]["ShmSize"] == 256 << 20
    assert found["HostConfig"]["AutoRemove"]
    labels = {key: value for key, value in found["Config"]["Labels"].items() if key.startswith("pgsandbox.")}
    for name in ("recipe", "template", "cache"):  # our own test images have the first, kept templates the others
        labels.pop(f"pgsandbox.{name}", None)
    created = datetime.fromisoformat(labels.pop("pgsandbox.created"))
    started = datetime.fromisoformat(found["State"]["StartedAt"][:19] + "Z")
    assert abs(created - started) < timedelta(seconds=30)
    assert re.fullmatch(r"[0-9a-f]{32}", labels.pop("pgsandbox.owner"))
    assert labels == {"pgsandbox.run": "a-run", "pgsandbox.server": shared.server.running.token}
    assert found["Name"] == f"/pgsandbox-{shared.server.running.token}"


def test_the_password_is_random_and_nowhere_to_be_read(shared: Sandbox, client: docker.DockerClient) -> None:
    database = shared.database()
    with database.connect() as connection:
        connection.execute("SELECT 'said'")
    server = shared.server.running
    secrets = {server.password, database.address.password}
    assert all(re.fullmatch(r"[0-9a-f]{32}", secret) for secret in secrets)
    assert len(secrets) == 2
    deadline = time.monotonic() + 5
    while "SELECT 'said'" not in (said := client.api.logs(server.detail["container"]).decode()):
        assert time.monotonic() < deadline, said
    everything = json.dumps(container_of(shared)) + said + command_lines()
    assert not any(secret in everything for secret in secrets)
    assert not any(secret in repr(server) + repr(database.address) + repr(database) for secret in secrets)
    # What is in the environment was needed once, for the first boot; a kept cluster needs none.
    environ = dict(pair.split("=", 1) for pair in container_of(shared)["Config"]["Env"])
    bootstrap = environ["POSTGRES_PASSWORD"]
    assert bool(bootstrap) is (shared.settings.cache is False)
    assert not bootstrap or bootstrap not in said + command_lines()
    for guess in (bootstrap, environ.get("PGSANDBOX_VERIFIER", ""), "postgres"):
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(f"host=127.0.0.1 port={server.port} user=postgres dbname=postgres", password=guess)


def test_there_is_one_container_for_a_server_and_no_other(shared: Sandbox, client: docker.DockerClient) -> None:
    from testcontainers.core.config import testcontainers_config

    owner = container_of(shared)["Config"]["Labels"]["pgsandbox.owner"]
    ours = client.api.containers(all=True, filters={"label": f"pgsandbox.owner={owner}"})
    assert [one["Id"] for one in ours] == [shared.server.running.detail["container"]]
    assert not client.api.containers(all=True, filters={"label": "org.testcontainers.session-id"})
    assert not testcontainers_config.ryuk_disabled


def test_the_log_is_what_the_container_printed(shared: Sandbox) -> None:
    server = shared.server.running
    assert "database system is ready to accept connections" in named("docker").logs(server, 1000)
    assert len(named("docker").logs(server, 3).splitlines()) == 3


@pytest.mark.podman
def test_a_seed_holds_no_secret_and_is_gone_with_the_run_as_its_volumes_are(client: docker.DockerClient) -> None:
    """With a server for each worker, an image of the first one's stopped cluster is what the others start from."""
    volumes: set[str] = set()

    def watch(_text: str) -> None:
        for one in client.api.containers(filters={"label": f"pgsandbox.owner={places.home_id()}"}):
            mounts = client.api.inspect_container(one["Id"])["Mounts"]
            volumes.update(mount["Name"] for mount in mounts if mount["Type"] == "volume")

    worker = {"workers": 2, "worker": "gw0", "scope": "worker", "cache": False}
    with running(**settings(**worker), progress=watch) as sandbox:
        server = sandbox.server.running
        [token] = seeds(client)
        everything = json.dumps([client.api.inspect_image(f"pgsandbox-seed:{token}")])
        everything += json.dumps(client.api.history(f"pgsandbox-seed:{token}"))
        assert server.password not in everything
        for password in re.findall("POSTGRES_PASSWORD=([0-9a-f]+)", everything):
            with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
                psycopg.connect(f"host=127.0.0.1 port={server.port} user=postgres dbname=postgres", password=password)
    assert volumes  # what a seed is made of can't be on a tmpfs, and so the image's volumes are made
    deadline = time.monotonic() + 5
    while (left := left_of(client, token, volumes)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == set()


def seeds(client: docker.DockerClient) -> list[str]:
    """The tokens of the seeds of this test's own runs."""
    found = client.api.images(filters={"label": f"pgsandbox.owner={places.home_id()}"})
    return [tag.rpartition(":")[2] for one in found for tag in one["RepoTags"] or []]


def left_of(client: docker.DockerClient, token: str, volumes: set[str]) -> set[str]:
    return {*volumes.intersection(one.name for one in client.volumes.list()), *{token}.intersection(seeds(client))}


# The image's contract -------------------------------------------------------------------------------------------------


def test_an_image_with_names_and_habits_of_its_own_serves_as_any_other() -> None:
    names = "ENV POSTGRES_USER=app POSTGRES_DB=app PGUSER=app POSTGRES_HOST_AUTH_METHOD=trust"
    changes = (names, "CMD postgres -c fsync=on -c work_mem=7MB")
    with derived_image(image(18), *changes) as name, running(**settings(image=name, cache=False)) as sandbox:
        assert sandbox.server.execute("SELECT current_user::text, current_database()::text") == [("postgres",) * 2]
        assert sandbox.server.execute("SHOW fsync") == [("off",)]
        with pytest.raises(psycopg.OperationalError, match="no password supplied"):
            psycopg.connect(f"host=127.0.0.1 port={sandbox.server.port} user=postgres dbname=postgres").close()


def test_an_image_that_does_not_run_as_root_serves_also_as_a_seed() -> None:
    worker = {"workers": 2, "worker": "gw0", "scope": "worker", "cache": False}
    with derived_image(image(18), "USER postgres") as name, running(**settings(image=name, **worker)) as sandbox:
        assert sandbox.server.execute("SELECT 1") == [(1,)]


def test_an_image_with_its_data_beside_its_volumes_serves_from_a_tmpfs() -> None:
    with (
        derived_image(image(18), "ENV PGDATA=/elsewhere/data") as name,
        running(**settings(image=name, cache=False)) as sandbox,
    ):
        assert "/elsewhere/data" in container_of(sandbox)["HostConfig"]["Tmpfs"]
        assert container_of(sandbox)["Mounts"] == []


def test_an_image_of_another_version_than_asked_for_is_refused() -> None:
    with pytest.raises(EngineError) as caught:
        DockerEngine().find(Settings(image=image(15), version=18), silent)
    assert str(caught.value) == (
        f"pgsandbox: docker: the image {image(15)} has PostgreSQL 15, but version = 18\n"
        "  hint: change image or version so that they agree; {version} in image stands for the version"
    )


def test_the_version_is_part_of_the_image_name_where_it_says_so() -> None:
    with derived_image(image(15)) as name, contextlib.closing(docker.from_env()) as client:
        client.api.tag(name, "pgsandbox-test-derived", "15-of-ours")
        try:
            choice = DockerEngine().find(Settings(image="pgsandbox-test-derived:{version}-of-ours", version=15), silent)
            assert (choice.major, choice.what) == (15, "pgsandbox-test-derived:15-of-ours")
        finally:
            client.api.remove_image("pgsandbox-test-derived:15-of-ours")


def test_a_daemon_that_allows_no_tmpfs_keeps_the_data_in_a_volume_that_is_removed(
    monkeypatch: pytest.MonkeyPatch, client: docker.DockerClient
) -> None:
    """The refusal is made up; what follows is the daemon's."""
    create = docker.APIClient.create_container

    def refuse(self: docker.APIClient, **more: Any) -> Any:
        if more["host_config"].get("Tmpfs"):
            response = Response()
            response.status_code = 500
            raise docker.errors.APIError("500 Server Error", response, "invalid mount: tmpfs is not supported here")
        return create(self, **more)

    monkeypatch.setattr(docker.APIClient, "create_container", refuse)
    with running(**settings(cache=False)) as sandbox:
        [volume] = container_of(sandbox)["Mounts"]
        assert volume["Type"] == "volume"
        assert not container_of(sandbox)["HostConfig"].get("Tmpfs")
    deadline = time.monotonic() + 5
    while volume["Name"] in {one.name for one in client.volumes.list()} and time.monotonic() < deadline:
        time.sleep(0.05)
    assert volume["Name"] not in {one.name for one in client.volumes.list()}


# Pulling --------------------------------------------------------------------------------------------------------------


def test_a_missing_image_is_pulled_and_the_progress_told(client: docker.DockerClient) -> None:
    told: list[str] = []
    with registry() as source:
        choice = DockerEngine().find(Settings(image=source.name), told.append)
        assert (choice.version, choice.what) == ("18.99", source.name)
        if is_podman():  # which doesn't say how much
            assert told[0] == f"pulling {source.name}: Pulling fs layer"
            assert told[-1] == f"pulling {source.name}: Download complete"
        else:
            assert told[0] == f"pulling {source.name}: Pulling from pg"
            assert any(re.fullmatch(rf"pulling {source.name}: Downloading \[=*>.*\].*MB", line) for line in told)
            assert any(line.startswith(f"pulling {source.name}: Extracting [") for line in told)
        told.clear()
        assert DockerEngine().find(Settings(image=source.name), told.append) == choice
        assert told == []


def test_the_users_credentials_open_a_private_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    with registry(credentials="me:s3cr3t") as source:
        with pytest.raises(EngineError) as caught:
            DockerEngine().find(Settings(image=source.name), silent)
        why = f'Head "http://{source.address}/v2/pg/manifests/18": no basic auth credentials'
        if is_podman():
            why = f"initializing source docker://{source.name}: reading manifest 18 in {source.address}/pg: "
            why += "unauthorized: who are you?"
        assert str(caught.value) == (
            f"pgsandbox: docker: the image {source.name} is not here and can't be pulled\n"
            f"  why: {why}\n"
            f"  hint: check the name and the network, try `docker pull {source.name}`, or use --pgsandbox-engine=local"
        )
        auth = {source.address: {"auth": base64.b64encode(b"me:s3cr3t").decode()}}
        (tmp_path / "config.json").write_text(json.dumps({"auths": auth}))
        assert DockerEngine().find(Settings(image=source.name), silent).version == "18.99"


# Which daemon ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_docker_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CONFIG", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("no_docker_variables")
def test_docker_host_may_be_a_unix_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with forwarded_unix(tmp_path / "d.sock") as (host, forwarder):
        monkeypatch.setenv("DOCKER_HOST", host)
        with running(**settings()) as sandbox:
            assert sandbox.server.host == "127.0.0.1"
            assert forwarder.accepted > 0
        assert os.environ["DOCKER_HOST"] == host


@pytest.mark.usefixtures("no_docker_variables")
def test_docker_host_may_be_a_loopback_port(monkeypatch: pytest.MonkeyPatch) -> None:
    with forwarded_tcp() as (host, forwarder):
        monkeypatch.setenv("DOCKER_HOST", host)
        with running(**settings()) as sandbox:
            assert sandbox.server.host == "127.0.0.1"
            [published] = container_of(sandbox)["NetworkSettings"]["Ports"]["5432/tcp"]
            assert published["HostIp"] == "127.0.0.1"
            assert forwarder.accepted > 0


def use_context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    """Make a context that has the daemon at `host` the current one."""
    folder = tmp_path / "config"
    meta = folder / "contexts/meta" / hashlib.sha256(b"mine").hexdigest() / "meta.json"
    meta.parent.mkdir(parents=True)
    endpoints = {"docker": {"Host": host, "SkipTLSVerify": False}}
    meta.write_text(json.dumps({"Name": "mine", "Metadata": {}, "Endpoints": endpoints}))
    (folder / "config.json").write_text(json.dumps({"currentContext": "mine"}))
    monkeypatch.setenv("DOCKER_CONFIG", str(folder))


@pytest.mark.usefixtures("no_docker_variables")
def test_the_current_context_is_followed_and_the_environment_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with forwarded_unix(tmp_path / "d.sock") as (host, forwarder):
        use_context(tmp_path, monkeypatch, host)
        before = dict(os.environ)
        with running(**settings()) as sandbox:
            assert sandbox.server.execute("SELECT 1") == [(1,)]
            assert dict(os.environ) == before
            assert forwarder.accepted > 0
        assert dict(os.environ) == before


@pytest.mark.usefixtures("no_docker_variables")
def test_threads_that_connect_at_once_all_follow_the_context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """testcontainers exports what it finds, for a moment: nobody else may see that, nor see it go."""
    from_env, both, met = docker.from_env, threading.Barrier(2), []

    def watched(**more: Any) -> docker.DockerClient:
        with contextlib.suppress(threading.BrokenBarrierError):
            met.append(both.wait(0.3))
        return from_env(**more)

    monkeypatch.setattr(docker, "from_env", watched)
    with forwarded_unix(tmp_path / "d.sock") as (host, _):
        use_context(tmp_path, monkeypatch, host)
        threads = [threading.Thread(target=lambda: daemon.connect().close()) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert met == []
    assert "DOCKER_HOST" not in os.environ


@pytest.fixture
def usual_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Where Docker's socket is looked for on this machine, and where Podman's is; there is neither."""
    monkeypatch.setattr(daemon, "DOCKER", str(tmp_path / "docker.sock"))
    monkeypatch.setattr(daemon, "_MACHINES_PODMAN", str(tmp_path / "machines.sock"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    (tmp_path / "podman").mkdir()
    return tmp_path / "docker.sock", tmp_path / "podman/podman.sock"


@pytest.mark.usefixtures("no_docker_variables")
@pytest.mark.podman
def test_podman_serves_where_no_docker_does(usual_places: tuple[Path, Path]) -> None:
    """As with Docker: from beginning to end, its supervisor included, whatever starts in the meantime."""
    _, podman = usual_places
    before = dict(os.environ)
    with forwarded_unix(podman) as (address, forwarder), running(**settings()) as sandbox:
        found = sandbox.choice.why
        assert not is_podman() or re.fullmatch(rf"Podman \d+\.\d+\.\d+ at {podman}, as Docker does not answer", found)
        assert sandbox.server.execute("SELECT 1") == [(1,)]
        assert forwarder.accepted > 0
        spec = read_record(Path(sandbox.server.running.folder) / "spec.json")
        assert spec is not None
        assert spec["host"] == address
    assert dict(os.environ) == before


@pytest.mark.usefixtures("no_docker_variables")
def test_podman_is_only_taken_where_no_docker_answers_and_nobody_named_one(
    usual_places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    docker_, podman = usual_places
    assert daemon.podman_instead() is None
    with forwarded_unix(podman) as (address, _):
        assert daemon.podman_instead() == address
        with forwarded_unix(docker_):
            assert daemon.podman_instead() is None
        assert docker_.exists(), "what a dead one leaves counts for nothing"
        assert daemon.podman_instead() == address
        monkeypatch.setenv("DOCKER_HOST", f"unix://{docker_}")
        assert daemon.podman_instead() is None


@pytest.mark.usefixtures("no_docker_variables")
def test_where_neither_answers_the_places_of_both_are_named(
    usual_places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    docker_, podman = usual_places
    monkeypatch.setenv("HOME", str(docker_.parent))
    with pytest.raises(EngineError) as caught:
        daemon.connect()
    assert str(caught.value) == (
        "pgsandbox: docker: no engine answers\n"
        "  why: there is no socket, no DOCKER_HOST and no context\n"
        f"  looked at: {docker_}, {podman}, {docker_.parent}/machines.sock, DOCKER_HOST, ~/.docker/config.json\n"
        "  hint: start Docker or Podman, or use --pgsandbox-engine=local"
    )
    with forwarded_unix(docker_):
        pass
    with pytest.raises(EngineError) as caught:
        daemon.connect()
    assert str(caught.value) == (
        "pgsandbox: docker: no engine answers\n"
        "  why: connection refused\n"
        f"  looked at: unix://{docker_}, unix://{podman}, unix://{docker_.parent}/machines.sock\n"
        "  hint: start Docker or Podman, or use --pgsandbox-engine=local"
    )


@pytest.mark.usefixtures("no_docker_variables")
def test_a_daemon_across_the_network_publishes_at_its_own_address_only(monkeypatch: pytest.MonkeyPatch) -> None:
    address = own_address()
    with forwarded_tcp(address) as (host, forwarder):
        monkeypatch.setenv("DOCKER_HOST", host)
        with running(**settings()) as sandbox:
            server = sandbox.server
            assert server.host == address
            assert forwarder.accepted > 0
            [published] = container_of(sandbox)["NetworkSettings"]["Ports"]["5432/tcp"]
            assert published == {"HostIp": address, "HostPort": str(server.port)}
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", server.port))
            with sandbox.database().connect() as connection:
                assert connection.execute("SELECT 1").fetchone() == (1,)
            with pytest.raises(psycopg.OperationalError, match="no password supplied"):
                psycopg.connect(f"host={address} port={server.port} user=postgres dbname=postgres")


@pytest.mark.usefixtures("no_docker_variables")
def test_a_daemon_that_cannot_publish_where_it_is_reached_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As behind a forwarded port: the address that the client knows is not the daemon's."""
    from testcontainers.core.config import testcontainers_config

    monkeypatch.setattr(testcontainers_config, "tc_host_override", "203.0.113.7")
    with pytest.raises(EngineError) as caught, running(**settings()):
        pass
    said = str(caught.value)
    reason = re.search(r"\n  why: (.*)\n", said)
    assert reason is not None
    assert "cannot assign requested address" in reason[1]
    assert said == (
        "pgsandbox: docker: the daemon can't publish a port at 203.0.113.7, where this client would reach it\n"
        f"  why: {reason[1]}\n"
        "  hint: run the tests on the daemon's own machine, or use --pgsandbox-engine=local"
    )


@pytest.mark.usefixtures("no_docker_variables")
def test_nothing_is_imported_where_there_is_no_sign_of_docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(daemon, "Path", lambda path: tmp_path / "none" if str(path).endswith(".sock") else Path(path))
    monkeypatch.setattr(daemon.Path, "home", lambda: tmp_path, raising=False)
    assert not daemon._is_configured()
    (tmp_path / ".docker").mkdir()
    (tmp_path / ".docker/config.json").write_text('{"auths": {}}')
    assert not daemon._is_configured()
    (tmp_path / ".docker/config.json").write_text('{"currentContext": "mine"}')
    assert daemon._is_configured()
