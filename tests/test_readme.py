"""What the README says is true: its settings table, its commands and its examples."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Target

from pgsandbox.cli.sandboxes import cli as command_line
from pgsandbox.settings import SETTINGS, Settings

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[tuple[str, str]]:
    """The comment before, and the text of, each code block in `language`."""
    return re.findall(rf"(?:<!-- (.*?) -->\n)?```{language}\n(.*?)```", README, re.DOTALL)


def test_the_settings_table_has_every_setting_and_its_default() -> None:
    rows = dict(re.findall(r"^\| (`[a-z_`, ]+`) \|(.*?)\|", README.partition("## Settings")[2], re.MULTILINE))
    table = {
        name: value
        for names, values in rows.items()
        for name, value in zip(re.findall(r"\w+", names), values.strip().replace("`", "").split(", "), strict=True)
    }
    defaults = Settings()
    shown = {name: defaults.shown(name) for name in SETTINGS}
    shown["cache_size"] = "2GB"
    shown["timeout"] = "60s"
    assert table == shown


def test_both_set_up_commands_exist() -> None:
    for script in ("scripts/demo", "scripts/test"):
        assert f"\n{script} " in README
        assert (Path(__file__).parent.parent / script).stat().st_mode & 0o100


def test_the_tests_in_it_pass(project: Path, some_target: Target) -> None:
    for mark, text in blocks("python"):
        if mark.startswith("test: "):
            (project / mark.removeprefix("test: ")).write_text(text)
    command = [sys.executable, "-m", "pytest", "-p", "pgsandbox", "-q", *some_target.flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert "4 passed" in done.stdout, done.stdout + done.stderr


def test_the_programs_in_it_run(project: Path, some_target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in some_target.environ.items():
        monkeypatch.setenv(name, value)
    for mark, text in blocks("python"):
        if mark == "run":
            done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=60, check=False)
            assert done.stdout.startswith("postgresql://pgsandbox_main:"), done.stderr


def test_the_commands_in_it_run(project: Path, some_target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """The block of the section on the command line, line by line, in one shell."""
    [script] = [text for _, text in blocks("bash") if "pgsandbox up --env" in text]
    for name, value in some_target.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    script = script.replace("npm test", "psql -c 'SELECT 1'")
    shell = ["bash", "-euo", "pipefail", "-c", script + '\necho "$url"']
    done = subprocess.run(shell, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("postgresql://pgsandbox_main:")


def test_every_command_is_in_it() -> None:
    for name in command_line.commands:
        assert re.search(rf"pgsandbox {name}\b", README), name
