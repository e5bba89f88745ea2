"""Templates kept between runs: what one depends on, where it is, and when it has to go."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgsandbox import engines, places, steps
from pgsandbox.errors import NotReadyError, PgsandboxError
from pgsandbox.run import read_record, write_record

if TYPE_CHECKING:
    from pgsandbox.engines import Choice
    from pgsandbox.settings import Settings

FORMAT = 2
"""Changes whenever what is kept changes its meaning; entries of another format are never looked at."""


@dataclass(frozen=True)
class Fingerprint:
    """What a template is made of, as a name; or why it can't be kept."""

    key: str | None
    why_not: str | None = None
    hint: str | None = None
    """What to set so that it can be kept, where that is a matter of settings."""


@dataclass(frozen=True)
class Entry:
    """One kept template."""

    key: str
    engine: str
    version: str
    seed: dict[str, Any]
    """What the engine starts from; see `Engine.bake`."""
    facts: dict[str, Any]
    """`template.Facts` as a record."""
    size: int
    """Bytes."""
    project: str
    created: float
    """Unix time."""
    used: float = 0.0
    """Unix time of the last start from it."""


def fingerprint(settings: Settings, choice: Choice, root: Path) -> Fingerprint:
    """What the template depends on: engine, version, our format, and all that the init steps are and read.

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
    digest = hashlib.sha256()
    for part in (FORMAT, platform.machine(), choice.engine, choice.version, choice.detail.get("id", choice.what)):
        _add(digest, str(part))
    for group in (settings.init, settings.extensions, settings.options, (str(settings.superuser),)):
        _add(digest, *group)
    for file in [*(step.file for step in plan if isinstance(step, steps.SqlStep)), *watched]:
        _add(digest, os.path.relpath(file, root))
        _add(digest, hashlib.sha256(file.read_bytes()).hexdigest())
    return Fingerprint(digest.hexdigest()[:20])


class Cache:
    """The kept templates of this user. Nothing in it is trusted that was not finished."""

    def __init__(self) -> None:
        self._folder = places.cache_root() / f"templates-{FORMAT}"

    def prepare(self) -> Path:
        """The folder that seeds go to, made if need be. Raises PlaceError when it can't be written."""
        places.private(self._folder)
        if not os.access(self._folder, os.W_OK):
            raise places.unusable(self._folder, PermissionError(13, "Permission denied"))
        return self._folder

    @contextlib.contextmanager
    def building(self, key: str, *, timeout: float) -> Iterator[None]:
        """Hold the right to build `key`, among all runs of this user. Raises NotReadyError after `timeout` seconds."""
        import filelock

        try:
            with filelock.FileLock(self.prepare() / f"{key}.lock", timeout=timeout, poll_interval=0.02):
                yield
        except filelock.Timeout:
            raise NotReadyError(f"waited {timeout:g}s for another run that builds the same template") from None

    def find(self, key: str) -> Entry | None:
        """The entry `key`, if it is there and whole; marks it as used."""
        file = self._folder / f"{key}.json"
        with contextlib.suppress(PgsandboxError, TypeError, ValueError):
            record = read_record(file)
            if record is None:
                return None
            entry = Entry(**record)
            if engines.named(entry.engine).has_seed(entry.seed):
                write_record(file, {**record, "used": time.time()})
                return entry
        self.drop(key)
        return None

    def keep(self, entry: Entry, *, limit: int) -> None:
        """Keep `entry`, and let the least recently used go until all together are within `limit` bytes."""
        write_record(self.prepare() / f"{entry.key}.json", {**vars(entry), "used": time.time()})
        entries = self.entries()
        total = sum(one.size for one in entries)
        for one in sorted(entries, key=lambda one: one.used):
            if total <= limit:
                return
            if one.key != entry.key:
                self.drop(one.key)
                total -= one.size

    def drop(self, key: str) -> None:
        """Remove the entry `key`, also a damaged one; harmless when there is none."""
        file = self._folder / f"{key}.json"
        with contextlib.suppress(PgsandboxError, TypeError, ValueError, KeyError):
            record = read_record(file)
            if record is not None:
                engines.named(record["engine"]).forget_seed(record["seed"])
        for leftover in (file, self._folder / f"{key}.tar"):
            with contextlib.suppress(OSError):
                leftover.unlink(missing_ok=True)

    def entries(self) -> list[Entry]:
        """All entries that can be read, the most recently used first."""
        found: list[Entry] = []
        for file in self._folder.glob("*.json"):
            with contextlib.suppress(PgsandboxError, TypeError, ValueError):
                record = read_record(file)
                if record is not None:
                    found.append(Entry(**record))
        return sorted(found, key=lambda one: -one.used)

    def clear(self) -> list[Entry]:
        """Remove all entries; what they were."""
        entries = self.entries()
        for entry in entries:
            self.drop(entry.key)
        return entries


def _matching(root: Path, pattern: str) -> list[Path]:
    return sorted(file for file in root.glob(pattern) if file.is_file())


def _add(digest: Any, *parts: str) -> None:
    """Add a group of texts so that no two groups read alike."""
    digest.update(f"{len(parts)}:".encode())
    for part in parts:
        digest.update(f"{len(part)}:{part}".encode())
