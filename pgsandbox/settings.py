"""Settings: every choice a user has, what a value may be, and which of the five places it came from."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, Literal, NamedTuple, TypeVar

from pgsandbox.errors import SettingsError

Raw = str | int | float | bool | list[Any] | tuple[Any, ...]
"""A value as a place gives it: text from the command line, environment or an ini file, a TOML or Python value."""


class Place(NamedTuple):
    """One of the five places, with what it says: setting name to raw value."""

    name: str
    """How a message names the place; `{name}`, `{NAME}` and `{flag}` (with dashes) stand for the setting."""
    values: Mapping[str, Raw]

    def spelled(self, setting: str) -> str:
        """How `setting` is written in this place."""
        return self.name.format(name=setting, NAME=setting.upper(), flag=setting.replace("_", "-"))


_T = TypeVar("_T")


def _setting(default: _T, parse: Callable[[Raw], _T], help_: str, *, metavar: str = "VALUE") -> _T:
    meta = {"parse": parse, "help": help_, "metavar": metavar}
    return field(default=default, metadata=meta)


def _text(raw: Raw) -> str:
    if isinstance(raw, bool) or not isinstance(raw, (str, int, float)):
        raise ValueError("is not a text")  # noqa: TRY004 -- every parser says ValueError
    text = str(raw).strip()
    if not text:
        raise ValueError("is empty")
    return text


def _optional_text(raw: Raw) -> str | None:
    return _text(raw)


def _one_of(*choices: str) -> Callable[[Raw], Any]:
    def parse(raw: Raw) -> str:
        if raw not in choices:
            raise ValueError(f"is not one of {', '.join(choices)}")
        return str(raw)

    return parse


def _yes_or_no(raw: Raw) -> bool:
    if isinstance(raw, bool):
        return raw
    word = str(raw).strip().lower()
    if word in ("true", "yes", "on", "1"):
        return True
    if word in ("false", "no", "off", "0"):
        return False
    raise ValueError("is not true or false")


def _count(raw: Raw) -> int:
    if isinstance(raw, bool) or not re.fullmatch(r"[0-9]+", str(raw).strip()) or int(str(raw)) < 1:
        raise ValueError("is not a whole number of 1 or more")
    return int(str(raw))


def _version(raw: Raw) -> int | None:
    if isinstance(raw, bool) or not re.fullmatch(r"[0-9]{2}", str(raw).strip()):
        raise ValueError("is not a PostgreSQL major version such as 18")
    return int(str(raw))


def _list(raw: Raw, *, separator: str = r"[,\n]") -> tuple[str, ...]:
    items = (item.strip() for text in _texts(raw) for item in re.split(separator, text))
    return tuple(item for item in items if item)


def _lines(raw: Raw) -> tuple[str, ...]:
    """A list whose items may hold commas of their own: what follows `command:` is one item, up to the line's end."""
    items: list[str] = []
    for line in (line for text in _texts(raw) for line in text.split("\n")):
        command = re.search(r"(?:^|,)\s*(command:.*)", line)
        items.extend(_list(line[: command.start()] if command else line))
        if command:
            items.append(command[1].strip())
    return tuple(items)


def _options(raw: Raw) -> tuple[str, ...]:
    """A list whose items may hold commas of their own: a comma separates where the next `name=` follows."""
    options = _list(raw, separator=r"\n|,(?=\s*[A-Za-z_][\w.]*\s*=)")
    for option in options:
        if not re.fullmatch(r"[A-Za-z_][\w.]*\s*=.*", option):
            raise ValueError(f"has {option!r}, which is not of the form name=value")
    return options


def _globs(raw: Raw) -> tuple[str, ...]:
    """Patterns below the project's folder; `**` is a part of its own (before Python 3.13 it could be nothing else)."""
    patterns = _list(raw)
    for pattern in patterns:
        if PurePath(pattern).is_absolute():
            raise ValueError(f"has {pattern!r}, which is absolute: write it as seen from the project's folder")
        if any("**" in part and part != "**" for part in PurePath(pattern).parts):
            raise ValueError(f"has {pattern!r}: ** stands for any folders, and can only be a whole part of a path")
    return patterns


def _variables(raw: Raw) -> tuple[str, ...]:
    names = _list(raw)
    for name in names:
        if not re.fullmatch(r"[^=\0\s]+", name):
            raise ValueError(f"has {name!r}, which can't name a variable")
    return names


def _texts(raw: Raw) -> list[str]:
    texts: list[Any] = list(raw) if isinstance(raw, (list, tuple)) else [raw]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("is not a list of texts")
    return texts


_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "": 1.0}
_BYTES = {"": 1, "kB": 1 << 10, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40}


def _duration(raw: Raw) -> float:
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)", str(raw).strip())
    if isinstance(raw, bool) or match is None or match[2] not in _SECONDS or float(match[1]) <= 0:
        raise ValueError("is not a duration such as 500ms, 60s, 15m or 8h")
    return float(match[1]) * _SECONDS[match[2]]


def _size(raw: Raw) -> int:
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)", str(raw).strip())
    if isinstance(raw, bool) or match is None or match[2] not in _BYTES:
        raise ValueError("is not a size such as 500MB or 2GB")
    return int(float(match[1]) * _BYTES[match[2]])


def _url(raw: Raw) -> str | None:
    text = _text(raw)
    if not text.startswith(("postgresql://", "postgres://")):
        raise ValueError("is not a URL of the form postgresql://user:password@host:port/database")
    return text


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Every setting, parsed. Durations are seconds, sizes are bytes, lists are tuples.

    `origins` says for each setting that was set where its value came from; the others have their default.
    """

    engine: Literal["auto", "docker", "local", "external"] = _setting(
        "auto",
        _one_of("auto", "docker", "local", "external"),
        "how to run PostgreSQL: auto, docker, local or external",
        metavar="ENGINE",
    )
    url: str | None = _setting(None, _url, "use this server instead of starting one", metavar="URL")
    version: int | None = _setting(None, _version, "the PostgreSQL major version it must be", metavar="MAJOR")
    image: str = _setting("postgres:{version}-alpine", _text, "the container image to start", metavar="IMAGE")
    scope: Literal["auto", "session", "worker"] = _setting(
        "auto", _one_of("auto", "session", "worker"), "one server for the session, or one per worker", metavar="SCOPE"
    )
    isolation: Literal["reset", "clone", "rollback", "none"] = _setting(
        "reset",
        _one_of("reset", "clone", "rollback", "none"),
        "what each test gets: reset, clone, rollback or none",
        metavar="KIND",
    )
    autouse: bool = _setting(False, _yes_or_no, "isolate every test, also those that name no fixture")
    init: tuple[str, ...] = _setting(
        (), _lines, "a step that builds the template: file.sql, python:module:function, command: …", metavar="STEP"
    )
    watch: tuple[str, ...] = _setting((), _globs, "files that the template depends on", metavar="GLOB")
    extensions: tuple[str, ...] = _setting((), _list, "extensions to create in the template", metavar="NAME")
    connections: int = _setting(20, _count, "how many connections each worker may open", metavar="N")
    superuser: bool = _setting(False, _yes_or_no, "make the worker's role a superuser")
    env: tuple[str, ...] = _setting((), _variables, "further environment variables that get the URL", metavar="NAME")
    options: tuple[str, ...] = _setting((), _options, "further server settings", metavar="NAME=VALUE")
    durable: bool = _setting(False, _yes_or_no, "keep fsync and friends on")
    verify: bool = _setting(False, _yes_or_no, "check every reset by a slow, independent comparison")
    leaks: Literal["report", "fail", "ignore"] = _setting(
        "report", _one_of("report", "fail", "ignore"), "what to do about leaked connections", metavar="WHAT"
    )
    pollution: Literal["report", "fail", "ignore"] = _setting(
        "report", _one_of("report", "fail", "ignore"), "what to do about state left behind", metavar="WHAT"
    )
    keep: Literal["never", "failed"] = _setting(
        "never", _one_of("never", "failed"), "keep a failed test's database", metavar="WHEN"
    )
    report: str | None = _setting(None, _optional_text, "write the run report to this file", metavar="FILE")
    ttl: float = _setting(8 * 3600.0, _duration, "how long a kept server lives with nobody connected", metavar="TIME")
    cache: bool = _setting(True, _yes_or_no, "keep built templates between runs")
    cache_size: int = _setting(2 << 30, _size, "how large the cache may grow", metavar="SIZE")
    timeout: float = _setting(60.0, _duration, "deadline for a start, each init step, and an answer", metavar="TIME")
    origins: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    def shown(self, name: str) -> str:  # noqa: PLR0911 -- one line for each kind of value
        """The value of setting `name` as text, a password in it masked."""
        value = getattr(self, name)
        if value is None or value == ():
            return ""
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, tuple):
            return "; ".join(value)
        if name in ("ttl", "timeout"):
            return show_duration(value)
        if name == "cache_size":
            return f"{value / (1 << 20):g}MB"
        if name == "url":
            return masked(value)
        return str(value)


SETTINGS: dict[str, dataclasses.Field[Any]] = {f.name: f for f in dataclasses.fields(Settings) if f.name != "origins"}
"""The settings by name; each field's metadata has `help` and `metavar`."""


def masked(url: str) -> str:
    """`url`, well-formed or not, without its password."""
    without = re.sub(r"^([^:]*://[^:@]*|[^:/@]*(?!://)):.*@", r"\1:***@", url)
    return re.sub(r"(password\s*=\s*)[^&\s]+", r"\1***", without)


def show_duration(seconds: float) -> str:
    """`seconds` as a duration in the largest unit that divides it: 28800 is `8h`."""
    for unit, factor in (("h", 3600), ("m", 60)):
        if seconds >= factor and seconds % factor == 0:
            return f"{seconds / factor:g}{unit}"
    return f"{seconds:g}s" if seconds >= 1 else f"{seconds * 1000:g}ms"


def show_size(size: int) -> str:
    """`size` bytes in the unit that reads best: `31.5MB`."""
    unit, factor = next(((u, f) for u, f in (("GB", 1 << 30), ("MB", 1 << 20), ("kB", 1 << 10)) if size >= f), ("", 1))
    return f"{round(size / factor, 1):g}{unit or ' bytes'}"


def show_age(since: float) -> str:
    """How long ago the Unix time `since` was, in the largest whole unit: `2h`; days from the second one on."""
    seconds = max(0, int(time.time() - since))
    units = (("d", 86400, 2), ("h", 3600, 1), ("m", 60, 1), ("s", 1, 0))
    return next(f"{seconds // size}{unit}" for unit, size, least in units if seconds >= size * least)


def resolve(places: Iterable[Place], *, base: Settings | None = None) -> Settings:
    """The settings that `places` add up to; earlier places win, and what none of them says is as in `base`.

    Raises SettingsError for an unknown name, a malformed value, or a contradiction in any place, also one that lost.
    """
    base = Settings() if base is None else base
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for place in places:
        for name, raw in place.values.items():
            if name not in SETTINGS:
                raise unknown_setting(place, name)
            parsed = _parse(place, name, raw)
            if name not in values:
                values[name] = parsed
                origins[name] = place.spelled(name)
    settings = dataclasses.replace(base, **values, origins={**base.origins, **origins})
    _check(settings)
    return settings


def unknown_setting(place: Place, name: str) -> SettingsError:
    """The error for a setting that does not exist, with the nearest that does."""
    import difflib

    nearest = difflib.get_close_matches(name, SETTINGS, n=1, cutoff=0.5)
    hint = f"perhaps you meant {place.spelled(nearest[0])}" if nearest else f"the settings are {', '.join(SETTINGS)}"
    return SettingsError(f"unknown setting {place.spelled(name)}", hint=hint)


def _parse(place: Place, name: str, raw: Raw) -> Any:
    try:
        return SETTINGS[name].metadata["parse"](raw)
    except ValueError as problem:
        shown = repr(masked(raw) if isinstance(raw, str) and name == "url" else raw)
        hint = f"{name}: {SETTINGS[name].metadata['help']}"
        if isinstance(SETTINGS[name].default, bool) and place.name.startswith("--"):
            hint += f"; in front of another argument, write {place.spelled(name)}=true"
        raise SettingsError(f"{place.spelled(name)} = {shown} {problem}", hint=hint) from None


_MOST_CONNECTIONS = 10_000


def _check(settings: Settings) -> None:
    if settings.url and settings.engine not in ("auto", "external"):
        raise SettingsError(
            f"engine = {settings.engine} contradicts url",
            why=f"url names a server that is already running ({settings.origins['url']})",
            hint="leave engine out, or remove url",
        )
    if settings.engine == "external" and not settings.url:
        raise SettingsError(
            "engine = external needs a url", hint="set --pgsandbox-url=postgresql://user:password@host:port/database"
        )
    if settings.connections > _MOST_CONNECTIONS:
        raise SettingsError(
            f"connections = {settings.connections} is more than a server has for one worker",
            why="PostgreSQL has 262143 for all together, and makes room for each when it starts",
            hint=f"{_MOST_CONNECTIONS} is the most; 20 is enough for most applications",
        )
    if settings.superuser and settings.scope == "session":
        raise SettingsError(
            "superuser = true needs a server of the worker's own",
            why="a superuser can't be held to its budget of connections, and scope = session shares the server",
            hint="set scope = worker, or leave scope out",
        )
    if settings.superuser and settings.url:
        raise SettingsError(
            "superuser = true needs a server of the worker's own",
            why="the server behind url is not ours to hand out",
            hint="leave url out, or do without superuser",
        )
    if settings.autouse and settings.isolation == "rollback":
        raise SettingsError(
            "autouse = true can't be combined with isolation = rollback",
            why="only the connection of the fixture pgsandbox_connection can be rolled back, not what a URL hands out",
            hint="use isolation = reset",
        )
