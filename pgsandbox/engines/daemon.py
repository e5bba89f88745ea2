"""The daemon, Docker's or Podman in its stead: which one answers, how long that may take, whether it has the image."""

from __future__ import annotations

import contextlib
import math
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgsandbox.errors import EngineError, NotReadyError, first_line

if TYPE_CHECKING:
    import docker

    from pgsandbox.engines import Progress

_API_TIMEOUT = 60.0
"""Seconds for one call, and for silence in the middle of a pull."""

_PROBE_TIMEOUT = 10.0
"""Seconds until a daemon that does not answer is none."""


DOCKER = "/var/run/docker.sock"
"""Where Docker's daemon is, unless somebody says otherwise."""

_MACHINES_PODMAN = "/run/podman/podman.sock"

_exporting = threading.Lock()


def connect(
    host: str | None = None, *, timeout: float | None = None, probe: float = _PROBE_TIMEOUT
) -> docker.DockerClient:
    """A client of the daemon that Docker's own would use: host, context, TLS and credentials are resolved alike.

    Where that finds nobody, of the Podman that `podman_instead` found; with `host`, of what `host_of` said before. With
    `timeout` all that is asked of it has so many seconds together, up to a pull. Its calls raise NotReadyError when
    that is over, EngineError when the daemon goes away. One that does not answer at all within `probe` seconds is none:
    EngineError with the addresses that were tried.
    """
    if not _is_configured():
        raise EngineError(
            "docker: no engine answers",
            why="there is no socket, no DOCKER_HOST and no context",
            looked_at=(DOCKER, *_podman_sockets(), "DOCKER_HOST", "~/.docker/config.json"),
            hint="start Docker or Podman, or use --pgsandbox-engine=local",
        )
    import logging

    import docker
    from testcontainers.core.docker_client import DockerClient, get_docker_host

    logging.getLogger("testcontainers.core.docker_client").setLevel(logging.WARNING)
    podman, named = (podman_instead() if host is None else host or None), get_docker_host()
    address = podman or named or f"unix://{DOCKER}"
    client = None
    patience = _Patience(address, timeout)
    probe = min(probe, patience.left)
    try:
        _probe(address, probe)
        if podman is not None:
            client = docker.DockerClient(base_url=podman, timeout=math.ceil(probe))
        else:
            with _environment_kept():
                client = DockerClient(timeout=probe).client
        client.ping()
        client.api.timeout = int(_API_TIMEOUT)
        client.api.send = patience.watch(client.api.send)  # type: ignore[method-assign]
        client.api.pgsandbox_host = podman or ""  # type: ignore[attr-defined]
    except (docker.errors.DockerException, OSError, ValueError) as problem:
        if client is not None:
            client.close()
        raise _no_answer(address, problem, probe, is_named=(podman or named) is not None) from problem
    return client


@contextlib.contextmanager
def _environment_kept() -> Iterator[None]:
    """For testcontainers' client, which exports the host that it finds: the user's environment is not ours to change.

    One thread at a time: another would take what the first has exported for the user's, or miss what it takes back.
    """
    with _exporting:
        before = os.environ.get("DOCKER_HOST")
        try:
            yield
        finally:
            if before is None:
                os.environ.pop("DOCKER_HOST", None)


def podman_instead() -> str | None:
    """The address of a Podman at one of its usual places, if nobody configured a daemon and Docker doesn't answer."""
    from testcontainers.core.docker_client import get_docker_host

    if get_docker_host() is not None or os.name == "nt" or _answers(DOCKER):
        return None
    return next((f"unix://{path}" for path in _podman_sockets() if _answers(path)), None)


def host_of(client: docker.DockerClient) -> str:
    """Whom a client of `connect` talks to, for whoever has to ask the same daemon again, whichever answers then."""
    return str(client.api.pgsandbox_host)  # type: ignore[attr-defined]


def nature(client: docker.DockerClient) -> str:
    """What answers, if that is not Docker: `Podman 4.3.1`, and where, if nobody named it."""
    server = client.api.get(f"{client.api.base_url}/_ping").headers.get("Server", "")
    name, _, version = server.partition(" ")[0].partition("/")
    if name != "Libpod":
        return ""
    instead = host_of(client)
    return f"Podman {version}" + (
        f" at {instead.removeprefix('unix://')}, as Docker does not answer" if instead else ""
    )


class _Patience:
    """How long calls of the daemon at `address` may take: with `timeout` together, else each for itself."""

    def __init__(self, address: str, timeout: float | None) -> None:
        self._address = address
        self._timeout = timeout
        self._deadline = None if timeout is None else time.monotonic() + timeout

    @property
    def left(self) -> float:
        """Seconds that the next call has."""
        return _API_TIMEOUT if self._deadline is None else max(0.001, self._deadline - time.monotonic())

    def watch(self, send: Callable[..., Any]) -> Callable[..., Any]:
        """`send` of a session of requests, which all calls go through, with what it raises put into words."""
        import requests

        def send_in_time(request: Any, **more: Any) -> Any:
            if re.search(r"/images/(create|.*/push)(\?|$)", request.path_url):
                self._deadline = None  # a pull takes as long as it takes, and its start is not its end
            more["timeout"] = min(more.get("timeout") or _API_TIMEOUT, self.left)
            try:
                return send(request, **more)
            except requests.exceptions.Timeout as problem:
                raise self._too_slow(request) from problem
            except requests.exceptions.ConnectionError as problem:
                raise EngineError(
                    "docker: the engine went away in the middle of a call",
                    why=f"{_call(request)}: {_reason(problem)}",
                    looked_at=(self._address,),
                    hint="was it restarted? Run again",
                ) from problem

        return send_in_time

    def _too_slow(self, request: Any) -> NotReadyError:
        within = f"{self._timeout:g}s" if self._deadline is not None else f"{_API_TIMEOUT:g}s"
        return NotReadyError(
            f"docker: the engine was not done within {within}",
            why=f"it has not answered yet: {_call(request)}",
            looked_at=(self._address,),
            hint="is it, or its disk, busy? Look how long `docker version` takes, or raise the setting timeout",
        )


def _call(request: Any) -> str:
    """What a request asks for, without the version and what it says in particular: `POST /containers/create`."""
    return f"{request.method} {re.sub(r'^/v[0-9.]+', '', request.path_url).partition('?')[0]}"


def image(client: docker.DockerClient, name: str, progress: Progress) -> Any:
    """The image `name` as the daemon describes it, pulled if need be. Raises EngineError."""
    import docker

    try:
        return client.images.get(name)
    except docker.errors.NotFound:
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


def _probe(address: str, timeout: float) -> None:
    """Raise OSError where nobody listens: sooner than Docker's client would, which leaves its sockets open, too."""
    from urllib.parse import urlsplit

    where = urlsplit(address)
    if where.scheme in ("unix", "http+unix"):
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as probe:
            probe.settimeout(timeout)
            probe.connect(where.path)
    elif where.scheme in ("tcp", "http", "https") and where.hostname and where.port:
        socket.create_connection((where.hostname, where.port), timeout=timeout).close()


def _answers(path: str) -> bool:
    with contextlib.suppress(OSError):
        _probe(f"unix://{path}", _PROBE_TIMEOUT)
        return True
    return False


def _podman_sockets() -> list[str]:
    """Where Podman's socket is, by default: the user's own, and the machine's (podman-system-service manual)."""
    own = os.environ.get("XDG_RUNTIME_DIR")
    return [*([f"{own}/podman/podman.sock"] if own else []), _MACHINES_PODMAN]


def _is_configured() -> bool:
    """Whether there is any sign of a Docker client's configuration; importing the client costs 0.2 s."""
    home = Path.home()
    sockets = map(Path, (DOCKER, *_podman_sockets()))
    candidates = (*sockets, home / ".docker/run/docker.sock", home / ".testcontainers.properties")
    if os.environ.get("DOCKER_HOST") or os.environ.get("DOCKER_CONTEXT") or any(c.exists() for c in candidates):
        return True
    if os.name == "nt":
        return True
    with contextlib.suppress(OSError):
        config = Path(os.environ.get("DOCKER_CONFIG", home / ".docker")) / "config.json"
        return '"currentContext"' in config.read_text(encoding="utf-8")
    return False


def _no_answer(address: str, problem: Exception, timeout: float, *, is_named: bool) -> EngineError:
    """Why nobody answers at `address`; where nobody named it, there is none of the Podman sockets that answers, too."""
    said = str(problem)
    looked_at = (address, *(() if is_named else (f"unix://{path}" for path in _podman_sockets())))
    if "Permission denied" in said or "PermissionError" in said:
        return EngineError(
            f"docker: the socket {address.removeprefix('unix://')} refuses this user",
            why="permission denied",
            looked_at=looked_at,
            hint="add the user to the group `docker` and log in again, or set DOCKER_HOST to a rootless engine",
        )
    why = f"no answer within {timeout:g}s" if "timed out" in said else _reason(problem)
    return EngineError(
        "docker: no engine answers",
        why=why,
        looked_at=looked_at,
        hint=f"start Docker{'' if is_named else ' or Podman'}, or use --pgsandbox-engine=local",
    )


def _reason(problem: Exception) -> str:
    """The system's own words in what an HTTP library makes of them."""
    reasons = {
        "refused": "connection refused",
        "No such file": "no such file",
        "reset": "connection reset",
        "Remote end closed": "connection closed",
        "Connection aborted": "connection closed",
    }
    return next((why for sign, why in reasons.items() if sign in str(problem)), first_line(problem))


def _has_tag(name: str) -> bool:
    return ":" in name.rpartition("/")[2] or "@" in name


def _not_pulled(name: str, why: str) -> EngineError:
    return EngineError(
        f"docker: the image {name} is not here and can't be pulled",
        why=first_line(why, "the registry gave no reason"),
        hint=f"check the name and the network, try `docker pull {name}`, or use --pgsandbox-engine=local",
    )
