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


def load(
    *,
    cli: Mapping[str, Raw] | None = None,
    cli_name: str = "--pgsandbox-{name}",
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
    """The nearest folder, upwards from `start`, that holds a project or pytest configuration; else `start`."""
    for folder in (start, *start.parents):
        if (folder / ".git").exists() or any((folder / name).is_file() for name in _INI_FILES):
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
            return dict(document.get("pytest", {}))
        table = document.get("tool", {}).get("pytest")
        if not isinstance(table, Mapping):
            return None
        options = table.get("ini_options")
        return options if isinstance(options, Mapping) else table
    return _ini_section(file)


def _ini_section(file: Path) -> Mapping[str, str] | None:
    import iniconfig

    try:
        sections = iniconfig.IniConfig(str(file)).sections
    except iniconfig.ParseError as problem:
        raise SettingsError(f"{file.name} can't be read", why=str(problem)) from None
    if file.suffix == ".cfg":
        return sections.get("tool:pytest")
    found = sections.get("pytest")
    if found is None and file.name in ("pytest.ini", ".pytest.ini"):
        return {}
    return found


def _tool_table(file: Path) -> dict[str, Raw]:
    if not file.is_file():
        return {}
    table = _toml(file).get("tool", {}).get("pgsandbox", {})
    if not isinstance(table, Mapping):
        raise SettingsError("[tool.pgsandbox] in pyproject.toml is not a table")
    return dict(table)


def _toml(file: Path) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise SettingsError(f"{file.name} can't be read", why=str(problem)) from None


def _escape(file: Path | None) -> str:
    return "the ini file" if file is None else file.name.replace("{", "{{").replace("}", "}}")
