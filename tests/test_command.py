"""A user's program: bounded in time, ended with us, and heard."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from children import child, eventually, is_gone

from pgsandbox import command
from pgsandbox.command import NOT_FOUND, Outcome

# A program that has a child of its own and would run for minutes; it writes down both pids.
LONG = "sleep 300 & echo $! $$ > {pids}; echo begun; wait"

OWNER = """\
import os, sys
from pathlib import Path
from pgsandbox import command
command.run(["sh", "-c", sys.argv[1]], environ=os.environ, folder=Path.cwd(), timeout=120)
"""


def run(line: str, *, timeout: float = 20, environ: Mapping[str, str] | None = None) -> Outcome:
    return command.run(
        ["sh", "-c", line], environ=os.environ if environ is None else environ, folder=Path.cwd(), timeout=timeout
    )


def pids_in(file: Path) -> list[int]:
    assert eventually(lambda: file.exists() and file.read_text().endswith("\n"))
    return [int(pid) for pid in file.read_text().split()]


@pytest.fixture
def pids(tmp_path: Path) -> Path:
    return tmp_path / "pids"


def long(pids: Path) -> str:
    return LONG.format(pids=shlex.quote(str(pids)))


# What it says and how it ends -----------------------------------------------------------------------------------------


def test_both_streams_are_heard_in_their_order() -> None:
    assert run("echo one; echo two >&2; printf three; exit 3") == Outcome(3, "one\ntwo\nthree")


def test_the_last_lines_are_kept() -> None:
    assert run("seq 1 20000").output.split() == [str(number) for number in range(19986, 20001)]


def test_what_is_no_text_is_no_obstacle() -> None:
    assert run(r"printf 'caf\351\n'") == Outcome(0, "caf\N{REPLACEMENT CHARACTER}")


def test_nothing_is_read_from_our_own_input() -> None:
    assert run("cat; echo done") == Outcome(0, "done")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV])
def test_a_signal_counts_as_a_shell_would_count_it(number: signal.Signals) -> None:
    outcome = run(f"ulimit -c 0; kill -{number.value} $$")
    assert outcome.exit_code == 128 + number.value


def test_a_program_that_is_not_there_is_named() -> None:
    done = command.run(["no-such-program", "-v"], environ=os.environ, folder=Path.cwd(), timeout=10)
    assert done == Outcome(NOT_FOUND, "no-such-program: No such file or directory")


def test_a_file_that_is_no_program_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no program")
    done = command.run([str(tmp_path / "notes.txt")], environ=os.environ, folder=tmp_path, timeout=10)
    assert done == Outcome(NOT_FOUND, f"{tmp_path}/notes.txt: Permission denied")


def test_it_runs_in_its_folder_with_its_environment(tmp_path: Path) -> None:
    line = 'pwd; echo "$GREETING"; echo "${HOME-no home}"'
    done = command.run(["/bin/sh", "-c", line], environ={"GREETING": "hello"}, folder=tmp_path, timeout=10)
    assert done == Outcome(0, f"{tmp_path}\nhello\nno home")


def test_programs_beside_the_running_python_come_first(tmp_path: Path) -> None:
    impostor = tmp_path / Path(sys.executable).name
    impostor.write_text("#!/bin/sh\necho impostor\n")
    impostor.chmod(0o755)
    words = [impostor.name, "-c", "import sys; print(sys.executable)"]
    environ = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = command.run(words, environ=environ, folder=tmp_path, timeout=10)
    assert done == Outcome(0, sys.executable)


def test_our_own_modules_are_not_taken_for_the_guards(tmp_path: Path) -> None:
    for name in ("select", "subprocess", "signal"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('an impostor')")
    environ = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = command.run(["echo", "here"], environ=environ, folder=tmp_path, timeout=10)
    assert done == Outcome(0, "here")


# That it ends ---------------------------------------------------------------------------------------------------------


def test_at_the_deadline_all_of_it_is_ended_and_what_it_said_is_kept(pids: Path) -> None:
    began = time.monotonic()
    assert run(long(pids), timeout=0.5) == Outcome(None, "begun")
    assert time.monotonic() - began < 5
    assert all(eventually(lambda pid=pid: is_gone(pid)) for pid in pids_in(pids))  # type: ignore[misc]


def test_one_that_ignores_every_signal_is_ended_at_the_deadline(pids: Path) -> None:
    assert run(f"trap '' TERM INT HUP; {long(pids)}", timeout=0.5) == Outcome(None, "begun")
    assert all(eventually(lambda pid=pid: is_gone(pid)) for pid in pids_in(pids))  # type: ignore[misc]


def test_what_it_left_running_ends_with_it(pids: Path) -> None:
    began = time.monotonic()
    assert run(f"sleep 300 & echo $! > {pids}; echo begun") == Outcome(0, "begun")
    assert time.monotonic() - began < 5
    assert all(eventually(lambda pid=pid: is_gone(pid)) for pid in pids_in(pids))  # type: ignore[misc]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_it_does_not_outlive_us(tmp_path: Path, number: signal.Signals) -> None:
    for attempt in range(3):
        pids = tmp_path / str(attempt)
        with child(OWNER, long(pids), says=None) as owner:
            found = pids_in(pids)
            owner.send_signal(number)
            owner.wait(10)
            assert all(eventually(lambda pid=pid: is_gone(pid), timeout=3) for pid in found)  # type: ignore[misc]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux ends a process with its parent")
def test_it_does_not_outlive_its_guard(pids: Path) -> None:
    with child(OWNER, long(pids), says=None) as owner:
        _, program = pids_in(pids)
        guard = int(Path(f"/proc/{program}/stat").read_text().rpartition(")")[2].split()[1])
        assert guard != owner.pid
        os.kill(guard, signal.SIGKILL)
        assert eventually(lambda: is_gone(program), timeout=3)
        os.killpg(program, signal.SIGKILL)


# Words ----------------------------------------------------------------------------------------------------------------


def test_a_line_is_split_as_a_shell_would_split_it() -> None:
    assert command.split(""" psql -c 'SELECT 1, 2' "a b"c\\ d """) == ["psql", "-c", "SELECT 1, 2", "a bc d"]


def test_an_open_quote_is_refused() -> None:
    with pytest.raises(ValueError, match="No closing quotation"):
        command.split("echo 'never ends")
