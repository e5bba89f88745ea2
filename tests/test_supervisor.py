"""Supervisors: a server lives exactly as long as somebody holds it, and their own death is survived."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker
import psycopg
import pytest
from children import child, eventually, is_gone
from conftest import Target, image, left_behind
from machine import data_of, working_in

from pgsandbox import Sandbox, lease, named
from pgsandbox.engines import supervised
from pgsandbox.errors import ServerError
from pgsandbox.run import Run, folder_of, read_record, write_record
from pgsandbox.settings import Settings

# Holds a server of the run of that name until it is told to end, or killed.
HOLD = """\
import json, sys
from pgsandbox import Sandbox
with Sandbox(**json.loads(sys.argv[2]), run=sys.argv[1]) as sandbox:
    database = sandbox.database()
    print("ready", flush=True)
    sys.stdin.read()
"""

# Is killed before it has a server: with a supervisor ahead, the run's folder, and in it a server's.
AHEAD = """\
import sys
from pgsandbox.engines import supervised
from pgsandbox.places import private
from pgsandbox.run import Run, folder_of
handle = supervised.ahead(folder_of("early"))
run = Run("early")
private(run.folder / "servers" / "0123456789ab")
print("ready", flush=True)
sys.stdin.read()
"""

# Has the mark of a supervisor for a while before it says its pid.
SLOW = """\
import os, sys, time
from pathlib import Path
from pgsandbox import lease
from pgsandbox.engines.supervised import PID
from pgsandbox.run import write_record
folder = Path(sys.argv[1])
mark = lease.supervise(folder)
print("ready", flush=True)
time.sleep(0.3)
write_record(folder / PID, {"pid": os.getpid()})
sys.stdin.read()
"""

Hold = Callable[..., contextlib.AbstractContextManager[subprocess.Popen[str]]]


@pytest.fixture
def hold(some_target: Target) -> Hold:
    """`hold("run")`: a process that holds a server of that run, for the length of a block."""

    def hold(run: str = "held", **settings: Any) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
        return child(HOLD, run, json.dumps({**some_target.settings, "scope": "session", **settings}))

    return hold


def server_of(run: str) -> Path:
    """The folder of the run's one server."""
    [folder] = (folder_of(run) / "servers").iterdir()
    return folder


def supervisor_of(server: Path) -> int:
    record = read_record(server / supervised.PID)
    assert record is not None
    return int(record["pid"])


def is_over(data: Path, runtime: Path) -> bool:
    """Whether nothing is left: no folder, no process, no data."""
    return not (left_behind(runtime) or data.exists() or working_in(data))


def is_idle(folder: Path) -> bool:
    return not working_in(folder)


def test_a_server_lives_until_its_last_holder_is_killed(hold: Hold, runtime: Path) -> None:
    with hold() as first, hold() as second:
        server = server_of("held")
        data, supervisor = data_of(server), supervisor_of(server)
        first.kill()
        first.wait()
        assert not eventually(lambda: is_gone(supervisor), timeout=1.5)
        assert working_in(data)
        second.kill()
        second.wait()
        assert eventually(lambda: is_gone(supervisor) and not left_behind(runtime))
        assert (working_in(data), data.exists()) == ([], False)


def test_a_starter_that_dies_before_it_has_a_server_leaves_no_folder(runtime: Path) -> None:
    for _ in range(5):
        with child(AHEAD) as starter:
            assert folder_of("early").exists()
            starter.kill()
            starter.wait()
            assert eventually(lambda: not left_behind(runtime))


def test_a_supervisor_that_is_not_needed_leaves_the_run_to_those_who_hold_it() -> None:
    run = Run("held")
    handle = supervised.ahead(run.folder)
    handle.detach()
    assert not eventually(lambda: is_gone(handle.pid) or not run.folder.exists(), timeout=1)
    run.leave()
    assert eventually(lambda: is_gone(handle.pid))


def test_interrupts_and_hang_ups_mean_nothing_to_it_and_sigterm_ends_the_server(hold: Hold) -> None:
    with hold():
        server = server_of("held")
        data, supervisor = data_of(server), supervisor_of(server)
        for number in (signal.SIGINT, signal.SIGHUP):
            os.kill(supervisor, number)
        assert not eventually(lambda: is_gone(supervisor), timeout=1)
        os.kill(supervisor, signal.SIGTERM)
        assert eventually(lambda: not server.exists())
        assert (data.exists(), working_in(data)) == (False, [])
        assert not is_gone(supervisor), "the run is alive, and if it is killed its folder has to go"


def test_a_local_server_ends_with_its_killed_supervisor_and_the_next_start_sweeps_the_rest(
    hold: Hold, runtime: Path, some_target: Target
) -> None:
    with hold() as holder:
        server = server_of("held")
        data = data_of(server)
        assert len(working_in(data)) > 1
        os.kill(supervisor_of(server), signal.SIGKILL)
        assert eventually(lambda: not working_in(data), timeout=2)
        with Sandbox(**some_target.settings):
            assert not eventually(lambda: not server.exists(), timeout=1), "it is still held"
        holder.kill()
        holder.wait()
        with Sandbox(**some_target.settings):
            assert eventually(lambda: not server.parents[1].exists() and not data.exists())
    assert eventually(lambda: not left_behind(runtime))


@pytest.mark.parametrize("statement", ["SELECT pg_sleep(60)", "SELECT count(*) FROM generate_series(1, 10000000000)"])
def test_a_local_server_ends_at_once_when_all_is_killed_whatever_it_is_doing(hold: Hold, statement: str) -> None:
    with hold() as holder:
        server = server_of("held")
        data, supervisor = data_of(server), supervisor_of(server)
        record = read_record(server / "running.json")
        assert record is not None
        client = psycopg.connect(
            host=record["socket"] or record["host"], port=record["port"], user="postgres", dbname="postgres"
        )
        client.pgconn.send_query(statement.encode())
        for pid in (supervisor, holder.pid):
            os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
        assert eventually(lambda: not working_in(data), timeout=3)
        assert time.monotonic() - killed < 3
        client.close()
    assert named.prune() == ([f"local server {server.name}", "run held"], [])
    assert not data.exists()


def test_a_killed_supervisor_takes_initdb_along(some_target: Target, runtime: Path) -> None:
    settings = {**some_target.settings, "cache": False}
    for _ in range(3):
        with child(HOLD, "held", json.dumps(settings), says=None) as starter:
            found: dict[str, Path] = {}

            def initdb_runs(found: dict[str, Path] = found) -> bool:
                for spec in runtime.glob("runs/held/servers/*/spec.json"):
                    found["server"] = spec.parent
                    return len(working_in(data_of(spec.parent))) > 1
                return False

            assert eventually(initdb_runs)
            data, supervisor = data_of(found["server"]), supervisor_of(found["server"])
            for pid in (supervisor, starter.pid):
                os.kill(pid, signal.SIGKILL)
            starter.wait()
            assert eventually(functools.partial(is_idle, data)), "initdb, or a program of its"
        named.prune()
        assert (data.exists(), left_behind(runtime)) == (False, [])


def test_a_starter_killed_during_initdb_leaves_nothing(some_target: Target, runtime: Path) -> None:
    settings = {**some_target.settings, "cache": False}
    for _ in range(3):
        with child(HOLD, "held", json.dumps(settings), says=None) as starter:
            assert eventually(lambda: any(runtime.glob("runs/held/servers/*/supervisor.json")))
            data = data_of(server_of("held"))
            assert eventually(data.exists)
            starter.kill()
            starter.wait()
            assert eventually(functools.partial(is_over, data, runtime))


@pytest.mark.docker
@pytest.mark.podman
def test_a_container_ends_itself_when_all_who_know_it_are_killed(hold: Hold, runtime: Path) -> None:
    """It sees that nobody is connected, be it killed right after the start."""
    with hold(engine="docker", image=image(15)) as holder:
        server = server_of("held")
        for pid in (supervisor_of(server), holder.pid):
            os.kill(pid, signal.SIGKILL)
        assert eventually(lambda: not any(line.startswith("container") for line in left_behind(runtime)))
    assert named.prune() == ([f"docker server {server.name}", "run held"], [])


@pytest.mark.docker
def test_an_image_that_the_daemon_goes_on_to_make_for_a_killed_starter_goes(hold: Hold, runtime: Path) -> None:
    """Made up, since it takes the daemon no time here: while it copies a container it has that paused."""
    with hold(engine="docker", image=image(15)) as holder, contextlib.closing(docker.from_env()) as client:
        server = server_of("held")
        container = f"pgsandbox-{server.name}"
        write_record(server / "seeded.json", {"is_made": False})
        client.api.pause(container)
        holder.kill()
        holder.wait()
        assert not eventually(lambda: not client.api.containers(all=True, filters={"name": container}), timeout=3)
        client.api.commit(container, repository="pgsandbox-seed", tag=server.name)
        client.api.unpause(container)
        assert eventually(lambda: not left_behind(runtime))
        assert client.api.images(name=f"pgsandbox-seed:{server.name}") == []


def test_of_two_supervisors_of_a_server_the_second_gives_way(runtime: Path) -> None:
    run = Run("held")
    folder = run.folder / "servers" / "0123456789ab"
    folder.mkdir(parents=True, mode=0o700)
    mark = lease.supervise(folder)
    assert mark is not None
    handle = supervised.ahead(run.folder)
    handle.tell({"engine": "local", "folder": str(folder), "lease": str(run.folder)})
    with pytest.raises(ServerError) as caught:
        handle.wait_for("ready", timeout=10, on=print)
    assert str(caught.value) == "pgsandbox: the supervisor of the server ended unexpectedly\n  why: exit code 0"
    assert folder.exists()
    handle.detach()
    mark.release()
    run.leave()
    named.prune()


def test_one_that_has_only_just_begun_can_be_told_to_end(tmp_path: Path) -> None:
    """Whoever asks does not know its pid yet, and must not take that for an answer."""
    with child(SLOW, tmp_path) as supervisor:
        begun = time.monotonic()
        assert supervised.end(tmp_path, timeout=10) == []
        assert time.monotonic() - begun < 5
        assert supervisor.wait() == -signal.SIGTERM


def test_a_signal_goes_to_nobody_else_whatever_pid_it_calls_itself(tmp_path: Path) -> None:
    """In another container, which shares our folder, its pid is somebody else's here."""
    with child(SLOW, tmp_path) as supervisor, child("print('ready', flush=True); input()") as somebody:
        assert eventually(lambda: read_record(tmp_path / supervised.PID) is not None)
        write_record(tmp_path / supervised.PID, {"pid": somebody.pid})
        assert supervised.end(tmp_path, timeout=0.5) == [tmp_path]
        assert (somebody.poll(), supervisor.poll()) == (None, None)


def test_one_that_does_not_end_is_named(tmp_path: Path) -> None:
    mark = lease.supervise(tmp_path)
    assert supervised.end(tmp_path, timeout=0.1) == [tmp_path]
    assert mark is not None
    mark.release()
    assert supervised.end(tmp_path, timeout=0.1) == []


def test_the_end_of_a_server_does_not_wait_for_what_is_left_of_it_to_be_removed(tmp_path: Path) -> None:
    mark = lease.supervise(tmp_path)
    assert mark is not None
    assert supervised.end(tmp_path, timeout=0.1, removed=False) == [tmp_path]
    (tmp_path / supervised.ENDED).touch()
    assert supervised.end(tmp_path, timeout=0.1, removed=False) == []
    assert supervised.end(tmp_path, timeout=0.1) == [tmp_path]
    mark.release()


@pytest.mark.docker
def test_nobody_waits_for_a_container_to_go_and_it_goes(runtime: Path) -> None:
    with Sandbox(engine="docker", version=15, image=image(15)) as sandbox:
        assert sandbox.server.execute("SELECT 1") == [(1,)]
        [server] = (runtime / "runs").glob("*/servers/*")
        assert sandbox.stop() == []
        assert lease.is_supervised(server)
    assert eventually(lambda: not left_behind(runtime))


def test_when_the_end_of_a_local_server_is_said_its_process_is_gone(some_target: Target) -> None:
    with Sandbox(**some_target.settings) as sandbox:
        data = sandbox.server.running.socket
        assert data is not None
        postmaster = int((Path(data) / "postmaster.pid").read_text().splitlines()[0])
        assert sandbox.stop() == []
        assert is_gone(postmaster)


def test_a_server_whose_folder_somebody_removed_is_removed_all_the_same(hold: Hold, runtime: Path) -> None:
    """Whoever tidies up temporary folders knows nothing of its data, which may lie elsewhere."""
    with hold("run") as holder:
        data = data_of(server_of("run"))
        shutil.rmtree(folder_of("run"))
        holder.kill()
        assert eventually(lambda: not data.exists())


def test_no_defunct_process_gathers_in_a_long_lived_program(some_target: Target) -> None:
    for _ in range(3):
        with Sandbox(**some_target.settings) as sandbox:
            sandbox.stop()
    children = [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    assert len([pid for pid in children if Path(f"/proc/{pid}/cmdline").read_bytes() == b""]) <= 1


def test_the_error_of_a_failed_start_reaches_the_starter_and_the_folder_goes(
    some_target: Target, runtime: Path
) -> None:
    with pytest.raises(ServerError), Sandbox(**some_target.settings, options=["no_such_parameter=1"]):
        pass
    assert eventually(lambda: not left_behind(runtime))


@pytest.fixture
def unheld(some_target: Target) -> Iterator[Path]:
    """The folder of a server that nobody holds, and that was granted no time."""
    with Sandbox(Settings(**some_target.settings), run="unheld") as sandbox:
        yield Path(sandbox.server.running.folder)


def test_a_grant_that_is_half_written_is_no_grant(unheld: Path) -> None:
    (unheld / supervised.GRANT).write_text("")
    assert not eventually(lambda: not unheld.exists(), timeout=1)
    write_record(unheld / "touched.json", {})
