"""Leases: the kernel's word on who is alive, whatever happens to processes and folders."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from children import child, eventually, is_gone

from pgsandbox import lease
from pgsandbox.errors import NotReadyError

HOLD = """\
import sys
from pathlib import Path
from pgsandbox import lease
mine = lease.hold(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.read()
"""

FORK = """\
import os, sys
from pathlib import Path
from pgsandbox import lease
mine = lease.hold(Path(sys.argv[1]))
pid = os.fork()
if pid == 0:
    Path(sys.argv[2]).write_text(str(os.getpid()))
    sys.stdin.read()
    os._exit(0)
print("ready", flush=True)
os.waitpid(pid, 0)
"""

# Whoever holds a folder that somebody removes misses some of what it has just written there.
CONTEND = """\
import sys, time
from pathlib import Path
from pgsandbox import lease
folder, until = Path(sys.argv[1]), time.monotonic() + 1.5
records = [folder / f"record{number}" for number in range(4)]
rounds = lost = 0
while time.monotonic() < until:
    mine = lease.hold(folder)
    try:
        for record in records:
            record.write_text("here")
    except FileNotFoundError:
        lost += 1
    lost += sum(not record.exists() for record in records)
    rounds += 1
    mine.release()
print(rounds, lost)
"""

REMOVE = """\
import sys, time
from pathlib import Path
from pgsandbox import lease
until = time.monotonic() + 1.5
while time.monotonic() < until:
    lease.remove_if_dead(Path(sys.argv[1]))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "held"


def test_it_ends_with_its_process(folder: Path) -> None:
    for _ in range(8):
        with child(HOLD, folder) as holder:
            assert lease.is_held(folder)
            holder.kill()
            assert eventually(lambda: not lease.is_held(folder), timeout=2)


def test_many_share_a_folder_and_the_last_one_counts(folder: Path) -> None:
    ours = lease.hold(folder)
    with child(HOLD, folder) as first, child(HOLD, folder) as second:
        for holder in (first, second):
            holder.kill()
            holder.wait()
            assert lease.is_held(folder)
    ours.release()
    assert not lease.is_held(folder)


def test_letting_go_twice_is_harmless(folder: Path) -> None:
    first, second = lease.hold(folder), lease.hold(folder)
    first.release()
    first.release()
    assert lease.is_held(folder)
    second.release()
    assert not lease.is_held(folder)


def test_a_forked_child_neither_keeps_nor_ends_its_parents_lease(folder: Path, tmp_path: Path) -> None:
    for number in range(4):
        pid_file = tmp_path / f"pid{number}"
        with child(FORK, folder, pid_file) as parent:
            assert eventually(lambda file=pid_file: bool(file.exists() and file.read_text()))  # type: ignore[misc]
            assert lease.is_held(folder)
            parent.kill()
            parent.wait()
            forked = int(pid_file.read_text())
            assert not is_gone(forked)
            assert eventually(lambda: not lease.is_held(folder), timeout=2)
            os.kill(forked, signal.SIGKILL)


def test_a_program_that_a_holder_started_does_not_keep_its_lease(folder: Path) -> None:
    mine = lease.hold(folder)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False) as program:
        mine.release()
        # The kernel lets the starter go on a moment before it closes what the program must not inherit.
        assert eventually(lambda: not lease.is_held(folder), timeout=2)
        assert program.poll() is None
        program.kill()


def test_a_folder_that_somebody_holds_is_not_removed(folder: Path) -> None:
    with child(HOLD, folder) as holder:
        (folder / "data").write_text("precious")
        assert not lease.remove_if_dead(folder)
        assert (folder / "data").read_text() == "precious"
        holder.kill()
        holder.wait()
    assert lease.remove_if_dead(folder)
    assert list(folder.parent.iterdir()) == []


def test_a_folder_that_is_not_there_is_held_by_nobody(folder: Path) -> None:
    assert not lease.is_held(folder)
    assert not lease.is_supervised(folder)
    assert lease.remove_if_dead(folder)
    with lease.if_nobody_holds(folder) as free:
        assert free
    assert not folder.exists()


def test_asking_leaves_nothing_in_a_folder_that_is_being_removed(folder: Path) -> None:
    folder.mkdir()
    assert not lease.is_held(folder)
    assert not lease.is_supervised(folder)
    assert list(folder.iterdir()) == []


def test_nobody_loses_a_folder_that_others_remove(folder: Path) -> None:
    commands = [[sys.executable, "-c", code, folder] for code in (CONTEND, CONTEND, REMOVE, REMOVE)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    said = [process.communicate(timeout=60)[0].split() for process in processes]
    assert [lost for _, lost in said[:2]] == ["0", "0"]
    assert all(int(rounds) > 1 for rounds, _ in said[:2])
    assert lease.remove_if_dead(folder)
    assert list(folder.parent.iterdir()) == []


def _at_first_lock(monkeypatch: pytest.MonkeyPatch, interfere: Callable[[], object]) -> None:
    """Have `interfere` happen between the opening of a lease file and its lock."""
    real, done = lease._lock, threading.Event()

    def lock(descriptor: int, *, exclusive: bool) -> bool:
        if not done.is_set():
            done.set()
            interfere()
        return real(descriptor, exclusive=exclusive)

    monkeypatch.setattr(lease, "_lock", lock)


def test_a_lease_is_on_the_folder_that_is_there_not_on_one_that_was_replaced(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _at_first_lock(monkeypatch, lambda: lease.remove_if_dead(folder))
    mine = lease.hold(folder)
    assert lease.is_held(folder)
    assert not lease.remove_if_dead(folder)
    mine.release()


def test_a_folder_that_was_replaced_by_a_held_one_is_not_removed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(mode=0o700)
    taken: list[lease.Lease] = []

    def replace() -> None:
        lease.remove_if_dead(folder)
        taken.append(lease.hold(folder))
        (folder / "data").write_text("precious")

    _at_first_lock(monkeypatch, replace)
    assert not lease.remove_if_dead(folder)
    assert (folder / "data").read_text() == "precious"
    taken[0].release()


def test_waiting_for_a_remover_ends_with_a_reason(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "_REMOVAL_DEADLINE", 0.05)
    folder.mkdir(mode=0o700)
    with lease.if_nobody_holds(folder), pytest.raises(NotReadyError) as caught:
        lease.hold(folder)
    assert str(caught.value) == (
        f"pgsandbox: the lease on {folder} could not be had within 0.05s, while another process is removing it\n"
        f"  why: process {os.getpid()} ({Path('/proc/self/comm').read_text().strip()}) holds the lock\n"
        "  hint: look for a stopped pgsandbox.supervisor process"
    )


def test_a_folder_has_one_supervisor_until_that_is_dead(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    supervise = HOLD.replace("lease.hold", "lease.supervise")
    with child(supervise, folder) as supervisor:
        assert lease.is_supervised(folder)
        assert lease.supervise(folder) is None
        supervisor.kill()
        assert eventually(lambda: not lease.is_supervised(folder), timeout=2)
    mine = lease.supervise(folder)
    assert mine is not None
    mine.release()


def test_a_folder_that_is_gone_gets_no_supervisor(folder: Path) -> None:
    assert lease.supervise(folder) is None


def test_those_who_ask_are_not_taken_for_supervisors(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    (folder / "supervised").touch()
    ended, mistaken = threading.Event(), []

    def ask() -> None:
        while not ended.is_set():
            if lease.is_supervised(folder):
                mistaken.append(1)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        pass
    ended.set()
    for thread in threads:
        thread.join()
    assert mistaken == []


def test_those_who_ask_do_not_keep_a_supervisor_from_its_place(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    ended = threading.Event()

    def ask() -> None:
        while not ended.is_set():
            lease.is_supervised(folder)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    refused = 0
    for _ in range(100):
        mine = lease.supervise(folder)
        refused += mine is None
        if mine is not None:
            mine.release()
    ended.set()
    for thread in threads:
        thread.join()
    assert refused == 0


ORPHAN = """\
import os, signal, sys, threading
from pathlib import Path
from pgsandbox import lease
told = Path(sys.argv[1])
def tell(*_):
    told.write_text("told")
    if sys.argv[2] == "obedient":
        os._exit(0)
signal.signal(signal.SIGTERM, tell)
lease.end_with(os.getppid())
print(os.getpid(), flush=True)
while True:
    threading.Event().wait(0.05)
"""

PARENT = """\
import subprocess, sys
orphan = subprocess.Popen([sys.executable, "-c", *sys.argv[1:]], stdout=subprocess.PIPE)
print(orphan.stdout.readline().decode().strip(), flush=True)
orphan.wait()
"""


@pytest.mark.parametrize("manners", ["obedient", "stubborn"])
def test_a_worker_ends_with_its_parent_and_is_told_before(tmp_path: Path, manners: str) -> None:
    told = tmp_path / "told"
    with child(PARENT, ORPHAN, told, manners, says=None) as parent:
        assert parent.stdout is not None
        orphan = int(parent.stdout.readline())
        parent.kill()
        parent.wait()
        assert eventually(lambda: is_gone(orphan), timeout=4)
    assert told.read_text() == "told"
