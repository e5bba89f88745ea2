"""The only file that knows containers: servers from an image that honours the official image's contract."""

from __future__ import annotations

import collections
import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgsandbox import lease, places, scram
from pgsandbox.engines import Choice, Order, Progress, Running, Seeding, ready, supervised
from pgsandbox.engines.topology import Topology, topology
from pgsandbox.errors import EngineError, NotReadyError, PgsandboxError, SeedError, ServerError
from pgsandbox.run import all_runs, read_record, write_record

if TYPE_CHECKING:
    import docker

    from pgsandbox.settings import Settings

DEFAULT_MAJOR = 18
"""The image's version where the settings name none."""

PORT = "5432/tcp"
LABEL_RUN, LABEL_OWNER, LABEL_CREATED, LABEL_SERVER = (
    f"pgsandbox.{what}" for what in ("run", "owner", "created", "server")
)
_SHM = 256 << 20
_SEED = "/tmp/pgsandbox-seed"  # noqa: S108 -- inside the container, where every user may write
_SEEDS, _KEPT = "pgsandbox-seed", "pgsandbox-template"
"""Names of images: of one run, tagged with a server's token, and kept, tagged with a fingerprint."""

_CONTAINER = "container.json"
"""The file in a server's folder that says that the daemon was asked for a container, and once it gave one, its id."""

_SEEDED = "seeded.json"
"""The file in a server's folder that says that the daemon was asked to make an image of its container."""

_IDLE = 2
_GRANT = "/dev/shm/pgsandbox-grant"  # noqa: S108 -- inside the container
_API_TIMEOUT = 60
_PROBE_TIMEOUT = 10
_IN_FLIGHT = 2.0


class DockerEngine:
    """Servers in containers of the daemon that Docker's own client would use."""

    name = "docker"

    def find(self, settings: Settings, progress: Progress) -> Choice:
        """The image that would be started, pulled if need be. Raises EngineError."""
        wanted = settings.version or DEFAULT_MAJOR
        name = settings.image.replace("{version}", str(wanted))
        with contextlib.closing(connect()) as client:
            image = _image(client, name, progress)
        config = image.attrs["Config"]
        environ = dict(pair.partition("=")[::2] for pair in config.get("Env") or [])
        command = [*(config.get("Entrypoint") or []), *(config.get("Cmd") or [])]
        if "PG_MAJOR" not in environ and "PGDATA" not in environ and not any("postgres" in word for word in command):
            raise EngineError(
                f"docker: the image {name} is not PostgreSQL",
                why="it neither sets PG_MAJOR or PGDATA nor runs postgres",
                looked_at=(f"its entrypoint and command: {' '.join(command) or 'none'}",),
                hint="use an image that honours the official image's contract, such as postgres:18-alpine",
            )
        major = environ.get("PG_MAJOR") or environ.get("PG_VERSION", "").partition(".")[0]
        if settings.version is not None and major.isdigit() and int(major) != settings.version:
            raise EngineError(
                f"docker: the image {name} has PostgreSQL {major}, but version = {settings.version}",
                hint="change image or version so that they agree; {version} in image stands for the version",
            )
        return Choice(
            engine=self.name,
            version=environ.get("PG_VERSION", "").partition("-")[0] or major or str(wanted),
            what=name,
            detail={
                "id": image.id,
                "entrypoint": config.get("Entrypoint") or [],
                "data": environ.get("PGDATA", "/var/lib/postgresql/data"),
                "volumes": sorted(config.get("Volumes") or {}),
            },
        )

    def start(self, choice: Choice, order: Order, progress: Progress) -> Running:
        """A running server; raises ServerError, NotReadyError or EngineError."""
        name = f"pgsandbox-{order.token}"
        spec = {"engine": self.name, "container": name, "seed": f"{_SEEDS}:{order.token}"}
        with contextlib.ExitStack() as stack:
            client = stack.enter_context(contextlib.closing(connect()))
            where = topology(client)
            with contextlib.suppress(PgsandboxError):  # what is left of others is no reason not to start
                remove_orphans(client)
            stack.callback(supervised.start_for(order, spec).detach)
            progress(f"starting {choice.what}")
            password = scram.new_password()
            container, output = _run(client, name=name, choice=choice, order=order, password=password, where=where)
            stack.callback(output.close)
            host, port = where.address(client, container)
            password, version = ready.wait_and_rekey(
                host=host,
                port=port,
                user="postgres",
                password=password,
                timeout=order.timeout,
                died=lambda: _died(output, choice, f"{host}:{port}"),
                last_words=lambda: output.tail(5),
            )
        return Running(
            engine=self.name,
            token=order.token,
            folder=str(order.folder),
            version=version,
            what=choice.what,
            host=host,
            port=port,
            password=password,
            detail={"container": container, "name": name, "is_kept": order.seeding is Seeding.KEPT},
        )

    def bake(self, running: Running, *, folder: Path, name: str, timeout: float) -> dict[str, Any]:
        """An image of the cluster of `running`, its server stopped cleanly; `folder` is not needed."""
        is_kept = running.detail["is_kept"]
        tag = f"{_KEPT}:{name}-{places.digest(str(folder))}" if is_kept else f"{_SEEDS}:{running.token}"
        with contextlib.closing(connect()) as client:
            container = running.detail["container"]
            if not is_kept:  # from here on an image may come to be, even if we don't live to see it
                write_record(Path(running.folder) / _SEEDED, {})
            done = client.api.exec_start(client.api.exec_create(container, ["sh", "-c", _STOP])["Id"])
            if b"clean" not in done:
                raise ServerError(
                    "the server that holds the template did not stop cleanly", why=done.decode(errors="replace")
                )
            repository, _, version = tag.partition(":")
            # What the commit is not told, it takes over from the container: its password among others.
            conf = {"Env": ["POSTGRES_PASSWORD="], "Entrypoint": [], "Cmd": []}
            client.api.commit(container, repository=repository, tag=version, conf=conf)
            size = client.images.get(tag).attrs["Size"] - client.images.get(running.what).attrs["Size"]
            _remove(client, container)
        if is_kept:
            supervised.end(Path(running.folder), timeout=timeout)
        return {"image": tag, "size": size}

    def has_seed(self, seed: dict[str, Any]) -> bool:
        """Whether the daemon has the image."""
        import docker

        with contextlib.closing(connect()) as client:
            try:
                client.images.get(seed["image"])
            except docker.errors.ImageNotFound:
                return False
            return True

    def forget_seed(self, seed: dict[str, Any]) -> None:
        """Remove the image; one that a container still runs on loses its name, and goes with the next clean-up."""
        import docker

        with contextlib.closing(connect()) as client, contextlib.suppress(docker.errors.APIError):
            client.api.remove_image(seed["image"], force=True)

    def logs(self, running: Running, lines: int) -> str:
        """The last `lines` lines that the container printed."""
        import docker

        with contextlib.closing(connect()) as client:
            try:
                said = client.api.logs(running.detail["container"], tail=lines, stdout=True, stderr=True)
            except docker.errors.APIError as problem:
                raise ServerError("the container's log can't be read", why=problem.explanation) from problem
        return str(said.decode("utf-8", errors="replace")).rstrip()

    def grant(self, running: Running, seconds: float) -> None:
        """Let the container live for `seconds` with nobody connected, and its supervisor wait for that."""
        supervised.grant(Path(running.folder), seconds)
        command = ["sh", "-c", f"echo {int(seconds)} >{_GRANT}"]
        with contextlib.closing(connect()) as client:
            client.api.exec_start(client.api.exec_create(running.detail["container"], command)["Id"])


_STOP = """\
pid=$(head -n 1 "$PGDATA/postmaster.pid")
: >/dev/shm/pgsandbox-hold
kill -INT "$pid"
while kill -0 "$pid" 2>/dev/null; do sleep 0.05; done
[ -e "$PGDATA/postmaster.pid" ] || echo clean
"""


class DockerWard:
    """One container, as its supervisor looks after it; the daemon is only asked when there is something to do."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._name: str = spec["container"]
        self._token: str = spec["token"]
        self._folder = Path(spec["folder"])
        self._seed: str | None = spec["seed"]
        self._client: docker.DockerClient | None = None
        self._asked = 0.0

    def begin(self, report: Callable[[dict[str, Any]], None]) -> None:
        """Nothing: the container is created by the starter, since that may take the user's credentials."""

    def alive(self) -> bool:
        """True until a container that was granted time has ended; the others are held by leases."""
        if not (self._folder / supervised.GRANT).exists() or time.monotonic() - self._asked < 2:
            return True
        if not (self._folder / _CONTAINER).exists():
            return True
        self._asked = time.monotonic()
        try:
            return self._find() is not None
        except Exception:
            return True

    def bake(self, to: Path) -> dict[str, Any]:
        """Never asked for: baking is a matter between the starter and the daemon."""
        raise ServerError("a container is baked by its starter")

    def connected(self) -> bool:
        """True: a container watches its own connections, and ends itself."""
        return True

    def remove(self) -> None:
        """Remove the container, with its volumes, and the seed that was made of it."""
        asked = read_record(self._folder / _CONTAINER)
        if asked is None:  # the daemon was never asked for a container
            return
        # The starter may have died while the daemon was still at work for it.
        _until(lambda: self._remove_container() or asked["id"] is not None, timeout=_IN_FLIGHT)
        if read_record(self._folder / _SEEDED) is not None:
            _until(self._remove_seed, timeout=_IN_FLIGHT)

    def _remove_container(self) -> bool:
        found = self._find()
        if found is not None:
            _remove(self._docker(), found)
        return found is not None

    def _remove_seed(self) -> bool:
        """Whether the image could be removed; it can't while a container of the run still uses it."""
        import docker

        assert self._seed is not None
        try:
            self._docker().api.remove_image(self._seed)
        except docker.errors.APIError:
            return False
        return True

    def _find(self) -> str | None:
        label = f"{LABEL_SERVER}={self._token}"
        found = self._docker().api.containers(all=True, filters={"label": label})
        return next((one["Id"] for one in found if _is_server(one, self._token)), None)

    def _docker(self) -> docker.DockerClient:
        if self._client is None:
            self._client = connect()
        return self._client


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


def remove_orphans(client: docker.DockerClient) -> list[str]:
    """Remove containers and seeds of this user of this machine whose server is dead; what was removed, in words."""
    import docker

    removed: list[str] = []
    for found in client.api.containers(all=True, filters={"label": f"{LABEL_OWNER}={places.home_id()}"}):
        token = found["Labels"].get(LABEL_SERVER, "")
        if _is_server(found, token) and not _is_alive(token):
            _remove(client, found["Id"])
            removed.append(f"container pgsandbox-{token}")
    for image in client.api.images(filters={"label": f"{LABEL_OWNER}={places.home_id()}"}):
        token = image["Labels"].get(LABEL_SERVER, "")
        if f"{_SEEDS}:{token}" in (image["RepoTags"] or []) and not _is_alive(token):
            with contextlib.suppress(docker.errors.APIError):  # somebody's container uses it
                client.api.remove_image(f"{_SEEDS}:{token}")
                removed.append(f"image {_SEEDS}:{token}")
    return removed


def _is_server(found: dict[str, Any], token: str) -> bool:
    """Whether a container is the server `token`: an image that was made of one of ours carries its labels, too."""
    return f"/pgsandbox-{token}" in (found["Names"] or [])


def _is_alive(token: str) -> bool:
    """Whether the server `token` has a supervisor, or somebody who holds it."""
    for folder in all_runs().glob(f"*/servers/{token}"):
        spec = read_record(folder / supervised.SPEC)
        holds = [Path(spec["lease"])] if spec else [folder, folder.parent.parent]
        if lease.is_supervised(folder) or any(lease.is_held(hold) for hold in holds):
            return True
    return False


def _until(done: Callable[[], bool], *, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while not done() and time.monotonic() < deadline:
        time.sleep(0.1)


def _remove(client: docker.DockerClient, container: str) -> None:
    import docker

    for _ in range(50):
        try:
            client.api.remove_container(container, force=True, v=True)
        except docker.errors.NotFound:
            return
        except docker.errors.APIError as problem:
            if problem.status_code != 409:  # 409: its removal is in progress
                raise
        time.sleep(0.05)


def _run(
    client: docker.DockerClient, *, name: str, choice: Choice, order: Order, password: str, where: Topology
) -> tuple[str, _Output]:
    """Create and start the container; its id and what it prints. Its data is on a tmpfs where the daemon allows."""
    import docker

    for tmpfs in (order.seeding is Seeding.NONE, False):
        parts = _parts(client, choice, order, password, where, tmpfs=tmpfs)
        try:
            write_record(order.folder / _CONTAINER, {"id": None})  # asked for
            container: str = client.api.create_container(name=name, **parts)["Id"]
            write_record(order.folder / _CONTAINER, {"id": container})
            output = _Output(client.api.attach(container, stdout=True, stderr=True, stream=True, logs=True))
            client.api.start(container)
        except docker.errors.APIError as problem:
            found = client.api.containers(all=True, filters={"label": f"{LABEL_SERVER}={order.token}"})
            for leftover in found:
                if _is_server(leftover, order.token):
                    _remove(client, leftover["Id"])
            if not (tmpfs and "tmpfs" in str(problem).lower()):
                raise _not_started(choice, order, where, problem) from problem
        else:
            return container, output
    raise AssertionError("the second attempt returns or raises")


def _parts(
    client: docker.DockerClient, choice: Choice, order: Order, password: str, where: Topology, *, tmpfs: bool
) -> dict[str, Any]:
    detail = choice.detail
    major = choice.major or DEFAULT_MAJOR
    environ = {"PGDATA": detail["data"] if order.seeding is Seeding.NONE else _SEED}
    if order.seed is None:
        environ |= {
            "POSTGRES_PASSWORD": password,
            "POSTGRES_USER": "postgres",
            "POSTGRES_DB": "postgres",
            "POSTGRES_HOST_AUTH_METHOD": "scram-sha-256",  # whatever the image says
            "POSTGRES_INITDB_ARGS": "--no-sync" + (" --no-data-checksums" if major >= 18 else ""),
        }
    else:  # nobody knows a password for the cluster yet; keep.sh sets this one, of which a verifier gives nothing away
        environ["PGSANDBOX_VERIFIER"] = scram.verifier(password)
    mounts = sorted({*detail["volumes"], *_covering(detail["data"], detail["volumes"])}) if tmpfs else []
    flags = [word for name, value in order.flags.items() for word in ("-c", f"{name}={value}")]
    keep = ["sh", "-c", _keep_script(), "pgsandbox", str(int(order.timeout) + 5), str(_IDLE)]
    seed = [_SEED] if order.seed else [""]
    return {
        "image": order.seed["image"] if order.seed else choice.what,
        "entrypoint": [*keep, *seed, *detail["entrypoint"]],
        "command": ["postgres", *flags],
        "environment": environ,
        "ports": [5432],
        "labels": _labels(order),
        "networking_config": where.networking(client),
        "host_config": client.api.create_host_config(
            auto_remove=True,
            shm_size=_SHM,
            port_bindings=where.bindings(),
            tmpfs=dict.fromkeys(mounts, "rw,nosuid,nodev"),
            network_mode=where.network,
        ),
    }


def _labels(order: Order) -> dict[str, str]:
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {
        LABEL_RUN: order.run,
        LABEL_OWNER: places.home_id(),
        LABEL_SERVER: order.token,
        LABEL_CREATED: created,
    }


def _covering(data: str, volumes: list[str]) -> Iterator[str]:
    """The mount point that puts `data` on a tmpfs: itself, unless one of the image's volumes is above it."""
    if not any(data == volume or data.startswith(volume.rstrip("/") + "/") for volume in volumes):
        yield data


def _keep_script() -> str:
    return resources.files("pgsandbox.engines").joinpath("keep.sh").read_text(encoding="utf-8")


class _Output:
    """The last lines that a container prints, gathered in the background from before its start."""

    def __init__(self, stream: Any) -> None:
        self._lines: collections.deque[str] = collections.deque(maxlen=200)
        self._stream = stream
        self.ended = threading.Event()
        threading.Thread(target=self._gather, args=(stream,), name="pgsandbox-container-output", daemon=True).start()

    def tail(self, lines: int) -> str:
        """The last `lines` lines."""
        return "\n".join(list(self._lines)[-lines:])

    def close(self) -> None:
        """Hear no more of it."""
        # Closing the stream ends the reading of it; its response has the socket, which nobody else would close.
        for part in (self._stream, getattr(self._stream, "_response", self._stream)):
            with contextlib.suppress(Exception):  # the container may have closed it first
                part.close()

    def _gather(self, stream: Any) -> None:
        pending = ""
        with contextlib.suppress(Exception):  # the daemon may go away: then there is nothing more to gather
            for chunk in stream:
                *lines, pending = (pending + chunk.decode("utf-8", errors="replace")).split("\n")
                self._lines.extend(line for line in lines if line.strip())
        if pending.strip():
            self._lines.append(pending)
        self.ended.set()


def _died(output: _Output, choice: Choice, address: str) -> PgsandboxError | None:
    if not output.ended.is_set():
        return None
    what = f"the container of {choice.what} ended while it was starting"
    log = output.tail(8) or "it printed nothing"
    if "No space left on device" in log:
        return ServerError(
            what,
            why="no space is left where its data is",
            hint="its data is on a tmpfs, that is in memory: free some, or give the Docker machine more",
        )
    if log.endswith("database system is ready to accept connections"):  # it ended itself: nobody came
        return NotReadyError(
            f"PostgreSQL was ready in the container of {choice.what}, but could not be reached from here",
            why=f"no connection to {address} came through",
            looked_at=(address,),
            hint="is the daemon on another machine, behind a forwarded port? "
            "Set DOCKER_HOST to its own address, or use --pgsandbox-engine=local",
        )
    return ServerError(what, why=log, hint="look at the setting options if the log complains of a parameter")


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


def _image(client: docker.DockerClient, name: str, progress: Progress) -> Any:
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


def _has_tag(name: str) -> bool:
    return ":" in name.rpartition("/")[2] or "@" in name


def _not_pulled(name: str, why: str) -> EngineError:
    return EngineError(
        f"docker: the image {name} is not here and can't be pulled",
        why=_first_line(why),
        hint=f"check the name and the network, try `docker pull {name}`, or use --pgsandbox-engine=local",
    )


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else "the registry gave no reason"


def _not_started(choice: Choice, order: Order, where: Topology, problem: Any) -> PgsandboxError:
    why = problem.explanation or str(problem)
    if order.seed is not None and "No such image" in why:
        return SeedError("the kept template has gone", why=f"somebody removed the image {order.seed['image']}")
    if where.publish not in (None, "127.0.0.1") and ("cannot assign" in why or "bind" in why):
        return EngineError(
            f"docker: the daemon can't publish a port at {where.publish}, where this client would reach it",
            why=why,
            hint="run the tests on the daemon's own machine, or use --pgsandbox-engine=local",
        )
    return ServerError(f"the container of {choice.what} could not be started", why=why)
