"""One container: how it is created, started and known again, and what it says while it starts."""

from __future__ import annotations

import collections
import contextlib
import io
import queue
import re
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from importlib import resources
from typing import TYPE_CHECKING, Any

from pgsandbox import places, scram
from pgsandbox.engines import WAL_SEGMENT, Choice, Order, Seeding
from pgsandbox.engines.condition import Condition, exit_in_words, over
from pgsandbox.errors import EngineError, NotReadyError, PgsandboxError, SeedError, ServerError
from pgsandbox.run import write_record

if TYPE_CHECKING:
    from pathlib import Path

    import docker

    from pgsandbox.engines.topology import Topology

DEFAULT_MAJOR = 18
"""The image's version where the settings name none."""

LABEL_RUN, LABEL_OWNER, LABEL_CREATED, LABEL_SERVER = (
    f"pgsandbox.{what}" for what in ("run", "owner", "created", "server")
)
ASKED = "container.json"
"""The file in a server's folder that says that the daemon was asked for a container, and once it gave one, its id."""

_SHM = 256 << 20
SEED = "/tmp/pgsandbox-seed"  # noqa: S108 -- inside the container, where every user may write
_IDLE = 2

PASSWORD = "/tmp/pgsandbox-password"  # noqa: S105, S108 -- inside the container, where it is gone before that is baked
_PASSWORD_FILE = "POSTGRES_PASSWORD_FILE"  # noqa: S105 -- a variable's name


def start(
    client: docker.DockerClient, *, name: str, choice: Choice, order: Order, password: str, where: Topology
) -> tuple[str, Output]:
    """Create and start the container; its id and what it prints. Its data is on a tmpfs where the daemon allows."""
    import docker

    for tmpfs in (order.seeding is Seeding.NONE, False):
        parts = _parts(client, choice, order, password, where, tmpfs=tmpfs)
        try:
            with _asked(order.folder) as answer:
                container = answer(client.api.create_container(name=name, **parts)["Id"])
            if _PASSWORD_FILE in parts["environment"]:
                client.api.put_archive(container, "/", _file(PASSWORD, password))
            output = Output(client.api.attach(container, stdout=True, stderr=True, stream=True, logs=True))
            try:
                client.api.start(container)
            except BaseException:
                output.close()
                raise
        except docker.errors.APIError as problem:
            found = client.api.containers(all=True, filters={"label": f"{LABEL_SERVER}={order.token}"})
            for leftover in found:
                if is_server(leftover, order.token):
                    remove(client, leftover["Id"])
            if not (tmpfs and "tmpfs" in str(problem).lower()):
                raise _not_started(choice, order, where, problem) from problem
        else:
            return container, output
    raise AssertionError("the second attempt returns or raises")


def create_only(client: docker.DockerClient, image: str, *, name: str, order: Order) -> str:
    """Create a container that is not to be started; its id. Raises SeedError when there is no such image."""
    import docker

    try:
        with _asked(order.folder) as answer:
            create = client.api.create_container
            return answer(create(image, command=["true"], name=name, labels=_labels(order))["Id"])
    except docker.errors.NotFound as problem:
        raise SeedError("the kept template has gone", why=f"somebody removed the image {image}") from problem


@contextlib.contextmanager
def _asked(folder: Path) -> Iterator[Callable[[str], str]]:
    """Note that the daemon is being asked for a container; what the block calls with the id, once it has answered.

    One that has not answered in time may make it yet, long after nobody waits for it any more.
    """

    def answer(container: str) -> str:
        write_record(folder / ASKED, {"id": container})
        return container

    write_record(folder / ASKED, {"id": None})
    try:
        yield answer
    except NotReadyError:
        write_record(folder / ASKED, {"id": None, "is_late": True})
        raise


def run(client: docker.DockerClient, container: str, command: list[str], *, timeout: float) -> str:
    """What `command` prints in a container that runs. Raises NotReadyError after `timeout` seconds, APIError."""
    started = client.api.exec_create(container, command)["Id"]
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def listen() -> None:
        try:
            answers.put(client.api.exec_start(started))
        except Exception as problem:
            answers.put(problem)

    # Docker's client waits for the end of what it hears without a deadline.
    threading.Thread(target=listen, name="pgsandbox-exec", daemon=True).start()
    try:
        said = answers.get(timeout=timeout)
    except queue.Empty:
        raise NotReadyError(
            f"a command in the container was not done within {timeout:g}s",
            why=f"it was: {' '.join(command)[:80].splitlines()[0]}",
            hint="was the container paused? Else raise the setting timeout",
        ) from None
    if isinstance(said, Exception):
        raise said
    return str(said.decode("utf-8", errors="replace"))


def remove(client: docker.DockerClient, container: str) -> None:
    """Remove the container and its volumes, and wait until it is gone; harmless when it is gone already."""
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


def condition(client: docker.DockerClient, id_: str, name: str) -> Condition:
    """How a container is doing that was started once. One that has ended is gone; the daemon remembers it for a while.

    Raises APIError.
    """
    import docker

    try:
        state = client.api.inspect_container(id_)["State"]
    except docker.errors.NotFound:
        return over(f"the container {name} {_end_of(client, id_)}")
    if state["Status"] == "paused":
        hint = f"let it go on with `docker unpause {name}`, or run again"
        return Condition(is_halted=True, why=f"the container {name} is paused", hint=hint)
    if state["Running"]:
        return Condition(is_running=True, why=f"the container {name} runs")
    return over(f"the container {name} {_how(state['ExitCode'], is_oom=state.get('OOMKilled', False))}")


def _end_of(client: docker.DockerClient, id_: str) -> str:
    """How a container that is gone ended, as far as the daemon remembers."""
    # Up to now by the daemon's own clock: it would wait for what is to come.
    now = datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", client.api.info()["SystemTime"]))
    code, is_oom = None, False
    until: Any = f"{now.timestamp():.6f}"
    with contextlib.closing(client.api.events(since=1, until=until, filters={"container": id_}, decode=True)) as events:
        for event in events:
            is_oom = is_oom or event.get("Action") == "oom"
            if event.get("Action") == "die":
                code = int(event["Actor"]["Attributes"].get("exitCode", 0))
    return "has gone: somebody removed it, or the daemon was restarted" if code is None else _how(code, is_oom=is_oom)


def _how(code: int, *, is_oom: bool) -> str:
    return exit_in_words(code) + (", out of memory" if is_oom else "")


def is_server(found: dict[str, Any], token: str) -> bool:
    """Whether a container is the server `token`: an image that was made of one of ours carries its labels, too."""
    return f"/pgsandbox-{token}" in (found["Names"] or [])


def died(output: Output, choice: Choice, address: str) -> PgsandboxError | None:
    """Why the container ended, if it has; `address` is where it was to be reached."""
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


class Output:
    """The last lines that a container prints, gathered in the background from before its start."""

    def __init__(self, stream: Any) -> None:
        self._lines: collections.deque[str] = collections.deque(maxlen=200)
        self._stream = stream
        self._socket: Any = None
        with contextlib.suppress(AttributeError):  # now: when the container has ended, there is no way to it any more
            self._socket = stream._response.raw._fp.fp.raw._sock  # noqa: SLF001 -- where the stream looks for it itself
        self.ended = threading.Event()
        threading.Thread(target=self._gather, args=(stream,), name="pgsandbox-container-output", daemon=True).start()

    def tail(self, lines: int) -> str:
        """The last `lines` lines."""
        return "\n".join(list(self._lines)[-lines:])

    def close(self) -> None:
        """Hear no more of it."""
        # Closing the stream ends the reading of it; its response has the socket, which nobody else would close: nor
        # would the stream, where shutting it down fails since the container has closed it first.
        for part in (self._stream, getattr(self._stream, "_response", self._stream), self._socket):
            with contextlib.suppress(Exception):
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


def _parts(
    client: docker.DockerClient, choice: Choice, order: Order, password: str, where: Topology, *, tmpfs: bool
) -> dict[str, Any]:
    detail = choice.detail
    major = choice.major or DEFAULT_MAJOR
    initdb = ["--no-sync", f"--wal-segsize={WAL_SEGMENT}", *(["--no-data-checksums"] if major >= 18 else [])]
    environ = {"PGDATA": detail["data"] if order.seeding is Seeding.NONE else SEED}
    if order.seed is None:
        environ |= {
            "POSTGRES_USER": "postgres",
            "POSTGRES_DB": "postgres",
            "POSTGRES_HOST_AUTH_METHOD": "scram-sha-256",  # whatever the image says
            "POSTGRES_INITDB_ARGS": " ".join(initdb),
        }
        # An image for ever says what the environment of the container was that it was made of.
        environ |= {"POSTGRES_PASSWORD": password} if order.seeding is Seeding.NONE else {_PASSWORD_FILE: PASSWORD}
    else:  # nobody knows a password for the cluster yet; keep.sh sets this one, of which a verifier gives nothing away
        environ["PGSANDBOX_VERIFIER"] = scram.verifier(password)
    mounts = sorted({*detail["volumes"], *_covering(detail["data"], detail["volumes"])}) if tmpfs else []
    flags = [word for name, value in order.flags.items() for word in ("-c", f"{name}={value}")]
    keep = ["sh", "-c", _keep_script(), "pgsandbox", str(int(order.timeout) + 5), str(_IDLE)]
    seed = [SEED] if order.seed else [""]
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


def _file(path: str, content: str) -> bytes:
    """The file `path` with `content`, readable by all, as an archive, without what `tarfile` adds after its end.

    Podman hears no more of it then, and takes the rest for a broken pipe.
    """
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as opened:
        member = tarfile.TarInfo(path.lstrip("/"))
        member.size, member.mode = len(content), 0o444
        opened.addfile(member, io.BytesIO(content.encode()))
        end = opened.offset + 2 * tarfile.BLOCKSIZE
    return archive.getvalue()[:end]


def _keep_script() -> str:
    return resources.files("pgsandbox.engines").joinpath("keep.sh").read_text(encoding="utf-8")


def _not_started(choice: Choice, order: Order, where: Topology, problem: Any) -> PgsandboxError:
    why = problem.explanation or str(problem)
    if order.seed is not None and "no such image" in why.lower():
        return SeedError("the kept template has gone", why=f"somebody removed the image {order.seed['image']}")
    if where.publish not in (None, "127.0.0.1") and ("cannot assign" in why or "bind" in why):
        return EngineError(
            f"docker: the daemon can't publish a port at {where.publish}, where this client would reach it",
            why=why,
            hint="run the tests on the daemon's own machine, or use --pgsandbox-engine=local",
        )
    return ServerError(f"the container of {choice.what} could not be started", why=why)
