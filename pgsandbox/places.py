"""Where pgsandbox keeps things on this machine, and that those folders are ours alone."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import sys
import tempfile
from pathlib import Path

from pgsandbox.errors import PlaceError

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 -- a tmpfs, cleared at boot; what we make there is checked to be ours
_ROOM_FOR_A_SERVER = 512 << 20
_ID = re.compile(r"[0-9a-f]{32}")


def runtime_root() -> Path:
    """The folder for leases, locks and records of this user on this machine: 0700, on tmpfs where there is one.

    `_PGSANDBOX_ROOT` in the environment moves it (our own tests do). Raises PlaceError when it is not ours.
    """
    override = os.environ.get("_PGSANDBOX_ROOT")
    if override:
        return private(Path(override))
    parent = _SHARED_MEMORY if _is_usable(_SHARED_MEMORY) else _temporary()
    return private(parent / f"pgsandbox-{_user()}")


def data_folder(token: str) -> Path:
    """Where the data of the server `token` goes: tmpfs if it has room for one, else the disk's temporary folder.

    It is not below `runtime_root`, since the user that postgres runs as may not enter that. Not created here.
    """
    roomy = _is_usable(_SHARED_MEMORY) and has_room(_SHARED_MEMORY)
    parent = _SHARED_MEMORY if roomy else _temporary()
    return parent / f"pgsandbox-data-{token}"


def cache_root() -> Path:
    """The folder for what is kept between runs. For root it is one that an unprivileged user can enter."""
    override = os.environ.get("_PGSANDBOX_CACHE")
    if override:
        return Path(override)
    import platformdirs

    if _user() == 0:
        return Path(platformdirs.site_cache_dir("pgsandbox"))
    return Path(platformdirs.user_cache_dir("pgsandbox"))


def home_id() -> str:
    """What tells this user's `runtime_root`, on this boot of this machine, from all others; made when first asked."""
    file = runtime_root() / "id"
    if file.exists() and not _ID.fullmatch(file.read_text(encoding="ascii", errors="replace")):
        file.unlink(missing_ok=True)  # damaged; an empty one would be the id of everything that has none
    if not file.exists():
        fresh = file.with_name(f"id.{new_token()}")
        fresh.write_text(os.urandom(16).hex(), encoding="ascii")
        with contextlib.suppress(FileExistsError):
            os.link(fresh, file)  # the first one counts, whoever that is
        fresh.unlink()
    return file.read_text(encoding="ascii")


def private(folder: Path) -> Path:
    """`folder`, made if need be, with mode 0700 whatever the umask is; so is every folder made on the way.

    Raises PlaceError when it can't be made, is a link, belongs to somebody else, or is open to others.
    """
    found = _made(folder)
    if sys.platform == "win32":  # no owner or mode to speak of
        return folder
    if (why := _distrust(folder, found)) is not None:
        raise PlaceError(
            f"the folder {folder} can't be trusted",
            why=why,
            hint=f"look at it with `ls -ld {folder}`; its owner, or root, can remove it",
        )
    return folder


def _made(folder: Path) -> os.stat_result:
    """What `folder` is, after making it if it was not there; whoever removes the dead may come in between."""
    for attempts_left in reversed(range(100)):
        try:
            if not folder.parent.is_dir():
                private(folder.parent)
            with contextlib.suppress(FileExistsError):
                folder.mkdir(mode=0o700)
                folder.chmod(0o700)
            return folder.lstat()
        except OSError as problem:
            if not isinstance(problem, FileNotFoundError) or not attempts_left:
                raise unusable(folder, problem) from problem
    raise AssertionError("the last attempt returns or raises")


def _distrust(folder: Path, found: os.stat_result) -> str | None:
    if stat.S_ISLNK(found.st_mode):
        return f"it is a link to {folder.readlink()}"
    if not stat.S_ISDIR(found.st_mode):
        return "it is not a folder"
    if found.st_uid != os.geteuid():
        return f"it belongs to user {found.st_uid}, and this process runs as user {os.geteuid()}"
    if stat.S_IMODE(found.st_mode) & 0o077:
        return f"others may enter it: its mode is {stat.S_IMODE(found.st_mode):04o}, not 0700"
    return None


def unusable(folder: Path, problem: OSError, *, hint: str | None = None) -> PlaceError:
    """The error for a folder that the operating system refuses, in words; `hint` replaces the general one."""
    writable = "make it writable, or set TMPDIR to a folder that is"
    reasons = {
        errno.ENOSPC: ("no space is left there", "free some space, or remove what `pgsandbox ls` shows with `down`"),
        errno.EROFS: ("the file system is read-only", hint or writable),
        errno.EACCES: ("permission denied", hint or writable),
    }
    why, remedy = reasons.get(problem.errno or 0, (problem.strerror or str(problem), hint))
    return PlaceError(f"{folder} can't be written", why=why, hint=remedy)


def has_room(folder: Path) -> bool:
    """Whether the file system of `folder` has room for a server's data, and some more."""
    return free(folder) >= _ROOM_FOR_A_SERVER


def new_token() -> str:
    """Twelve random hexadecimal digits: a name that nobody can plant a file under."""
    return os.urandom(6).hex()  # `secrets` would do the same, and load half of OpenSSL for it


def digest(*parts: str) -> str:
    """Twelve hexadecimal digits that stand for `parts`."""
    import hashlib

    return hashlib.sha256(os.fsencode("\0".join(parts))).hexdigest()[:12]


def _user() -> int:
    return os.geteuid() if hasattr(os, "geteuid") else 0


def _temporary() -> Path:
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError as problem:
        raise PlaceError(
            "no folder for temporary files can be written", why=problem.strerror, hint="set TMPDIR to one that can"
        ) from problem


def _is_usable(folder: Path) -> bool:
    return sys.platform.startswith("linux") and folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def free(folder: Path) -> int:
    """How many bytes are free on the file system of `folder`."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize
