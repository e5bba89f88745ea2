"""What another user of the machine, or a reader of the logs, gets to know: nothing that would let him in."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from children import eventually
from conftest import Inner, Target
from machine import needs_root, other_user, with_mounts

from pgsandbox.cache import Cache

TELLTALE = """
import os
from pathlib import Path

import psycopg, pytest
from psycopg.conninfo import conninfo_to_dict

def note(url):
    with open(os.environ["NOTED"], "a") as stream:
        print(conninfo_to_dict(url)["password"], file=stream)
    return url

def connect_to_nowhere(url):
    return psycopg.connect(url, dbname="nowhere")
"""

FAILURES = """
import os, psycopg, pytest
from telltale import note, connect_to_nowhere

def test_an_argument(pgsandbox_url):
    assert not note(pgsandbox_url)

def test_a_drivers_arguments(pgsandbox):
    connect_to_nowhere(note(pgsandbox.url))

def test_variables(pgsandbox):
    env, info, other = dict(pgsandbox.env), pgsandbox.conninfo, pgsandbox.sqlalchemy_url()
    raise LookupError(other)

def test_a_cause(pgsandbox):
    try:
        connect_to_nowhere(pgsandbox.conninfo)
    except psycopg.Error as problem:
        raise LookupError(pgsandbox.url) from problem

def test_too_many_connections(pgsandbox):
    opened = [pgsandbox.connect() for _ in range(30)]

def test_a_fresh_one(pgsandbox_factory):
    connect_to_nowhere(note(pgsandbox_factory().url))

def test_a_server(pgsandbox, pgsandbox_server):
    with open(os.environ["NOTED"], "a") as stream:
        print(pgsandbox_server.running.password, file=stream)
    pgsandbox_server.connect_admin("nowhere")

class Much:
    def __init__(self, url):
        self.url = url

def open_it(much):
    raise LookupError("cut in the middle")

@pytest.mark.parametrize("length", range(0, 120, 12))
def test_a_long_value(pgsandbox, length):
    Much.__repr__ = lambda self: f"<{'x' * length} {self.url} {'y' * (240 - length)}>"
    open_it(Much(note(pgsandbox.url)))

@pytest.mark.xfail
def test_an_expected_failure(pgsandbox_url):
    assert not note(pgsandbox_url)

@pytest.fixture
def broken(pgsandbox_url):
    raise LookupError(pgsandbox_url)

def test_a_fixture(broken):
    pass
"""

AT_IMPORT = """
import os
from telltale import note, connect_to_nowhere
connect_to_nowhere(note(os.environ["DATABASE_URL"]))
"""


@pytest.mark.parametrize(("workers", "style"), [("-n0", "auto"), ("-n0", "long"), ("-n2", "long"), ("-n0", "line")])
def test_no_traceback_shows_a_password(
    inner: Inner, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, workers: str, style: str
) -> None:
    """Not in arguments, nor among variables, nor in messages, whoever's function it was that failed."""
    noted = pytester.path / "noted"
    noted.touch(0o600)
    monkeypatch.setenv("NOTED", str(noted))
    pytester.makepyfile(telltale=TELLTALE, test_failures=FAILURES)
    words = (workers, "--showlocals", f"--tb={style}", "-vv", "-rx", "--xfail-tb")
    result = inner(*words)
    result.assert_outcomes(failed=17, xfailed=1, errors=1)
    pytester.makepyfile(test_import=AT_IMPORT)
    second = inner(*words, "test_import.py")
    assert "error" in second.stdout.str()
    said = "".join(one.stdout.str() + one.stderr.str() for one in (result, second))
    passwords = set(noted.read_text().split())
    assert passwords
    pieces = {password[at : at + 4] for password in passwords for at in range(len(password) - 3)}
    assert not [piece for piece in pieces if f"{piece}..." in said or f"...{piece}" in said]
    assert not [password for password in passwords if password in said]
    assert style == "line" or "pgsandbox_main:***@" in said or "pgsandbox_gw0:***@" in said


RUN = """
import os, time
from pathlib import Path

def test_one(pgsandbox, pgsandbox_server):
    with pgsandbox.connect() as connection:
        connection.execute("CREATE TABLE t ()")
    secret = os.open("secret", os.O_WRONLY | os.O_CREAT, 0o600)
    os.write(secret, f"{pgsandbox.env['PGPASSWORD']} {pgsandbox_server.running.password} ".encode())
    os.write(secret, (pgsandbox_server.running.socket or "").encode())
    Path("there").touch()
    deadline = time.monotonic() + 60
    while not Path("go").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
"""

LOOK = """
password=$1
shift
find "$@" -writable ! -type l 2>/dev/null | sed 's/^/may write /'
grep -rlsF -e "$password" "$@" | sed 's/^/reads the password in /'
for file in /proc/[0-9]*/cmdline /proc/[0-9]*/environ; do
    case $file in */$$/*) continue ;; esac
    ! tr '\\0' ' ' <"$file" 2>/dev/null | grep -qF -e "$password" || echo "reads the password in $file"
done
"""


@pytest.fixture
def public(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that everybody may enter: what nobody may see in it is closed by us. Our own things go there."""
    folder = Path(tempfile.mkdtemp(prefix="pgsandbox-test-public-"))
    folder.chmod(0o755)
    monkeypatch.setenv("_PGSANDBOX_ROOT", str(folder / "runtime"))
    monkeypatch.setenv("_PGSANDBOX_CACHE", str(folder / "cache"))
    (folder / "cache").mkdir(mode=0o755)
    yield folder
    Cache().clear()
    shutil.rmtree(folder)


@needs_root
@pytest.mark.parametrize("on", ["local", pytest.param("docker", marks=pytest.mark.docker)])
def test_another_user_finds_no_password_and_nothing_to_write_to_even_with_umask_0(
    public: Path, binaries: None, on: str
) -> None:
    """While a run is on: in our folders, the server's, and the process list."""
    project = public / "project"
    project.mkdir(mode=0o755)
    (project / "test_one.py").write_text(RUN)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "pgsandbox", "-p", "no:cacheprovider", "-n2"]
    command += [*Target(on, 15).flags]
    with subprocess.Popen(command, cwd=project, umask=0, stdout=subprocess.PIPE, text=True) as run:
        try:
            assert eventually(lambda: (project / "there").exists() or run.poll() is not None, timeout=60)
            *noted, socket = (project / "secret").read_text().split(" ")
            passwords = [one for one in noted if one]
            assert len(passwords) == (1 if on == "local" else 2)
            places = [str(public / "runtime"), str(public / "cache"), *([socket] if socket else [])]
            with other_user() as user:
                found = [user.run("sh", "-c", LOOK, "look", password, *places).stdout for password in passwords]
            assert found == [""] * len(passwords)
        finally:
            (project / "go").touch()
            said = run.communicate(timeout=60)[0]
    assert "1 passed" in said
    assert eventually(lambda: not list((public / "runtime" / "runs").iterdir()))


PLANTS = {
    "folder": "mkdir -m 777 {0}",
    "file": "touch {0}",
    "link": "ln -s /etc {0}",
    "pipe": "mkfifo {0}",
}


@needs_root
@pytest.mark.parametrize("plant", PLANTS)
def test_what_another_user_planted_under_our_name_is_refused_in_a_sentence(plant: str) -> None:
    """In the one place whose name can be known before: the runtime folder."""
    place = f"/dev/shm/pgsandbox-{os.geteuid()}"
    lay = f"setpriv --reuid=1 --regid=1 --clear-groups sh -c '{PLANTS[plant].format(place)}'"
    script = f"chmod 1777 /dev/shm && {lay} && exec {sys.executable} -m pgsandbox up {secrets.token_hex(4)}"
    environ = {name: value for name, value in os.environ.items() if name != "_PGSANDBOX_ROOT"}
    command = [*with_mounts("-t tmpfs tmpfs /dev/shm"), "sh", "-c", script]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    why = {
        "folder": f"it belongs to user 1, and this process runs as user {os.geteuid()}",
        "link": "it is a link to /etc",
    }
    assert done.stderr.splitlines() == [
        f"pgsandbox: the folder {place} can't be trusted",
        f"  why: {why.get(plant, 'it is not a folder')}",
        f"  hint: look at it with `ls -ld {place}`; its owner, or root, can remove it",
    ]
