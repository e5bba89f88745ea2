"""What a run leaves with the Docker engine, and the proof that it was that run and nobody else on this machine.

An image is made of the given one that differs in nothing but a label. Whatever container is started from it, by whom
ever, has the label too, and so has every image that is made of such a container. A volume's proof is that a container
with the label mounted it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from dataclasses import dataclass, field

LABEL = "bench.run"
REPOSITORY = "pgsandbox-bench"


class DockerProblem(Exception):  # noqa: N818 -- it says what happened
    """Docker can't do what it was asked for; the text is its last words."""


def docker(*words: str) -> list[str]:
    """The lines that a docker command prints. Raises DockerProblem."""
    if not shutil.which("docker"):
        raise DockerProblem("there is no docker command")
    done = subprocess.run(["docker", *words], capture_output=True, text=True, timeout=600, check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise DockerProblem(lines[-1])
    return done.stdout.split("\n")[:-1]


@dataclass
class Left:
    """What is there that wasn't before."""

    containers: list[str] = field(default_factory=list)
    volumes: list[str] = field(default_factory=list)
    images: list[str] = field(default_factory=list)


class Marked:
    """The image with the label, and everything that is made of it."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.image = ""
        self._known: set[str] = set()

    @classmethod
    def made_of(cls, image: str, major: int, token: str) -> Marked:
        """A new one; `image` is pulled if it isn't here. Raises DockerProblem."""
        marked = cls(token)
        try:
            container = docker("create", "--label", marked._label, image)[-1]
            try:
                docker("commit", container, f"{REPOSITORY}-{marked.token}:{major}")
            finally:
                docker("rm", "--volumes", container)
        except DockerProblem:
            marked.remove()
            raise
        marked.image = f"{REPOSITORY}-{marked.token}:{major}"
        marked._known = set(marked._images())
        return marked

    @property
    def _label(self) -> str:
        return f"{LABEL}={self.token}"

    def containers(self) -> list[str]:
        """All containers with the label, whatever their state."""
        return docker("ps", "--all", "--quiet", "--no-trunc", "--filter", f"label={self._label}")

    def _images(self) -> list[str]:
        return docker("images", "--all", "--quiet", "--no-trunc", "--filter", f"label={self._label}")

    def left(self, since: float) -> Left:
        """What was made since that time (Unix), and still is there."""
        period = ["--since", f"{since:.3f}", "--until", f"{time.time():.3f}"]
        started = docker(
            "events", *period, "--filter", "event=create", "--filter", f"label={self._label}",
            "--filter", "type=container", "--format", "{{.Actor.ID}}",
        )  # fmt: skip
        mounts = docker(
            "events", *period, "--filter", "event=mount", "--filter", "type=volume",
            "--format", "{{.Actor.ID}} {{.Actor.Attributes.container}}",
        )  # fmt: skip
        ours = {line.split()[0] for line in mounts if line.split()[-1] in started}
        volumes = [name for name in docker("volume", "ls", "--quiet") if name in ours] if ours else []
        return Left(self.containers(), volumes, [one for one in set(self._images()) if one not in self._known])

    def forgive(self, left: Left) -> None:
        """Don't count these images again: they are there on purpose until `remove`."""
        self._known.update(left.images)

    def remove(self, left: Left | None = None) -> None:
        """Remove all containers with the label and the volumes of `left`; without `left`, all images too."""
        if containers := self.containers():
            docker("rm", "--force", "--volumes", *containers)
        for volume in left.volumes if left else ():
            with contextlib.suppress(DockerProblem):
                docker("volume", "rm", volume)
        for image in self._images() if left is None else ():
            with contextlib.suppress(DockerProblem):  # it went with one that was made of it
                docker("rmi", "--force", image)

    def processes(self) -> list[int]:
        """The first process of each container, if they run on this machine."""
        pids = [docker("inspect", "--format", "{{.State.Pid}}", one)[0] for one in self.containers()]
        return [int(pid) for pid in pids if os.path.isdir(f"/proc/{pid}")]  # noqa: PTH112 -- a name like any other


def foreign(label: str) -> int:
    """How many containers with `label` there are."""
    return len(docker("ps", "--all", "--quiet", "--filter", f"label={label}"))
