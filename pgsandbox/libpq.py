"""What libpq takes from the environment, so that a developer's own variables lead nobody to another database."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

MISLEADING = (
    "PGHOSTADDR",
    "PGSERVICE",
    "PGOPTIONS",
    "PGSSLMODE",
    "PGREQUIRESSL",
    "PGSSLNEGOTIATION",
    "PGGSSENCMODE",
    "PGCHANNELBINDING",
    "PGREQUIREAUTH",
    "PGREQUIREPEER",
    "PGTARGETSESSIONATTRS",
)
"""Variables that lead a program elsewhere than PGHOST and DATABASE_URL say, or have it refuse to go there
(manual, chapter 32.15)."""

PLAIN: Mapping[str, Any] = {
    "hostaddr": "",
    "options": "",
    "sslmode": "prefer",
    "gssencmode": "disable",
    "target_session_attrs": "any",
}
"""Connection parameters that say what those variables would change, for connections of our own process."""


def put_aside(environ: MutableMapping[str, str]) -> list[str]:
    """Unset what would mislead connections of our own; the names of what was set."""
    return [name for name in MISLEADING if environ.pop(name, None) is not None]


def environment(env: Mapping[str, str], base: Mapping[str, str]) -> dict[str, str]:
    """`base` as an environment in which programs find the database of `env`, and no other."""
    return {name: value for name, value in base.items() if name not in MISLEADING} | dict(env)
