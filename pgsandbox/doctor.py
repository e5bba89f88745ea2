"""What pgsandbox would do here, and why: settings and their origins, engines, the template, the folders."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgsandbox import engines, places
from pgsandbox.cache import Cache
from pgsandbox.errors import PgsandboxError
from pgsandbox.fingerprint import fingerprint
from pgsandbox.server import cloning
from pgsandbox.settings import SETTINGS, Settings

if TYPE_CHECKING:
    from pgsandbox.engines import Choice, Progress


def diagnose(settings: Settings, root: Path, progress: Progress) -> dict[str, Any]:
    """Every setting and its origin, what each engine says, and which one would serve; as JSON data."""
    says: list[dict[str, str]] = []
    serves: Choice | None = None
    for name in ("external",) if settings.url else ("docker", "local"):
        try:
            choice = engines.named(name).find(settings, progress)
        except PgsandboxError as problem:
            says.append({"name": name, "says": str(problem).removeprefix(f"pgsandbox: {name}: ")})
        else:
            why = f" ({choice.why})" if choice.why else ""
            says.append({"name": name, "says": f"PostgreSQL {choice.version}, {choice.what}{why}"})
            if serves is None and settings.engine in ("auto", name):
                serves = choice
    return {
        "settings": [
            {"name": name, "value": settings.shown(name), "from": settings.origins.get(name, "default")}
            for name in SETTINGS
        ],
        "engines": says,
        "serves": serves.engine if serves else "",
        "clones": cloning(serves.engine, serves.major) if serves else "",
        "template": _template(settings, serves, root),
        "cache": _cache(settings),
        "folders": {"runtime folder": str(places.runtime_root()), "cache folder": str(places.cache_root())},
    }


def _template(settings: Settings, choice: Choice | None, root: Path) -> dict[str, Any]:
    """Whether the template is kept between runs, under which key, and if not, why and how to change that."""
    if choice is None:
        return {"kept": False, "says": "no engine serves"}
    try:
        mark = fingerprint(settings, choice, root)
    except PgsandboxError as problem:
        return {"kept": False, "says": str(problem).removeprefix("pgsandbox: ")}
    if mark.key is None:
        return {"kept": False, "says": f"built in each run: {mark.why_not}" + (f"; {mark.hint}" if mark.hint else "")}
    is_there = any(entry.key == mark.key for entry in Cache().entries())
    return {"kept": True, "says": f"kept as {mark.key}, {'built already' if is_there else 'not built yet'}"}


def _cache(settings: Settings) -> dict[str, Any]:
    """Where templates are kept, how many, how large they are and may be, in bytes."""
    cache = Cache()
    found = cache.entries()
    size = sum(entry.size for entry in found)
    return {"folder": str(cache.folder), "templates": len(found), "size": size, "limit": settings.cache_size}
