"""Kept templates as images of the daemon: what they are called, what they say of themselves, how they go and travel."""

from __future__ import annotations

import base64
import contextlib
import json
import platform
import zlib
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

SEEDS = "pgsandbox-seed"
"""The name of images for one run, tagged with a server's token; at first, of those that are to be kept as well."""

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
    # What the commit is not told, it takes over from the container. Told twice: Podman before 5 has no ear for the
    # configuration, and with Docker the instructions can't make an entrypoint empty.
    environ = ["POSTGRES_PASSWORD=", "POSTGRES_PASSWORD_FILE="]
    conf = {"Env": environ, "Entrypoint": [], "Cmd": [], "Labels": labels}
    changes = ["ENTRYPOINT []", "CMD []", *(f"ENV {pair}" for pair in environ)]
    changes += [f"LABEL {name}={value}" for name, value in labels.items()]
    try:
        client.api.commit(container, repository=repository, tag=version, message=_COMMENT, conf=conf, changes=changes)
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


def keep(client: docker.DockerClient, seed: str, tag: str) -> None:
    """Let the image that was made as `seed` be called `tag` from now on."""
    rename(client, seed, tag)
    client.api.remove_image(seed)  # the name alone: it has another


def size_on(client: docker.DockerClient, image: str, base: str) -> int:
    """How many bytes `image` adds to `base`."""
    return int(client.images.get(image).attrs["Size"]) - int(client.images.get(base).attrs["Size"])


def labels_of_kept(folder: Path, note: dict[str, Any]) -> dict[str, str]:
    """What a kept image says of itself; what its container said of its run is not for other machines."""
    mine = dict.fromkeys((LABEL_RUN, LABEL_OWNER, LABEL_SERVER, LABEL_CREATED), "")
    return {**mine, _NOTE: _packed(note), _CACHE: _cache_id(folder)}


def note_of(client: docker.DockerClient, name: str) -> dict[str, Any] | None:
    """What the image `name` says of itself, if it is a template that pgsandbox baked."""
    labels = client.images.get(name).attrs["Config"].get("Labels") or {}
    with contextlib.suppress(ValueError, zlib.error):
        note = json.loads(zlib.decompress(base64.urlsafe_b64decode(labels.get(_NOTE, ""))))
        if isinstance(note, dict):
            return note
    return None


def tags_of(image: dict[str, Any]) -> list[str]:
    """The names of an image that the daemon lists, as Docker writes them: Podman writes out where they are from."""
    tags = (tag.removeprefix("docker.io/library/").removeprefix("localhost/") for tag in image["RepoTags"] or ())
    return [tag for tag in tags if tag != _NAMELESS]


def is_ours(client: docker.DockerClient, id_: str) -> bool:
    """Whether it was us who made the image `id_`, and not somebody from one of ours."""
    return client.images.get(id_).attrs.get("Comment") == _COMMENT


def retire(client: docker.DockerClient, tag: str) -> None:
    """Remove the image `tag`, if there is one; while a container runs on it, it only gets another name.

    An image without a name is nobody's to remove any more: so the last name is never taken from one that stays.
    """
    import docker

    with contextlib.suppress(docker.errors.NotFound):
        id_ = str(client.images.get(tag).id)
        try:
            client.api.remove_image(tag)
        except docker.errors.NotFound:
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
        tags = tags_of(client.images.get(id_).attrs)
        if len(tags) == 1 and tags[0].startswith(f"{KEPT}:{_retired(id_)}-"):
            client.api.remove_image(tags[0])


def strays(client: docker.DockerClient, folder: Path, known: set[str]) -> Iterator[tuple[str, str]]:
    """Images of the cache in `folder`, by key, that are none of `known`: their tags, or where they have none, ids."""
    import docker

    mine = f"-{_cache_id(folder)}"
    for tag in (tag for image in client.api.images(name=KEPT) for tag in tags_of(image)):
        key = tag.partition(":")[2].removesuffix(mine)
        if tag.endswith(mine) and key not in known and note_of(client, tag) is not None:
            yield key, tag
    # A builder that is killed leaves one with the name that it was made under; a daemon, one without a name.
    for image in client.api.images(filters={"label": f"{_CACHE}={_cache_id(folder)}"}):
        tags = tags_of(image)
        with contextlib.suppress(docker.errors.NotFound):  # somebody else tidies up, too
            if all(tag.startswith(f"{SEEDS}:") for tag in tags) and is_ours(client, image["Id"]):
                key = str((note_of(client, image["Id"]) or {}).get("key", "0"))
                yield from ((key, name) for name in tags or [image["Id"]])


def _packed(note: dict[str, Any]) -> str:
    """`note` in the few characters that mean nothing in an instruction, and short: a line of those is 64 kB at most."""
    return base64.urlsafe_b64encode(zlib.compress(json.dumps(note, sort_keys=True).encode())).decode()


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
