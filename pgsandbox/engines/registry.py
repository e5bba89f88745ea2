"""Images that go to a registry and come from one, under a name that is only borrowed for that."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pgsandbox.errors import EngineError

if TYPE_CHECKING:
    import docker

    from pgsandbox.engines import Progress


def push(client: docker.DockerClient, image: str, reference: str, progress: Progress) -> None:
    """Push `image` to a registry as `reference`. Raises EngineError."""
    import docker
    from docker.utils import parse_repository_tag

    repository, tag = parse_repository_tag(reference)
    try:
        with _borrowed(client, reference):
            client.api.tag(image, repository, tag or "latest", force=True)
            for event in client.api.push(repository, tag or "latest", stream=True, decode=True):
                if "error" in event:
                    raise _not_moved("pushed to", reference, event["error"])
                progress(f"pushing {reference}: {event.get('status', '')} {event.get('progress', '')}".rstrip())
    except (docker.errors.DockerException, OSError) as problem:
        raise _not_moved("pushed to", reference, getattr(problem, "explanation", None) or str(problem)) from problem


@contextlib.contextmanager
def pulled(client: docker.DockerClient, reference: str, progress: Progress) -> Iterator[str]:
    """The image that a registry has as `reference`, for the length of the block: its id. Raises EngineError."""
    import docker
    from docker.utils import parse_repository_tag

    repository, tag = parse_repository_tag(reference)
    with _borrowed(client, reference):
        try:
            for event in client.api.pull(repository, tag=tag or "latest", stream=True, decode=True):
                if "error" in event:
                    raise _not_moved("pulled from", reference, event["error"])
                progress(f"pulling {reference}: {event.get('status', '')} {event.get('progress', '')}".rstrip())
            id_ = str(client.images.get(reference).id)
        except (docker.errors.DockerException, OSError) as problem:
            raise _not_moved(
                "pulled from", reference, getattr(problem, "explanation", None) or str(problem)
            ) from problem
        yield id_


@contextlib.contextmanager
def _borrowed(client: docker.DockerClient, reference: str) -> Iterator[None]:
    """For the block we may give the name `reference` to another image; whose it was, if anybody's, gets it back."""
    import docker
    from docker.utils import parse_repository_tag

    before = None
    with contextlib.suppress(docker.errors.NotFound):
        before = client.images.get(reference).id
    try:
        yield
    finally:
        repository, tag = parse_repository_tag(reference)
        with contextlib.suppress(docker.errors.APIError):
            if before is None:
                client.api.remove_image(reference)
            elif not (tag or "").startswith("sha256:"):
                now = str(client.images.get(reference).id)
                client.api.tag(before, repository, tag or "latest", force=True)
                if now != before and not client.images.get(now).tags:
                    client.api.remove_image(now)


def _not_moved(moved: str, reference: str, why: str) -> EngineError:
    host, slash, _ = reference.partition("/")
    is_host = slash and (host == "localhost" or "." in host or ":" in host)  # else it is a name on Docker Hub
    return EngineError(
        f"docker: the template can't be {moved} {reference}",
        why=why.strip().partition("\n")[0],
        hint=f"check the name and the network, or `docker login{f' {host}' if is_host else ''}`",
    )
