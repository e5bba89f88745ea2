"""What is left of a run: processes, folders, sockets, memory, containers, images, volumes, half made templates."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from children import eventually
from runs import ChaosRun, all_pids, read

from pgsandbox.cache import Cache
from pgsandbox.engines import images, named

if TYPE_CHECKING:
    import docker

DEADLINE = 5.0
"""Seconds after the last process of a run has gone until nothing of it may be left."""


ORPHANED = 20.0
"""Seconds after the end of its controller until a worker has ended, too."""


class LeftError(AssertionError):
    """Something of a run is still there that should have gone."""


class Watch:
    """All that `runs`, in the runtime folder `runtime` and with the kept templates `cache`, have on this machine.

    Made right before the blow: what is to be looked for is noted from then on.
    """

    def __init__(self, runtime: Path, runs: Iterable[ChaosRun], *, cache: Cache | None = None) -> None:
        self._runtime = runtime
        self._runs = list(runs)
        self._cache = cache or Cache()
        self._tokens: set[str] = set()
        self._data: dict[Path, int] = {}
        self._volumes: set[str] = set()
        self._client: docker.DockerClient | None = None
        if any(run.engine == "docker" for run in self._runs):
            import docker

            self._client = docker.from_env()
        self.note()

    def close(self) -> None:
        """Let go of the daemon."""
        if self._client is not None:
            self._client.close()

    def left(self) -> list[str]:
        """What is still there, in words; the daemon is asked, which takes a while, if there is nothing else."""
        self.note()
        return list(self._on_the_machine()) or list(self._in_the_daemon()) or cache_trouble(self._cache, self._client)

    def wait_until_clean(self, timeout: float = DEADLINE) -> float:
        """The seconds that it took after the last controller or worker had gone; LeftError if more than `timeout`."""
        for run in self._runs:
            run.wait()
        # A worker that was just starting, and knows nothing of us yet, is ended by execnet: after 5 s, or 15.
        if not eventually(lambda: not any(run.workers() for run in self._runs), timeout=ORPHANED):
            raise LeftError(f"workers live on after {ORPHANED:g}s: {[run.workers() for run in self._runs]}")
        begin = time.monotonic()
        with contextlib.closing(self):
            while left := self.left():
                if time.monotonic() - begin > timeout:
                    raise LeftError(f"still there after {timeout:g}s: {left}")
                time.sleep(0.02)
        return time.monotonic() - begin

    def note(self) -> None:
        """Note what there is now: once a process has gone, there is nobody to ask what was its own."""
        for spec in (spec for folder in self._folders() for spec in folder.glob("servers/*/spec.json")):
            self._tokens.add(spec.parent.name)
            with contextlib.suppress(OSError, KeyError, ValueError):
                data = Path(json.loads(spec.read_text())["data"])
                self._data.setdefault(data, data.stat().st_ino)
        for container in self._containers():
            self._volumes.update(mount["Name"] for mount in container["Mounts"] if mount["Type"] == "volume")

    def _folders(self) -> list[Path]:
        runs = self._runtime / "runs"
        names = [id_ for run in self._runs for id_ in run.ids]
        return [folder for folder in runs.glob("*") if folder.name.partition(".")[0] in names]

    def _on_the_machine(self) -> Iterator[str]:
        marked = {pid for run in self._runs for pid in run.pids()}
        for pid in all_pids():
            if pid in marked or self._works_for_us(pid):
                yield f"process {pid}: {read(pid, 'cmdline')[:100]}"
        yield from (f"folder {folder}" for folder in self._folders())
        yield from (f"data {data}" for data in self._data if data.exists())
        yield from (f"shared memory {id_}" for id_ in self._segments())
        yield from (f"file {file}" for run in self._runs for file in (run.folder / "tmp").rglob("*"))
        sockets = read_lines("/proc/net/unix")
        yield from (f"socket {line}" for line in sockets if any(f"{data}/" in line for data in self._data))

    def _works_for_us(self, pid: int) -> bool:
        """Whether it is a process of PostgreSQL, whose environment says nothing."""
        with contextlib.suppress(OSError):
            where = str(Path(f"/proc/{pid}/cwd").readlink()).removesuffix(" (deleted)")
            return Path(where) in self._data
        return False

    def _segments(self) -> Iterator[str]:
        inodes = {inode % (1 << 32) for inode in self._data.values()}
        for line in read_lines("/proc/sysvipc/shm")[1:]:
            key, id_, *_ = line.split()
            if int(key) % (1 << 32) in inodes:
                yield id_

    def _in_the_daemon(self) -> Iterator[str]:
        if self._client is None:
            return
        yield from (f"container {container['Names']}" for container in self._containers())
        for filters in ({"label": f"pgsandbox.run={id_}"} for run in self._runs for id_ in run.ids):
            yield from (f"image {image['Id'][:19]}" for image in self._client.api.images(filters=filters))
            yield from (f"network {one['Name']}" for one in self._client.api.networks(filters=filters))
            yield from (f"volume {one['Name']}" for one in self._client.api.volumes(filters=filters)["Volumes"] or ())
        for image in self._client.api.images(name="pgsandbox-seed"):
            tags = {tag.rpartition(":")[2] for tag in image["RepoTags"] or ()}
            yield from (f"image pgsandbox-seed:{tag}" for tag in tags & self._tokens)
        volumes = self._client.api.volumes()["Volumes"] or ()
        yield from (f"volume {name}" for name in self._volumes & {one["Name"] for one in volumes})

    def _containers(self) -> list[dict[str, Any]]:
        if self._client is None:
            return []
        ids = [id_ for run in self._runs for id_ in run.ids]
        labels = [{"label": f"pgsandbox.run={id_}"} for id_ in ids]
        return [one for filters in labels for one in self._client.api.containers(all=True, filters=filters)]


def cache_trouble(cache: Cache, client: docker.DockerClient | None = None) -> list[str]:
    """What is wrong with the kept templates: damaged ones, and what has no record or no name."""
    entries = cache.entries()
    if client is None:
        entries = [entry for entry in entries if entry.engine != "docker"]
    found = [f"damaged {entry.where}" for entry in entries if named(entry.engine).damage(entry.seed) is not None]
    known = {entry.where for entry in entries} | {f"{cache.folder}/{entry.key}.json" for entry in cache.entries()}
    found += [f"half made {file}" for file in cache.folder.glob("*") if file.is_file() and str(file) not in known]
    if client is not None:
        label = f"pgsandbox.cache={images.labels_of_kept(cache.folder, {})['pgsandbox.cache']}"
        for image in client.api.images(filters={"label": label}):
            if not known.intersection(tags := images.tags_of(image)):
                found.append(f"half made {tags or image['Id']}")
    return found


def read_lines(file: str) -> list[str]:
    """The lines of one of the kernel's tables, if it has that."""
    try:
        return Path(file).read_text(errors="replace").splitlines()
    except OSError:
        return []
