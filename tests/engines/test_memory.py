"""Servers that were killed leave neither shared memory nor a process behind, and nobody else loses theirs."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from children import child, eventually, is_gone
from conftest import Target, left_behind
from machine import working_in

from pgsandbox import lease, named
from pgsandbox.engines import memory, supervised
from pgsandbox.run import folder_of, read_record

pytestmark = pytest.mark.skipif(not Path("/proc/sysvipc/shm").exists(), reason="only Linux lists shared memory")

HOLD = """\
import json, sys
from pgsandbox import Sandbox
with Sandbox(**json.loads(sys.argv[1]), run="held", scope="session") as sandbox:
    print(sandbox.database().url, flush=True)
    sys.stdin.read()
"""
VERSIONS = pytest.mark.parametrize("version", [15, 16, 17, 18])


def segments(inode: int) -> list[str]:
    """The lines of the kernel's table that stand for the folder with this inode."""
    lines = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
    return [line for line in lines if int(line.split()[0]) % (1 << 32) == inode % (1 << 32)]


def spec_of(run: str) -> dict[str, str]:
    [server] = (folder_of(run) / "servers").iterdir()
    spec = read_record(server / supervised.SPEC)
    assert spec is not None
    return spec


def dynamic(data: Path) -> Path | None:
    """The file of the dynamic memory of the server in `data`."""
    for line in segments(data.stat().st_ino):
        header = memory._header(ctypes.CDLL(None, use_errno=True), int(line.split()[1]))
        if header is not None and header[4]:
            file = Path(f"/dev/shm/PostgreSQL.{header[4]}")
            return file if file.exists() else None
    return None


def send(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


@VERSIONS
def test_a_killed_postmaster_leaves_no_memory_and_no_stopped_backend(
    binaries: None, runtime: Path, version: int
) -> None:
    settings = json.dumps(Target("local", version).settings)
    with child(HOLD, settings, says=None) as holder:
        assert holder.stdout is not None
        url = holder.stdout.readline().strip()
        data = Path(spec_of("held")["data"])
        inode = data.stat().st_ino
        client = psycopg.connect(url)
        backend = client.info.backend_pid
        os.kill(backend, signal.SIGSTOP)
        [segment] = segments(inode)
        os.kill(int((data / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)
        client.close()
        assert eventually(lambda: is_gone(backend) and not data.exists())
        assert (segments(inode), working_in(data)) == ([], []), segment
        holder.kill()
        holder.wait()
    assert eventually(lambda: not left_behind(runtime))


@VERSIONS
def test_what_a_killed_initdb_leaves_in_memory_goes_with_the_next_sweep(
    binaries: None, runtime: Path, version: int
) -> None:
    """Its helpers are small servers; killed with all who look after them, they free nothing themselves."""
    settings = {**Target("local", version).settings, "cache": False}
    with child(HOLD, json.dumps(settings), says=None) as starter:

        def is_caught() -> bool:
            """Whether initdb and its helper are stopped, one that has made its memory."""
            with contextlib.suppress(OSError, ValueError, AssertionError):  # not so far yet
                data = Path(spec_of("held")["data"])
                send(working_in(data), signal.SIGSTOP)
                if segments(data.stat().st_ino) and dynamic(data) is not None:
                    return True
                send(working_in(data), signal.SIGCONT)
            return False

        assert eventually(is_caught, timeout=20)
        spec = spec_of("held")
        data = Path(spec["data"])
        inode, file = data.stat().st_ino, dynamic(data)
        record = read_record(Path(spec["folder"]) / supervised.PID)
        assert record is not None
        send([record["pid"], starter.pid, *working_in(data)], signal.SIGKILL)
        starter.wait()
        assert eventually(lambda: not working_in(data) and not lease.is_supervised(Path(spec["folder"])))
    assert (len(segments(inode)), file is not None and file.exists()) == (1, True), "there is something to be freed"
    assert named.prune() == ([f"local server {spec['token']}", "run held"], [])
    assert (data.exists(), segments(inode), file is not None and file.exists()) == (False, [], False)


@pytest.fixture
def somebodys(tmp_path: Path) -> Iterator[Path]:
    """A folder with a segment whose key stands for it, but which says that it is of another folder."""
    folder = tmp_path / "data"
    folder.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    key = ctypes.c_int(folder.stat().st_ino & 0xFFFFFFFF)
    id_ = libc.shmget(key, 56, 0o1600)
    assert id_ >= 0, os.strerror(ctypes.get_errno())
    yield folder
    libc.shmctl(id_, 0, None)


def test_what_does_not_prove_to_be_of_the_folder_stays(somebodys: Path) -> None:
    memory.free(somebodys)
    assert len(segments(somebodys.stat().st_ino)) == 1


def test_a_shell_in_the_folder_of_a_killed_server_lives_on(binaries: None, runtime: Path) -> None:
    """Whoever looks into it is not of it."""
    with child(HOLD, json.dumps(Target("local", 15).settings), says=None) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        data = Path(spec_of("held")["data"])
        sleep = shutil.which("sleep")
        assert sleep is not None
        with subprocess.Popen([sleep, "60"], cwd=data) as looker:
            holder.kill()
            holder.wait()
            assert eventually(lambda: not data.exists() and not left_behind(runtime))
            assert looker.poll() is None
            looker.kill()
