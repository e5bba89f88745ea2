"""A run's folder: what its processes agree on, and that the death of one of them is no obstacle to the others."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from children import child, eventually
from machine import needs_root, with_mounts

from pgsandbox import lease
from pgsandbox.errors import EngineError, NotReadyError, PlaceError, UsageError
from pgsandbox.run import Run, all_runs, folder_of, read_record, write_record

JOIN = """\
import sys
from pgsandbox.run import Run
run = Run(sys.argv[1])
print("ready", flush=True)
sys.stdin.read()
run.leave()
"""

LOCK = """\
import sys
from pgsandbox.run import Run
with Run(sys.argv[1]).lock("template", timeout=30):
    print("ready", flush=True)
    sys.stdin.read()
"""

# Builds what nobody has built yet: a builder takes its time, and dies in the middle where it is told to.
BUILD = """\
import os, signal, sys, time
from pathlib import Path
from pgsandbox.run import Run
run, log = Run(sys.argv[1]), Path(sys.argv[2])
with run.lock("template", timeout=30):
    if run.read("template") is None:
        with log.open("a") as lines:
            lines.write("begun\\n")
        if sys.argv[3] == "dies" and log.read_text() == "begun\\n":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.02)
        run.write("template", {"built by": os.getpid()})
        with log.open("a") as lines:
            lines.write("built\\n")
print(run.read("template")["built by"])
"""

WRITE = """\
import sys
from pathlib import Path
from pgsandbox.run import write_record
file, number = Path(sys.argv[1]), 0
print("ready", flush=True)
while True:
    number += 1
    write_record(file, {"number": number, "again": [number] * 2000})
"""

FULL = """\
import sys
from pathlib import Path
from pgsandbox.errors import PlaceError
from pgsandbox.run import read_record, write_record
folder = Path(sys.argv[1])
write_record(folder / "small.json", {"is": "there"})
for _ in range(2):
    try:
        write_record(folder / "small.json", {"large": "x" * 200_000})
    except PlaceError as problem:
        print(problem)
print(read_record(folder / "small.json"), sorted(path.name for path in folder.iterdir()))
"""


def mode(path: Path) -> str:
    return f"{stat.S_IMODE(path.stat().st_mode):04o}"


def test_the_folder_goes_with_the_last_process_of_the_run() -> None:
    ours = Run("one")
    with child(JOIN, "one") as other:
        ours.leave()
        assert ours.folder.is_dir()
        other.communicate(timeout=10)
    assert not ours.folder.exists()
    assert list(all_runs().iterdir()) == []


def test_leaving_twice_does_not_end_what_others_began_since() -> None:
    first = Run("one")
    first.leave()
    second = Run("one")
    first.leave()
    assert second.folder.is_dir()
    second.leave()


def test_a_run_that_still_has_a_server_keeps_its_folder() -> None:
    run = Run("one")
    server = run.folder / "servers" / "token"
    server.mkdir(parents=True)
    run.leave()
    assert server.is_dir()
    server.rmdir()
    lease.remove_if_dead(run.folder)


def test_what_killed_processes_left_is_begun_anew() -> None:
    for number in range(5):
        with child(JOIN, "one") as killed:
            killed.kill()
            killed.wait()
            run = Run("one")
            run.write("server", {"number": number})
            assert run.read("server") == {"number": number}
            run.leave()
            assert not run.folder.exists()


@pytest.mark.parametrize("name", ["", ".", "..", "../other", "a/b", "a b", "ä", "a" * 81, "-a"])
def test_what_is_no_name_for_a_folder_is_no_name_for_a_run(name: str) -> None:
    for take in (folder_of, Run):
        with pytest.raises(UsageError) as caught:
            take(name)
        assert str(caught.value) == (
            f"pgsandbox: {name!r} can't name a run\n  hint: use up to 80 letters, digits, and . _ - inside"
        )


def test_nobody_else_may_read_a_run() -> None:
    before = os.umask(0)
    try:
        run = Run("one")
        run.write("server", {"password": "secret"})
        with run.lock("server", timeout=1):
            modes = {mode(path) for path in (run.folder, all_runs(), all_runs().parent)}
            assert modes == {"0700"}
            assert mode(run.folder / "server.json") == "0600"
    finally:
        os.umask(before)
    run.leave()


# Records --------------------------------------------------------------------------------------------------------------


def test_a_failure_is_the_same_error_in_every_process() -> None:
    ours, theirs = Run("one"), Run("one")
    error = EngineError("no engine", why="there is none", looked_at=("here", "there"), hint="bring one")
    ours.fail("choice", error)
    with pytest.raises(EngineError) as caught:
        theirs.read("choice")
    assert str(caught.value) == str(error)
    assert theirs.read("server") is None
    for run in (ours, theirs):
        run.leave()


def test_a_reader_sees_a_whole_record_whenever_its_writer_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "record.json"
    for _ in range(5):
        with child(WRITE, file) as writer:
            assert eventually(file.exists)
            until = time.monotonic() + 0.05
            while time.monotonic() < until:
                record = read_record(file)
                assert record is not None
                assert record["again"] == [record["number"]] * 2000
            writer.kill()
        record = read_record(file)
        assert record is not None
        assert record["again"] == [record["number"]] * 2000


def test_there_is_no_record_where_there_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert read_record(tmp_path / "none.json") is None
    assert read_record(tmp_path / "no folder" / "none.json") is None
    assert read_record(tmp_path / "file" / "none.json") is None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "Expecting value: line 1 column 1 (char 0)"),
        ('{"half": ', "Expecting value: line 1 column 10 (char 9)"),
        ("[1]", "it is not a JSON object"),
    ],
)
def test_a_damaged_record_is_named(tmp_path: Path, text: str, why: str) -> None:
    file = tmp_path / "record.json"
    file.write_text(text)
    with pytest.raises(PlaceError) as caught:
        read_record(file)
    assert str(caught.value) == (
        f"pgsandbox: the record {file} can't be read\n"
        f"  why: {why}\n"
        "  hint: remove it once nothing of pgsandbox runs any more, and run `pgsandbox prune`"
    )


def test_a_record_that_can_not_be_written_says_where(tmp_path: Path) -> None:
    with pytest.raises(PlaceError) as caught:
        write_record(tmp_path / "gone" / "record.json", {})
    assert str(caught.value) == (
        f"pgsandbox: {tmp_path / 'gone'} can't be written\n  why: No such file or directory"
    )  # fmt: skip


@needs_root
def test_a_full_disk_leaves_the_record_of_before(tmp_path: Path) -> None:
    command = [*with_mounts(f"-t tmpfs -o size=64k tmpfs {tmp_path}"), sys.executable, "-c", FULL, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    refusal = (
        f"pgsandbox: {tmp_path} can't be written\n"
        "  why: no space is left there\n"
        "  hint: free some space, or remove what `pgsandbox ls` shows with `down`\n"
    )
    assert done.stdout == 2 * refusal + "{'is': 'there'} ['small.json']\n"


# Locks ----------------------------------------------------------------------------------------------------------------


def test_a_lock_is_free_as_soon_as_its_holder_is_killed() -> None:
    run = Run("one")
    for _ in range(5):
        with child(LOCK, "one") as holder:
            with pytest.raises(NotReadyError), run.lock("template", timeout=0.05):
                pass
            os.kill(holder.pid, signal.SIGKILL)
            with run.lock("template", timeout=2):
                pass
    run.leave()


def test_a_lock_that_can_not_be_had_names_what_is_waited_for() -> None:
    run = Run("one")
    with child(LOCK, "one") as holder, pytest.raises(NotReadyError) as caught, run.lock("template", timeout=0.2):
        pass
    name = Path(sys.executable).name[:15]
    assert str(caught.value) == (
        "pgsandbox: waited 0.2s for another process of this run that is working on: template\n"
        f"  why: process {holder.pid} ({name}) holds the lock\n"
        "  hint: raise the setting timeout if the work is known to take longer"
    )
    run.leave()


def test_locks_of_other_names_and_other_runs_are_other_locks() -> None:
    one, two = Run("one"), Run("two")
    with one.lock("a", timeout=0.1), one.lock("b", timeout=0.1), two.lock("a", timeout=0.1):
        pass
    for run in (one, two):
        run.leave()


@pytest.mark.parametrize("fate", ["lives", "dies"])
def test_one_process_builds_and_where_it_is_killed_exactly_one_takes_over(tmp_path: Path, fate: str) -> None:
    for attempt in range(2):
        run, log = Run("one"), tmp_path / f"log{attempt}"
        command = [sys.executable, "-c", BUILD, "one", str(log), fate]
        processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
        said = [process.communicate(timeout=60)[0] for process in processes]
        record = run.read("template")
        assert record is not None
        survivors = [text for text, process in zip(said, processes, strict=True) if process.returncode == 0]
        assert survivors == [f"{record['built by']}\n"] * (4 if fate == "lives" else 3)
        assert log.read_text() == ("begun\nbuilt\n" if fate == "lives" else "begun\nbegun\nbuilt\n")
        run.leave()
