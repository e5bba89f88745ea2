"""One container as its supervisor looks after it, and what is left of those whose supervisors have died."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgsandbox import lease, places
from pgsandbox.engines import Layout, container, daemon, images, supervised
from pgsandbox.engines.container import LABEL_OWNER, LABEL_SERVER
from pgsandbox.errors import ServerError
from pgsandbox.run import all_runs, read_record

if TYPE_CHECKING:
    import docker

SEEDED = "seeded.json"
"""The file in a server's folder that says that the daemon was asked for an image of it, and whether that is made."""

_IN_FLIGHT = 2.0
_LATE = 60.0
"""Seconds in which a daemon may still do what it was asked for by somebody who has died, or given up."""


class DockerWard:
    """One container, as its supervisor looks after it; the daemon is only asked when there is something to do."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._name: str = spec["container"]
        self._token: str = spec["token"]
        self._folder = Path(spec["folder"])
        self._seed: str | None = spec["seed"]
        self._is_beside: bool = spec.get("beside", False)
        self._host: str | None = spec.get("host")
        self._client: docker.DockerClient | None = None
        self._asked = 0.0

    def begin(self, report: Callable[[dict[str, Any]], None]) -> None:
        """Nothing: the container is created by the starter, since that may take the user's credentials."""

    def complete(self) -> None:
        """Nothing is left for later."""

    def alive(self) -> bool:
        """True until a container that was granted time has ended; the others are held by leases."""
        if not (self._folder / supervised.GRANT).exists() or time.monotonic() - self._asked < 2:
            return True
        if not (self._folder / container.ASKED).exists():
            return True
        self._asked = time.monotonic()
        try:
            return self._find() is not None
        except Exception:
            return True

    def bake(self, to: Path, layout: Layout) -> dict[str, Any]:
        """Never asked for: baking is a matter between the starter and the daemon."""
        raise ServerError("a container is baked by its starter")

    def last_word(self) -> str:
        """That it ended: a container of its own time is not looked at more closely."""
        return "its container ended"

    def connected(self) -> bool:
        """True: a container watches its own connections, and ends itself."""
        return True

    def end(self) -> None:
        """Nothing, as a rule: to ask the daemon takes a while, and a container that nobody needs ends by itself.

        One beside our own container goes now: their network may be removed next, and we with our container.
        """
        if self._is_beside:
            self._remove_container()

    def remove(self) -> None:
        """Remove the container, with its volumes, and the seed that was made of it."""
        asked = read_record(self._folder / container.ASKED)
        if asked is None:  # the daemon was never asked for a container
            return
        # The starter may have died while the daemon was still at work for it, or not have waited for that.
        seeded = read_record(self._folder / SEEDED)
        if seeded is not None and not seeded["is_made"]:
            _until(lambda: not self._is_being_copied(), timeout=_LATE)
        patience = _LATE if asked.get("is_late") else _IN_FLIGHT
        _until(lambda: self._remove_container() or asked["id"] is not None, timeout=patience)
        if seeded is not None:
            _until(lambda: self._remove_seed(or_none=seeded["is_made"]), timeout=_IN_FLIGHT)

    def _remove_container(self) -> bool:
        found = self._find()
        if found is not None:
            container.remove(self._docker(), found["Id"])
            images.remove_if_retired(self._docker(), found["ImageID"])
        return found is not None

    def _is_being_copied(self) -> bool:
        """Whether the daemon makes an image of the container: it is paused until that is done, and has its name."""
        found = self._find()
        return found is not None and found["State"] == "paused"

    def _remove_seed(self, *, or_none: bool) -> bool:
        """Whether the image could be removed; it can't while a container of the run still uses it.

        With `or_none`, also whether there is none.
        """
        import docker

        assert self._seed is not None
        try:
            self._docker().api.remove_image(self._seed)
        except docker.errors.ImageNotFound:
            return or_none
        except docker.errors.APIError:
            return False
        return True

    def _find(self) -> dict[str, Any] | None:
        label = f"{LABEL_SERVER}={self._token}"
        found = self._docker().api.containers(all=True, filters={"label": label})
        return next((one for one in found if container.is_server(one, self._token)), None)

    def _docker(self) -> docker.DockerClient:
        if self._client is None:
            self._client = daemon.connect(self._host, probe=_LATE)  # nobody waits for us
        return self._client


def remove_orphans(client: docker.DockerClient) -> list[str]:
    """Remove containers and seeds of this user of this machine whose server is dead; what was removed, in words."""
    import docker

    removed: list[str] = []
    for found in client.api.containers(all=True, filters={"label": f"{LABEL_OWNER}={places.home_id()}"}):
        token = found["Labels"].get(LABEL_SERVER, "")
        if container.is_server(found, token) and not _is_alive(token):
            with contextlib.suppress(docker.errors.APIError):  # the next start tries again
                container.remove(client, found["Id"])
                removed.append(f"container pgsandbox-{token}")
    for image in client.api.images(filters={"label": f"{LABEL_OWNER}={places.home_id()}"}):
        token = image["Labels"].get(LABEL_SERVER, "")
        tags = images.tags_of(image)
        with contextlib.suppress(docker.errors.APIError):  # somebody's container uses it
            # One without a name is of a daemon that was killed between commit and tag.
            is_seed = f"{images.SEEDS}:{token}" in tags or (not tags and images.is_ours(client, image["Id"]))
            if is_seed and not _is_alive(token):
                name = f"{images.SEEDS}:{token}" if tags else image["Id"]
                client.api.remove_image(name)
                removed.append(f"image {name}")
    return removed


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
