"""Where a container's port is published, and what is connected to: from outside, from inside, from elsewhere."""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
from conftest import image
from machine import SOCKET, is_podman

import pgsandbox
from pgsandbox.engines import topology
from pgsandbox.engines.topology import Topology
from pgsandbox.errors import EngineError

# From inside a container, for real ------------------------------------------------------------------------------------

CODE = """\
import json, sys, time
from pathlib import Path
from pgsandbox import PgsandboxError, Sandbox, lease
from pgsandbox.cache import Cache
from pgsandbox.engines.daemon import connect
from pgsandbox.engines.topology import topology
found = {}
try:
    found["topology"] = vars(topology(connect()))
    with Sandbox(engine="docker", image=sys.argv[1]) as sandbox:
        found["reached"] = [sandbox.server.host, *sandbox.server.execute("SELECT host(inet_server_addr())")[0]]
        container = connect().api.inspect_container(sandbox.server.running.detail["container"])
        found["published"] = container["NetworkSettings"]["Ports"]["5432/tcp"]
        server = Path(sandbox.server.running.folder)
        assert sandbox.stop() == []
    while lease.is_supervised(server):  # which would end with this container, and not see its own to the end
        time.sleep(0.05)
    assert Cache().clear()[1] == []
except PgsandboxError as problem:
    found["refused"] = str(problem)
Path(sys.argv[2]).write_text(json.dumps(found))
"""

FOLDERS = ("/usr", "/lib", "/lib64", sys.base_prefix, sys.prefix, str(Path(pgsandbox.__file__).parents[1]))


@pytest.fixture
def network() -> Iterator[str]:
    """A network of one's own, as Compose and CI services make them."""
    with contextlib.closing(docker.DockerClient(f"unix://{SOCKET}")) as client:
        name = f"pgsandbox-test-{secrets.token_hex(4)}"
        client.networks.create(name)
        try:
            yield name
        finally:
            client.api.remove_network(name)


def inside(folder: Path, *options: str) -> dict[str, Any]:
    """What this machine's own Python says in a container that has the daemon's socket, and a cache of its own.

    A container is a machine for itself: in a shared cache it would replace what this one keeps.
    """
    mounts = [f"--volume={folder}:{folder}:ro" for folder in dict.fromkeys(FOLDERS) if Path(folder).exists()]
    mounts += [f"--volume={SOCKET}:/var/run/docker.sock", f"--volume={folder}:{folder}"]
    command = [
        "docker",
        f"--host=unix://{SOCKET}",
        "run",
        "--rm",
        *mounts,
        f"--env=_PGSANDBOX_CACHE={folder}",
        f"--entrypoint={sys.executable}",
    ]
    command += [*options, image(18), "-c", CODE, image(18), str(folder / "found")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert (done.returncode, (folder / "found").exists()) == (0, True), done.stdout + done.stderr
    # In a file: Podman now and then loses the last that a container prints.
    found: dict[str, Any] = json.loads((folder / "found").read_text())
    return found


on_linux = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="this machine's Python does not run in a Linux container"
)


@on_linux
@pytest.mark.docker
@pytest.mark.parametrize("groups", ["host", "private"])
def test_from_a_container_its_network_is_joined_and_nothing_published(groups: str, tmp_path: Path) -> None:
    found = inside(tmp_path, f"--cgroupns={groups}")
    assert found["topology"] == {"publish": None, "host": None, "network": "podman" if is_podman() else "bridge"}
    assert found["reached"][0] == found["reached"][1]
    assert found["published"] is None


@on_linux
@pytest.mark.docker
@pytest.mark.podman
def test_from_a_container_in_a_network_of_its_own_that_is_joined(network: str, tmp_path: Path) -> None:
    found = inside(tmp_path, f"--network={network}")
    assert found["topology"]["network"] == network
    assert found["reached"][0] == found["reached"][1]


@on_linux
@pytest.mark.docker
def test_from_a_container_in_the_hosts_network_loopback_will_do(tmp_path: Path) -> None:
    found = inside(tmp_path, "--network=host")
    assert found["topology"] == {"publish": "127.0.0.1", "host": "127.0.0.1", "network": None}
    [published] = found["published"]
    assert published["HostIp"] == "127.0.0.1"


@on_linux
@pytest.mark.docker
def test_from_a_container_without_a_network_the_start_is_refused(tmp_path: Path) -> None:
    assert inside(tmp_path, "--network=none")["refused"] == (
        "pgsandbox: docker: this process runs in a container that has no network, so it can't reach another one\n"
        "  why: its network mode is none\n"
        "  hint: run the tests outside of the container, or use --pgsandbox-engine=local"
    )


# With stand-ins for the daemon's answers ------------------------------------------------------------------------------

ID = "0123456789abcdef" * 4


class Daemon:
    """A client that knows the containers `known`, on a machine called `name`."""

    def __init__(
        self, base_url: str = "http+docker://localhost", *, name: str = "host", **known: dict[str, Any]
    ) -> None:
        self.api = self
        self.base_url = base_url
        self._name = name
        self._known = known

    def info(self) -> dict[str, str]:
        return {"Name": self._name}

    def inspect_container(self, name: str) -> dict[str, Any]:
        if name not in self._known:
            raise docker.errors.NotFound(f"no such container: {name}")
        return self._known[name]


def container(mode: str, **addresses: str) -> dict[str, Any]:
    networks = {name: {"IPAddress": ip, "GlobalIPv6Address": ""} for name, ip in addresses.items()}
    return {"HostConfig": {"NetworkMode": mode}, "NetworkSettings": {"Networks": networks, "Ports": {}}}


@pytest.fixture(autouse=True)
def no_docker_host(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CONFIG"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def in_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process runs in a container whose id is in its mounts."""
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "1205 1103 0:55 / / rw,relatime - overlay overlay rw\n"
        f"1212 1205 254:0 /var/lib/docker/containers/{ID}/resolv.conf /etc/resolv.conf rw - ext4 /dev/vda rw\n"
        f"1213 1205 254:0 /var/lib/docker/containers/{ID}/hostname /etc/hostname rw - ext4 /dev/vda rw\n"
        f"1214 1205 254:0 /var/lib/docker/containers/{'f' * 64}/elsewhere /data rw - ext4 /dev/vda rw\n"
    )
    (tmp_path / "mark").touch()
    monkeypatch.setattr(topology, "_MARKS", (tmp_path / "mark",))
    monkeypatch.setattr(topology, "_MOUNTS", mounts)
    monkeypatch.setattr(topology, "_ROUTES", tmp_path / "route")


LOOPBACK = Topology(publish="127.0.0.1", host="127.0.0.1")


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topology, "_MARKS", ())


@pytest.mark.usefixtures("outside")
@pytest.mark.parametrize("url", ["http+docker://localhost", "http://127.0.0.1:2375", "https://localhost:2376"])
def test_a_daemon_on_this_machine_publishes_on_loopback(url: str) -> None:
    assert topology.topology(Daemon(url)) == LOOPBACK  # type: ignore[arg-type]


@pytest.mark.usefixtures("outside")
@pytest.mark.parametrize("url", ["http://[::1]:2375", "http://127.9.9.9:2375"])
def test_other_loopback_addresses_are_loopback_too(url: str) -> None:
    assert topology.topology(Daemon(url)) == LOOPBACK  # type: ignore[arg-type]


@pytest.mark.parametrize("where", ["outside", "in_a_container"])
@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://192.0.2.7:2375", "192.0.2.7"),
        ("https://192.0.2.7:2376", "192.0.2.7"),
        ("http://[2001:db8::7]:2375", "2001:db8::7"),
    ],
)
def test_a_daemon_across_the_network_publishes_where_it_was_reached(
    url: str, address: str, where: str, request: pytest.FixtureRequest
) -> None:
    """Docker in Docker as a service beside the job is just that."""
    request.getfixturevalue(where)
    found = topology.topology(Daemon(url))  # type: ignore[arg-type]
    assert found == Topology(publish=address, host=address)
    assert found.bindings() == {"5432/tcp": (address,)}


@pytest.mark.usefixtures("outside")
def test_a_daemon_behind_ssh_publishes_at_that_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "ssh://me@192.0.2.7:22")
    found = topology.topology(Daemon("http+docker://ssh"))  # type: ignore[arg-type]
    assert found == Topology(publish="192.0.2.7", host="192.0.2.7")


@pytest.mark.usefixtures("outside")
def test_a_daemon_whose_name_leads_nowhere_is_refused() -> None:
    with pytest.raises(EngineError) as caught:
        topology.topology(Daemon("http://daemon.invalid:2375"))  # type: ignore[arg-type]
    assert str(caught.value) == (
        "pgsandbox: docker: the daemon's host daemon.invalid has no address here, so its containers can't be reached\n"
        f"  why: {caught.value.__cause__}\n"
        "  hint: use a name or address in DOCKER_HOST that this machine can reach, or --pgsandbox-engine=local"
    )


@pytest.mark.usefixtures("in_a_container")
def test_the_first_of_the_clients_networks_that_has_an_address_is_joined() -> None:
    found = topology.topology(Daemon(**{ID: container("a", a="", b="172.20.0.2")}))  # type: ignore[arg-type]
    assert found == Topology(publish=None, host=None, network="b")
    assert found.bindings() == {}
    beside = Daemon(made=container("b", b="172.20.0.3"))
    assert found.address(beside, "made") == ("172.20.0.3", 5432)  # type: ignore[arg-type]


@pytest.mark.usefixtures("in_a_container")
def test_the_network_of_the_container_whose_network_the_client_shares_is_joined() -> None:
    known = {ID: container("container:pause"), "pause": container("bridge", bridge="172.17.0.2")}
    assert topology.topology(Daemon(**known)).network == "bridge"  # type: ignore[arg-type]


@pytest.mark.usefixtures("in_a_container")
def test_a_daemon_in_the_same_container_publishes_on_its_loopback() -> None:
    daemon = Daemon(name=socket.gethostname())
    assert topology.topology(daemon) == LOOPBACK  # type: ignore[arg-type]


@pytest.mark.usefixtures("in_a_container")
def test_a_daemon_at_a_loopback_port_of_a_pod_publishes_there() -> None:
    assert topology.topology(Daemon("http://127.0.0.1:2375")) == LOOPBACK  # type: ignore[arg-type]


@pytest.mark.usefixtures("in_a_container")
def test_a_daemon_that_does_not_know_the_clients_container_publishes_at_its_gateway(tmp_path: Path) -> None:
    (tmp_path / "route").write_text(
        "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
        "eth0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n"
        "eth0\t00000000\t010011AC\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
    )
    assert topology.topology(Daemon()) == Topology(publish="172.17.0.1", host="172.17.0.1")  # type: ignore[arg-type]


@pytest.mark.usefixtures("in_a_container")
def test_an_address_that_testcontainers_was_told_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    from testcontainers.core.config import testcontainers_config

    monkeypatch.setattr(testcontainers_config, "tc_host_override", "192.0.2.7")
    known = Daemon(**{ID: container("bridge", bridge="172.17.0.2")})
    assert topology.topology(known) == Topology(publish="192.0.2.7", host="192.0.2.7")  # type: ignore[arg-type]


@pytest.mark.usefixtures("in_a_container")
def test_where_no_address_can_be_known_the_start_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError) as caught:
        topology.topology(Daemon())  # type: ignore[arg-type]
    assert str(caught.value) == (
        "pgsandbox: docker: no address is known at which this process could reach the daemon's containers\n"
        "  why: it runs in a container that the daemon does not know, and that has no way out\n"
        f"  looked at: {tmp_path}/mountinfo, {tmp_path}/route\n"
        "  hint: run the tests outside of the container, or use --pgsandbox-engine=local"
    )


def test_a_container_whose_port_was_not_published_is_an_error() -> None:
    with pytest.raises(EngineError) as caught:
        LOOPBACK.address(Daemon(made=container("none", none="")), "made")  # type: ignore[arg-type]
    assert str(caught.value) == (
        "pgsandbox: docker: the daemon published no port for the container\n"
        "  why: its network is none\n"
        "  hint: is the daemon's default network disabled?"
    )
