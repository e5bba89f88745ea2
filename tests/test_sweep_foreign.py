"""What only looks dead, or only looks like ours, lives through every clearing away there is."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from children import child, eventually, is_gone
from conftest import Target, image
from machine import derived_image
from test_sweep import DOCKER, HOLD, data_of, docker, leave_dead

from pgsandbox import Sandbox, named, places
from pgsandbox.cache import Cache
from pgsandbox.engines import images, supervised
from pgsandbox.run import folder_of, write_record

pytestmark = pytest.mark.slow
SLEEPS = "import time\nprint('ready', flush=True)\ntime.sleep(600)\n"


@pytest.fixture
def settings(some_target: Target) -> dict[str, Any]:
    return {**some_target.settings, "scope": "session"}


def clear_away_everything(project: Path, settings: dict[str, Any]) -> None:
    """`prune`, `prune --cache`, a start, and `up` and `down --all` of another project."""
    environ = {**os.environ, **{f"PGSANDBOX_{name.upper()}": str(value) for name, value in settings.items()}}
    for words in (["prune"], ["run", "--", "true"], ["up"], ["down", "--all"], ["prune", "--cache"]):
        command = [sys.executable, "-m", "pgsandbox", *words]
        done = subprocess.run(command, cwd=project, env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


@contextlib.contextmanager
def stopped(process: subprocess.Popen[str]) -> Iterator[None]:
    os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


HOLD_AND_ASK = HOLD.replace(
    "    sys.stdin.read()\n",
    '    sys.stdin.readline()\n    print(*sandbox.server.execute("SELECT 42")[0], flush=True)\n    sys.stdin.read()\n',
)


@pytest.mark.parametrize("scope", ["session", "worker"])
def test_who_is_stopped_is_not_dead(settings: dict[str, Any], project: Path, own_cache: Path, scope: str) -> None:
    with child(HOLD_AND_ASK, "stopped", json.dumps({**settings, "scope": scope})) as holder:
        servers = set(folder_of("stopped").glob("servers/*"))
        with stopped(holder):
            clear_away_everything(project, settings)
        assert set(folder_of("stopped").glob("servers/*")) == servers
        assert all(data_of(server).exists() for server in servers)
        assert holder.stdin is not None
        assert holder.stdout is not None
        print(file=holder.stdin, flush=True)
        assert holder.stdout.readline() == "42\n"


def test_a_sandbox_whose_supervisor_is_stopped_is_not_dead(
    settings: dict[str, Any], project: Path, tmp_path: Path, own_cache: Path, cli: Any
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "pytest.ini").write_text("[pytest]\n")
    url = cli("up", cwd=other).stdout.strip()
    [record] = places.runtime_root().glob("runs/*/servers/*/supervisor.json")
    pid = json.loads(record.read_text())["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        clear_away_everything(project, settings)
    finally:
        os.kill(pid, signal.SIGCONT)
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT 42").fetchone() == (42,)
    assert cli("down", cwd=other).returncode == 0


def test_who_has_the_pid_of_somebody_dead_lives(settings: dict[str, Any], project: Path) -> None:
    """Of a supervisor, and of a PostgreSQL whose data is left: both are swept, and nobody is sent a signal."""
    with child(SLEEPS) as bystander:
        server = leave_dead("dead", settings)
        write_record(server / supervised.PID, {"pid": bystander.pid})
        data = data_of(server)
        lines = [str(bystander.pid), str(data), "1", "20000", str(data), "127.0.0.1", "1 1", "ready"]
        (data / "postmaster.pid").write_text("\n".join(lines))
        assert supervised.end(server, timeout=1) == []
        clear_away_everything(project, settings)
        assert eventually(lambda: not server.exists() and not data.exists())
        assert not is_gone(bystander.pid)


def test_folders_beside_ours_stay(settings: dict[str, Any], project: Path, tmp_path: Path) -> None:
    """In the runtime folder and around it, in the cache and where data lies: also where they are called like ours."""
    root, cache = places.runtime_root(), Cache().prepare()
    token = places.new_token()
    beside = [
        root.parent / f"{root.name}-old",
        root / "mine",
        cache / "mine",
        cache.parent / "templates-0",
        places.data_folder(token),
    ]
    link, linked = root / "runs" / "link", tmp_path / "linked"
    try:
        for folder in (*beside, linked / "servers" / "0123456789ab"):
            folder.mkdir(parents=True)
            (folder / "file").write_text("somebody's")
        (root / "runs").mkdir(mode=0o700, exist_ok=True)
        link.symlink_to(linked)
        clear_away_everything(project, settings)
        for folder in (*beside, linked / "servers" / "0123456789ab"):
            assert (folder / "file").read_text() == "somebody's"
        assert link.is_symlink()
    finally:
        link.unlink(missing_ok=True)
        for folder in beside:
            (folder / "file").unlink()
            folder.rmdir()


@contextlib.contextmanager
def somebodys(name: str, labels: dict[str, str], base: str) -> Iterator[str]:
    """A running container of somebody else's; still there when the block ends."""
    flags = [f"--label={key}={value}" for key, value in labels.items()]
    container = docker("run", "--detach", "--name", name, "--entrypoint", "sleep", *flags, base, "600")
    try:
        yield container
        assert docker("inspect", "--format", "{{ .State.Running }}", container) == "true"
    finally:
        docker("rm", "--force", "--volumes", container)


@pytest.mark.docker
def test_containers_and_images_that_only_look_like_ours_stay(project: Path, own_cache: Path) -> None:
    """Of another user, of no name of ours, made from an image of ours; tagged like a template, or like a seed."""
    ours, theirs = places.home_id(), secrets.token_hex(16)
    token, other = places.new_token(), places.new_token()
    (project / "pytest.ini").write_text("[pytest]\npgsandbox_init = schema.sql\n")
    (project / "schema.sql").write_text("CREATE TABLE t ()")
    with Sandbox(**DOCKER, root=project, init=["schema.sql"]) as sandbox:
        sandbox.stop()
    [entry] = Cache().entries()
    tags = [
        f"{images.KEPT}:0123456789abcdef0123-{images._cache_id(Cache().folder)}",
        f"{images.KEPT}:mine",
        f"pgsandbox-seed:{places.new_token()}",
    ]
    labels = [f'LABEL pgsandbox.owner="{ours}"', f'LABEL pgsandbox.server="{token}"', 'LABEL pgsandbox.run="dead"']
    with derived_image(image(15), *labels) as derived, contextlib.ExitStack() as stack:
        like_ours = {"pgsandbox.server": token, "pgsandbox.run": "dead"}
        stack.enter_context(somebodys(f"pgsandbox-{token}", {**like_ours, "pgsandbox.owner": theirs}, image(15)))
        stack.enter_context(somebodys(f"shop-{other}", {"pgsandbox.owner": ours, "pgsandbox.server": other}, image(15)))
        stack.enter_context(somebodys(f"derived-{other}", {}, derived))
        stack.enter_context(somebodys(f"templated-{other}", {}, entry.where))
        for tag in tags:
            docker("tag", image(15), tag)
            stack.callback(docker, "image", "rm", tag)
        settings = {name: value for name, value in DOCKER.items() if name != "scope"}
        clear_away_everything(project, settings)
        assert all(docker("images", "--quiet", tag) for tag in (*tags, derived))
    assert named.prune()[1] == []
    Cache().tidy("docker")
    assert docker("images", "--quiet", f"{images.KEPT}:*-{images._cache_id(Cache().folder)}") == ""
