"""What a template is made of, as a name to keep it under, the same on every machine; or why it can't be kept."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pgsandbox import steps

if TYPE_CHECKING:
    from pgsandbox.engines import Choice
    from pgsandbox.settings import Settings

FORMAT = 4
"""Changes whenever what is kept changes its meaning; what is of another format is never looked at."""


@dataclass(frozen=True)
class Fingerprint:
    """What a template is made of, as a name; or why it can't be kept."""

    key: str | None
    why_not: str | None = None
    hint: str | None = None
    """What to set so that it can be kept, where that is a matter of settings."""
    parts: dict[str, str] = field(default_factory=dict)
    """What `key` is made of, in words: so that two which differ can be told apart."""

    def differs_from(self, parts: dict[str, str]) -> list[str]:
        """In what the template of `parts` is another one, in words."""
        return [name for name, value in self.parts.items() if parts.get(name) != value]


def fingerprint(settings: Settings, choice: Choice, root: Path) -> Fingerprint:
    """What the template depends on: engine, version, our format, and all that the init steps are and read.

    No path of this machine and no name that its daemon gave is in it, so that what one machine baked serves another.
    A step that runs somebody's program may read anything: unless the setting watch says what, it can't be known.
    """
    plan = steps.parse(settings.init, root)
    programs = [step.text for step in plan if step.reads_more]
    watched = [file for pattern in settings.watch for file in _matching(root, pattern)]
    if choice.engine == "external":
        return Fingerprint(None, "the server is not ours")
    if not settings.cache:
        return Fingerprint(None, "cache = false")
    if programs and not watched:
        why = "matches no file" if settings.watch else "does not say what it reads"
        hint = "watch matches no file" if settings.watch else "set watch to the files that its steps read"
        return Fingerprint(None, f"{programs[0]!r} may read anything, and the setting watch {why}", hint)
    files = [*(step.file for step in plan if isinstance(step, steps.SqlStep)), *watched]
    parts = {
        "pgsandbox": f"format {FORMAT}",
        "machine": platform.machine(),
        "engine": choice.engine,
        "PostgreSQL": choice.version,
        "the image" if choice.engine == "docker" else "the binaries": choice.detail["content"],
        "the setting init": _digest(settings.init),
        "the setting extensions": _digest(settings.extensions),
        "the setting options": _digest(settings.options),
        "the setting superuser": str(settings.superuser),
        "the files of init and watch": _digest(
            [text for file in files for text in (os.path.relpath(file, root), _content(file))]
        ),
    }
    return Fingerprint(_digest(sorted(parts.items()))[:20], parts=parts)


def _matching(root: Path, pattern: str) -> list[Path]:
    return sorted(file for file in root.glob(pattern) if file.is_file())


def _content(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _digest(what: object) -> str:
    """A digest of lists and texts, of which no two read alike."""
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()
