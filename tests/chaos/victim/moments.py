"""Where a run is: each of its processes says when it gets to a moment of its life, and waits there if it is told to.

A moment is a file `MOMENT.WORKER` beside this one with the pid of who got there; the file `go` ends all waiting.
"""

from __future__ import annotations

import os
import resource
import threading
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # some are made to crash


def say(moment: str) -> None:
    """Say that this process is there."""
    said = HERE / f"{moment}.{os.environ.get('PYTEST_XDIST_WORKER', 'main')}"
    fresh = HERE / f".{said.name}.{threading.get_ident()}"
    fresh.write_text(str(os.getpid()))
    fresh.replace(said)


def reach(moment: str) -> None:
    """Say that this process is there; if it is where the run should stop, wait until told to go on."""
    say(moment)
    while os.environ["CHAOS_STOP_AT"] == moment and not (HERE / "go").exists():
        time.sleep(0.02)


def before(owner: Any, name: str, moment: str) -> None:
    """Have every call of `owner.name` reach `moment` first."""
    real = getattr(owner, name)

    def call(*words: Any, **more: Any) -> Any:
        reach(moment)
        return real(*words, **more)

    setattr(owner, name, call)


def during(owner: Any, name: str, moment: str) -> None:
    """Have every call of `owner.name` say that it is at `moment` once it has begun; it goes on all the while."""
    real = getattr(owner, name)

    def call(*words: Any, **more: Any) -> Any:
        timer = threading.Timer(0.02, say, [moment])
        timer.daemon = True
        timer.start()
        return real(*words, **more)

    setattr(owner, name, call)


def pytest_addoption() -> None:
    """Before pgsandbox is imported as a plugin, so that it finds what is put in place here."""
    from pgsandbox import engines, identity, template
    from pgsandbox.cache import Cache
    from pgsandbox.engines import supervised
    from pgsandbox.isolation.reset.undo import Undo
    from pgsandbox.sandbox import Sandbox

    new_identity = identity.new_identity

    def noted(*words: Any) -> identity.Identity:
        found = new_identity(*words)
        (HERE / f"run-id.{found.run}").touch()
        reach("start")
        return found

    identity.new_identity = noted
    before(engines, "choose", "choice")
    during(template, "build", "building")
    before(Cache, "keep", "commit")
    before(Undo, "full", "reset")
    before(Sandbox, "stop", "end")
    if os.environ["CHAOS_ENGINE"] == "docker":
        import docker

        from pgsandbox.engines.docker import DockerEngine

        before(docker.APIClient, "create_container", "asked")
        before(docker.APIClient, "start", "created")
        before(DockerEngine, "bake", "bake")
        during(docker.APIClient, "commit", "packing")
    else:
        from pgsandbox.engines.local import LocalEngine

        before(LocalEngine, "bake", "bake")
        during(supervised, "bake", "packing")
