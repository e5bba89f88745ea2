"""What is kept holds no secret: no password and no verifier, in no file of it and in nothing that an image says."""

from __future__ import annotations

import contextlib
import io
import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Target

from pgsandbox import Sandbox, scram
from pgsandbox.cache import Cache, Entry
from pgsandbox.engines import images

VERIFIER = re.compile(rb"SCRAM-SHA-256\$|md5[0-9a-f]{32}")


@pytest.fixture
def passwords(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every password that this process makes up from now on."""
    made: list[str] = []
    original = scram.new_password

    def new_password() -> str:
        made.append(original())
        return made[-1]

    monkeypatch.setattr(scram, "new_password", new_password)
    return made


@pytest.fixture
def entry(target: Target, project: Path, own_cache: Path, passwords: list[str]) -> Entry:
    """A template that was baked with steps of all kinds, in a server that wrote more than one file of WAL."""
    (project / "schema.sql").write_text(
        "CREATE TABLE t AS SELECT n, repeat('x', 100) FROM generate_series(1, 30000) n; CREATE EXTENSION pg_trgm;"
    )
    settings: dict[str, Any] = {"init": ["schema.sql", "command: true"], "watch": ["*.sql"]}
    with Sandbox(root=project, **settings, **target.settings):
        pass
    [entry] = Cache().entries()
    return entry


def members(archive: bytes, *, nested: bool = False) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the files in an archive, and if `nested`, in archives that are in it."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        for member in opened:
            if member.isfile():
                content = opened.extractfile(member)
                assert content is not None
                yield member.name, (inside := content.read())
                if nested and member.name.endswith(".tar"):
                    yield from members(inside)


def test_nothing_that_is_kept_holds_a_password_or_a_verifier(entry: Entry, passwords: list[str]) -> None:
    if entry.engine == "docker":
        said, files = look_into(entry.seed["image"])
    else:
        said, files = "", list(members(Path(entry.seed["archive"]).read_bytes()))
    [record] = Cache().folder.glob("*.json")
    said += record.read_text()
    names = {name for name, _ in files}
    assert [name for name in names if "pg_wal/0" in name], "the WAL is looked at, too"
    assert [name for name in names if "global/" in name], "and where roles are kept"
    assert not [name for name, content in files if VERIFIER.search(content)]
    assert passwords
    assert not [p for p in passwords if p in said or any(p.encode() in content for _, content in files)]
    assert not VERIFIER.search(said.encode())


def look_into(image: str) -> tuple[str, list[tuple[str, bytes]]]:
    """All that an image says of itself, and the files that were put on top of the image it was made of."""
    import docker

    with contextlib.closing(docker.from_env()) as client:
        said = json.dumps([client.api.inspect_image(image), client.api.history(image), images.note_of(client, image)])
        saved = dict(members(b"".join(client.images.get(image).save())))
    [manifest] = json.loads(saved["manifest.json"])
    said += saved[manifest["Config"]].decode()
    return said, list(members(saved[manifest["Layers"][-1]], nested=True))
