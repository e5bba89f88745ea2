"""What tests of misbehaving engines share: a suite whose second test does something to its server, and what it says."""

from __future__ import annotations

import re

import pytest
from conftest import Target

LOCAL, DOCKER = Target("local", 15), Target("docker", 15)

ON_BOTH = [pytest.param(LOCAL, id="local"), pytest.param(DOCKER, id="docker", marks=pytest.mark.docker)]

_SUITE = """
import os, signal, subprocess, threading, time
from pathlib import Path
import psycopg, pytest


def postmaster(server):
    return int(Path(server.running.socket, "postmaster.pid").read_text().splitlines()[0])


def docker(server, *words):
    subprocess.run(["docker", *words, server.running.detail["name"]], check=True, stdout=subprocess.DEVNULL)


def test_before(pgsandbox_connection):
    pgsandbox_connection.execute("CREATE TABLE t (a int)")


def test_deed(pgsandbox, pgsandbox_server, request):
    {deed}


def test_after(pgsandbox):
    with pgsandbox.connect() as connection:
        assert connection.execute("SELECT to_regclass('t') IS NULL").fetchone() == (True,)


def test_long_after(pgsandbox_connection):
    assert pgsandbox_connection.execute("SELECT to_regclass('t') IS NULL").fetchone() == (True,)
"""


def suite(deed: str) -> str:
    """Four tests, of which the second does `deed`, a line or several, to `pgsandbox_server`."""
    return _SUITE.format(deed="\n    ".join(deed.strip().splitlines()))


def errors(result: pytest.RunResult) -> list[str]:
    """Every error of ours that stands by itself, in full, with ports, tokens and pids replaced by #."""
    found, inside = list[list[str]](), False
    for line in result.outlines:
        if re.match(r"pgsandbox: (?!PostgreSQL \d)", line):  # and not the header
            found.append([])
            inside = True
        inside = inside and (line.startswith(("pgsandbox: ", "  why: ", "  hint: ", "  looked at: ", "       ")))
        if inside:
            found[-1].append(plain(line))
    return ["\n".join(lines) for lines in found]


def troubles(result: pytest.RunResult) -> list[str]:
    """What the summary says went wrong after which test, without that test's name: who is first to see it may vary."""
    found = (re.match(r"trouble: after \S+: (.*)", line) for line in result.outlines)
    return [plain(line[1]) for line in found if line is not None]


def plain(text: str) -> str:
    """Without what is another one each time."""
    return re.sub(
        r"(?<=127\.0\.0\.1:)\d+|(?<=pgsandbox-)[0-9a-f]{12}|(?<=-CONT )[\d ]+(?=`)|(?<=SIGSTOP: )[\d ]+", "#", text
    )
