"""Archives of a stopped cluster: what comes first, what is in one once, and that damage is never taken for whole."""

from __future__ import annotations

import contextlib
import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pgsandbox.engines import Layout, archive
from pgsandbox.errors import PlaceError, SeedError

LAYOUT: Layout = {"template": 16400, "spare": 16401, "late": [1, 4, 16400]}
START = {"PG_VERSION", "pg_hba.conf", "base/5/112"}
REST = {"base/1/112", "base/4/112", "base/16401/112", "base/16401/2600"}


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    """What a stopped cluster looks like; the template has a table of several chunks."""
    data = tmp_path / "cluster"
    for oid in (1, 4, 5, 16400, 16401):
        (data / "base" / str(oid)).mkdir(parents=True)
        (data / "base" / str(oid) / "112").write_bytes(b"catalog" * oid)
    (data / "base" / "16400" / "2600").write_bytes(os.urandom(64) * 50_000)
    for name in ("112", "2600"):
        shutil.copy(data / "base" / "16400" / name, data / "base" / "16401" / name)
    (data / "pg_tblspc").mkdir()
    (data / "pg_tblspc" / "16500").symlink_to("/elsewhere")
    for name in ("PG_VERSION", "pg_hba.conf", "postmaster.opts"):
        (data / name).write_text("15\n")
    (data / "pg_notify").mkdir()
    return data


@pytest.fixture
def seed(cluster: Path, tmp_path: Path) -> dict[str, Any]:
    file = tmp_path / "seed.tar"
    return {"archive": str(file), **archive.pack(cluster, file, layout=LAYOUT)}


@pytest.fixture
def to(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


@contextlib.contextmanager
def unpacking(seed: dict[str, Any], to: Path) -> Iterator[archive.Unpacking]:
    with contextlib.closing(archive.Unpacking(seed, to, owner=None)) as unpacking:
        yield unpacking


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_what_a_start_needs_comes_first_and_the_template_last(seed: dict[str, Any], cluster: Path, to: Path) -> None:
    with unpacking(seed, to) as one:
        assert set(files(to)) == START
        one.rest()
        assert set(files(to)) == START | REST
        one.template()
    found = files(to)
    assert found.pop(archive.WHOLE) == b"whole"
    wanted = files(cluster)
    del wanted["postmaster.opts"]
    assert found == wanted
    assert (to / "pg_notify").stat().st_mode & 0o777 == 0o700
    assert (to / "PG_VERSION").stat().st_mode & 0o777 == 0o600
    assert (to / "pg_tblspc" / "16500").readlink() == Path("/elsewhere")


def test_it_is_a_tar_that_has_the_spare_databases_files_once(seed: dict[str, Any]) -> None:
    with tarfile.open(seed["archive"]) as tar:
        names = tar.getnames()
    assert (names[0][:6], "base/16400/2600" in names, "base/16401/2600" in names) == ("index-", True, False)


def test_a_spare_that_differs_is_kept_as_it_is(cluster: Path, tmp_path: Path, to: Path) -> None:
    (cluster / "base" / "16401" / "112").write_text("another")
    file = tmp_path / "seed.tar"
    with unpacking({"archive": str(file), **archive.pack(cluster, file, layout=LAYOUT)}, to) as one:
        one.rest()
        one.template()
    assert (to / "base" / "16401" / "112").read_text() == "another"
    assert (to / "base" / "16400" / "112").read_bytes() == b"catalog" * 16400


@pytest.mark.parametrize(
    ("at", "why"),
    [
        (0, "its checksum is another"),
        (130, "its checksum is another"),
        (700, "its checksum is another"),
        (-2_000_000, "its checksum is another"),
        (-1, "its checksum is another"),
        (None, "its size is another"),
    ],
    ids=["name", "size", "index", "content", "end", "shorter"],
)
def test_damage_is_noticed_before_the_server_is_said_to_be_ready(
    seed: dict[str, Any], to: Path, at: int | None, why: str
) -> None:
    file = Path(seed["archive"])
    content = bytearray(file.read_bytes())
    if at is None:
        del content[-512:]
    else:
        content[at] ^= 0x55
    file.write_bytes(content)
    with pytest.raises(SeedError) as caught, unpacking(seed, to) as one:
        one.rest()
    assert str(caught.value) == f"pgsandbox: the kept template is damaged\n  why: {why}"


def test_one_that_is_gone_is_named(seed: dict[str, Any], to: Path) -> None:
    Path(seed["archive"]).unlink()
    with pytest.raises(SeedError) as caught, unpacking(seed, to):
        pass
    assert str(caught.value) == "pgsandbox: the kept template can't be read\n  why: No such file or directory"


def test_one_that_goes_while_the_server_runs_is_still_there_for_the_template(seed: dict[str, Any], to: Path) -> None:
    with unpacking(seed, to) as one:
        one.rest()
        Path(seed["archive"]).unlink()
        one.template()
    assert (to / "base" / "16400" / "112").read_bytes() == b"catalog" * 16400


def test_why_a_template_can_not_be_unpacked_is_written_down(seed: dict[str, Any], to: Path) -> None:
    with unpacking(seed, to) as one:
        one.rest()
        (to / "base" / "16400").rmdir()
        one.template()
    said = (to / archive.WHOLE).read_text()
    assert said == f"pgsandbox: {to} can't be written why: No such file or directory"


def test_a_folder_that_is_in_the_way_is_named(seed: dict[str, Any], to: Path) -> None:
    (to / "base").mkdir()
    with pytest.raises(PlaceError), unpacking(seed, to):
        pass


def test_the_word_that_all_is_there_can_be_read_from_the_first_moment(
    seed: dict[str, Any], to: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server asks for it again and again: it must not find a file that it has no right to read yet, or a part."""
    seen: list[bool] = []
    monkeypatch.setattr(archive.os, "fchown", lambda *_: seen.append((to / archive.WHOLE).exists()))
    with contextlib.closing(archive.Unpacking(seed, to, owner=(os.geteuid(), os.getegid()))) as unpacking:
        unpacking.rest()
        unpacking.template()
    assert seen
    assert not any(seen)
    assert (to / archive.WHOLE).read_text() == "whole"
