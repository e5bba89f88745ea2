"""Our folders: ours alone whatever the umask is, and refused with a reason where they are not."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from machine import needs_root, other_user, running, with_mounts

from pgsandbox import places
from pgsandbox.errors import PlaceError

if TYPE_CHECKING:
    from conftest import Target

PRIVATE = """\
import sys
from pathlib import Path
from pgsandbox import places
from pgsandbox.errors import PlaceError
try:
    print(places.private(Path(sys.argv[1])))
except PlaceError as problem:
    print(problem)
"""


def mode(path: Path) -> str:
    return f"{stat.S_IMODE(path.lstat().st_mode):04o}"


def refusal(folder: Path) -> str:
    with pytest.raises(PlaceError) as caught:
        places.private(folder)
    return str(caught.value)


def distrusted(folder: Path, why: str) -> str:
    return (
        f"pgsandbox: the folder {folder} can't be trusted\n"
        f"  why: {why}\n"
        f"  hint: look at it with `ls -ld {folder}`; its owner, or root, can remove it"
    )


@pytest.fixture
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


# Whom a folder can be entrusted to ------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0, 0o022, 0o777], ids=oct, indirect=True)
@pytest.mark.usefixtures("umask")
def test_folders_are_ours_alone_whatever_the_umask_is(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b" / "c"
    assert places.private(folder) == folder
    assert [mode(path) for path in (folder, *folder.parents[:2])] == ["0700"] * 3
    assert places.private(folder) == folder


@pytest.mark.parametrize("umask", [0], indirect=True)
@pytest.mark.usefixtures("umask")
def test_a_folder_that_was_there_keeps_its_mode(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    places.private(tmp_path / "ours")
    assert mode(tmp_path) == "0755"


def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.mkdir(mode=0o700)
    link.symlink_to(target)
    assert refusal(link) == distrusted(link, f"it is a link to {target}")


def test_a_planted_link_that_leads_nowhere_is_not_followed(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    link.symlink_to(target)
    assert refusal(link) == distrusted(link, f"it is a link to {target}")
    assert not target.exists()


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert refusal(file) == distrusted(file, "it is not a folder")
    assert refusal(file / "inside") == distrusted(file, "it is not a folder")


@needs_root
def test_another_users_folder_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir(mode=0o700)
    os.chown(folder, 65534, 65534)
    assert refusal(folder) == distrusted(folder, "it belongs to user 65534, and this process runs as user 0")
    assert (mode(folder), folder.stat().st_uid) == ("0700", 65534)


@needs_root
def test_roots_folder_is_refused_to_other_users() -> None:
    with other_user() as user:
        done = user.python("-c", PRIVATE, "/usr")
        why = f"it belongs to user 0, and this process runs as user {user.uid}"
        assert done.stdout == distrusted(Path("/usr"), why) + "\n"


@pytest.mark.parametrize("open_to", [0o750, 0o705, 0o701, 0o777, 0o1777], ids=oct)
def test_a_folder_that_others_may_enter_is_refused_and_left_as_it_is(tmp_path: Path, open_to: int) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(open_to)
    assert refusal(folder) == distrusted(folder, f"others may enter it: its mode is {open_to:04o}, not 0700")
    assert mode(folder) == f"{open_to:04o}"


def test_a_folder_is_made_by_many_at_once(tmp_path: Path) -> None:
    for number in range(5):
        folder = tmp_path / str(number) / "a" / "b"
        command = [sys.executable, "-c", PRIVATE, str(folder)]
        processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
        assert [process.communicate(timeout=60)[0] for process in processes] == [f"{folder}\n"] * 3


# What the operating system refuses ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (
            errno.ENOSPC,
            "why: no space is left there\n  hint: free some space, or remove what `pgsandbox ls` shows with `down`",
        ),
        (
            errno.EROFS,
            "why: the file system is read-only\n  hint: make it writable, or set TMPDIR to a folder that is",
        ),
        (errno.EACCES, "why: permission denied\n  hint: make it writable, or set TMPDIR to a folder that is"),
        (errno.EMFILE, "why: Too many open files"),
    ],
    ids=["full", "read-only", "permission", "other"],
)
def test_what_the_system_refuses_is_said_in_words(number: int, said: str) -> None:
    problem = OSError(number, os.strerror(number))
    assert str(places.unusable(Path("/place"), problem)) == f"pgsandbox: /place can't be written\n  {said}"


def test_a_name_that_is_too_long_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / ("a" * 300)
    assert refusal(folder) == f"pgsandbox: {folder} can't be written\n  why: File name too long"


@needs_root
def test_a_folder_without_permission_is_refused() -> None:
    with other_user() as user:
        user.home.chmod(0o500)
        folder = user.home / "ours"
        assert user.python("-c", PRIVATE, str(folder)).stdout == (
            f"pgsandbox: {folder} can't be written\n"
            "  why: permission denied\n"
            "  hint: make it writable, or set TMPDIR to a folder that is\n"
        )


@needs_root
def test_a_read_only_file_system_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "ours"
    mount = with_mounts(f"-t tmpfs -o ro tmpfs {tmp_path}")
    done = subprocess.run([*mount, sys.executable, "-c", PRIVATE, folder], capture_output=True, text=True, check=True)
    assert done.stdout == (
        f"pgsandbox: {folder} can't be written\n"
        "  why: the file system is read-only\n"
        "  hint: make it writable, or set TMPDIR to a folder that is\n"
    )


# Where things are -----------------------------------------------------------------------------------------------------


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without shared memory, whose temporary folder is this one."""
    monkeypatch.setattr(places, "_SHARED_MEMORY", tmp_path / "none")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("_PGSANDBOX_ROOT")
    return tmp_path


def test_each_user_has_a_folder_of_its_own_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "_SHARED_MEMORY", tmp_path)
    monkeypatch.delenv("_PGSANDBOX_ROOT")
    assert places.runtime_root() == tmp_path / f"pgsandbox-{os.geteuid()}"


def test_without_shared_memory_the_temporary_folder_serves(elsewhere: Path) -> None:
    assert places.runtime_root() == elsewhere / f"pgsandbox-{os.geteuid()}"
    assert places.data_folder("token") == elsewhere / "pgsandbox-data-token"


def test_data_goes_to_memory_only_where_a_server_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "_SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(places, "free", lambda _folder: 512 << 20)
    assert places.data_folder("token") == tmp_path / "pgsandbox-data-token"
    monkeypatch.setattr(places, "free", lambda _folder: (512 << 20) - 1)
    assert places.data_folder("token") != tmp_path / "pgsandbox-data-token"


@needs_root
def test_the_cache_of_an_ordinary_user_is_where_its_caches_are() -> None:
    with other_user() as user:
        code = "from pgsandbox import places; print(places.cache_root())"
        assert user.python("-c", code).stdout == f"{user.home}/.cache/pgsandbox\n"
        assert user.python("-c", code, XDG_CACHE_HOME="/elsewhere").stdout == "/elsewhere/pgsandbox\n"


def test_a_server_starts_below_a_path_too_long_for_its_socket(
    elsewhere: Path, some_target: Target, monkeypatch: pytest.MonkeyPatch, runtime: Path
) -> None:
    folder = elsewhere / ("long" * 20) / ("longer" * 20)
    folder.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("_PGSANDBOX_ROOT", str(runtime / ("longest" * 30)))
    with running(**some_target.settings) as sandbox, sandbox.database().connect() as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
        assert Path(str(sandbox.server.running.socket)).parent == Path("/tmp")


# Names ----------------------------------------------------------------------------------------------------------------


def test_all_processes_of_a_user_find_the_same_id(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code = "from pgsandbox import places; print(places.home_id())"
    for number in range(5):
        monkeypatch.setenv("_PGSANDBOX_ROOT", str(tmp_path / str(number)))
        command = [sys.executable, "-c", code]
        processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
        said = {process.communicate(timeout=60)[0].strip() for process in processes}
        assert said == {places.home_id()}
        assert [path.name for path in (tmp_path / str(number)).iterdir()] == ["id"]


def test_another_runtime_folder_has_another_id(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ours = places.home_id()
    assert places.home_id() == ours
    monkeypatch.setenv("_PGSANDBOX_ROOT", str(tmp_path / "other"))
    assert places.home_id() != ours


@pytest.mark.parametrize("damage", ["", "\xff", "too short"])
def test_a_damaged_id_is_made_anew(runtime: Path, damage: str) -> None:
    (runtime / "id").write_text(damage, encoding="latin-1")
    assert len(places.home_id()) == 32
    assert places.home_id() == (runtime / "id").read_text()


def test_tokens_are_new_and_need_no_quoting() -> None:
    tokens = {places.new_token() for _ in range(1000)}
    assert len(tokens) == 1000
    assert all(len(token) == 12 and set(token) <= set("0123456789abcdef") for token in tokens)


def test_a_digest_tells_its_parts_apart() -> None:
    assert places.digest("a", "b") == places.digest("a", "b")
    assert len({places.digest(*parts) for parts in (("ab",), ("a", "b"), ("b", "a"), ("a", "b", ""))}) == 4
