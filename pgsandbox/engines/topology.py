"""How a client reaches a container's port, depending on where the daemon and the client are."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pgsandbox.errors import EngineError

if TYPE_CHECKING:
    import docker


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
            networks = found["Networks"]
            name = self.network or next(iter(networks))
            return str(networks[name]["IPAddress"]), 5432
        published = (found.get("Ports") or {}).get("5432/tcp")
        if not published:
            raise EngineError(
                "docker: the daemon published no port for the container",
                why=f"its network is {', '.join(found.get('Networks') or ['none'])}",
                hint="is the daemon's default network disabled?",
            )
        return self.host, int(published[0]["HostPort"])


def topology(client: docker.DockerClient) -> Topology:
    """How containers of `client`'s daemon are reached from here.

    A daemon on this machine publishes on loopback. One reached over the network publishes at the very address that
    the client knows it by, and no other. From inside a container that shares the host's daemon, the new container joins
    the client's own network; where it has none of its own, the port is published at the bridge's gateway.
    """
    from testcontainers.core.config import ConnectionMode
    from testcontainers.core.docker_client import DockerClient

    view = DockerClient.__new__(DockerClient)  # its look at a client that is open already
    view.client = client
    mode = view.get_connection_mode()
    if mode is ConnectionMode.docker_host:
        return _published_at(view.host())
    if client.info()["Name"] == socket.gethostname():
        return _published_at("127.0.0.1")  # inside a container, but so is the daemon, in the same one
    if mode is ConnectionMode.bridge_ip:
        return Topology(publish=None, host=None, network=view.find_host_network())
    return _published_at(view.host())


def _published_at(host: str) -> Topology:
    address = "127.0.0.1" if host in ("localhost", "::1") else _resolved(host)
    return Topology(publish=address, host=address)


def _resolved(host: str) -> str:
    try:
        address = socket.gethostbyname(host)
    except OSError as problem:
        raise EngineError(
            f"docker: the daemon's host {host} has no address here, so its containers can't be reached",
            why=str(problem),
            hint="use a name or address in DOCKER_HOST that this machine can reach, or --pgsandbox-engine=local",
        ) from problem
    return "127.0.0.1" if ipaddress.ip_address(address).is_loopback else address
