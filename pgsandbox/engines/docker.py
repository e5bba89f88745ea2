"""Servers in containers, from any image that honours the official image's contract."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgsandbox import places, scram
from pgsandbox.engines import (
    Choice,
    Layout,
    Order,
    Progress,
    Running,
    Seeding,
    container,
    daemon,
    images,
    registry,
    supervised,
)
from pgsandbox.engines.condition import Condition, last_word, over
from pgsandbox.engines.topology import Topology, topology
from pgsandbox.engines.wards.docker import SEEDED, remove_orphans
from pgsandbox.errors import EngineError, NotReadyError, PgsandboxError, ServerError, first_line
from pgsandbox.run import write_record

if TYPE_CHECKING:
    import docker

    from pgsandbox.settings import Settings

_GRANT = "/dev/shm/pgsandbox-grant"  # noqa: S108 -- inside the container
_SET_GRANT = f'echo "$1" >{_GRANT}.new && mv {_GRANT}.new {_GRANT}'
_STOP_TIMEOUT = 60.0
_IN_FLIGHT = 2.0
_ASK = 5.0
"""Seconds for what is only asked to say more in an error."""


class DockerEngine:
    """Servers in containers of the daemon that Docker's own client would use."""

    name = "docker"

    def find(self, settings: Settings, progress: Progress) -> Choice:
        """The image that would be started, pulled if need be. Raises EngineError."""
        wanted = settings.version or container.DEFAULT_MAJOR
        name = settings.image.replace("{version}", str(wanted))
        image, nature, host = _image(name, settings.timeout, progress)
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
            why=nature,
            detail={
                "content": _content(image.attrs),
                "host": host,
                "entrypoint": config.get("Entrypoint") or [],
                "data": environ.get("PGDATA", "/var/lib/postgresql/data"),
                "volumes": sorted(config.get("Volumes") or {}),
            },
        )

    def start(self, choice: Choice, order: Order, progress: Progress) -> Running:
        """A running server; raises ServerError, NotReadyError or EngineError."""
        name = f"pgsandbox-{order.token}"
        spec: dict[str, Any] = {"engine": self.name, "container": name, "seed": f"{images.SEEDS}:{order.token}"}
        daemons_host = spec["host"] = choice.detail["host"]
        with contextlib.ExitStack() as stack:
            deadline = time.monotonic() + order.timeout
            client = stack.enter_context(contextlib.closing(daemon.connect(daemons_host, timeout=order.timeout)))
            where = topology(client)
            spec["beside"] = where.network is not None
            stack.callback(supervised.start_for(order, spec).detach)
            progress(f"starting {choice.what}")
            password = scram.new_password()
            id_, output = container.start(client, name=name, choice=choice, order=order, password=password, where=where)
            stack.callback(output.close)
            order.meanwhile()
            with contextlib.suppress(PgsandboxError):  # what is left of others is no reason not to start
                remove_orphans(client)
            from pgsandbox.engines import ready

            host, port = _address(client, id_, where, output, choice)
            password, version = ready.wait_and_rekey(
                host=host,
                port=port,
                user="postgres",
                password=password,
                timeout=deadline - time.monotonic(),
                within=order.timeout,
                died=lambda: container.died(output, choice, f"{host}:{port}"),
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
            detail={
                "container": id_,
                "host": daemons_host,
                "name": name,
                "is_kept": order.seeding is Seeding.KEPT,
                "template_follows": order.seed is not None,
            },
        )

    def bake(
        self, running: Running, *, folder: Path, name: str, note: dict[str, Any], timeout: float
    ) -> dict[str, Any]:
        """An image of the cluster of `running`, its server stopped cleanly; of `folder` only the name is needed."""
        is_kept = running.detail["is_kept"]
        labels = images.labels_of_kept(folder, note) if is_kept else {}
        with contextlib.closing(daemon.connect(running.detail.get("host"))) as client:
            id_ = running.detail["container"]
            done = container.run(client, id_, _stop(running.detail["layout"]), timeout=max(timeout, _STOP_TIMEOUT))
            if "clean" not in done:
                raise ServerError("the server that holds the template did not stop cleanly", why=done)
            tag = _commit(client, id_, Path(running.folder), labels)
            size = images.size_on(client, tag, running.what)
            container.remove(client, id_)
            if is_kept:
                seed, tag = tag, images.tag_of(folder, name)
                images.keep(client, seed, tag)
        if is_kept:
            supervised.end(Path(running.folder), timeout=timeout)
        return {"image": tag, "size": size}

    def export(self, seed: dict[str, Any], order: Order) -> Iterator[bytes]:
        """The cluster's files: with the image that is under them, which every machine has, it would be far more."""
        with contextlib.closing(daemon.connect()) as client, _helper(client, seed["image"], order) as helper:
            yield from client.api.get_archive(helper, container.SEED)[0]

    def adopt(
        self, content: Iterator[bytes], note: dict[str, Any], choice: Choice, order: Order, *, folder: Path, name: str
    ) -> dict[str, Any]:
        """An image of the cluster's files on top of this machine's own copy of the same image."""
        tag = images.tag_of(folder, name)
        with (
            contextlib.closing(daemon.connect(choice.detail["host"])) as client,
            _helper(client, choice.what, order) as helper,
        ):
            images.put(client, helper, content, str(Path(container.SEED).parent))
            images.keep(client, _commit(client, helper, order.folder, images.labels_of_kept(folder, note)), tag)
            return {"image": tag, "size": images.size_on(client, tag, choice.what)}

    def push(self, seed: dict[str, Any], reference: str, progress: Progress) -> None:
        """Push the image of a seed to `reference` in a registry. Raises EngineError."""
        with contextlib.closing(daemon.connect()) as client:
            registry.push(client, seed["image"], reference, progress)

    @contextlib.contextmanager
    def pulled(self, reference: str, progress: Progress) -> Iterator[tuple[str, dict[str, Any]]]:
        """The image that the registry has as `reference`, for the length of the block, and what it says of itself.

        Raises EngineError when it can't be pulled.
        """
        with contextlib.closing(daemon.connect()) as client, registry.pulled(client, reference, progress) as id_:
            yield id_, images.note_of(client, id_) or {}

    def keep(self, image: str, choice: Choice, *, folder: Path, name: str) -> dict[str, Any]:
        """A seed to be kept, of an image that is here already."""
        tag = images.tag_of(folder, name)
        with contextlib.closing(daemon.connect(choice.detail["host"])) as client:
            images.rename(client, image, tag)
            return {"image": tag, "size": images.size_on(client, tag, choice.what)}

    def damage(self, seed: dict[str, Any]) -> str | None:
        """Whether the daemon has the image."""
        import docker

        with contextlib.closing(daemon.connect()) as client:
            try:
                client.images.get(seed["image"])
            except docker.errors.NotFound:
                return f"somebody removed the image {seed['image']}"
            return None

    def forget_seed(self, seed: dict[str, Any]) -> None:
        """Remove the image; one that a container still runs on gets another name, and goes with the next `strays`."""
        import docker

        with contextlib.closing(daemon.connect()) as client, contextlib.suppress(docker.errors.APIError):
            images.retire(client, seed["image"])

    def strays(self, folder: Path, known: set[str]) -> list[tuple[str, dict[str, Any]]]:
        """Images that were kept for `folder`, and that it does not know."""
        with contextlib.closing(daemon.connect()) as client:
            return [(key, {"image": tag}) for key, tag in images.strays(client, folder, known)]

    def complete(self, running: Running) -> None:
        """Nothing: a container does so by itself."""

    def logs(self, running: Running, lines: int) -> str:
        """The last `lines` lines that the container printed."""
        import docker

        with contextlib.closing(daemon.connect(running.detail.get("host"))) as client:
            try:
                said = client.api.logs(running.detail["container"], tail=lines, stdout=True, stderr=True)
            except docker.errors.APIError as problem:
                raise ServerError("the container's log can't be read", why=problem.explanation) from problem
        return str(said.decode("utf-8", errors="replace")).rstrip()

    def condition(self, running: Running) -> Condition:
        """What its supervisor or the daemon says of it."""
        said = last_word(Path(running.folder))
        if said is not None:
            return over(said)
        try:
            with contextlib.closing(daemon.connect(running.detail.get("host"), timeout=_ASK)) as client:
                return container.condition(client, running.detail["container"], running.detail["name"])
        except PgsandboxError as problem:
            return Condition(why=f"{problem.message} ({first_line(problem.why, 'it did not say why')})")
        except Exception as problem:
            return Condition(why=f"docker: {first_line(problem)}")

    def grant(self, running: Running, seconds: float) -> None:
        """Let the container live for `seconds` with nobody connected, and its supervisor wait for that."""
        supervised.grant(Path(running.folder), seconds)
        command = ["sh", "-c", _SET_GRANT, "grant", str(int(seconds))]
        with contextlib.closing(daemon.connect(running.detail.get("host"))) as client:
            container.run(client, running.detail["container"], command, timeout=_STOP_TIMEOUT)


_STOP = f"""\
rm -f {container.PASSWORD}
"""
_STOP += """\
template=$1 spare=$2
shift 2
pid=$(head -n 1 "$PGDATA/postmaster.pid")
: >/dev/shm/pgsandbox-hold
kill -INT "$pid"
while kill -0 "$pid" 2>/dev/null; do sleep 0.05; done
[ ! -e "$PGDATA/postmaster.pid" ] || exit
# Of the WAL, a stopped cluster needs the file that its last checkpoint is in.
wal=$(pg_controldata "$PGDATA" | sed -n 's/.*REDO WAL file: *//p')
[ -z "$wal" ] || find "$PGDATA/pg_wal" -maxdepth 1 -type f ! -name "$wal" -exec rm {} +
# Three archives, for keep.sh: what a start needs, what it does not, and the template, which is its spare clone as well.
kept=$PGDATA-kept
mkdir "$kept" && cd "$PGDATA/base" || exit
if diff -r "$template" "$spare" >/dev/null 2>&1; then rm -r "$spare"; else set -- "$spare" "$@" && spare=; fi
echo "$template $spare" >"$kept/names" &&
    tar -C "$template" -cf "$kept/template.tar" . && rm -r "$template" &&
    tar -cf "$kept/rest.tar" "$@" && rm -r "$@" &&
    tar -C "$PGDATA" -cf "$kept/start.tar" . && cd / && rm -r "$PGDATA" && mv "$kept" "$PGDATA" && echo clean
"""


def _stop(layout: Layout) -> list[str]:
    rest = (oid for oid in layout["late"] if oid != layout["template"])
    return ["sh", "-c", _STOP, "stop", *map(str, (layout["template"], layout["spare"], *rest))]


def _commit(client: docker.DockerClient, container: str, folder: Path, labels: dict[str, str]) -> str:
    """The image of a stopped cluster's container, of the server in `folder`, under that server's own name.

    The daemon makes it even if we don't live to see it: so nobody else may have that name, and a mark is left first.
    """
    name = f"{images.SEEDS}:{folder.name}"
    write_record(folder / SEEDED, {"is_made": False})
    images.commit(client, container, name, labels)
    write_record(folder / SEEDED, {"is_made": True})
    return name


@contextlib.contextmanager
def _helper(client: docker.DockerClient, image: str, order: Order) -> Iterator[str]:
    """A container of `image` that is never started, for the sake of its files; it goes with this process."""
    places.private(order.folder)
    name = f"pgsandbox-{order.token}"
    spec = {
        "engine": "docker",
        "container": name,
        "seed": f"{images.SEEDS}:{order.token}",
        "host": daemon.host_of(client),
    }
    supervised.start_for(order, spec).detach()
    try:
        yield container.create_only(client, image, name=name, order=order)
    finally:
        supervised.end(order.folder, timeout=order.timeout)


def _image(name: str, timeout: float, progress: Progress) -> tuple[Any, str, str]:
    """The image, what has it if that is not Docker, and where that is, if nobody named it."""
    try:
        with contextlib.closing(daemon.connect(timeout=timeout)) as client:
            return daemon.image(client, name, progress), daemon.nature(client), daemon.host_of(client)
    except NotReadyError as problem:  # where another engine may serve, it is asked
        raise EngineError(problem.message, why=problem.why, looked_at=problem.looked_at, hint=problem.hint) from problem


def _content(image: dict[str, Any]) -> str:
    """What an image is made of: the same for all daemons, whatever they call it and wherever they got it from."""
    config = {name: image["Config"].get(name) for name in ("Env", "Entrypoint", "Cmd", "User", "WorkingDir", "Volumes")}
    return hashlib.sha256(json.dumps([image["RootFS"]["Layers"], config], sort_keys=True).encode()).hexdigest()


def _address(
    client: docker.DockerClient, id_: str, where: Topology, output: container.Output, choice: Choice
) -> tuple[str, int]:
    """Where the container is reached. One that has ended has no address, or is not even there: then, why it ended."""
    import docker

    try:
        return where.address(client, id_)
    except (EngineError, docker.errors.NotFound) as problem:
        output.ended.wait(_IN_FLIGHT)
        error = container.died(output, choice, "its port")
        if error is None:
            raise
        raise error from problem
