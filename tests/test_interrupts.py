"""Ctrl-C while two threads import is neither forgotten, nor does it leave the lock that imports need locked."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from pgsandbox import interrupts

CHILD = """
import importlib, os, sys, threading, time
from pgsandbox.interrupts import put_off_in_imports

give_back = put_off_in_imports() if sys.argv[1] == "put off" else None

def import_again(*names):
    for name in names:
        sys.modules.pop(name, None)
        importlib.import_module(name)

def background():
    while not is_over:
        import_again("colorsys", "stat", "bisect")

is_over = False
thread = threading.Thread(target=background, daemon=True)
thread.start()
print("ready", flush=True)
deadline = time.monotonic() + 3
said = "forgotten"
try:
    while time.monotonic() < deadline:
        import_again("stringprep", "nturl2path", "opcode")
except KeyboardInterrupt:
    said = "interrupted"
is_over = True
thread.join(3)
print(said, "locked" if thread.is_alive() else "free", flush=True)
os._exit(0)
"""


def interrupted(how: str) -> str:
    """What becomes of a Ctrl-C at some moment; as things are (Python 3.11), one in four would be lost, or lock."""
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, how], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        time.sleep(random.uniform(0, 0.1))  # no race is waited for: any moment will do
        child.send_signal(signal.SIGINT)
        return child.stdout.read().strip()


@pytest.mark.slow
def test_an_interrupt_in_the_middle_of_imports_is_put_off_and_not_forgotten() -> None:
    assert {interrupted("put off") for _ in range(40)} == {"interrupted free"}


@pytest.fixture
def pythons_own() -> Iterator[None]:
    """SIGINT has Python's own handler; afterwards, the one of before."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("pythons_own")
def test_elsewhere_it_comes_at_once_and_the_handler_of_before_is_given_back() -> None:
    give_back = interrupts.put_off_in_imports()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    give_back()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("pythons_own")
def test_somebodys_own_handler_stays() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    interrupts.put_off_in_imports()()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


@pytest.mark.usefixtures("pythons_own")
def test_other_threads_change_nothing() -> None:
    thread = threading.Thread(target=interrupts.put_off_in_imports)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
