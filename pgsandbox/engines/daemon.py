"""Docker's daemon: which one answers, and whether it has the image."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgsandbox.errors import EngineError, first_line

if TYPE_CHECKING:
    import docker

    from pgsandbox.engines import Progress

_API_TIMEOUT = 60
_PROBE_TIMEOUT = 10


def connect() -> docker.DockerClient:
    """A client of the daemon that Docker's own would use: host, context, TLS and credentials are resolved alike.

    Raises EngineError with the address that was tried.
    """
    if not _is_configured():
        raise EngineError(
            "docker: no engine answers",
            why="there is no socket, no DOCKER_HOST and no context",
            looked_at=("/var/run/docker.sock", "DOCKER_HOST", "~/.docker/config.json"),
            hint="start Docker, or use --pgsandbox-engine=local",
        )
    import logging

    import docker
    from testcontainers.core.docker_client import DockerClient, get_docker_host

    logging.getLogger("testcontainers.core.docker_client").setLevel(logging.WARNING)
    address = get_docker_host() or "unix:///var/run/docker.sock"
    before = os.environ.get("DOCKER_HOST")
    client = None
    try:
        _probe(address)
        client = DockerClient(timeout=_PROBE_TIMEOUT).client
        client.ping()
        client.api.timeout = _API_TIMEOUT
    except (docker.errors.DockerException, OSError, ValueError) as problem:
        if client is not None:
            client.close()
        raise _no_answer(address, problem) from problem
    finally:
        if before is None:  # that client exports what it finds; the user's environment is not ours to change
            os.environ.pop("DOCKER_HOST", None)
    return client


def image(client: docker.DockerClient, name: str, progress: Progress) -> Any:
    """The image `name` as the daemon describes it, pulled if need be. Raises EngineError."""
    import docker

    try:
        return client.images.get(name)
    except docker.errors.ImageNotFound:
        pass
    except docker.errors.APIError as problem:
        raise EngineError(
            f"docker: the image name {name} is refused",
            why=problem.explanation,
            hint="write it as name:tag, such as postgres:18-alpine",
        ) from problem
    try:
        for event in client.api.pull(name, tag=None if _has_tag(name) else "latest", stream=True, decode=True):
            if "error" in event:
                raise _not_pulled(name, event["error"])
            progress(f"pulling {name}: {event.get('status', '')} {event.get('progress', '')}".rstrip())
        return client.images.get(name)
    except (docker.errors.APIError, OSError) as problem:
        raise _not_pulled(name, getattr(problem, "explanation", None) or str(problem)) from problem


def _probe(address: str) -> None:
    """Raise OSError where nobody listens: sooner than Docker's client would, which leaves its sockets open, too."""
    from urllib.parse import urlsplit

    where = urlsplit(address)
    if where.scheme in ("unix", "http+unix"):
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as probe:
            probe.settimeout(_PROBE_TIMEOUT)
            probe.connect(where.path)
    elif where.scheme in ("tcp", "http", "https") and where.hostname and where.port:
        socket.create_connection((where.hostname, where.port), timeout=_PROBE_TIMEOUT).close()


def _is_configured() -> bool:
    """Whether there is any sign of a Docker client's configuration; importing the client costs 0.2 s."""
    home = Path.home()
    candidates = (Path("/var/run/docker.sock"), home / ".docker/run/docker.sock", home / ".testcontainers.properties")
    if os.environ.get("DOCKER_HOST") or os.environ.get("DOCKER_CONTEXT") or any(c.exists() for c in candidates):
        return True
    if os.name == "nt":
        return True
    with contextlib.suppress(OSError):
        config = Path(os.environ.get("DOCKER_CONFIG", home / ".docker")) / "config.json"
        return '"currentContext"' in config.read_text(encoding="utf-8")
    return False


def _no_answer(address: str, problem: Exception) -> EngineError:
    said = str(problem)
    if "Permission denied" in said or "PermissionError" in said:
        return EngineError(
            f"docker: the socket {address.removeprefix('unix://')} refuses this user",
            why="permission denied",
            looked_at=(address,),
            hint="add the user to the group `docker` and log in again, or set DOCKER_HOST to a rootless engine",
        )
    reasons = {"refused": "connection refused", "No such file": "no such file", "timed out": "no answer in time"}
    why = next((why for sign, why in reasons.items() if sign in said), said.splitlines()[0])
    return EngineError(
        "docker: no engine answers", why=why, looked_at=(address,), hint="start Docker, or use --pgsandbox-engine=local"
    )


def _has_tag(name: str) -> bool:
    return ":" in name.rpartition("/")[2] or "@" in name


def _not_pulled(name: str, why: str) -> EngineError:
    return EngineError(
        f"docker: the image {name} is not here and can't be pulled",
        why=first_line(why, "the registry gave no reason"),
        hint=f"check the name and the network, try `docker pull {name}`, or use --pgsandbox-engine=local",
    )
