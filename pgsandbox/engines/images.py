"""Kept templates as images of the daemon: what they are called, what they say of themselves, how they go and travel."""

from __future__ import annotations

import contextlib
import json
import platform
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgsandbox import places
from pgsandbox.engines.container import LABEL_CREATED, LABEL_OWNER, LABEL_RUN, LABEL_SERVER
from pgsandbox.errors import PgsandboxError, PlaceError, ServerError

if TYPE_CHECKING:
    import docker

KEPT = "pgsandbox-template"
"""The name of images that are kept, tagged `NAME-FOLDER`: a fingerprint, and which cache it belongs to."""

_NOTE, _CACHE = "pgsandbox.template", "pgsandbox.cache"
"""Labels of such an image: what is to be known of it wherever it gets to, and the cache that it was baked for."""

_COMMENT = "pgsandbox"
"""What our commits are commented with: an image that somebody made from one of ours has its labels, but not that."""

_NAMELESS = "<none>:<none>"


def tag_of(folder: Path, name: str) -> str:
    """The tag of the image that the cache in `folder` keeps under `name`."""
    return f"{KEPT}:{name}-{_cache_id(folder)}"


def commit(client: docker.DockerClient, container: str, tag: str, labels: dict[str, str]) -> None:
    """Make the image `tag` of a stopped cluster's container; one that had that name before goes.

    Raises PlaceError where the daemon has no room for it, ServerError.
    """
    import docker

    retire(client, tag)
    repository, _, version = tag.partition(":")
    # What the commit is not told, it takes over from the container.
    conf = {"Env": ["POSTGRES_PASSWORD=", "POSTGRES_PASSWORD_FILE="], "Entrypoint": [], "Cmd": [], "Labels": labels}
    try:
        client.api.commit(container, repository=repository, tag=version, message=_COMMENT, conf=conf)
    except docker.errors.APIError as problem:
        raise _not_made(problem) from problem


def put(client: docker.DockerClient, container: str, content: Iterable[bytes], folder: str) -> None:
    """Unpack an archive, in pieces, into `folder` of a container. Raises PlaceError, ServerError."""
    import docker

    try:
        client.api.put_archive(container, folder, content)
    except docker.errors.APIError as problem:
        raise _not_made(problem) from problem


def rename(client: docker.DockerClient, image: str, tag: str) -> None:
    """Give `image` the name `tag`; one that had it before goes."""
    retire(client, tag)
    repository, _, version = tag.partition(":")
    client.api.tag(image, repository, version)


def size_on(client: docker.DockerClient, image: str, base: str) -> int:
    """How many bytes `image` adds to `base`."""
    return int(client.images.get(image).attrs["Size"]) - int(client.images.get(base).attrs["Size"])


def labels_of_kept(folder: Path, note: dict[str, Any]) -> dict[str, str]:
    """What a kept image says of itself; what its container said of its run is not for other machines."""
    mine = dict.fromkeys((LABEL_RUN, LABEL_OWNER, LABEL_SERVER, LABEL_CREATED), "")
    return {**mine, _NOTE: json.dumps(note, sort_keys=True), _CACHE: _cache_id(folder)}


def note_of(client: docker.DockerClient, name: str) -> dict[str, Any] | None:
    """What the image `name` says of itself, if it is a template that pgsandbox baked."""
    labels = client.images.get(name).attrs["Config"].get("Labels") or {}
    with contextlib.suppress(ValueError):
        note = json.loads(labels.get(_NOTE, ""))
        if isinstance(note, dict):
            return note
    return None


def is_ours(client: docker.DockerClient, id_: str) -> bool:
    """Whether it was us who made the image `id_`, and not somebody from one of ours."""
    return client.images.get(id_).attrs.get("Comment") == _COMMENT


def retire(client: docker.DockerClient, tag: str) -> None:
    """Remove the image `tag`, if there is one; while a container runs on it, it only gets another name.

    An image without a name is nobody's to remove any more: so the last name is never taken from one that stays.
    """
    import docker

    with contextlib.suppress(docker.errors.ImageNotFound):
        id_ = str(client.images.get(tag).id)
        try:
            client.api.remove_image(tag)
        except docker.errors.ImageNotFound:
            raise
        except docker.errors.APIError as problem:
            if problem.status_code != 409:
                raise
            if tag == id_:  # it never had a name; whoever tidies up next tries again
                return
            repository, _, version = tag.partition(":")
            other = f"{_retired(id_)}-{version.rpartition('-')[2]}"
            if version != other:
                client.api.tag(id_, repository, other)
                client.api.remove_image(tag)


def remove_if_retired(client: docker.DockerClient, id_: str) -> None:
    """Remove the image `id_` if it is one that only waited for its last container to end."""
    import docker

    with contextlib.suppress(docker.errors.APIError):
        tags = client.images.get(id_).tags
        if len(tags) == 1 and tags[0].startswith(f"{KEPT}:{_retired(id_)}-"):
            client.api.remove_image(tags[0])


def strays(client: docker.DockerClient, folder: Path, known: set[str]) -> Iterator[tuple[str, str]]:
    """Images of the cache in `folder`, by key, that are none of `known`: their tags, or where they have none, ids."""
    mine = f"-{_cache_id(folder)}"
    for tag in (tag for image in client.api.images(name=KEPT) for tag in image["RepoTags"] or ()):
        key = tag.partition(":")[2].removesuffix(mine)
        if tag.endswith(mine) and key not in known and note_of(client, tag) is not None:
            yield key, tag
    # A daemon that is killed between commit and tag leaves one without a name.
    for image in client.api.images(filters={"label": f"{_CACHE}={_cache_id(folder)}", "dangling": True}):
        if is_ours(client, image["Id"]):
            yield str((note_of(client, image["Id"]) or {}).get("key", "0")), image["Id"]


def _not_made(problem: docker.errors.APIError) -> PgsandboxError:
    why = problem.explanation or str(problem)
    if "no space left" in why:
        return PlaceError("the daemon has no space left for an image", why=why, hint="try `docker system df`")
    return ServerError("the daemon could not make an image of the template", why=why)


def _retired(id_: str) -> str:
    """What stands for the fingerprint in the tag of an image whose entry has gone; no fingerprint is as short."""
    return id_.removeprefix("sha256:")[:12]


def _cache_id(folder: Path) -> str:
    return places.digest(str(folder), platform.node())  # several machines may share a daemon
