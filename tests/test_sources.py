"""The five places that settings come from: each is read as pytest reads it, and a mistake in any of them is named."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pgsandbox import Sandbox, sources
from pgsandbox.errors import SettingsError, UsageError
from pgsandbox.plugin import session_of
from pgsandbox.settings import SETTINGS, Settings

pytest_9 = pytest.mark.skipif(pytest.version_tuple < (9,), reason="pytest reads these since 9.0")
DURABLE = "durable: keep fsync and friends on"


def load(root: Path, **more: Any) -> Settings:
    return sources.load(**{"environ": {}, "root": root, **more})


def as_pytest_has_them(pytester: pytest.Pytester, *args: str) -> Settings:
    """What the plugin makes of it in a pytest with these arguments."""
    return session_of(pytester.parseconfig(*args)).settings


# Files ----------------------------------------------------------------------------------------------------------------

FILES = [
    pytest.param("pytest.ini", "[pytest]\npgsandbox_connections = 7\n", id="pytest.ini"),
    pytest.param(".pytest.ini", "[pytest]\npgsandbox_connections: 7\n", id=".pytest.ini"),
    pytest.param("tox.ini", "[tox]\n[pytest]\npgsandbox_connections=7\n", id="tox.ini"),
    pytest.param("setup.cfg", "[metadata]\n[tool:pytest]\npgsandbox_connections = 7\n", id="setup.cfg"),
    pytest.param("pyproject.toml", "[tool.pytest.ini_options]\npgsandbox_connections = '7'\n", id="ini_options"),
    pytest.param("pyproject.toml", "[tool.pytest.ini_options]\npgsandbox_connections = 7\n", id="ini_options number"),
    pytest.param("pyproject.toml", "[tool.pytest]\npgsandbox_connections = 7\n", id="native", marks=pytest_9),
    pytest.param("pytest.toml", "[pytest]\npgsandbox_connections = 7\n", id="pytest.toml", marks=pytest_9),
    pytest.param(".pytest.toml", "[pytest]\npgsandbox_connections = 7\n", id=".pytest.toml", marks=pytest_9),
]


@pytest.mark.parametrize(("name", "text"), FILES)
def test_every_file_that_pytest_reads_is_read(pytester: pytest.Pytester, name: str, text: str) -> None:
    (pytester.path / name).write_text(text)
    found = load(pytester.path)
    assert (found.connections, found.origins) == (7, {"connections": f"pgsandbox_connections in {name}"})
    assert as_pytest_has_them(pytester) == found


@pytest.mark.parametrize(("name", "text"), FILES)
def test_an_unknown_setting_is_found_in_each_of_them(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text.replace("connections", "conections"))
    assert refusal(lambda: load(tmp_path)) == (
        f"pgsandbox: unknown setting pgsandbox_conections in {name}\n"
        f"  hint: perhaps you meant pgsandbox_connections in {name}"
    )


LISTS = [
    ("pytest.ini", "[pytest]\npgsandbox_init =\n    a.sql\n    command: echo 1, 2\n"),
    ("pytest.ini", "[pytest]\npgsandbox_init = a.sql, command: echo 1, 2\n"),
    ("setup.cfg", "[tool:pytest]\npgsandbox_init =\n    a.sql\n    command: echo 1, 2\n"),
    ("pyproject.toml", "[tool.pytest.ini_options]\npgsandbox_init = ['a.sql', 'command: echo 1, 2']\n"),
    ("pyproject.toml", '[tool.pytest.ini_options]\npgsandbox_init = """\na.sql\ncommand: echo 1, 2"""\n'),
    ("pyproject.toml", "[tool.pgsandbox]\ninit = ['a.sql', 'command: echo 1, 2']\n"),
    ("pyproject.toml", "[tool.pgsandbox]\ninit = 'a.sql, command: echo 1, 2'\n"),
]


@pytest.mark.parametrize(("name", "text"), LISTS)
def test_a_list_may_be_written_as_the_file_allows(pytester: pytest.Pytester, name: str, text: str) -> None:
    (pytester.path / name).write_text(text)
    assert load(pytester.path).init == ("a.sql", "command: echo 1, 2")
    assert as_pytest_has_them(pytester).init == ("a.sql", "command: echo 1, 2")


@pytest_9
@pytest.mark.parametrize("table", ["[pytest]", "[tool.pytest]"])
def test_native_values_are_taken_as_they_are(pytester: pytest.Pytester, table: str) -> None:
    text = f"{table}\npgsandbox_durable = true\npgsandbox_init = ['a,b.sql']\npgsandbox_timeout = 1.5\n"
    (pytester.path / ("pytest.toml" if table == "[pytest]" else "pyproject.toml")).write_text(text)
    found = as_pytest_has_them(pytester)
    assert (found.durable, found.init, found.timeout) == (True, ("a", "b.sql"), 1.5)
    assert load(pytester.path) == found


# What each file says where pytest looks for its configuration, from "pytest would take it" to "of no use to pytest".
WITH_SECTION = {
    "pytest.toml": "[pytest]\n",
    ".pytest.toml": "[pytest]\n",
    "pytest.ini": "[pytest]\n",
    ".pytest.ini": "[pytest]\n",
    "pyproject.toml": "[tool.pytest.ini_options]\n",
    "tox.ini": "[pytest]\n",
    "setup.cfg": "[tool:pytest]\n",
}
WITHOUT_SECTION = {
    "pytest.toml": "",
    "pytest.ini": "",
    "pyproject.toml": "[tool.pytest]\n[tool.other]\n",
    "tox.ini": "[tox]\n",
    "setup.cfg": "[metadata]\n",
}


@pytest_9
def test_of_two_files_the_one_that_pytest_takes_is_taken(pytester: pytest.Pytester) -> None:
    for first, second in itertools.combinations([*WITH_SECTION.items(), *WITHOUT_SECTION.items()], 2):
        for name, text in (first, second):
            (pytester.path / name).write_text(text)
        theirs = pytester.parseconfig("-p", "no:pgsandbox").inipath
        ours = sources.find_ini(pytester.path)
        if ours is None:  # pytest names a pyproject.toml even if it finds nothing in it
            assert theirs is None or theirs.name == "pyproject.toml"
        else:
            assert (ours, first, second) == (theirs, first, second)
        for name in {first[0], second[0]}:
            (pytester.path / name).unlink()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("other.ini", "[pytest]\npgsandbox_connections = 7\n"),
        ("other.cfg", "[tool:pytest]\npgsandbox_connections = 7\n"),
        ("other.toml", "[tool.pytest.ini_options]\npgsandbox_connections = 7\n"),
        pytest.param("other.toml", "[pytest]\npgsandbox_connections = 7\n", marks=pytest_9),
        pytest.param("{braces}.ini", "[pytest]\npgsandbox_connections = 7\n", id="braces"),
    ],
)
def test_the_file_that_pytest_is_given_counts(pytester: pytest.Pytester, name: str, text: str) -> None:
    pytester.makeini("[pytest]\npgsandbox_connections = 3\n")
    (pytester.path / name).write_text(text)
    found = as_pytest_has_them(pytester, "-c", name)
    assert (found.connections, found.origins["connections"]) == (7, f"pgsandbox_connections in {name}")


def test_without_any_file_there_are_defaults(pytester: pytest.Pytester) -> None:
    assert as_pytest_has_them(pytester) == load(pytester.path) == Settings()
    assert as_pytest_has_them(pytester, "-c", "/dev/null") == Settings()


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        (
            "pyproject.toml",
            "[tool.pgsandbox\n",
            "Expected ']' at the end of a table declaration (at line 1, column 16)",
        ),
        ("pytest.ini", "[pytest]\nno value\n", "{file}:2: unexpected line: 'no value'"),
        (
            "pytest.ini",
            "[pytest]\nx = \xff\n",
            "'utf-8' codec can't decode byte 0xff in position 13: invalid start byte",
        ),
        ("pyproject.toml", "x = '\xff'", "'utf-8' codec can't decode byte 0xff in position 5: invalid start byte"),
    ],
)
def test_a_file_that_can_not_be_understood_is_named(tmp_path: Path, name: str, text: str, why: str) -> None:
    file = tmp_path / name
    file.write_text(text, encoding="latin-1")
    assert refusal(lambda: load(tmp_path)) == (
        f"pgsandbox: {name} can't be read\n"
        f"  why: {why.format(file=file)}\n"
        f"  looked at: {file}\n"
        "  hint: pytest reads it, too: mend it first"
    )


def test_a_table_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool]\npgsandbox = 5\n")
    assert refusal(lambda: load(tmp_path)) == (
        "pgsandbox: [tool.pgsandbox] in pyproject.toml is not a table\n"
        "  why: tool.pgsandbox = 5\n"
        f"  looked at: {tmp_path}/pyproject.toml\n"
        "  hint: write a line [tool.pgsandbox], and the settings below it"
    )


@pytest.mark.parametrize("text", ["tool = 1", "[tool]\npytest = 1", "[tool.pytest]\nini_options = 1", "pytest = 1"])
def test_odd_files_say_nothing(tmp_path: Path, text: str) -> None:
    for name in ("pyproject.toml", "pytest.toml"):
        (tmp_path / name).write_text(text)
    assert load(tmp_path) == Settings()


# The project's folder -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "root"),
    [
        ({"pytest.ini": ""}, "."),
        ({"pytest.ini": "", "a/b/setup.cfg": "[metadata]\n", "a/tox.ini": "[tox]\n"}, "."),
        ({"pytest.ini": "", "a/pyproject.toml": "[project]\n"}, "."),
        ({"pytest.ini": "", "a/pyproject.toml": "[tool.pytest.ini_options]\n"}, "a"),
        ({"pyproject.toml": "[project]\n", "a/tox.ini": "[tox]\n"}, "."),
        ({"setup.py": "", "a/tox.ini": "[tox]\n"}, "."),
        ({"a/b/pytest.ini": "", "pytest.ini": ""}, "a/b"),
        ({}, "a/b"),
    ],
)
def test_the_projects_folder_is_the_one_that_pytest_finds(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], root: str
) -> None:
    start = pytester.path / "a" / "b"
    start.mkdir(parents=True)
    for name, text in files.items():
        (pytester.path / name).write_text(text)
    monkeypatch.chdir(start)
    assert sources.find_root(start) == pytester.path / root
    assert pytester.parseconfig("-p", "no:pgsandbox").rootpath == pytester.path / root


def test_a_repository_is_a_project(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / "a").mkdir()
    assert sources.find_root(tmp_path / "a") == tmp_path


# Precedence -----------------------------------------------------------------------------------------------------------


def test_each_place_wins_over_all_below_it(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    def expect(connections: int, origin: str, *args: str) -> None:
        found = as_pytest_has_them(pytester, *args)
        assert (found.connections, found.origins.get("connections", "default")) == (connections, origin)

    flag, override = "--pgsandbox-connections=1", ("-o", "pgsandbox_connections=3")
    pytester.makepyprojecttoml("[tool.pgsandbox]\nconnections = 5\n")
    pytester.makeini("[pytest]\npgsandbox_connections = 4\n")
    monkeypatch.setenv("PGSANDBOX_CONNECTIONS", "2")
    expect(1, "--pgsandbox-connections", flag, *override)
    expect(2, "PGSANDBOX_CONNECTIONS", *override)
    monkeypatch.delenv("PGSANDBOX_CONNECTIONS")
    expect(3, "-o pgsandbox_connections", *override)
    expect(4, "pgsandbox_connections in tox.ini")
    (pytester.path / "tox.ini").unlink()
    expect(5, "[tool.pgsandbox] connections in pyproject.toml")
    (pytester.path / "pyproject.toml").unlink()
    expect(20, "default")


def test_of_several_overrides_the_last_one_counts_as_in_pytest(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\naddopts = -o pgsandbox_connections=9 -o pgsandbox_ttl=5s\n")
    found = as_pytest_has_them(pytester, "-o", "pgsandbox_connections=3", "-o", "pgsandbox_connections=4")
    assert (found.connections, found.ttl) == (4, 5.0)


def test_flags_in_addopts_are_flags(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    pytester.makeini("[pytest]\naddopts = --pgsandbox-connections=3 --pgsandbox-durable\n")
    monkeypatch.setenv("PYTEST_ADDOPTS", "--pgsandbox-ttl=5s")
    found = as_pytest_has_them(pytester, "--pgsandbox-connections=4")
    assert (found.connections, found.durable, found.ttl) == (4, True, 5.0)


# Flags ----------------------------------------------------------------------------------------------------------------

VALUES = {
    "engine": ("external", "external"),
    "url": ("postgresql://u:p@h/d", "postgresql://u:p@h/d"),
    "version": ("15", 15),
    "image": ("image:1", "image:1"),
    "scope": ("session", "session"),
    "isolation": ("clone", "clone"),
    "autouse": ("true", True),
    "init": ("a.sql", ("a.sql",)),
    "watch": ("*.py", ("*.py",)),
    "extensions": ("pg_trgm", ("pg_trgm",)),
    "connections": ("3", 3),
    "superuser": ("false", False),
    "env": ("TEST_URL", ("TEST_URL",)),
    "options": ("work_mem=8MB", ("work_mem=8MB",)),
    "durable": ("true", True),
    "verify": ("yes", True),
    "leaks": ("fail", "fail"),
    "pollution": ("ignore", "ignore"),
    "keep": ("failed", "failed"),
    "report": ("report.json", "report.json"),
    "ttl": ("1h", 3600.0),
    "cache": ("off", False),
    "cache_size": ("1GB", 1 << 30),
    "timeout": ("5s", 5.0),
}


def test_every_setting_can_be_given_in_every_place(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    assert VALUES.keys() == SETTINGS.keys()
    expected = {name: value for name, (_, value) in VALUES.items()}

    def found(*args: str) -> dict[str, object]:
        settings = as_pytest_has_them(pytester, "-p", "no:pgsandbox-xdist", *args)
        return {name: getattr(settings, name) for name in SETTINGS}

    assert found(*(f"--pgsandbox-{name.replace('_', '-')}={text}" for name, (text, _) in VALUES.items())) == expected
    assert found(*(f"--pgsandbox-{name}={text}" for name, (text, _) in VALUES.items())) == expected
    assert (
        found(*(word for name, (text, _) in VALUES.items() for word in ("-o", f"pgsandbox_{name}={text}"))) == expected
    )
    with monkeypatch.context() as patch:
        for name, (text, _) in VALUES.items():
            patch.setenv(f"PGSANDBOX_{name.upper()}", text)
        assert found() == expected
    ini = pytester.makeini("[pytest]\n" + "".join(f"pgsandbox_{name} = {text}\n" for name, (text, _) in VALUES.items()))
    assert found("--strict-config") == expected
    ini.unlink()
    pytester.makepyprojecttoml(
        "[tool.pgsandbox]\n" + "".join(f"{name} = {json.dumps(text)}\n" for name, (text, _) in VALUES.items())
    )
    assert found() == expected
    monkeypatch.chdir(pytester.path)
    sandbox = Sandbox(**{name: value for name, value in expected.items() if value is not False})
    assert sandbox.settings == sources.load(root=pytester.path)


@pytest.mark.parametrize(
    ("args", "value"),
    [
        (["--pgsandbox-durable"], True),
        (["--pgsandbox-durable=true"], True),
        (["--pgsandbox-durable=false"], False),
        (["--pgsandbox-durable", "false"], False),
        (["--pgsandbox-durable", "--pgsandbox-verify"], True),
        (["--pgsandbox-durable=false", "--pgsandbox-durable"], True),
        (["test_a.py", "--pgsandbox-durable"], True),
    ],
)
def test_a_yes_or_no_is_a_flag_that_can_be_taken_back(pytester: pytest.Pytester, args: list[str], value: bool) -> None:
    pytester.makeini(f"[pytest]\npgsandbox_durable = {str(not value).lower()}\n")
    pytester.makepyfile(test_a="")
    assert as_pytest_has_them(pytester, *args).durable is value


def test_a_list_is_a_flag_that_may_be_repeated(pytester: pytest.Pytester) -> None:
    args = ["--pgsandbox-init=a.sql", "--pgsandbox-init", "b.sql,c.sql", "--pgsandbox-init=command: d, e\nf.sql"]
    assert as_pytest_has_them(pytester, *args).init == ("a.sql", "b.sql", "c.sql", "command: d, e", "f.sql")


def test_help_names_every_setting_as_flag_and_ini_key(pytester: pytest.Pytester) -> None:
    lines = pytester.runpytest_subprocess("--help").stdout.str()
    for name in SETTINGS:
        assert f"--pgsandbox-{name.replace('_', '-')}" in lines
        assert f"pgsandbox_{name} (" in lines


# Python ---------------------------------------------------------------------------------------------------------------


def test_keywords_win_and_are_checked_by_their_names(project: Path) -> None:
    (project / "pytest.ini").write_text("[pytest]\npgsandbox_connections = 4\npgsandbox_ttl = 5s\n")
    settings = Sandbox(connections=3, init=("a.sql", "b.sql")).settings
    assert (settings.connections, settings.ttl, settings.init) == (3, 5.0, ("a.sql", "b.sql"))
    assert settings.origins["connections"] == "connections"
    assert refusal(lambda: Sandbox(conections=3)) == (
        "pgsandbox: unknown setting conections\n  hint: perhaps you meant connections"
    )
    assert refusal(lambda: Sandbox(durable="maybe")) == (
        f"pgsandbox: durable = 'maybe' is not true or false\n  hint: {DURABLE}"
    )


def test_keywords_beside_settings_are_read_like_any(project: Path) -> None:
    settings = sources.load(cli={"connections": 3, "scope": "session"}, root=project)
    assert Sandbox(settings, ttl="5s", init=["a.sql, b.sql"]).settings.init == ("a.sql", "b.sql")
    assert Sandbox(settings, ttl="5s").settings.connections == 3
    assert refusal(lambda: Sandbox(settings, conections=3)) == (
        "pgsandbox: unknown setting conections\n  hint: perhaps you meant connections"
    )
    with pytest.raises(UsageError, match="superuser = true needs a server of the worker's own"):
        Sandbox(settings, superuser=True)


# Mistakes, through pytest and the command line ------------------------------------------------------------------------


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(SettingsError) as caught:
        action()
    return str(caught.value)


PLACES = {
    "flag": ("--pgsandbox-{}", "--pgsandbox-{}"),
    "environment": ("PGSANDBOX_{}", "PGSANDBOX_{}"),
    "override": ("-o pgsandbox_{}", "-o pgsandbox_{}"),
    "ini": ("pgsandbox_{}", "pgsandbox_{} in pytest.ini"),
    "pyproject": ("{}", "[tool.pgsandbox] {} in pyproject.toml"),
}
"""For each place how a setting is written there, and how a message names it."""


def write(project: Path, monkeypatch: pytest.MonkeyPatch, place: str, name: str, value: str) -> list[str]:
    """Say `name = value` in `place`; the arguments that it takes."""
    written = PLACES[place][0].format(name.upper() if place == "environment" else name)
    if place == "flag":
        return [f"{written}={value}"]
    if place == "override":
        return [*f"{written}={value}".split()]
    if place == "environment":
        monkeypatch.setenv(written, value)
    elif place == "ini":
        (project / "pytest.ini").write_text(f"[pytest]\n{written} = {value}\n")
    else:
        (project / "pyproject.toml").write_text(f"[tool.pgsandbox]\n{written} = {json.dumps(value)}\n")
    return []


def expected(place: str, name: str) -> str:
    """What is said about a `durabel` that is unknown, or a `durable` that is maybe."""
    spelled = PLACES[place][1]
    case = str.upper if place == "environment" else str
    if name == "durabel":
        return (
            f"pgsandbox: unknown setting {spelled.format(case('durabel'))}\n"
            f"  hint: perhaps you meant {spelled.format(case('durable'))}"
        )
    before = "; in front of another argument, write --pgsandbox-durable=true" if place == "flag" else ""
    return (
        f"pgsandbox: {spelled.format(case('durable'))} = 'maybe' is not true or false\n  hint: {DURABLE}{before}"
    )  # fmt: skip


@pytest.mark.parametrize("name", ["durabel", "durable"])
@pytest.mark.parametrize("place", PLACES)
def test_pytest_refuses_a_mistake_in_any_place(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, place: str, name: str
) -> None:
    pytester.makepyfile("def test_a(): pass")
    pytester.makeconftest("print('conftest was read')")
    args = write(pytester.path, monkeypatch, place, name, "maybe")
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", *args)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert result.stderr.str().rstrip() == f"ERROR: {expected(place, name)}"
    assert result.stdout.str() == ""


@pytest.mark.parametrize("name", ["durabel", "durable"])
@pytest.mark.parametrize("place", ["environment", "ini", "pyproject"])
def test_the_command_line_refuses_a_mistake_in_any_place(
    project: Path, cli: Any, monkeypatch: pytest.MonkeyPatch, place: str, name: str
) -> None:
    write(project, monkeypatch, place, name, "maybe")
    done = cli("doctor")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"{expected(place, name)}\n")


@pytest.mark.parametrize("flag", ["--durable", "--pgsandbox-durable"])
def test_the_command_line_refuses_mistakes_in_its_flags(project: Path, cli: Any, flag: str) -> None:
    done = cli("doctor", f"{flag}=maybe")
    assert (done.returncode, done.stdout, done.stderr) == (
        2,
        "",
        (
            "pgsandbox: --durable = 'maybe' is not true or false\n"
            f"  hint: {DURABLE}; in front of another argument, write --durable=true\n"
        ),
    )
    done = cli("doctor", flag.replace("durable", "durabel"))
    assert (done.returncode, done.stdout) == (2, "")
    assert "No such option" in done.stderr
    assert flag in done.stderr  # click's words, with the nearest one


def test_the_command_line_knows_where_each_value_is_from(
    project: Path, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "pytest.ini").write_text("[pytest]\npgsandbox_ttl = 5s\n")
    (project / "pyproject.toml").write_text("[tool.pgsandbox]\ntimeout = '30s'\nttl = '6s'\n")
    monkeypatch.setenv("PGSANDBOX_CONNECTIONS", "3")
    done = cli("doctor", "--json", "--durable", "--verify=false", "--init=a.sql", "--init=b.sql")
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: (row["value"], row["from"]) for row in json.loads(done.stdout)["settings"]}
    assert rows.keys() == SETTINGS.keys()
    assert {name: row for name, row in rows.items() if row[1] != "default"} == {
        "engine": ("local", "PGSANDBOX_ENGINE"),
        "version": ("15", "PGSANDBOX_VERSION"),
        "durable": ("true", "--durable"),
        "verify": ("false", "--verify"),
        "init": ("a.sql; b.sql", "--init"),
        "connections": ("3", "PGSANDBOX_CONNECTIONS"),
        "ttl": ("5s", "pgsandbox_ttl in pytest.ini"),
        "timeout": ("30s", "[tool.pgsandbox] timeout in pyproject.toml"),
    }
