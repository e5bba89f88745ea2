"""The long mode, in short: what it picks, what it prints, and that it ends clean however it ends."""

from __future__ import annotations

import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from arena import Blow
from chances import AT_RANDOM, ENGINES, Report, pick, table
from children import eventually
from conftest import processes
from runs import DOCKER_MOMENTS, MOMENTS, VICTIMS, WAYS

SCRIPT = Path(__file__).parents[2] / "scripts" / "chaos"


def test_chance_picks_every_moment_victim_and_way_and_a_seed_the_same_ones() -> None:
    chance, again = random.Random("17/0"), random.Random("17/0")
    picked = [pick(chance, engine) for engine in ENGINES for _ in range(2000)]
    assert picked == [pick(again, engine) for engine in ENGINES for _ in range(2000)]
    blows = [blow for blow, _ in picked]
    assert {blow.moment for blow in blows} == {*MOMENTS, *DOCKER_MOMENTS, AT_RANDOM}
    assert ({blow.victim for blow in blows}, {blow.way for blow in blows}) == (set(VICTIMS), set(WAYS))
    assert all(0 <= when < 1 for _, when in picked)


def test_the_table_counts_kills_leaks_and_effects() -> None:
    blow = Blow("session", "reset", "controller", "term")
    clean = [Report("local", blow, seconds=seconds) for seconds in (0.1, 0.2, 3.0)]
    leak = Report("docker", Blow("worker", AT_RANDOM, "group"), leak="still there after 5s: ['folder x']")
    effect = Report("docker", Blow("worker", AT_RANDOM, "group"), effect="the next run fails: 1 failed")
    rows = [" ".join(line.split()) for line in table([*clean, leak, effect]).splitlines()]
    assert rows == [
        "moment engine kill term int int-int hup quit stop-cont stop-kill kills leaks effects median s max s",
        "reset local 3 3 0 0 0.2 3.0",
        "any time docker 2 2 1 1 0.0 0.0",
        "all 2 3 5 1 1 0.2 3.0",
    ]
    assert str(leak) == "docker worker-any time-group-kill: still there after 5s: ['folder x']"


def chaos(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(SCRIPT), "--engine", "local", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
def test_it_strikes_as_often_as_it_is_told_and_ends_with_the_table(binaries: None) -> None:
    with chaos("--kills", "4", "--seed", "3") as process:
        said, _ = process.communicate(timeout=170)
    assert process.returncode == 0, said
    assert said.startswith("seed 3\n")
    assert re.search(r"^all +.* 4 +0 +0 +\d\.\d +\d\.\d\n\Z", said, re.MULTILINE), said


@pytest.mark.slow
def test_ctrl_c_ends_its_runs_and_what_they_have(
    binaries: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with chaos("--minutes", "5") as process:
        assert eventually(lambda: any(tmp_path.glob("*/runtime/runs/*/servers/*")), timeout=60)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "\nall " in said
    assert (list(tmp_path.iterdir()), processes(str(tmp_path))) == ([], [])


@pytest.mark.slow
def test_it_fails_where_something_is_left(binaries: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here a file that the run of a broken pgsandbox forgets."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, tempfile\nif 'CHAOS_RUN' in os.environ: tempfile.mkstemp(prefix='forgotten-')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with chaos("--kills", "1", "--slots", "1", "--seed", "3") as process:
        said, _ = process.communicate(timeout=100)
    assert process.returncode == 1, said
    assert re.search(r"^\r?1 of 1: local .*: still there after 5s: .*/forgotten-", said, re.MULTILINE), said
