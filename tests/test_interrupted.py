"""Ctrl-C while an image is pulled: there is nothing yet that a run would have to wait for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from machine import Registry, registry


@pytest.mark.docker
def test_a_pull_in_the_background_is_given_up_at_once(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, go_on = threading.Event(), threading.Event()
    answer = Registry._answer

    def stalling(self: Registry, path: str, credentials: str) -> tuple[int, str, bytes]:
        if "/blobs/" in path:
            asked.set()
            go_on.wait(60)
        return answer(self, path, credentials)

    monkeypatch.setattr(Registry, "_answer", stalling)
    pytester.makepyfile("def test_it(pgsandbox_connection): pass")
    with registry() as slow:
        monkeypatch.setenv("PGSANDBOX_ENGINE", "docker")
        monkeypatch.setenv("PGSANDBOX_IMAGE", slow.name)
        command = [sys.executable, "-m", "pytest", "-p", "pgsandbox", "-p", "no:randomly", "-n2"]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        ) as process:
            try:
                assert asked.wait(30)
                begun = time.monotonic()
                os.killpg(process.pid, signal.SIGINT)  # as a terminal does
                said, _ = process.communicate(timeout=40)
                took = time.monotonic() - begun
            finally:
                process.kill()
                go_on.set()
        assert process.returncode == pytest.ExitCode.INTERRUPTED, said
        assert took < 10, said
