"""Runs side by side, in one checkout and in two: they share a template and nothing else, and end without each other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import psycopg
import pytest
from children import eventually
from conftest import Target
from machine import running
from runs import ChaosRun
from watch import Watch

pytestmark = pytest.mark.slow
LOCAL, DOCKER = Target("local", 15), Target("docker", 15)

FILES = {
    "pytest.ini": """\
[pytest]
addopts = -p pgsandbox -p no:randomly -p no:cacheprovider
pgsandbox_init =
    schema.sql
    command: python step.py
pgsandbox_watch = step.py
""",
    "schema.sql": "CREATE TABLE t AS SELECT n FROM generate_series(1, 100) n;",
    "step.py": """\
import os, pathlib, time

with (pathlib.Path(os.environ["BUILT"])).open("a") as file:
    print(os.environ["PGHOST"] == "127.0.0.1", file=file)
time.sleep(0.5)  # long enough for the others to come and wait
""",
    "test_beside.py": """\
import json, os, time
from pathlib import Path
import pytest

OUT = Path(os.environ["OUT"])
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "main")


@pytest.mark.parametrize("number", range(8))
def test_beside(pgsandbox, pgsandbox_server, number):
    running = pgsandbox_server.running
    facts = {
        "run": str(Path(running.folder).parent.parent),
        "server": running.token,
        "address": f"{running.host}:{running.port}",
        "password": pgsandbox.env["PGPASSWORD"],
        "database": f"{pgsandbox_server.address}/{pgsandbox.name}",
        "role": f"{pgsandbox_server.address}/{pgsandbox.env['PGUSER']}",
        "container": running.detail.get("container"),
        "data": running.socket,
    }
    (OUT / f"{WORKER}.json").write_text(json.dumps(facts))
    with pgsandbox.connect() as connection:
        assert connection.execute("SELECT count(*) FROM t").fetchone() == (100,)
        connection.execute("INSERT INTO t SELECT generate_series(1, %s)", [number + 1])
        connection.execute("CREATE TABLE mine AS SELECT %s AS run", [str(OUT)])
        connection.commit()
        (OUT / f"mid-test.{WORKER}").touch()
        deadline = time.monotonic() + 100
        while not (OUT / "go").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert connection.execute("SELECT count(*) FROM t").fetchone() == (101 + number,)
        assert connection.execute("SELECT run FROM mine").fetchall() == [(str(OUT),)]
""",
}


class Side:
    """Two checkouts of one project, and the runs in them."""

    def __init__(self, folder: Path) -> None:
        self.checkouts = {name: folder / name for name in ("one", "two")}
        self.built = folder / "built"
        self.runs: list[ChaosRun] = []
        self._folder = folder
        for checkout in self.checkouts.values():
            checkout.mkdir()
            for name, text in FILES.items():
                (checkout / name).write_text(text)

    def environ(self, **more: str) -> dict[str, str]:
        return {**os.environ, "BUILT": str(self.built), **more}

    def start(self, checkout: str, target: Target | None, *words: str) -> ChaosRun:
        """A run in a checkout; what it says of itself goes to a folder of its own."""
        out, mark = self._folder / f"run{len(self.runs)}", uuid.uuid4().hex
        out.mkdir()
        with (out / "output").open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "pytest", "-q", *(target.flags if target else []), *words],
                cwd=self.checkouts[checkout],
                env=self.environ(OUT=str(out), CHAOS_RUN=mark),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.runs.append(ChaosRun(out, process, mark, target.engine if target else "external"))
        return self.runs[-1]

    def pgsandbox(self, checkout: str, environ: Mapping[str, str], *words: str) -> str:
        """Run the command line in a checkout; what it prints."""
        command = [sys.executable, "-m", "pgsandbox", *words]
        where, env = self.checkouts[checkout], self.environ(**environ)
        done = subprocess.run(command, cwd=where, env=env, capture_output=True, text=True, check=False, timeout=100)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


@pytest.fixture
def side(tmp_path: Path, own_cache: Path, binaries: None) -> Iterator[Side]:
    """All runs of it are ended after the test."""
    found = Side(tmp_path)
    yield found
    for run in found.runs:
        run.end()


def facts(run: ChaosRun) -> dict[str, set[str]]:
    """What the workers of a run said of what they have."""
    found: dict[str, set[str]] = {}
    for file in run.folder.glob("*.json"):
        for name, value in json.loads(file.read_text()).items():
            found.setdefault(name, set()).update([value] if value else [])
    return found


def check_nothing_is_shared(all_facts: list[dict[str, set[str]]], *but: str) -> None:
    """No two of them have the same run, server, address, password, database, role, container, or data folder."""
    for name in all_facts[0].keys() - set(but):
        values = [value for one in all_facts for value in one[name]]
        assert len(values) == len(set(values)), (name, values)


def finishes(run: ChaosRun) -> None:
    (run.folder / "go").touch()
    assert (run.wait(), "8 passed" in run.output) == (0, True), run.output
    assert "trouble" not in run.output


@pytest.mark.parametrize(
    ("targets", "builders"),
    [
        pytest.param([LOCAL] * 5, 1, id="local"),
        pytest.param([DOCKER] * 5, 1, id="docker", marks=pytest.mark.docker),
        pytest.param([LOCAL, DOCKER, LOCAL, DOCKER, DOCKER], 2, id="mixed", marks=pytest.mark.docker),
    ],
)
def test_four_runs_and_a_sandbox_in_two_checkouts(
    side: Side, runtime: Path, targets: list[Target], builders: int
) -> None:
    """One of them is killed, one has a server for each worker; all of them were started at once."""
    begun = time.monotonic()
    session = side.start("one", targets[0], "-n2", "--pgsandbox-scope=session")
    worker = side.start("one", targets[1], "-n2", "--pgsandbox-scope=worker")
    killed = side.start("two", targets[2], "-n2", "--pgsandbox-scope=session")
    single = side.start("two", targets[3])
    url = side.pgsandbox("one", targets[4].environ, "up")
    held = psycopg.connect(url, autocommit=True)
    held.execute("CREATE TABLE kept AS SELECT 42 AS number")
    for run, workers in ((session, 2), (worker, 2), (killed, 2), (single, 1)):
        run.wait_for("mid-test", workers=workers)
    print(f"all there after {time.monotonic() - begun:.1f}s")
    assert len(side.built.read_text().splitlines()) == builders

    [up] = json.loads(side.pgsandbox("one", {}, "ls", "--json"))
    ours = {name: set[str]() for name in facts(session)} | {
        "run": {str(runtime / "runs" / up["run"])},
        "server": {up["token"]},
        "address": {f"{held.info.host}:{held.info.port}"},
        "password": {held.info.password},
    }
    check_nothing_is_shared([ours, *(facts(run) for run in side.runs)])
    assert [len(facts(run)["server"]) for run in side.runs] == [1, 2, 1, 1]

    (killed.folder / f"run-id.{Path(*facts(killed)['run']).name}").touch()  # for the watch
    watch = Watch(runtime, [killed])
    killed.strike("group", "kill")
    watch.wait_until_clean()
    assert side.pgsandbox("two", {}, "prune") == ""
    for run in (single, worker, session):
        finishes(run)
    assert held.execute("SELECT number FROM kept").fetchall() == [(42,)]
    assert side.pgsandbox("one", targets[4].environ, "up") == url
    held.close()
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT number FROM kept").fetchall() == [(42,)]
    side.pgsandbox("one", {}, "down")


def test_three_runs_on_somebodys_server(side: Side, tmp_path: Path, runtime: Path) -> None:
    """Two finish there while a third is killed; what is somebody's stays as it was."""
    with running(root=tmp_path / "theirs", **LOCAL.settings, cache=False, options=["max_connections=300"]) as theirs:
        theirs.server.execute("CREATE ROLE dev LOGIN CREATEDB CREATEROLE PASSWORD 'dev'")
        theirs.server.execute("CREATE DATABASE pgsandbox_shop OWNER dev")
        names = "SELECT datname FROM pg_database UNION ALL SELECT rolname FROM pg_roles ORDER BY 1"
        before = theirs.server.execute(names)
        url = f"--pgsandbox-url=postgresql://dev:dev@{theirs.server.address}/pgsandbox_shop"
        one, two = side.start("one", None, "-n2", url), side.start("one", None, url)
        killed = side.start("two", None, "-n2", url)
        for run, workers in ((one, 2), (two, 1), (killed, 2)):
            run.wait_for("mid-test", workers=workers)
        check_nothing_is_shared([facts(run) for run in side.runs], "address")
        token = facts(killed)["server"].pop()
        killed.strike("group", "kill")
        of_killed = f"SELECT datname FROM pg_database WHERE datname LIKE 'pgsandbox!_{token}!_%' ESCAPE '!'"
        assert theirs.server.execute(of_killed) != []
        assert eventually(lambda: theirs.server.execute(of_killed) == [])
        finishes(two)
        finishes(one)
        assert eventually(lambda: theirs.server.execute(names) == before), theirs.server.execute(names)
