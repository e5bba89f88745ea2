"""How a client reaches a container's port, depending on where the daemon and the client are."""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgsandbox.errors import EngineError

if TYPE_CHECKING:
    import docker

_OUTSIDE = "run the tests outside of the container, or use --pgsandbox-engine=local"
_MARKS = (Path("/.dockerenv"), Path("/run/.containerenv"))
_MOUNTS = Path("/proc/self/mountinfo")
_ROUTES = Path("/proc/net/route")


@dataclass(frozen=True)
class Topology:
    """Where the port is published, and what to connect to."""

    publish: str | None
    """The daemon's address to publish at; None where the container is reached directly."""
    host: str | None
    """The address to connect to; None for the container's own."""
    network: str | None = None
    """The network to put the container into; None for the daemon's default."""

    def bindings(self) -> dict[int | str, Any]:
        """What to publish: always a port that the daemon chooses."""
        return {} if self.publish is None else {"5432/tcp": (self.publish,)}

    def networking(self, client: docker.DockerClient) -> Any:
        """The network to attach to at creation, or None."""
        if self.network is None:
            return None
        endpoints: Any = {self.network: client.api.create_endpoint_config()}
        return client.api.create_networking_config(endpoints)

    def address(self, client: docker.DockerClient, container: str) -> tuple[str, int]:
        """Host and port that reach the container. Raises EngineError when it has none."""
        found = client.api.inspect_container(container)["NetworkSettings"]
        if self.host is None:
            return _ip(found["Networks"][self.network]), 5432
        published = (found.get("Ports") or {}).get("5432/tcp")
        if not published:
            raise EngineError(
                "docker: the daemon published no port for the container",
                why=f"its network is {', '.join(found.get('Networks') or ['none'])}",
                hint="is the daemon's default network disabled?",
            )
        return self.host, int(published[0]["HostPort"])


def topology(client: docker.DockerClient) -> Topology:
    """How containers of `client`'s daemon are reached from here. Raises EngineError where that can't be known.

    A daemon on this machine publishes on loopback. One reached over the network publishes at the very address that
    the client knows it by, and no other. From inside a container whose daemon runs beside it, the new container joins
    the client's own network. testcontainers' variable for an address (TESTCONTAINERS_HOST_OVERRIDE) wins.
    """
    from testcontainers.core.config import testcontainers_config
    from testcontainers.core.docker_client import DockerClient, get_docker_host_hostname

    host = get_docker_host_hostname() or _host_in(client.api.base_url)
    is_inside = any(mark.exists() for mark in _MARKS)
    is_told = testcontainers_config.tc_host_override is not None
    if is_told or not is_inside or (host is not None and not _is_loopback(host)):
        view = DockerClient.__new__(DockerClient)  # its look at a client that is open already
        view.client = client
        return _published_at(view.host())
    own = _own_container(client)
    if own is not None:
        return _beside(client, own)
    if host is not None or client.info()["Name"] == socket.gethostname():
        return _published_at("127.0.0.1")  # the daemon is inside, too, or in a container that shares this network
    return _through_the_gateway()


def _host_in(base_url: str) -> str | None:
    """The host of a daemon that is reached over TCP; None for a socket or pipe."""
    match = re.fullmatch(r"https?://(\[[^]]+\]|[^:/]+).*", base_url)
    return match[1].strip("[]") if match else None


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _published_at(host: str) -> Topology:
    address = "127.0.0.1" if _is_loopback(host) else _resolved(host)
    return Topology(publish=address, host=address)


def _resolved(host: str) -> str:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as problem:
        raise EngineError(
            f"docker: the daemon's host {host} has no address here, so its containers can't be reached",
            why=str(problem),
            hint="use a name or address in DOCKER_HOST that this machine can reach, or --pgsandbox-engine=local",
        ) from problem
    address = str(min(found, key=lambda one: one[0] != socket.AF_INET)[4][0])
    return "127.0.0.1" if _is_loopback(address) else address


def _own_container(client: docker.DockerClient) -> dict[str, Any] | None:
    """The container that this process runs in, if this daemon knows it.

    Docker and Podman mount files of each container's own folder into it, and that folder's name is the id. A control
    group would give it away as well, but not where those have a namespace of their own, as is usual today.
    """
    import docker

    mounted = re.findall(
        r"/([0-9a-f]{64})/\S* /etc/(?:hostname|hosts|resolv\.conf) ", _MOUNTS.read_text(encoding="utf-8")
    )
    for name in dict.fromkeys(mounted):
        with contextlib.suppress(docker.errors.NotFound):
            found: dict[str, Any] = client.api.inspect_container(name)
            return found
    return None


def _beside(client: docker.DockerClient, own: dict[str, Any]) -> Topology:
    mode = str(own["HostConfig"]["NetworkMode"])
    if mode == "host":
        return _published_at("127.0.0.1")
    if mode.startswith("container:"):
        own = client.api.inspect_container(mode.removeprefix("container:"))
    for name, endpoint in own["NetworkSettings"]["Networks"].items():
        if _ip(endpoint):
            return Topology(publish=None, host=None, network=name)
    raise EngineError(
        "docker: this process runs in a container that has no network, so it can't reach another one",
        why=f"its network mode is {mode}",
        hint=_OUTSIDE,
    )


def _ip(endpoint: dict[str, Any]) -> str:
    return str(endpoint["IPAddress"] or endpoint["GlobalIPv6Address"])


def _through_the_gateway() -> Topology:
    """From a container of another engine the daemon's machine is, if anything, the way out (proc manual, net/route)."""
    with contextlib.suppress(OSError):
        for line in _ROUTES.read_text(encoding="ascii").splitlines()[1:]:
            _, destination, gateway, *_ = line.split()
            if destination == "00000000" and gateway != "00000000":
                return _published_at(socket.inet_ntoa(bytes.fromhex(gateway)[::-1]))
    raise EngineError(
        "docker: no address is known at which this process could reach the daemon's containers",
        why="it runs in a container that the daemon does not know, and that has no way out",
        looked_at=(str(_MOUNTS), str(_ROUTES)),
        hint=_OUTSIDE,
    )
