"""Settings: what each may be, what a wrong one is told, and which may not be combined."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from pgsandbox.errors import SettingsError
from pgsandbox.settings import SETTINGS, Place, Settings, masked, resolve, show_duration

URL = "postgresql://user:secret@db.example:5432/name"


def given(**values: Any) -> Settings:
    return resolve([Place("{name}", values)])


def refusal(**values: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        given(**values)
    return str(caught.value)


# What a value may be --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "raw", "value"),
    [
        ("engine", "local", "local"),
        ("url", f" {URL} ", URL),
        ("url", "postgres://h", "postgres://h"),
        ("version", "15", 15),
        ("version", 18, 18),
        ("image", "registry.example/postgis:17", "registry.example/postgis:17"),
        ("connections", "7", 7),
        ("connections", 7, 7),
        ("autouse", True, True),
        ("autouse", "Yes", True),
        ("autouse", " on ", True),
        ("autouse", "1", True),
        ("autouse", 1, True),
        ("autouse", "TRUE", True),
        ("autouse", False, False),
        ("autouse", "no", False),
        ("autouse", "off", False),
        ("autouse", "0", False),
        ("autouse", "False", False),
        ("ttl", "500ms", 0.5),
        ("ttl", "90", 90.0),
        ("ttl", 90, 90.0),
        ("ttl", "1.5 h", 5400.0),
        ("ttl", "15m", 900.0),
        ("ttl", "15min", 900.0),
        ("ttl", "2d", 172800.0),
        ("cache_size", "2GB", 2 << 30),
        ("cache_size", "1.5 MB", 3 << 19),
        ("cache_size", "512kB", 512 << 10),
        ("cache_size", 4096, 4096),
        ("cache_size", "0", 0),
        ("extensions", "a, b\n c ,", ("a", "b", "c")),
        ("extensions", ["a,b", "c"], ("a", "b", "c")),
        ("extensions", ("a", "b"), ("a", "b")),
        ("extensions", "", ()),
        ("extensions", [], ()),
        ("options", "work_mem=8MB, my.name = x", ("work_mem=8MB", "my.name = x")),
        ("options", "DateStyle=ISO, DMY\nx=1", ("DateStyle=ISO, DMY", "x=1")),
        ("options", ["search_path=a,b", "x=1,y=2"], ("search_path=a,b", "x=1", "y=2")),
        ("options", "x=", ("x=",)),
        ("init", "a.sql, dir/*.sql\npython:m:f", ("a.sql", "dir/*.sql", "python:m:f")),
        ("init", "a.sql, command: echo 1, 2", ("a.sql", "command: echo 1, 2")),
        ("init", "command: a, command: b\nb.sql", ("command: a, command: b", "b.sql")),
        ("init", "  command: a  \n,b.sql", ("command: a", "b.sql")),
        ("init", "python:command:main, my-command:x.sql", ("python:command:main", "my-command:x.sql")),
        ("init", ["a.sql,b.sql", "command: a,b"], ("a.sql", "b.sql", "command: a,b")),
    ],
)
def test_a_value_is_read(name: str, raw: Any, value: object) -> None:
    found = getattr(given(**{name: raw}), name)
    assert (found, type(found)) == (value, type(value))


ENGINE = "is not one of auto, docker, local, external"
LIST = "is not a list of texts"
DURATION = "is not a duration such as 500ms, 60s, 15m or 8h"
SIZE = "is not a size such as 500MB or 2GB"
VERSION = "is not a PostgreSQL major version such as 18"
COUNT = "is not a whole number of 1 or more"
URL_FORM = "is not a URL of the form postgresql://user:password@host:port/database"


@pytest.mark.parametrize(
    ("name", "raw", "said"),
    [
        ("engine", "dokcer", f"'dokcer' {ENGINE}"),
        ("engine", "", f"'' {ENGINE}"),
        ("engine", True, f"True {ENGINE}"),
        ("scope", "module", "'module' is not one of auto, session, worker"),
        ("isolation", "truncate", "'truncate' is not one of reset, clone, rollback, none"),
        ("leaks", "warn", "'warn' is not one of report, fail, ignore"),
        ("pollution", "warn", "'warn' is not one of report, fail, ignore"),
        ("keep", "always", "'always' is not one of never, failed"),
        ("autouse", "maybe", "'maybe' is not true or false"),
        ("autouse", "", "'' is not true or false"),
        ("autouse", 2, "2 is not true or false"),
        ("autouse", [], "[] is not true or false"),
        ("version", "15.2", f"'15.2' {VERSION}"),
        ("version", 9, f"9 {VERSION}"),
        ("version", 15.0, f"15.0 {VERSION}"),
        ("version", True, f"True {VERSION}"),
        ("connections", "0", f"'0' {COUNT}"),
        ("connections", "-1", f"'-1' {COUNT}"),
        ("connections", "many", f"'many' {COUNT}"),
        ("connections", 2.5, f"2.5 {COUNT}"),
        ("connections", True, f"True {COUNT}"),
        ("connections", "\N{ARABIC-INDIC DIGIT FIVE}", f"'\N{ARABIC-INDIC DIGIT FIVE}' {COUNT}"),
        ("ttl", "soon", f"'soon' {DURATION}"),
        ("ttl", "5 weeks", f"'5 weeks' {DURATION}"),
        ("ttl", "0", f"'0' {DURATION}"),
        ("timeout", "-5s", f"'-5s' {DURATION}"),
        ("timeout", False, f"False {DURATION}"),
        ("cache_size", "2 gigabytes", f"'2 gigabytes' {SIZE}"),
        ("cache_size", True, f"True {SIZE}"),
        ("image", "", "'' is empty"),
        ("image", ["a"], "['a'] is not a text"),
        ("image", {"name": "a"}, "{'name': 'a'} is not a text"),
        ("report", " ", "' ' is empty"),
        ("extensions", 5, f"5 {LIST}"),
        ("extensions", ["a", 5], f"['a', 5] {LIST}"),
        ("init", {"a": "b"}, f"{{'a': 'b'}} {LIST}"),
        ("options", "work_mem", "'work_mem' has 'work_mem', which is not of the form name=value"),
        ("options", ["a=1", "=2"], "['a=1', '=2'] has '=2', which is not of the form name=value"),
        (
            "watch",
            "a.sql, /b/*.sql",
            "'a.sql, /b/*.sql' has '/b/*.sql', which is absolute: write it as seen from the project's folder",
        ),
        (
            "watch",
            "a/**.py",
            "'a/**.py' has 'a/**.py': ** stands for any folders, and can only be a whole part of a path",
        ),
        ("env", "A=B", "'A=B' has 'A=B', which can't name a variable"),
        ("url", "", "'' is empty"),
        ("url", "mysql://u:secret@h/d", f"'mysql://u:***@h/d' {URL_FORM}"),
        ("url", "host=h password=secret", f"'host=h password=***' {URL_FORM}"),
        ("url", "u:se:c@ret@h/d", f"'u:***@h/d' {URL_FORM}"),
    ],
)
def test_a_malformed_value_is_shown_and_what_it_should_be(name: str, raw: Any, said: str) -> None:
    help_ = SETTINGS[name].metadata["help"]
    assert refusal(**{name: raw}) == f"pgsandbox: {name} = {said}\n  hint: {name}: {help_}"


def test_a_flag_that_swallowed_the_next_argument_says_how_to_write_it() -> None:
    with pytest.raises(SettingsError) as caught:
        resolve([Place("--pgsandbox-{flag}", {"durable": "tests/test_a.py"})])
    assert str(caught.value) == (
        "pgsandbox: --pgsandbox-durable = 'tests/test_a.py' is not true or false\n"
        "  hint: durable: keep fsync and friends on; in front of another argument, write --pgsandbox-durable=true"
    )


# Names ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("durabel", "durable"), ("connection", "connections"), ("cachesize", "cache_size"), ("isolate", "isolation")],
)
def test_an_unknown_setting_is_told_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(SettingsError) as caught:
        resolve([Place("{name} or {NAME} or {flag}", {name: "x"})])
    assert str(caught.value) == (
        f"pgsandbox: unknown setting {name} or {name.upper()} or {name}\n"
        f"  hint: perhaps you meant {nearest} or {nearest.upper()} or {nearest.replace('_', '-')}"
    )


def test_an_unknown_setting_that_resembles_none_is_told_all() -> None:
    assert refusal(qqq="x") == (
        "pgsandbox: unknown setting qqq\n"
        "  hint: the settings are engine, url, version, image, scope, isolation, autouse, init, watch, extensions, "
        "connections, superuser, env, options, durable, verify, leaks, pollution, keep, report, ttl, cache, "
        "cache_size, timeout"
    )


def test_the_field_that_says_where_values_came_from_is_no_setting() -> None:
    assert refusal(origins="x").startswith("pgsandbox: unknown setting origins\n")


# Places ---------------------------------------------------------------------------------------------------------------


def test_of_several_places_the_first_that_says_something_counts() -> None:
    places = [Place("one", {"connections": 1}), Place("two", {}), Place("three {name}", {"connections": 3, "ttl": 3})]
    found = resolve(places)
    assert (found.connections, found.ttl, found.version) == (1, 3.0, None)
    assert found.origins == {"connections": "one", "ttl": "three ttl"}


def test_a_false_or_empty_value_of_a_better_place_counts() -> None:
    found = resolve([Place("one", {"cache": False, "init": []}), Place("two", {"cache": True, "init": ["a.sql"]})])
    assert (found.cache, found.init) == (False, ())


@pytest.mark.parametrize("wrong", [{"durabel": "true"}, {"durable": "maybe"}])
def test_a_place_that_loses_is_checked_too(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        resolve([Place("one", {"durable": "true"}), Place("two", wrong)])


def test_what_no_place_says_is_as_it_was() -> None:
    base = resolve([Place("before {name}", {"connections": 3, "ttl": "5s"})])
    found = resolve([Place("now {name}", {"connections": 4})], base=base)
    assert (found.connections, found.ttl) == (4, 5.0)
    assert found.origins == {"connections": "now connections", "ttl": "before ttl"}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"engine": "docker", "url": URL},
            ("engine = docker contradicts url\n"
            "  why: url names a server that is already running (here: url)\n"
            "  hint: leave engine out, or remove url"),
        ),
        (
            {"engine": "external"},
            ("engine = external needs a url\n"
            "  hint: set --pgsandbox-url=postgresql://user:password@host:port/database"),
        ),
        (
            {"superuser": True, "scope": "session"},
            ("superuser = true needs a server of the worker's own\n"
            "  why: a superuser can't be held to its budget of connections, and scope = session shares the server\n"
            "  hint: set scope = worker, or leave scope out"),
        ),
        (
            {"superuser": True, "url": URL},
            ("superuser = true needs a server of the worker's own\n"
            "  why: the server behind url is not ours to hand out\n"
            "  hint: leave url out, or do without superuser"),
        ),
        (
            {"autouse": True, "isolation": "rollback"},
            ("autouse = true can't be combined with isolation = rollback\n"
            "  why: only the connection of the fixture pgsandbox_connection can be rolled back, not what a URL hands "
            "out\n"
            "  hint: use isolation = reset"),
        ),
    ],
)  # fmt: skip
def test_settings_that_contradict_each_other_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        resolve([Place("here: {name}", {name: value}) for name, value in values.items()])
    assert str(caught.value) == f"pgsandbox: {said}"


def test_a_contradiction_with_what_was_set_before_is_refused() -> None:
    with pytest.raises(SettingsError, match="superuser = true needs a server"):
        resolve([Place("{name}", {"superuser": True})], base=given(scope="session"))


# What is shown --------------------------------------------------------------------------------------------------------


def test_the_defaults_are_what_the_design_says() -> None:
    settings = Settings()
    assert {name: settings.shown(name) for name in SETTINGS} == {
        "engine": "auto",
        "url": "",
        "version": "",
        "image": "postgres:{version}-alpine",
        "scope": "auto",
        "isolation": "reset",
        "autouse": "false",
        "init": "",
        "watch": "",
        "extensions": "",
        "connections": "20",
        "superuser": "false",
        "env": "",
        "options": "",
        "durable": "false",
        "verify": "false",
        "leaks": "report",
        "pollution": "report",
        "keep": "never",
        "report": "",
        "ttl": "8h",
        "cache": "true",
        "cache_size": "2048MB",
        "timeout": "1m",
    }


def test_what_is_shown_can_be_given_again() -> None:
    for name, value in (("ttl", "90s"), ("ttl", "15m"), ("timeout", "250ms"), ("cache_size", "1.5MB"), ("cache", "no")):
        settings = given(**{name: value})
        assert given(**{name: settings.shown(name)}) == settings


def test_lists_are_shown_on_one_line() -> None:
    assert given(init=["a.sql", "command: b, c"]).shown("init") == "a.sql; command: b, c"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (URL, "postgresql://user:***@db.example:5432/name"),
        ("postgresql://user@h:5432/d", "postgresql://user@h:5432/d"),
        ("postgresql://h:5432/d", "postgresql://h:5432/d"),
        ("postgresql://u@[::1]:5432/d", "postgresql://u@[::1]:5432/d"),
        ("postgresql://u:@h/d", "postgresql://u:***@h/d"),
        ("postgresql://u:s:e/c@ret@[::1]:5432/d", "postgresql://u:***@[::1]:5432/d"),
        (
            "postgresql://h/d?user=u&password=secret&sslmode=require",
            "postgresql://h/d?user=u&password=***&sslmode=require",
        ),
        ("host=h password = secret port=5", "host=h password = *** port=5"),
        ("localhost:5432", "localhost:5432"),
        ("u:secret@h", "u:***@h"),
    ],
)
def test_no_password_is_shown(url: str, shown: str) -> None:
    assert masked(url) == shown


def test_a_url_is_shown_without_its_password() -> None:
    assert given(url=URL).shown("url") == "postgresql://user:***@db.example:5432/name"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(28800, "8h"), (5400, "90m"), (60, "1m"), (90, "90s"), (1, "1s"), (1.5, "1.5s"), (0.25, "250ms")],
)
def test_a_duration_is_shown_in_its_largest_unit(seconds: float, shown: str) -> None:
    assert show_duration(seconds) == shown


def test_settings_do_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().connections = 3  # type: ignore[misc]


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_says_what_it_is(name: str) -> None:
    meta = SETTINGS[name].metadata
    assert meta["help"]
    assert not meta["help"].endswith(".")
    assert meta["metavar"] == meta["metavar"].upper()
