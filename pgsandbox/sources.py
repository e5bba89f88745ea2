"""The five places that settings come from, read: command line, environment, ini file, pyproject.toml, defaults."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pgsandbox.errors import SettingsError
from pgsandbox.settings import Place, Raw, Settings, resolve

ENV_PREFIX = "PGSANDBOX_"
INI_PREFIX = "pgsandbox_"

_INI_FILES = ("pytest.toml", ".pytest.toml", "pytest.ini", ".pytest.ini", "pyproject.toml", "tox.ini", "setup.cfg")
_PROJECT_MARKS = ("pyproject.toml", "setup.py", ".git")


def load(
    *,
    cli: Mapping[str, Raw] | None = None,
    cli_name: str = "--pgsandbox-{flag}",
    environ: Mapping[str, str] | None = None,
    ini_file: Path | None = None,
    overrides: Iterable[str] = (),
    root: Path | None = None,
) -> Settings:
    """The settings in force for the project at `root` (default: found from the working directory upwards).

    `cli` holds what the command line said, `overrides` pytest's `-o name=value`, `ini_file` the file that pytest
    chose; without one it is looked for as pytest does. Raises SettingsError.
    """
    if root is None:
        root = find_root(Path.cwd())
    if ini_file is None:
        ini_file = find_ini(root)
    return resolve(
        [
            Place(cli_name, cli or {}),
            Place(ENV_PREFIX + "{NAME}", _environment(os.environ if environ is None else environ)),
            Place("-o " + INI_PREFIX + "{name}", _overrides(overrides)),
            Place(f"{INI_PREFIX}{{name}} in {_escape(ini_file)}", _ini(ini_file)),
            Place("[tool.pgsandbox] {name} in pyproject.toml", _tool_table(root / "pyproject.toml")),
        ]
    )


def find_root(start: Path) -> Path:
    """The nearest folder, upwards from `start`, that holds what pytest would read; else a project's; else `start`."""
    folders = (start, *start.parents)
    for folder in folders:
        if find_ini(folder) is not None:
            return folder
    for folder in folders:
        if any((folder / name).exists() for name in _PROJECT_MARKS):
            return folder
    return start


def find_ini(root: Path) -> Path | None:
    """The file in `root` whose pytest section pytest would read, in pytest's own order; None if there is none."""
    for name in _INI_FILES:
        file = root / name
        if file.is_file() and _pytest_section(file) is not None:
            return file
    return None


def _environment(environ: Mapping[str, str]) -> dict[str, Raw]:
    return {key[len(ENV_PREFIX) :].lower(): value for key, value in environ.items() if key.startswith(ENV_PREFIX)}


def _overrides(pairs: Iterable[str]) -> dict[str, Raw]:
    split = (pair.partition("=") for pair in pairs)
    return {key[len(INI_PREFIX) :]: value for key, _, value in split if key.startswith(INI_PREFIX)}


def _ini(file: Path | None) -> dict[str, Raw]:
    section = _pytest_section(file) if file is not None and file.is_file() else None
    return {key[len(INI_PREFIX) :]: value for key, value in (section or {}).items() if key.startswith(INI_PREFIX)}


def _pytest_section(file: Path) -> Mapping[str, Any] | None:
    """pytest's section of `file`, or None where it has none (pytest's manual, "Configuration file formats")."""
    if file.suffix == ".toml":
        document = _toml(file)
        if file.name != "pyproject.toml":
            # One of another name, given by -c, may also be written like pyproject.toml.
            return _table(document, "pytest") or _tool_pytest(document) or {}
        return _tool_pytest(document)
    return _ini_section(file)


def _tool_pytest(document: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """`[tool.pytest.ini_options]`, or pytest 9's own `[tool.pytest]`; a table of no keys is no configuration."""
    table = _table(document, "tool", "pytest")
    options = table.get("ini_options")
    if isinstance(options, Mapping):
        return options
    return table or None


def _table(document: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    for name in names:
        found = document.get(name)
        if not isinstance(found, Mapping):
            return {}
        document = found
    return document


def _ini_section(file: Path) -> Mapping[str, str] | None:
    import iniconfig

    try:
        sections = iniconfig.IniConfig(str(file)).sections
    except (iniconfig.ParseError, UnicodeDecodeError, OSError) as problem:
        raise _unreadable(file, problem) from None
    if file.suffix == ".cfg":
        return sections.get("tool:pytest")
    found = sections.get("pytest")
    if found is None and file.name in ("pytest.ini", ".pytest.ini"):
        return {}
    return found


def _tool_table(file: Path) -> dict[str, Raw]:
    if not file.is_file():
        return {}
    table = _table(_toml(file), "tool").get("pgsandbox", {})
    if not isinstance(table, Mapping):
        raise SettingsError(
            "[tool.pgsandbox] in pyproject.toml is not a table",
            why=f"tool.pgsandbox = {table!r}",
            looked_at=(str(file),),
            hint="write a line [tool.pgsandbox], and the settings below it",
        )
    return dict(table)


def _toml(file: Path) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as problem:
        raise _unreadable(file, problem) from None


def _unreadable(file: Path, problem: Exception) -> SettingsError:
    said = problem.strerror if isinstance(problem, OSError) and problem.strerror else str(problem)
    return SettingsError(
        f"{file.name} can't be read", why=said, looked_at=(str(file),), hint="pytest reads it, too: mend it first"
    )


def _escape(file: Path | None) -> str:
    return "the ini file" if file is None else file.name.replace("{", "{{").replace("}", "}}")
