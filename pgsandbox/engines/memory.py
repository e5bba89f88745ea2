"""Shared memory that PostgreSQL leaves when it is killed: known by what it says of itself, and freed.

A server marks its data folder as in use by a small System V segment, whose first bytes name that folder by device and
inode: src/include/storage/pg_shmem.h. PostgreSQL itself looks there for what a predecessor left.
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pgsandbox.engines import kernel

_HEADER = struct.Struct("@iiNNIPLL")  # magic, creator, total size, free offset, dynamic segment, index, device, inode
_MAGIC = 679834894
_COLLISIONS = 100
"""Keys that PostgreSQL may have tried: from the folder's inode on, the first that was free."""

_READ_ONLY = 0o10000
_REMOVE = 0
_DYNAMIC = Path("/dev/shm")  # noqa: S108 -- where the C library has what shm_open(3) makes


def free(data: Path) -> None:
    """Free what servers that were killed in the folder `data` left; to be called while there is that folder.

    Nothing where there is no such memory, or the kernel does not list it (macOS).
    """
    try:
        folder = data.lstat()
    except OSError:
        return
    if not stat.S_ISDIR(folder.st_mode):  # a link may lead to somebody else's
        return
    libc = kernel.libc()
    for id_ in _candidates(folder):
        header = _header(libc, id_)
        if header is None or header[0] != _MAGIC or header[6:] != (folder.st_dev, folder.st_ino):
            continue
        libc.shmctl(id_, _REMOVE, None)
        _unlink(_DYNAMIC / f"PostgreSQL.{header[4]}", folder.st_uid)


def _candidates(folder: os.stat_result) -> Iterator[int]:
    """The ids of segments of the folder's owner whose key may stand for it."""
    with contextlib.suppress(OSError), Path("/proc/sysvipc/shm").open(encoding="ascii") as lines:
        next(lines, None)  # the names of the columns
        for line in lines:
            key, id_, _, _, _, _, _, uid, *_ = map(int, line.split())
            if uid == folder.st_uid and (key - folder.st_ino) % (1 << 32) < _COLLISIONS:
                yield id_


def _header(libc: Any, id_: int) -> tuple[int, ...] | None:
    """The segment's first bytes; None where it has gone, or is too small."""
    import ctypes

    libc.shmat.restype = ctypes.c_void_p
    at = libc.shmat(id_, None, _READ_ONLY)
    if at is None or at == ctypes.c_void_p(-1).value:
        return None
    try:
        return _HEADER.unpack(ctypes.string_at(at, _HEADER.size))  # a segment is whole pages
    finally:
        libc.shmdt(ctypes.c_void_p(at))


def _unlink(file: Path, owner: int) -> None:
    """Remove the dynamic segment that initdb's helpers have: a running server of ours has its own in its folder."""
    with contextlib.suppress(OSError):
        if file.lstat().st_uid == owner:
            file.unlink()
