"""Docker's daemon takes its time, or goes away and comes back: a start ends in time and says why, and nothing stays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from children import eventually
from conftest import left_behind
from engines import DOCKER
from machine import Forwarder, forwarded_unix

from pgsandbox import Sandbox
from pgsandbox.errors import EngineError, NotReadyError

pytestmark = pytest.mark.docker
TIMEOUT = 6


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Forwarder]:
    """The way to the daemon; what supervisors have to do at the end is done before it is closed."""
    with forwarded_unix(tmp_path / "docker.sock") as (host, forwarder):
        monkeypatch.setenv("DOCKER_HOST", host)
        yield forwarder
        forwarder.delay = 0
        runs = Path(os.environ["_PGSANDBOX_ROOT"]) / "runs"
        assert eventually(lambda: not runs.exists() or not list(runs.iterdir()), timeout=60)


def host() -> str:
    return os.environ["DOCKER_HOST"]


def test_a_daemon_that_takes_thirty_seconds_for_each_answer_is_none(daemon: Forwarder) -> None:
    daemon.delay = 30
    began = time.monotonic()
    with pytest.raises(EngineError) as caught, Sandbox(**DOCKER.settings, timeout=f"{TIMEOUT}s"):
        pass
    assert time.monotonic() - began < 2 * TIMEOUT
    assert str(caught.value) == (
        "pgsandbox: docker: no engine answers\n"
        f"  why: no answer within {TIMEOUT}s\n"
        f"  looked at: {host()}\n"
        "  hint: start Docker, or use --pgsandbox-engine=local"
    )


def test_a_daemon_that_is_slow_for_each_call_has_one_deadline_for_all(daemon: Forwarder) -> None:
    """Each of them alone would be in time."""
    daemon.delay = 0.4 * TIMEOUT
    with pytest.raises(EngineError) as caught, Sandbox(**DOCKER.settings, timeout=f"{TIMEOUT}s"):
        pass
    assert str(caught.value) == (
        f"pgsandbox: docker: the engine was not done within {TIMEOUT}s\n"
        f"  why: it has not answered yet: GET /images/{DOCKER.settings['image']}/json\n"
        f"  looked at: {host()}\n"
        "  hint: is it, or its disk, busy? Look how long `docker version` takes, or raise the setting timeout"
    )


def test_a_container_that_a_slow_daemon_makes_when_nobody_waits_for_it_any_more_is_removed(
    daemon: Forwarder, monkeypatch: pytest.MonkeyPatch, runtime: Path
) -> None:
    """Its supervisor has told the time: the daemon was asked, and may yet do it."""
    import docker

    create = docker.APIClient.create_container

    def create_late(*args: Any, **more: Any) -> Any:
        daemon.delay = 60
        return create(*args, **more)

    monkeypatch.setattr(docker.APIClient, "create_container", create_late)
    with pytest.raises(NotReadyError) as caught, Sandbox(**DOCKER.settings, timeout=f"{TIMEOUT}s"):
        pass
    assert str(caught.value) == (
        f"pgsandbox: docker: the engine was not done within {TIMEOUT}s\n"
        "  why: it has not answered yet: POST /containers/create\n"
        f"  looked at: {host()}\n"
        "  hint: is it, or its disk, busy? Look how long `docker version` takes, or raise the setting timeout"
    )
    daemon.delay = 0  # from here on the daemon hears what it was asked for
    assert eventually(lambda: left_behind(runtime) == [], timeout=60)


START = """
import json, sys
from pgsandbox import Sandbox
with Sandbox(**json.loads(sys.argv[1])):
    pass
"""


def test_a_start_that_waits_for_a_slow_daemon_can_be_interrupted(daemon: Forwarder) -> None:
    daemon.delay = 30
    words = [sys.executable, "-c", START, json.dumps(DOCKER.settings)]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        assert eventually(lambda: daemon.accepted > 1, timeout=60)
        interrupted = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
        assert time.monotonic() - interrupted < 10
        assert said.splitlines()[-1] == "KeyboardInterrupt"


def test_a_container_is_removed_once_its_daemon_is_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A supervisor that finds nobody to tell asks again; until then the run's folder says what there is to remove."""
    socket = tmp_path / "own.sock"
    runs = Path(os.environ["_PGSANDBOX_ROOT"]) / "runs"
    monkeypatch.setenv("DOCKER_HOST", f"unix://{socket}")
    with forwarded_unix(socket):
        sandbox = Sandbox(**DOCKER.settings)
        container = sandbox.start().running.detail["container"]
    socket.unlink()
    words = ["docker", "--host", "unix:///var/run/docker.sock", "pause", container]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)  # else it would end by itself
    sandbox.stop()
    assert list(runs.iterdir())
    with forwarded_unix(socket):
        assert eventually(lambda: not list(runs.iterdir()), timeout=60)
