"""A stopped cluster as one file: a tar with an index in front, and a checksum that proves it whole on the way.

What a start needs comes first, so that PostgreSQL can start while the rest is being unpacked, and the template last.
The files of its spare clone are the same: they are in it once, and unpacked twice.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from pgsandbox import places
from pgsandbox.errors import PgsandboxError, SeedError, ServerError

if TYPE_CHECKING:
    from pgsandbox.engines import Layout

    Buffer = bytes | memoryview

WHOLE = "pgsandbox.whole"
"""The file in a data folder that says that the template is in it (`whole`), or why it will not be."""

_INDEX = "index-%08x.json"
"""The first file's name, with its CRC: the index has to be right before any of the rest is read."""

_START, _REST, _TEMPLATE = range(3)
_BLOCK = 512
_CHUNK = 1 << 20


def pack(data: Path, to: Path, *, layout: Layout, leave_out: Sequence[str] = ()) -> dict[str, Any]:
    """Pack the folder `data`, without `leave_out` (paths below it), into the file `to`, whole or not at all.

    Its `size` in bytes and `crc` (CRC-32) prove it whole. Raises PlaceError when the file can't be written, ServerError
    when the folder can't be read.
    """
    import tarfile

    folders, links, sizes = _found(data, {"postmaster.opts", *leave_out})
    spare, template = f"base/{layout['spare']}/", f"base/{layout['template']}/"
    twins = _are_twins(data, spare, template, sizes)
    if twins:
        sizes = {name: size for name, size in sizes.items() if not name.startswith(spare)}
    rest = tuple(f"base/{oid}/" for oid in layout["late"])
    part = {
        name: _TEMPLATE if name.startswith(template) else _REST if name.startswith(rest) else _START for name in sizes
    }
    order = sorted(sizes, key=lambda name: (part[name], name))
    index = {
        "folders": folders,
        "links": links,
        "files": [(name, sizes[name], part[name]) for name in order],
        "twins": (template, spare) if twins else None,
    }
    first = json.dumps(index).encode()
    fresh = to.with_name(f"{to.name}.{places.new_token()}")
    try:
        with fresh.open("xb") as file:
            proof = _Proof(file)
            with tarfile.open(fileobj=cast("BinaryIO", proof), mode="w|", format=tarfile.USTAR_FORMAT) as tar:
                tar.addfile(_member(_INDEX % zlib.crc32(first), len(first)), io.BytesIO(first))
                for name in order:
                    with (data / name).open("rb") as stream:
                        tar.addfile(_member(name, sizes[name]), stream)
        fresh.replace(to)
    except (tarfile.TarError, EOFError, ValueError) as problem:
        raise ServerError(f"the cluster in {data} can't be packed", why=str(problem)) from problem
    except OSError as problem:
        raise places.unusable(to.parent, problem) from problem
    finally:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)
    return {"size": proof.size, "crc": proof.crc}


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


class Unpacking:
    """An archive on its way into the folder `data`: at first what a start needs, the rest when it is asked for.

    All of it belongs to `owner` (uid and gid), if given. Each step raises SeedError when the archive is not the one
    that was packed, PlaceError when there is no room for it. To be closed.
    """

    def __init__(self, seed: dict[str, Any], data: Path, *, owner: tuple[int, int] | None) -> None:
        self._folder = _Folder(data, owner)
        self._archive = _Archive(seed)
        for name in self._archive.index["folders"]:
            self._folder.make(name)
        for name, target in self._archive.index["links"]:
            self._folder.link(name, target)
        self._unpack(_START)

    def close(self) -> None:
        """Let go of both; the archive may have been removed meanwhile."""
        self._archive.close()
        self._folder.close()

    def rest(self) -> None:
        """Unpack the rest without the template, and prove the archive whole."""
        self._unpack(_REST)
        if self._archive.index["twins"]:
            self._unpack(_TEMPLATE, rename=self._archive.index["twins"])
        self._archive.check()

    def template(self) -> None:
        """Unpack the template, which is needed only where one more clone is wanted; then, or when it fails, say so.

        Never raises: the server serves already.
        """
        said = "whole"
        try:
            self._unpack(_TEMPLATE)
        except (PgsandboxError, OSError) as problem:
            said = " ".join(str(problem).split())
        with contextlib.suppress(PgsandboxError):
            self._folder.write_at_once(WHOLE, said.encode())

    def _unpack(self, part: int, *, rename: tuple[str, str] = ("", "")) -> None:
        before, after = rename
        for name, content in self._archive.files(part):
            self._folder.write(after + name.removeprefix(before), content)


class _Archive:
    """An archive that is being read. What is read in order, from the first file to the last, counts for its CRC."""

    def __init__(self, seed: dict[str, Any]) -> None:
        try:
            self._descriptor = os.open(seed["archive"], os.O_RDONLY | os.O_CLOEXEC)
        except OSError as problem:
            raise SeedError("the kept template can't be read", why=problem.strerror) from problem
        self._seed = seed
        self._crc = self._proven = 0
        if os.fstat(self._descriptor).st_size != seed["size"]:
            raise _damaged("its size is another")
        first = self._read(0, _BLOCK)
        name, size = first[:100].rstrip(b"\0"), first[124:135]  # POSIX, pax, "ustar Interchange Format"
        length = int(size, 8) if re.fullmatch(b"[0-7]{11}", size) else 0
        index = b"".join(self._content(0, length))
        self._begin = self._proven
        if name.decode(errors="replace") != _INDEX % zlib.crc32(index):
            raise _damaged("its checksum is another")
        self.index: dict[str, Any] = json.loads(index)

    def close(self) -> None:
        os.close(self._descriptor)

    def files(self, part: int) -> Iterator[tuple[str, Iterable[Buffer]]]:
        """Names and contents of the files of one part."""
        at = self._begin
        for name, size, is_in in self.index["files"]:
            end = at + _BLOCK + _padded(size)
            if is_in == part:
                yield name, self._content(at, size) if size > _CHUNK else (self._read(at, end)[_BLOCK : _BLOCK + size],)
            at = end

    def check(self) -> None:
        """Prove, all files having been read, that the whole was what was packed."""
        while self._proven < self._seed["size"]:
            self._read(self._proven, self._seed["size"])
        if self._crc != self._seed["crc"]:
            raise _damaged("its checksum is another")

    def _content(self, at: int, size: int) -> Iterator[Buffer]:
        at, end = at + _BLOCK, at + _BLOCK + _padded(size)
        self._read(at - _BLOCK, at)  # the file's header
        while at < end:
            chunk = self._read(at, end)
            at += len(chunk)
            yield memoryview(chunk)[:size]
            size -= min(size, len(chunk))

    def _read(self, at: int, end: int) -> bytes:
        """What is there, `_CHUNK` bytes and a file's header at most."""
        chunk = os.pread(self._descriptor, min(_CHUNK + _BLOCK, end - at), at)
        if not chunk:
            raise _damaged("it has become shorter")
        if at == self._proven:
            self._crc = zlib.crc32(chunk, self._crc)
            self._proven += len(chunk)
        return chunk


class _Folder:
    """The folder that an archive is unpacked into. Raises PlaceError."""

    def __init__(self, path: Path, owner: tuple[int, int] | None) -> None:
        self._path = path
        self._owner = owner
        self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self._descriptor)

    def make(self, name: str) -> None:
        self._try(os.mkdir, name, 0o700)

    def link(self, name: str, target: str) -> None:
        self._try(os.symlink, target, name)

    def write(self, name: str, content: Iterable[Buffer]) -> None:
        # There are thousands of small files: every call counts.
        try:
            file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=self._descriptor)
            try:
                if self._owner is not None:
                    os.fchown(file, *self._owner)
                for chunk in content:
                    written = os.write(file, chunk) if chunk else 0
                    while written < len(chunk):
                        written += os.write(file, chunk[written:])
            finally:
                os.close(file)
        except OSError as problem:
            raise places.unusable(self._path, problem) from problem

    def write_at_once(self, name: str, content: bytes) -> None:
        """As `write`, for a file that the server looks for meanwhile: before it has an owner, that would be refused."""
        self.write(f"{name}.new", [content])
        try:
            os.rename(f"{name}.new", name, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)
        except OSError as problem:
            raise places.unusable(self._path, problem) from problem

    def _try(self, make: Callable[..., None], *words: Any) -> None:
        try:
            make(*words, dir_fd=self._descriptor)
            if self._owner is not None:
                name = words[0] if make is os.mkdir else words[1]
                os.chown(name, *self._owner, dir_fd=self._descriptor, follow_symlinks=False)
        except OSError as problem:
            raise places.unusable(self._path, problem) from problem


class _Proof:
    """A file that is written, and what proves afterwards that it is whole."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = self.crc = 0

    def write(self, chunk: bytes) -> int:
        self.crc = zlib.crc32(chunk, self.crc)
        self.size += len(chunk)
        return self._file.write(chunk)


def _found(data: Path, leave_out: set[str]) -> tuple[list[str], list[tuple[str, str]], dict[str, int]]:
    """Folders (outer ones first), links and files below `data`, by their paths from there, and the files' sizes."""
    folders, links, sizes = list[str](), list[tuple[str, str]](), dict[str, int]()
    for path in sorted(data.rglob("*")):
        name = str(path.relative_to(data))
        if name in leave_out:
            continue
        if path.is_symlink():
            links.append((name, str(path.readlink())))
        elif path.is_dir():
            folders.append(name)
        elif path.is_file():  # and not the socket
            sizes[name] = path.stat().st_size
    return folders, links, sizes


def _are_twins(data: Path, one: str, other: str, sizes: dict[str, int]) -> bool:
    """Whether two folders have the same files with the same content."""
    import filecmp

    mine, theirs = ({name.removeprefix(of) for name in sizes if name.startswith(of)} for of in (one, other))
    return mine == theirs and all(filecmp.cmp(data / one / name, data / other / name, shallow=False) for name in mine)


def _member(name: str, size: int) -> Any:
    import tarfile

    member = tarfile.TarInfo(name)
    member.mode, member.size = 0o600, size
    return member


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _damaged(why: str) -> SeedError:
    return SeedError("the kept template is damaged", why=why)
