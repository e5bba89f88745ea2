"""A stopped cluster as one file: packed and unpacked by tar, with a checksum that proves it whole on the way."""

from __future__ import annotations

import contextlib
import subprocess
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pgsandbox import places
from pgsandbox.errors import SeedError, ServerError

_CHUNK = 1 << 20


def pack(data: Path, to: Path, *, leave_out: Sequence[str] = ()) -> dict[str, Any]:
    """Pack the folder `data`, without `leave_out` (`./path`), into the file `to`, whole or not at all.

    Its `size` in bytes and `crc` (CRC-32) prove it whole. Raises PlaceError when the file can't be written, ServerError
    when the folder can't be read.
    """
    fresh = to.with_name(f"{to.name}.{places.new_token()}")
    without = [f"--exclude={name}" for name in ("./postmaster.opts", *leave_out)]
    command = ["tar", "--create", "--file=-", *without, f"--directory={data}", "."]
    crc = size = 0
    try:
        with fresh.open("xb") as file, _tar(command, stdout=subprocess.PIPE) as tar:
            assert tar.stdout is not None
            while chunk := tar.stdout.read(_CHUNK):
                crc = zlib.crc32(chunk, crc)
                size += file.write(chunk)
        if tar.returncode != 0:
            raise ServerError(f"the cluster in {data} can't be packed", why=f"tar ended with {tar.returncode}")
        fresh.replace(to)
    except OSError as problem:
        raise places.unusable(to.parent, problem) from problem
    finally:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)
    return {"size": size, "crc": crc}


def content(seed: dict[str, Any]) -> Iterator[bytes]:
    """What `pack` wrote, in pieces. Raises SeedError when it can't be read."""
    try:
        with Path(seed["archive"]).open("rb") as file:
            while chunk := file.read(_CHUNK):
                yield chunk
    except OSError as problem:
        raise SeedError("the kept template can't be read", why=problem.strerror) from problem


def write(pieces: Iterable[bytes], to: Path) -> dict[str, Any]:
    """Write an archive that was packed elsewhere to the file `to`, whole or not at all; what proves it whole.

    Raises PlaceError when it can't be written, and what reading `pieces` raises.
    """
    fresh = to.with_name(f"{to.name}.{places.new_token()}")
    crc = size = 0
    try:
        with fresh.open("xb") as file:
            for piece in pieces:
                crc = zlib.crc32(piece, crc)
                size += file.write(piece)
        fresh.replace(to)
    except OSError as problem:
        raise places.unusable(to.parent, problem) from problem
    finally:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)
    return {"archive": str(to), "size": size, "crc": crc}


def unpack(seed: dict[str, Any], data: Path, *, become: Callable[[], None]) -> None:
    """Unpack a seed into the folder `data`, as the user that `become` turns the unpacking process into.

    Raises SeedError when the archive is not the one that was packed, PlaceError when there is no room for it.
    """
    crc = size = 0
    command = ["tar", "--extract", "--file=-", f"--directory={data}"]
    try:
        with Path(seed["archive"]).open("rb") as file, _tar(command, stdin=subprocess.PIPE, become=become) as tar:
            assert tar.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # tar gave up: its exit code says so
                while chunk := file.read(_CHUNK):
                    crc = zlib.crc32(chunk, crc)
                    size += len(chunk)
                    tar.stdin.write(chunk)
                tar.stdin.close()
            said = tar.stderr.read().decode(errors="replace") if tar.stderr else ""
    except OSError as problem:
        raise SeedError("the kept template can't be read", why=problem.strerror) from problem
    if "No space left on device" in said:
        raise places.unusable(data, OSError(28, "No space left on device"))
    if (size, crc) != (seed["size"], seed["crc"]) or tar.returncode != 0:
        raise SeedError("the kept template is damaged", why=said.strip() or "its checksum is another")


def _tar(
    command: list[str], *, stdin: int = subprocess.DEVNULL, stdout: int = subprocess.DEVNULL, become: Any = None
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            command,
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.PIPE,
            preexec_fn=become,  # noqa: PLW1509 -- the supervisor has one thread
        )
    except FileNotFoundError as problem:
        raise ServerError(
            "tar can't be run", why="no such program", looked_at=("PATH",), hint="install tar"
        ) from problem
