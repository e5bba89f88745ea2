"""The command line, each command in a process of its own: what it prints where, its exit code, and what it leaves."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest
from children import eventually
from conftest import Target, left_behind
from machine import forwarded_unix, is_podman, needs_root, other_user, with_mounts

import pgsandbox
from pgsandbox import named
from pgsandbox.cli.sandboxes import cli as commands

PGSANDBOX = [sys.executable, "-m", "pgsandbox"]

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def environ(some_target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our processes use the engine that starts fastest."""
    for name, value in some_target.environ.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environ: None) -> None:
    """A shell finds `pgsandbox`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "pgsandbox"
    script.write_text(f'#!/bin/sh\nexec {shlex.join(PGSANDBOX)} "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


def shell(script: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, check=False, **more)


def answers(url: str) -> bool:
    try:
        with psycopg.connect(url.strip(), connect_timeout=5) as connection:
            return connection.execute("SELECT 1").fetchone() == (1,)
    except psycopg.OperationalError:
        return False


@contextlib.contextmanager
def started(*words: str, **more: Any) -> Iterator[subprocess.Popen[str]]:
    """A command that runs beside the block, and is killed if it still does at its end."""
    more = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **more}
    with subprocess.Popen([*PGSANDBOX, *words], **more) as process:
        try:
            yield process
        finally:
            process.kill()


class Terminal:
    """A terminal of so many columns, and one process in it."""

    def __init__(self, command: Sequence[str], columns: int = 80) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env=dict(os.environ),  # without COLUMNS, which readline sets behind Python's back
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 -- our tests have one thread
        )
        os.close(slave)

    def read(self) -> str:
        """All that it prints until its end."""
        text = b""
        with contextlib.suppress(OSError):  # EIO: the last one has closed it
            while chunk := os.read(self.master, 4096):
                text += chunk
        self.process.wait(20)
        return text.decode().replace("\r\n", "\n")

    def read_line(self) -> str:
        """The next line that is no narration."""
        line = ""
        while not line.endswith("\n"):
            line += os.read(self.master, 1).decode()
        return line.strip()

    def close(self) -> None:
        """Hang up."""
        os.close(self.master)


# up -------------------------------------------------------------------------------------------------------------------


def test_up_prints_one_url_that_works_and_the_same_one_again(project: Path, cli: Cli) -> None:
    first = cli("up")
    assert (first.returncode, first.stdout.count("\n")) == (0, 1)
    assert answers(first.stdout)
    second = cli("up")
    assert (second.returncode, second.stdout, second.stderr) == (0, first.stdout, "")
    assert cli("up", "project").stdout == first.stdout, "the default name is the folder's"
    assert cli("url").stdout == first.stdout
    assert cli("down").returncode == 0
    assert not answers(first.stdout)


def test_up_says_on_stderr_what_it_does(project: Path, cli: Cli) -> None:
    (project / "schema.sql").write_text("CREATE TABLE t ()")
    done = cli("up", "--init", "schema.sql", "--pgsandbox-cache=false")
    assert done.stderr.splitlines()[-3:] == [
        "pgsandbox: starting PostgreSQL",
        "pgsandbox: schema.sql",
        "pgsandbox: sealing the template",
    ]
    cli("down")


def test_up_of_another_name_is_another_server(project: Path, cli: Cli) -> None:
    urls = {cli("up", name).stdout for name in ("one", "two")}
    assert (len(urls), all(answers(url) for url in urls)) == (2, True)
    assert cli("down", "one").stderr == "pgsandbox: one is gone\n"
    assert sum(answers(url) for url in urls) == 1
    assert cli("down", "--all").stderr == "pgsandbox: two is gone\n"


def test_eight_ups_at_once_make_one_server(project: Path, environ: None, runtime: Path) -> None:
    for _ in range(2):
        with contextlib.ExitStack() as stack:
            processes = [stack.enter_context(started("up")) for _ in range(8)]
            said = [process.communicate(timeout=60) for process in processes]
            assert [process.returncode for process in processes] == [0] * 8, said
        [url] = {stdout for stdout, _ in said}
        assert answers(url)
        assert len(list(runtime.glob("runs/*/servers/*"))) == 1
        assert shell(f"{shlex.join(PGSANDBOX)} down").returncode == 0


def test_up_json_says_all_there_is_to_know(project: Path, cli: Cli, some_target: Target) -> None:
    found = json.loads(cli("up", "--json").stdout)
    assert (found["name"], found["engine"], found["project"], found["ttl"]) == ("project", "local", str(project), 28800)
    assert found["version"].partition(".")[0] == str(some_target.version)
    assert found["env"]["DATABASE_URL"] == found["url"] == cli("url").stdout.strip()
    cli("down")


def test_up_env_is_a_shells_environment(project: Path, on_path: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables of the user's that would lead elsewhere are unset."""
    monkeypatch.setenv("PGHOSTADDR", "192.0.2.1")
    monkeypatch.setenv("PGSERVICE", "elsewhere")
    done = shell(
        'eval "$(pgsandbox up --env --pgsandbox-env SHOP_URL)"; '
        '[ "$SHOP_URL" = "$DATABASE_URL" ] && psql -Atc "SELECT session_user" && pgsandbox down'
    )
    assert (done.returncode, done.stdout) == (0, "pgsandbox_main\n"), done.stderr


def test_up_refuses_json_and_env_together(project: Path, cli: Cli) -> None:
    done = cli("up", "--json", "--env")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (2, "Error: --json and --env exclude each other")


@pytest.mark.parametrize(
    ("name", "given"),
    [("../shop", "'../shop'"), ("two words", "'two words'"), ("", "''"), ("ü", "'ü'"), ("x" * 41, f"'{'x' * 41}'")],
)
def test_names_that_no_file_should_have_are_refused(project: Path, cli: Cli, name: str, given: str) -> None:
    for command in ("up", "url"):
        done = cli(command, name)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == (
            f"pgsandbox: {given} can't name a sandbox\n  hint: use up to 40 letters, digits, and . _ - inside\n"
        )


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        (b"My Shop (2)", "my-shop-2"),
        ("Übergröße Überall".encode(), "ubergroe-uberall"),
        ("日本".encode(), "sandbox"),
        (b"x" * 100, "x" * 40),
        (b'it\'s "quoted" \xff', "it-s-quoted"),
    ],
)
def test_any_folder_gives_a_name(tmp_path: Path, cli: Cli, folder: bytes, name: str) -> None:
    where = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + folder))
    where.mkdir()
    url = cli("up", cwd=where)
    assert (url.returncode, answers(url.stdout)) == (0, True), url.stderr
    listed = cli("ls", cwd=where)
    assert (listed.returncode, listed.stdout.splitlines()[1].split()[0]) == (0, name), listed.stderr
    assert cli("down", cwd=where).stderr == f"pgsandbox: {name} is gone\n"


def test_a_sandbox_that_runs_is_not_taken_for_another(project: Path, cli: Cli) -> None:
    url = cli("up").stdout
    for words, what in (
        (("--version", "18"), "PostgreSQL 15 instead of 18"),
        (("--engine", "docker", "--version", "15"), "the engine local instead of docker"),
        (("--url", "postgresql://u:p@h/d", "--engine", "external"), "the engine local instead of external"),
    ):
        done = cli("up", *words)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == (
            f"pgsandbox: the sandbox project runs already, with {what}\n  hint: end it first: pgsandbox down project\n"
        )
    assert cli("up").stdout == url
    cli("down")


def test_a_good_up_follows_a_failed_one_at_once(project: Path, cli: Cli) -> None:
    """What failed is not remembered: not the settings, the engine, an init step, nor a start that was killed."""
    (project / "broken.sql").write_text("SELECT 1/0")
    for words, code, said in (
        (("--options", "shared_buffers=nonsense"), 1, "pgsandbox: PostgreSQL ended while it was starting"),
        (("--init", "broken.sql"), 1, "pgsandbox: init file broken.sql failed"),
        (("--engine", "docker", "--image", "no.such.registry.invalid/x"), 3, "pgsandbox: docker: "),
        (("--timeout", "1ms"), 4, "pgsandbox: "),
    ):
        failed = cli("up", *words)
        assert (failed.returncode, failed.stdout) == (code, ""), failed.stderr
        assert any(line.startswith(said) for line in failed.stderr.splitlines()), failed.stderr
        good = cli("up")
        assert (good.returncode, answers(good.stdout)) == (0, True), good.stderr
        assert cli("down").returncode == 0


@pytest.mark.parametrize(
    "on", [Target("local", 15), pytest.param(Target("docker", 15), marks=pytest.mark.docker)], ids=["local", "docker"]
)
def test_up_ends_by_itself_after_its_ttl_and_not_while_somebody_is_connected(
    project: Path, cli: Cli, on: Target, monkeypatch: pytest.MonkeyPatch, runtime: Path
) -> None:
    for name, value in on.environ.items():
        monkeypatch.setenv(name, value)
    url = cli("up", "--ttl", "1s").stdout.strip()
    with psycopg.connect(url) as connection:
        assert not eventually(lambda: not list(runtime.glob("runs/*/servers/*")), timeout=3)
        assert connection.execute("SELECT 1").fetchone() == (1,)
    left = time.monotonic()
    assert eventually(lambda: not left_behind(runtime), timeout=8)
    assert time.monotonic() - left > 1
    assert cli("url").returncode == 5


def test_up_says_where_what_it_was_built_from_has_changed(project: Path, cli: Cli) -> None:
    (project / "schema.sql").write_text("CREATE TABLE old ()")
    words = ("up", "--init", "schema.sql")
    url = cli(*words).stdout
    same = cli(*words)
    assert (same.stdout, same.stderr) == (url, "")
    (project / "schema.sql").write_text("CREATE TABLE new ()")
    changed = cli(*words)
    name = json.loads(cli("ls", "--json").stdout)[0]["name"]
    told = f"settings, migrations or init steps have changed since {name} was started"
    assert (changed.returncode, changed.stdout) == (0, url)
    assert changed.stderr == f"pgsandbox: {told}: `pgsandbox down {name}` first to have them\n"
    cli("down")


def test_another_ttl_can_be_given_to_one_that_runs(project: Path, cli: Cli, runtime: Path) -> None:
    url = cli("up").stdout
    assert json.loads(cli("up", "--ttl", "1s", "--json").stdout)["ttl"] == 1
    assert eventually(lambda: not left_behind(runtime))
    assert not answers(url)


def test_up_survives_its_terminal(project: Path, environ: None, cli: Cli) -> None:
    """The shell that started it is hung up on, and dies."""
    terminal = Terminal(["bash", "-c", f"{shlex.join(PGSANDBOX)} up 2>/dev/null; sleep 600"])
    url = terminal.read_line()
    terminal.close()
    assert terminal.process.wait(10) == -signal.SIGHUP
    assert answers(url)
    assert cli("up").stdout.strip() == url
    cli("down")


def test_a_terminal_gets_urls_and_narration_too(project: Path, environ: None, cli: Cli) -> None:
    lines = Terminal([*PGSANDBOX, "up"]).read().splitlines()
    assert answers(lines[-1].rpartition("\x1b[2K")[2].rpartition("\r")[2])
    cli("down")


# Signals --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def slow_step(project: Path) -> Path:
    """An init step that takes a minute; the file that it makes first."""
    (project / "pytest.ini").write_text("[pytest]\npgsandbox_init = command: sh -c 'touch begun; sleep 60'\n")
    return project / "begun"


@pytest.mark.parametrize(
    ("numbers", "code", "said"),
    [
        ([signal.SIGINT], 130, "pgsandbox: interrupted"),
        ([signal.SIGINT, signal.SIGINT], 130, None),
        ([signal.SIGTERM], -signal.SIGTERM, None),
        ([signal.SIGHUP], -signal.SIGHUP, None),
        ([signal.SIGKILL], -signal.SIGKILL, None),
    ],
)
@pytest.mark.parametrize("words", [("up",), ("run", "--", "true")], ids=["up", "run"])
def test_a_start_that_is_interrupted_leaves_nothing(
    environ: None,
    slow_step: Path,
    runtime: Path,
    words: tuple[str, ...],
    numbers: list[signal.Signals],
    code: int,
    said: str | None,
) -> None:
    with started(*words) as process:
        assert eventually(slow_step.exists, timeout=30)
        for number in numbers:
            process.send_signal(number)
            eventually(lambda: process.poll() is not None, timeout=0.02)
        stdout, stderr = process.communicate(timeout=10)
        assert (process.returncode, stdout, "Traceback" in stderr) == (code, "", False), stderr
        if said is not None:
            assert stderr.splitlines()[-1] == said
    assert eventually(lambda: not left_behind(runtime))


def test_a_command_that_is_interrupted_anywhere_shows_no_trace(project: Path, environ: None, runtime: Path) -> None:
    """From the moment that our code runs, that is; before that the interpreter itself would speak."""
    for tenth in range(1, 7):
        with started("up") as process:
            eventually(lambda: process.poll() is not None, timeout=0.1 + tenth / 20)
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=10)
            assert process.returncode in (0, 130, -signal.SIGINT), stderr
            assert "Traceback" not in stderr or "pgsandbox/" not in stderr, stderr
        shell(f"{shlex.join(PGSANDBOX)} down")
        assert eventually(lambda: not left_behind(runtime))


# down, ls, url, logs, prune -------------------------------------------------------------------------------------------


def test_what_does_not_run_is_not_found_and_the_message_says_what_does(project: Path, cli: Cli) -> None:
    message = (
        "pgsandbox: there is no sandbox shop\n"
        "  why: this project has {what}\n"
        f"  looked at: {project}\n"
        "  hint: start it with `pgsandbox up shop`; `pgsandbox ls` shows those of other projects, too\n"
    )
    for command in ("down", "url", "psql", "logs"):
        done = cli(command, "shop")
        assert (done.returncode, done.stdout, done.stderr) == (5, "", message.format(what="none"))
    cli("up", "one")
    assert cli("url", "shop").stderr == message.format(what="only one")
    hint = "  hint: end what there is with `pgsandbox down one`, or all of it with --all\n"
    assert cli("down", "shop").stderr == message.format(what="only one").partition("  hint:")[0] + hint
    cli("down", "one")


def test_all_of_this_project_is_not_all(tmp_path: Path, project: Path, cli: Cli) -> None:
    """The same name in another project is another sandbox, and none of our business."""
    elsewhere = tmp_path / "elsewhere" / "project"
    elsewhere.mkdir(parents=True)
    (elsewhere / "pytest.ini").write_text("[pytest]\n")
    theirs = cli("up", cwd=elsewhere).stdout
    assert cli("url").returncode == 5
    assert cli("down").returncode == 5
    ours = cli("up").stdout
    assert ours != theirs
    assert [line.split()[0] for line in cli("ls").stdout.splitlines()] == ["NAME", "project", "project"]
    assert cli("down", "--all").stderr == "pgsandbox: project is gone\n"
    assert cli("down", "--all").stderr == "pgsandbox: this project has no sandbox\n"
    assert answers(theirs)
    assert cli("down", cwd=elsewhere).returncode == 0


def test_a_folder_inside_the_project_is_the_project(project: Path, cli: Cli) -> None:
    (project / "src" / "deep").mkdir(parents=True)
    url = cli("up").stdout
    assert cli("url", cwd=project / "src" / "deep").stdout == url
    cli("down")


def test_down_takes_a_name_or_all(project: Path, cli: Cli) -> None:
    done = cli("down", "shop", "--all")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (2, "Error: NAME and --all exclude each other")


def test_ls_shows_everything_but_the_password(project: Path, cli: Cli) -> None:
    empty = cli("ls")
    assert (empty.returncode, empty.stdout, empty.stderr) == (0, "", "pgsandbox: there is no sandbox\n")
    assert cli("ls", "--json").stdout == "[]\n"
    found = json.loads(cli("up", "shop", "--ttl", "90s", "--json").stdout)
    header, line = cli("ls").stdout.splitlines()
    assert header.split() == ["NAME", "ENGINE", "VERSION", "ADDRESS", "AGE", "TTL", "PROJECT"]
    name, engine, version, address, age, ttl, folder = line.split()
    assert (name, engine, version, ttl, folder) == ("shop", "local", found["version"], "90s", str(project))
    assert (address, age[-1]) == (found["url"].rpartition("@")[2], "s")
    assert found["env"]["PGPASSWORD"] not in cli("ls").stdout
    assert json.loads(cli("ls", "--json").stdout) == [found]
    cli("down", "shop")


def test_a_narrow_terminal_gets_lines_and_loses_nothing(project: Path, cli: Cli) -> None:
    url = cli("up").stdout.strip()
    lines = Terminal([*PGSANDBOX, "ls"], columns=30).read().splitlines()
    assert lines[:4] == [
        "NAME     project",
        "ENGINE   local",
        f"VERSION  {lines[2][9:]}",
        f"ADDRESS  {url.split('@')[1]}",
    ]
    assert lines[6] == f"PROJECT  {project}"
    wide = Terminal([*PGSANDBOX, "ls"], columns=300).read().splitlines()
    assert wide[1].split()[-1] == str(project)
    cli("down")


def test_logs_are_the_servers_last_lines(project: Path, cli: Cli) -> None:
    url = cli("up").stdout.strip()
    with psycopg.connect(url, autocommit=True) as connection:
        for number in range(3):
            with contextlib.suppress(psycopg.Error):
                connection.execute(f"SELECT no_such_{number}")  # type: ignore[arg-type]
    lines = cli("logs", "-n", "2").stdout.splitlines()
    assert (len(lines), "no_such_2" in lines[-1]) == (2, True)
    assert "no_such_0" in cli("logs").stdout
    refused = cli("logs", "-n", "0")
    assert (refused.returncode, "0 is not in the range x>=1" in refused.stderr) == (2, True)
    cli("down")


@pytest.mark.docker
@pytest.mark.podman
def test_a_sandbox_on_docker_is_served_like_any_other(
    project: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """psql is the container's where this machine has none."""
    for name, value in Target("docker", 15).environ.items():
        monkeypatch.setenv(name, value)
    assert answers(cli("up").stdout)
    assert "docker" in cli("ls").stdout
    assert cli("psql", "--", "-Atc", "SELECT no_such_column").returncode == 1
    assert "no_such_column" in cli("logs").stdout
    script = "import sys; from pgsandbox.engines import binaries; binaries.USUAL_FOLDERS = (); "
    script += "binaries._embedded = lambda: []; from pgsandbox.cli import main; main()"
    for client in ("docker", "podman") if is_podman() else ("docker",):
        only = tmp_path / f"only-{client}"
        only.mkdir()
        (only / client).symlink_to(str(shutil.which(client)))
        with monkeypatch.context() as patch:
            patch.setenv("PATH", str(only))
            inside = subprocess.run(
                [sys.executable, "-c", script, "psql", "--", "-Atc", "SELECT session_user || current_setting('port')"],
                capture_output=True,
                text=True,
                check=False,
            )
        assert (inside.returncode, inside.stdout) == (0, "pgsandbox_main5432\n"), inside.stderr
    assert cli("down").returncode == 0


def test_psql_in_a_container_asks_the_daemon_that_the_sandbox_is_on(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DOCKER_HOST", "DOCKER_CONTEXT", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    place = tmp_path / "podman.sock"
    monkeypatch.setattr("pgsandbox.engines.daemon.DOCKER", str(tmp_path / "nothing"))
    monkeypatch.setattr("pgsandbox.engines.daemon._MACHINES_PODMAN", str(place))

    def command(*clients: str) -> list[str]:
        monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}" if name in clients else None)
        return named._container_client()

    with forwarded_unix(place) as (address, _):
        assert command("docker", "podman") == ["docker", "--host", address]
        assert command("podman") == ["podman", "--remote", "--url", address]
    assert command("docker") == ["docker"]
    assert command("podman") == ["podman"]
    monkeypatch.setenv("DOCKER_HOST", address)
    assert command("docker", "podman") == ["docker"]
    assert command("podman") == ["podman", "--remote", "--url", address]
    assert command() == []


def test_prune_says_what_it_removes(project: Path, cli: Cli, runtime: Path) -> None:
    nothing = cli("prune")
    assert (nothing.returncode, nothing.stdout, nothing.stderr) == (0, "", "pgsandbox: there was nothing to remove\n")
    cli("up")
    [supervisor] = runtime.glob("runs/*/servers/*/supervisor.json")
    os.kill(json.loads(supervisor.read_text())["pid"], signal.SIGKILL)
    assert cli("ls").stdout == "", "what has no supervisor is gone already"
    done = cli("prune")
    run = supervisor.parents[2].name
    assert (done.returncode, done.stderr) == (
        0,
        f"pgsandbox: removed local server {supervisor.parent.name}\npgsandbox: removed run {run}\n",
    )
    assert not list(runtime.glob("runs/*"))


# psql -----------------------------------------------------------------------------------------------------------------


def test_psql_opens_the_right_database_whatever_the_environment_says(
    project: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = cli("up").stdout.strip()
    cli("up", "other")
    monkeypatch.setenv("PGHOSTADDR", "192.0.2.1")
    monkeypatch.setenv("PGDATABASE", "nowhere")
    ask = ["--", "-Atc", "SELECT session_user, inet_server_port()"]
    assert cli("psql", *ask).stdout == f"pgsandbox_main|{url.rpartition(':')[2].partition('/')[0]}\n"
    assert cli("psql", "project", *ask).stdout == cli("psql", *ask).stdout
    assert cli("psql", "other", *ask).stdout != cli("psql", *ask).stdout
    assert cli("psql", input="SELECT 42;\n").stdout.splitlines()[2].strip() == "42"
    assert cli("psql", "--", "-X", "-At", "--", "postgres", input="SELECT current_database()").stdout == "postgres\n"
    cli("down", "--all")


def test_psql_returns_psqls_own_exit_code(project: Path, cli: Cli) -> None:
    cli("up")
    assert cli("psql", "--", "-c", "SELECT 1/0").returncode == 1
    assert cli("psql", "--", "-v", "ON_ERROR_STOP=1", input="SELECT 1/0;").returncode == 3
    done = cli("psql", "-c", "SELECT 1")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        2,
        "Error: No such option '-c'. What is for psql goes after --.",
    )
    assert "unexpected extra argument (extra)" in cli("psql", "project", "extra").stderr
    cli("down")


# run ------------------------------------------------------------------------------------------------------------------


def test_run_gives_a_command_its_database_and_returns_its_exit_code(project: Path, cli: Cli, runtime: Path) -> None:
    script = 'psql -Atc "SELECT session_user"; [ "$SHOP_URL" = "$DATABASE_URL" ] || exit 1; cat; echo "no" >&2; exit 7'
    done = cli("run", "--pgsandbox-env", "SHOP_URL", "--", "sh", "-c", script, input="its own stdin\n")
    assert (done.returncode, done.stdout, done.stderr.splitlines()[-1]) == (7, "pgsandbox_main\nits own stdin\n", "no")
    gone = eventually(lambda: not list(runtime.glob("runs/*/servers/*")), timeout=1.0)
    assert gone, "it waits for the end of the server, and what is left of it is being removed"


@pytest.mark.parametrize(
    ("words", "stdout"),
    [
        (["echo", "--version", "-n"], "--version -n\n"),
        (["--", "echo", "--ttl"], "--ttl\n"),
        (["--connections", "3", "echo", "--", "x"], "-- x\n"),
        (["--pgsandbox-connections=3", "--", "sh", "-c", 'echo "$0" "$@"', "a", "--help"], "a --help\n"),
    ],
)
def test_what_follows_the_command_is_the_commands(project: Path, cli: Cli, words: list[str], stdout: str) -> None:
    done = cli("run", *words)
    assert (done.returncode, done.stdout) == (0, stdout), done.stderr


NO_SUCH_PROGRAM = """\
pgsandbox: no-such-program can't be run
  why: there is no such program
  looked at: PATH
  hint: is the virtual environment active that it is in?
"""


def test_run_fails_as_a_shell_would_for_what_can_not_be_run(project: Path, cli: Cli) -> None:
    (project / "text").write_text("")
    for program, code, message in (
        ("no-such-program", 127, NO_SUCH_PROGRAM),
        ("./nothing", 127, "pgsandbox: ./nothing can't be run\n  why: there is no such file\n"),
        ("./text", 126, "pgsandbox: ./text can't be run\n  why: it is not executable\n"),
        (str(project), 126, f"pgsandbox: {project} can't be run\n  why: it is a folder\n"),
    ):
        done = cli("run", "--", program)
        assert (done.returncode, done.stdout, done.stderr) == (code, "", message)
    garbage = project / "garbage"
    garbage.write_bytes(b"\x7fELF no more")
    garbage.chmod(0o755)
    done = cli("run", "./garbage")
    assert (done.returncode, done.stderr.splitlines()[-2:]) == (
        126,
        ["pgsandbox: ./garbage can't be run", "  why: Exec format error"],
    )


def test_a_command_that_dies_of_a_signal_is_told_as_a_shell_would(project: Path, cli: Cli) -> None:
    assert cli("run", "--", "sh", "-c", "kill -9 $$").returncode == 128 + signal.SIGKILL


TRAP = """\
trap 'echo INT; exit 3' INT
trap 'echo TERM; exit 4' TERM
trap 'echo HUP; exit 5' HUP
echo ready
while true; do sleep 0.05; done
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 3), (signal.SIGTERM, 4), (signal.SIGHUP, 5)])
def test_signals_are_the_commands_to_answer(
    project: Path, environ: None, runtime: Path, number: signal.Signals, code: int
) -> None:
    with started("run", "--", "sh", "-c", TRAP) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=20)
        assert (process.returncode, stdout) == (code, f"{number.name[3:]}\n"), stderr
    assert eventually(lambda: not left_behind(runtime), timeout=1)


def test_ctrl_c_reaches_the_command_once(project: Path, environ: None, runtime: Path) -> None:
    """The terminal sends it to both."""
    script = "trap 'echo one' INT; echo ready; for i in 1 2 3 4 5 6 7 8 9 10; do sleep 0.05; done; exit 6"
    terminal = Terminal(["sh", "-c", f'exec {shlex.join(PGSANDBOX)} run -- sh -c "{script}" 2>/dev/null'])
    while terminal.read_line() != "ready":
        pass
    os.write(terminal.master, b"\x03")
    assert (terminal.read().count("one"), terminal.process.wait(20)) == (1, 6)
    assert eventually(lambda: not left_behind(runtime))


def test_what_nohup_ignores_stays_ignored(project: Path, on_path: None) -> None:
    done = shell("nohup pgsandbox run -- sh -c 'kill -HUP $$; echo alive' 2>/dev/null")
    assert (done.returncode, done.stdout) == (0, "alive\n")


def test_a_killed_run_takes_its_server_along(project: Path, environ: None, runtime: Path) -> None:
    with started("run", "--", "sh", "-c", "echo $$; echo ready; exec sleep 600") as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert process.stdout.readline() == "ready\n"
        process.kill()
        assert eventually(lambda: not left_behind(runtime))
        os.kill(pid, signal.SIGKILL)


# doctor ---------------------------------------------------------------------------------------------------------------


def test_doctor_says_where_each_setting_comes_from(
    project: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, runtime: Path
) -> None:
    (project / "pytest.ini").unlink()
    (project / "pyproject.toml").write_text(
        "[tool.pytest.ini_options]\npgsandbox_ttl = '1h'\n[tool.pgsandbox]\nscope = 'worker'\ncache_size = '1GB'\n"
        "[project]\nname = 'x'\n"
    )
    monkeypatch.setenv("PGSANDBOX_CONNECTIONS", "7")
    done = cli("doctor", "--timeout", "30s", "--cache-size", "3GB")
    rows = {line.split()[0]: line.split(None, 1)[1] for line in done.stdout.split("\n\n")[0].splitlines()}
    assert {
        name: " ".join(rows[name].split()) for name in ("timeout", "connections", "ttl", "scope", "cache_size")
    } == {
        "timeout": "30s --timeout",
        "connections": "7 PGSANDBOX_CONNECTIONS",
        "ttl": "1h pgsandbox_ttl in pyproject.toml",
        "scope": "worker [tool.pgsandbox] scope in pyproject.toml",
        "cache_size": "3072MB --cache-size",
    }
    assert rows["isolation"].split() == ["reset", "default"]
    assert (done.returncode, "serves: local\n" in done.stdout) == (0, True)
    assert f"runtime folder: {runtime}\n" in done.stdout
    assert (
        "clones: file by file (STRATEGY file_copy): of 300 tables in less than half of the time that WAL_LOG takes, "
        "and without WAL; the first worker gets a spare one that is kept with the template\n"
    ) in done.stdout
    report = json.loads(cli("doctor", "--json").stdout)
    assert {"name": "ttl", "value": "1h", "from": "pgsandbox_ttl in pyproject.toml"} in report["settings"]
    assert (report["serves"], [engine["name"] for engine in report["engines"]]) == ("local", ["docker", "local"])


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://shop:s3cret@192.0.2.1:5432/x?connect_timeout=1",
        "postgresql://shop:s3cret/with@strange@192.0.2.1/x",
        "postgresql://shop@192.0.2.1/x?password=s3cret&connect_timeout=1",
    ],
)
def test_doctor_shows_no_password(project: Path, cli: Cli, url: str) -> None:
    for words in ((), ("--json",)):
        done = cli("doctor", "--engine", "external", "--url", url, *words)
        assert (done.returncode, "s3cret" in done.stdout + done.stderr) == (3, False), done.stdout + done.stderr
        assert "***" in done.stdout


def test_doctor_exits_with_3_where_nothing_serves(project: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{project}/nothing")
    done = cli("doctor", "--engine", "docker")
    assert (done.returncode, "serves: nothing\n" in done.stdout) == (3, True)
    assert (
        "docker: no engine answers\n"
        "  why: no such file\n"
        f"  looked at: unix://{project}/nothing\n"
        "  hint: start Docker, or use --pgsandbox-engine=local\n"
        "local: PostgreSQL 15."
    ) in done.stdout
    assert json.loads(cli("doctor", "--engine", "docker", "--json").stdout)["serves"] == ""


# Help, completion, usage ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(commands.commands))
def test_help_teaches_by_example(cli: Cli, name: str) -> None:
    done = cli(name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"Usage: pgsandbox {name} " in done.stdout
    assert f"  pgsandbox {name}" in done.stdout.partition("\n\n")[2] or name in ("up", "prune", "completion")
    assert "--pgsandbox-" not in done.stdout.partition("Options:")[2].replace("--pgsandbox-env", "")


def test_help_names_every_command_and_exit_code(cli: Cli) -> None:
    done = cli("--help")
    assert (done.returncode, done.stdout == cli("-h").stdout) == (0, True)
    assert {
        line.split()[0] for line in done.stdout.partition("Commands:\n")[2].splitlines() if line[2:3] != " "
    } == set(commands.commands)
    assert "Exit codes: 0 ok, 1 failed, 2 usage, 3 no engine, 4 not ready in time, 5 no" in done.stdout
    assert "..." not in done.stdout.partition("Commands:")[2], "nothing is cut off"


def test_version_is_ours(cli: Cli) -> None:
    assert cli("--version").stdout == f"{pgsandbox.__version__}\n"


def test_bash_completes_commands_flags_and_names(project: Path, cli: Cli, on_path: None) -> None:
    cli("up", "shop")
    script = """
        eval "$(pgsandbox completion bash)"
        try() {
            COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
            _pgsandbox_completion "$1"
            echo "${COMPREPLY[@]}"
        }
        try pgsandbox do
        try pgsandbox url s
        try pgsandbox up --tt
        try pgsandbox completion z
    """
    done = shell(script)
    assert done.stdout.splitlines() == ["doctor down", "shop", "--ttl", "zsh"], done.stderr
    cli("down", "shop")


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_each_shells_completion_script_is_one(cli: Cli, name: str, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(cli("completion", name).stdout)
    assert "_PGSANDBOX_COMPLETE" in script.read_text()
    if shutil.which(name):
        assert subprocess.run([name, "-n", str(script)], check=False).returncode == 0


def test_completion_is_silent_about_trouble(cli: Cli, on_path: None, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    asked = "COMP_WORDS='pgsandbox url s' COMP_CWORD=2 _PGSANDBOX_COMPLETE=bash_complete"
    done = shell(f"_PGSANDBOX_ROOT={tmp_path}/file {asked} pgsandbox")
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["dwon"], "No such command 'dwon'."),
        (["up", "--tll", "1h"], "No such option '--tll'."),
        (["up", "--pgsandbox-tll=1h"], "No such option '--pgsandbox-tll'."),
        (["completion", "tcsh"], "'tcsh' is not one of 'bash', 'zsh', 'fish'."),
        (["run"], "Missing argument 'COMMAND...'."),
        (["up", "a", "b"], "Got unexpected extra argument (b)"),
    ],
)
def test_what_was_mistyped_is_named(project: Path, cli: Cli, words: list[str], said: str) -> None:
    done = cli(*words)
    assert (done.returncode, done.stdout, said in done.stderr) == (2, "", True), done.stderr
    assert "Try 'pgsandbox" in done.stderr


def test_a_malformed_setting_is_a_usage_error(project: Path, cli: Cli) -> None:
    done = cli("up", "--ttl", "soon")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "pgsandbox: --ttl = 'soon' is not a duration such as 500ms, 60s, 15m or 8h\n"
        "  hint: ttl: how long a kept server lives with nobody connected\n"
    )


# No trace, ever -------------------------------------------------------------------------------------------------------


def test_a_reader_that_goes_away_is_no_error_to_speak_of(project: Path, cli: Cli) -> None:
    cli("up")
    for words in (["ls"], ["url"], ["doctor"], ["--help"], ["completion", "zsh"]):
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(
            [*PGSANDBOX, *words], stdout=writer, stderr=subprocess.PIPE, text=True, check=False, timeout=60
        )
        os.close(writer)
        assert (done.returncode, done.stderr) == (1, ""), words
    cli("down")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_obstacle(project: Path, on_path: None, closed: str) -> None:
    done = shell(f"{{ pgsandbox up && pgsandbox ls && pgsandbox down; }} {closed}")
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr


def test_a_full_disk_under_the_output_is_said(cli: Cli, on_path: None) -> None:
    done = shell("pgsandbox completion zsh >/dev/full")
    assert (done.returncode, done.stderr) == (1, "pgsandbox: the output: No space left on device\n")


def test_a_working_directory_that_is_gone_is_said(tmp_path: Path, environ: None) -> None:
    for command in ("up", "url", "down --all", "doctor", "run true"):
        done = shell(f"mkdir gone; cd gone; rmdir ../gone; {shlex.join(PGSANDBOX)} {command}", cwd=tmp_path)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == (
            "pgsandbox: the working directory is gone\n"
            "  why: it was removed or renamed\n"
            "  hint: cd to the project's folder\n"
        )


@needs_root
def test_a_runtime_folder_that_is_not_ours_is_said(
    project: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, open_to_all, a_file = tmp_path / "theirs", tmp_path / "open", tmp_path / "file"
    theirs.mkdir(mode=0o700)
    open_to_all.mkdir()
    open_to_all.chmod(0o755)
    a_file.write_text("")
    with other_user() as somebody:
        os.chown(theirs, somebody.uid, somebody.gid)
    for folder, why in (
        (theirs, f"it belongs to user {theirs.stat().st_uid}, and this process runs as user 0"),
        (open_to_all, "others may enter it: its mode is 0755, not 0700"),
        (a_file, "it is not a folder"),
    ):
        monkeypatch.setenv("_PGSANDBOX_ROOT", str(folder))
        for words in (["up"], ["ls"]):
            done = cli(*words)
            assert (done.returncode, done.stdout) == (1, "")
            assert done.stderr == (
                f"pgsandbox: the folder {folder} can't be trusted\n"
                f"  why: {why}\n"
                f"  hint: look at it with `ls -ld {folder}`; its owner, or root, can remove it\n"
            )


@needs_root
def test_a_read_only_runtime_folder_is_said(project: Path, cli: Cli, tmp_path: Path, environ: None) -> None:
    folder = tmp_path / "read-only"
    folder.mkdir(mode=0o700)
    command = with_mounts(f"-t tmpfs -o ro,mode=0700 none {folder}")
    for words in (["up"], ["ls"], ["prune"]):
        done = subprocess.run(
            [*command, *PGSANDBOX, *words],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "_PGSANDBOX_ROOT": str(folder)},
        )
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == (
            f"pgsandbox: {folder}/runs can't be written\n"
            "  why: the file system is read-only\n"
            "  hint: make it writable, or set TMPDIR to a folder that is\n"
        )


@pytest.mark.parametrize("text", ["", "[]", '{"name": "shop"}'])
def test_a_damaged_record_is_named_and_stops_nobody(project: Path, cli: Cli, runtime: Path, text: str) -> None:
    cli("up", "one")
    url = cli("up", "two").stdout
    [record] = runtime.glob("runs/*/named-one.json")
    record.write_text(text)
    done = cli("ls")
    assert (done.returncode, [line.split()[0] for line in done.stdout.splitlines()]) == (0, ["NAME", "two"])
    message, _, *rest = done.stderr.splitlines()
    assert message == f"pgsandbox: the record {record} can't be read"
    assert rest == ["  hint: remove it once nothing of pgsandbox runs any more, and run `pgsandbox prune`"]
    assert cli("url", "one").returncode == 5
    again = cli("up", "one")
    assert (again.returncode, answers(again.stdout)) == (0, True), again.stderr
    assert len(list(runtime.glob("runs/*/servers/*"))) == 2, "the one that nobody could find has ended"
    assert cli("url", "two").stdout == url
    assert cli("down", "--all").returncode == 0


def test_a_bug_of_ours_is_two_lines_and_no_trace(cli: Cli, environ: None) -> None:
    script = "import pgsandbox.named as n; n.listing = lambda: 1 / 0; from pgsandbox.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", script, "ls"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "pgsandbox: ZeroDivisionError: division by zero\n"
        "  why: at <string>:1\n"
        "  hint: this is a bug of pgsandbox: please report these lines\n"
    )


def test_no_engine_is_exit_code_3(project: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{project}/nothing")
    done = cli("up", "--engine", "docker")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == (
        "pgsandbox: docker: no engine answers\n"
        "  why: no such file\n"
        f"  looked at: unix://{project}/nothing\n"
        "  hint: start Docker, or use --pgsandbox-engine=local\n"
    )


def test_not_ready_in_time_is_exit_code_4(project: Path, cli: Cli, runtime: Path) -> None:
    done = cli("up", "--timeout", "1ms", "--pgsandbox-cache=false")
    assert (done.returncode, done.stdout) == (4, "")
    assert "hint: raise the setting timeout" in done.stderr
    assert eventually(lambda: not left_behind(runtime))
