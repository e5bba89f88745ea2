"""A kept template as one file for another machine: what it says first, and how damage on the way is noticed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from pgsandbox.errors import TemplateError

_MAGIC = b"pgsandbox template "
_LONGEST = 1 << 24
"""Bytes of a head, and of a piece, that no file of ours has: beyond that it is another's, or damaged."""


def write(stream: BinaryIO, head: dict[str, Any], content: Iterable[bytes], *, format_: int) -> None:
    """Write a parcel: a line that says what it is, `head` as a line of JSON, `content` in pieces, and its checksum."""
    digest = hashlib.sha256()

    def put(data: bytes) -> None:
        digest.update(data)
        stream.write(data)

    put(_MAGIC + f"{format_}\n".encode())
    put(json.dumps(head).encode() + b"\n")
    for piece in filter(None, content):
        put(len(piece).to_bytes(4))
        put(piece)
    put(bytes(4))
    stream.write(digest.digest())
    stream.flush()


def read(stream: BinaryIO, *, name: str, format_: int) -> tuple[dict[str, Any], Iterator[bytes]]:
    """The head and the content of the parcel in `stream`, a file that is called `name`.

    The last piece only comes once the checksum was right. Raises TemplateError, also while the content is read, for a
    file that is none, is of another version, or is damaged.
    """
    digest = hashlib.sha256()
    first = stream.readline(len(_MAGIC) + 20)
    if not first.startswith(_MAGIC):
        why = "it is empty" if not first else "it does not begin as such a file does"
        hint = "make one with `pgsandbox bake --output FILE`"
        raise TemplateError(f"{name} is no template that pgsandbox wrote", why=why, hint=hint)
    found = first.removeprefix(_MAGIC).strip().decode(errors="replace")
    if found != str(format_):
        raise TemplateError(
            f"{name} was written by another version of pgsandbox",
            why=f"it is of format {found}, and this version reads format {format_}",
            hint="bake it anew, with the version that is to read it",
        )
    line = stream.readline(_LONGEST)
    digest.update(first + line)
    try:
        head = json.loads(line)
    except ValueError:
        head = None
    if not isinstance(head, dict):
        raise _damaged(name, "its head can't be read")
    return head, _content(stream, digest, name)


def _content(stream: BinaryIO, digest: Any, name: str) -> Iterator[bytes]:
    last = b""
    while True:
        length = stream.read(4)
        digest.update(length)
        size = int.from_bytes(length)
        if len(length) < 4:
            raise _damaged(name, "it ends too early")
        if not size:
            break
        if size > _LONGEST:
            raise _damaged(name, "its checksum is another")
        if last:
            yield last
        last = stream.read(size)
        digest.update(last)
        if len(last) < size:
            raise _damaged(name, "it ends too early")
    if stream.read(len(digest.digest())) != digest.digest():
        raise _damaged(name, "its checksum is another")
    yield last


def _damaged(name: str, why: str) -> TemplateError:
    return TemplateError(
        f"{name} is damaged", why=why, hint="make it anew: pgsandbox bake --output FILE; nothing of it was taken over"
    )
