"""Templates kept between runs: where they are, which of them can be trusted, and when one has to go."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pgsandbox import engines, locks, places
from pgsandbox.errors import NotReadyError, PgsandboxError
from pgsandbox.fingerprint import FORMAT
from pgsandbox.run import entries, read_record, write_record

if TYPE_CHECKING:
    from pgsandbox.engines import Choice


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

    @staticmethod
    def of(key: str, seed: dict[str, Any], *, choice: Choice, version: str, facts: dict[str, Any], root: Path) -> Entry:
        """A template of the project at `root` that has just been made, or brought here, as `seed`."""
        return Entry(
            key=key,
            engine=choice.engine,
            version=version,
            seed=seed,
            facts=facts,
            size=seed["size"],
            project=str(root),
            created=time.time(),
        )

    @property
    def where(self) -> str:
        """The image's tag, or the archive's path."""
        return str(self.seed.get("image") or self.seed.get("archive"))

    def to_json(self) -> dict[str, Any]:
        """All that a program may want to know of it."""
        names = ("key", "engine", "version", "size", "project", "created", "used")
        return {name: getattr(self, name) for name in names} | {"where": self.where}


class Cache:
    """The kept templates of this user. Nothing in it is trusted that was not finished."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or places.cache_root() / f"templates-{FORMAT}"
        """Where they are; another version of pgsandbox that keeps them in another format has another one."""

    def prepare(self) -> Path:
        """The folder that seeds go to, made if need be. Raises PlaceError when it can't be written."""
        places.private(self.folder)
        if not os.access(self.folder, os.W_OK):
            raise places.unusable(self.folder, PermissionError(13, "Permission denied"))
        return self.folder

    @contextlib.contextmanager
    def building(self, key: str, *, timeout: float) -> Iterator[None]:
        """Hold the right to build `key`, among all runs of this user. Raises NotReadyError after `timeout` seconds.

        Keys that begin alike share a lock: to wait for another's build costs little, a file for each key would be
        there for ever, and to remove one that somebody may be about to lock is to have two builders.
        """
        import filelock

        lock = places.private(self.prepare() / "locks") / key[:1]
        try:
            with filelock.FileLock(lock, timeout=timeout, poll_interval=0.02):
                yield
        except filelock.Timeout:
            raise locks.not_had(
                f"waited {timeout:g}s for another run that builds the same template",
                lock,
                otherwise="it is alive, but has not finished",
                hint="raise the setting timeout if the work is known to take longer",
            ) from None

    def find(self, key: str) -> tuple[Entry | None, str | None]:
        """The entry `key`, marked as used, if it is there and whole; else what was wrong with it and it was dropped."""
        file = self._file(key)
        wrong: str | None = "its record is damaged"
        with contextlib.suppress(PgsandboxError, TypeError, ValueError, KeyError):
            record = read_record(file)
            if record is None:
                return None, None
            entry = Entry(**record)
            wrong = engines.named(entry.engine).damage(entry.seed)
            if wrong is None:
                with contextlib.suppress(PgsandboxError):  # a full disk is no reason not to read
                    write_record(file, {**record, "used": time.time()})
                return entry, None
        self.drop(key)
        return None, wrong

    def keep(self, entry: Entry, *, limit: int) -> None:
        """Keep `entry`, and let the least recently used go until all together are within `limit` bytes."""
        write_record(self._file(entry.key), {**vars(entry), "used": time.time()})
        found = self.entries()
        total = sum(one.size for one in found)
        for one in sorted(found, key=lambda one: one.used):
            if total <= limit:
                break
            if one.key != entry.key:
                self.drop(one.key)
                total -= one.size
        self.tidy(entry.engine, held=entry.key)

    def drop(self, key: str) -> None:
        """Remove the entry `key`, also a damaged one; harmless when there is none."""
        file = self._file(key)
        with contextlib.suppress(PgsandboxError, TypeError, ValueError, KeyError):
            record = read_record(file)
            if record is not None:
                engines.named(record["engine"]).forget_seed(record["seed"])
        for leftover in (file, self.folder / f"{key}.tar"):
            with contextlib.suppress(OSError):
                leftover.unlink(missing_ok=True)

    def entries(self) -> list[Entry]:
        """All entries that can be read, the most recently used first."""
        found: list[Entry] = []
        for file in entries(self.folder):
            with contextlib.suppress(PgsandboxError, TypeError, ValueError):
                record = read_record(file) if file.suffix == ".json" else None
                if record is not None:
                    found.append(Entry(**record))
        return sorted(found, key=lambda one: -one.used)

    def clear(self) -> tuple[list[Entry], list[Entry]]:
        """Remove all entries but those that somebody is just building anew; what went, and what was left."""
        gone: list[Entry] = []
        left: list[Entry] = []
        for entry in self.entries():
            try:
                with self.building(entry.key, timeout=0):
                    self.drop(entry.key)
                gone.append(entry)
            except NotReadyError:
                left.append(entry)
        self.tidy("local", "docker")
        self._forget_older_formats()
        return gone, left

    def _forget_older_formats(self) -> None:
        """Remove what earlier versions of pgsandbox kept, which only they could use."""
        for folder in entries(self.folder.parent):
            number = folder.name.removeprefix("templates-")
            if folder.is_symlink() or not (number.isdigit() and 0 < int(number) < FORMAT):
                continue
            older = Cache(folder)
            for file in entries(folder):
                if re.fullmatch(r"[0-9a-f]+\.json", file.name):
                    older.drop(file.stem)
            with contextlib.suppress(PgsandboxError):
                older.tidy("local", "docker")
            shutil.rmtree(folder / "locks", ignore_errors=True)
            with contextlib.suppress(OSError):  # what else is in there is not ours
                folder.rmdir()

    def tidy(self, *names: str, held: str | None = None) -> None:
        """Remove what has no record in the engines `names`: of builders that were killed, or in use when it had to go.

        What somebody is just building has none yet, but its key is locked; `held` is one that the caller has locked.
        """
        known = {entry.key for entry in self.entries()}
        for file in entries(self.folder):
            if ".json." in file.name:  # half written
                with contextlib.suppress(NotReadyError, OSError), self._unless_held(file.name, held):
                    file.unlink()
        for name in names:
            with contextlib.suppress(PgsandboxError):  # an engine that does not answer has to wait
                engine = engines.named(name)
                for key, seed in engine.strays(self.folder, known):
                    with contextlib.suppress(NotReadyError), self._unless_held(key, held):
                        # Once more: whoever built it may have let go of its key since we looked.
                        if not self._is_known(key, seed):
                            engine.forget_seed(seed)

    def _is_known(self, key: str, seed: dict[str, Any]) -> bool:
        """Whether the record `key` is of just that seed."""
        with contextlib.suppress(PgsandboxError, KeyError, AttributeError):
            record = read_record(self._file(key))
            return record is not None and seed.items() <= record["seed"].items()
        return False

    @contextlib.contextmanager
    def _unless_held(self, key: str, held: str | None) -> Iterator[None]:
        """Hold `key` for a moment, unless the caller does. Raises NotReadyError where somebody else does."""
        if held is not None and key[:1] == held[:1]:
            yield
        else:
            with self.building(key, timeout=0):
                yield

    def _file(self, key: str) -> Path:
        return self.folder / f"{key}.json"
