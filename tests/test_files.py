"""Files are whole or not there, whatever happens while they are written."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cutlayer.files import (
    for_owner_alone,
    locked,
    private_folder,
    recover_folder,
    sha256,
    write_atomically,
    write_folder_atomically,
)


class Crash(BaseException):
    """The process is killed here: nothing after it runs, and no handler either."""


def filled(content: str) -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        (folder / "one").write_text(content)
        (folder / "inner").mkdir()
        (folder / "inner" / "two").write_text(content * 2)

    return fill


def failing(folder: Path) -> None:
    (folder / "one").write_text("half")
    raise RuntimeError("disk full")


def contents(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): file.read_text() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("content", ["text: ü", b"bytes \x00"])
def test_a_file_is_written_and_replaced(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "file"
    write_atomically(path, "before")
    write_atomically(path, content)
    assert path.read_bytes() == (content if isinstance(content, bytes) else content.encode())
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_failure_keeps_the_old_file(tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: Any) -> None:
        raise OSError("disk full")

    path = tmp_path / "file"
    write_atomically(path, "before")
    monkeypatch.setattr(os, moment, fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, "after")
    assert contents(tmp_path) == {"file": "before"}


def test_content_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(handle: int) -> None:
        done.append("fsync")
        fsync(handle)

    def note_replace(old: Path, new: Path) -> None:
        done.append("replace")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    write_atomically(tmp_path / "file", "content")
    assert done == ["fsync", "replace", "fsync"]  # the content, the name, the folder that holds the name
    done.clear()
    write_folder_atomically(tmp_path / "folder", filled("content"))
    assert done == ["fsync", "fsync", "fsync", "replace", "fsync"]  # two files, the folder, the name, its folder


def test_a_folder_is_written_and_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "folder"
    write_folder_atomically(path, filled("a"))
    (path / "stray").write_text("from the first")
    write_folder_atomically(path, filled("b"))
    assert contents(path) == {"one": "b", os.path.join("inner", "two"): "bb"}
    assert [entry.name for entry in path.parent.iterdir()] == ["folder"]


def test_a_failing_fill_keeps_the_old_folder(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    with pytest.raises(RuntimeError):
        write_folder_atomically(path, failing)
    assert list(tmp_path.iterdir()) == []
    write_folder_atomically(path, filled("a"))
    before = contents(tmp_path)
    with pytest.raises(RuntimeError):
        write_folder_atomically(path, failing)
    assert contents(tmp_path) == before


def crash_at_replace(path: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces the folder `path`, and dies instead of making its rename of this number, counted from 0."""
    replace, calls = os.replace, list[Path]()

    def replace_or_die(old: Path, new: Path) -> None:
        if len(calls) == number:
            raise Crash
        calls.append(new)
        replace(old, new)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", replace_or_die)
        patched.setattr("cutlayer.files.recover_folder", lambda path: None)  # who is killed repairs nothing
        with pytest.raises(Crash):
            write_folder_atomically(path, filled("new"))


@pytest.mark.parametrize("number", [0, 1])
def test_a_crash_at_either_rename_leaves_the_old_folder(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "folder"
    write_folder_atomically(path, filled("old"))
    before = contents(path)
    crash_at_replace(path, number, monkeypatch)
    assert path.exists() == (number == 0)
    recover_folder(path)
    assert contents(tmp_path) == {os.path.join("folder", name): text for name, text in before.items()}


def test_a_crash_after_the_renames_leaves_the_new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "folder"
    write_folder_atomically(path, filled("old"))
    with monkeypatch.context() as patched:
        patched.setattr("shutil.rmtree", lambda *args, **kwargs: None)  # killed before the old one was removed
        write_folder_atomically(path, filled("new"))
    assert (tmp_path / ".folder.old").exists()
    recover_folder(path)
    assert contents(path)["one"] == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


def test_writing_over_a_crash_recovers_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "folder"
    write_folder_atomically(path, filled("old"))
    crash_at_replace(path, 1, monkeypatch)
    with pytest.raises(RuntimeError):
        write_folder_atomically(path, failing)
    assert contents(path)["one"] == "old"


def test_recovering_nothing_does_nothing(tmp_path: Path) -> None:
    recover_folder(tmp_path / "folder")
    assert list(tmp_path.iterdir()) == []


def test_the_digest_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc" * 100_000)
    assert sha256(tmp_path / "file") == hashlib.sha256(b"abc" * 100_000).hexdigest()


def test_a_private_file_is_its_owners_alone(tmp_path: Path) -> None:
    """Also where a file that others may read stood in its place, or was left behind by a crash."""
    path = tmp_path / "secret"
    for open_to_others in (path, tmp_path / ".secret.tmp"):
        open_to_others.write_text("old")
        open_to_others.chmod(0o666)
    write_atomically(path, "new", private=True)
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_lock_is_one_processes_until_it_ends(tmp_path: Path) -> None:
    lock = locked(tmp_path)
    with pytest.raises(BlockingIOError):
        locked(tmp_path)
    lock.close()
    lock.close()
    code = (
        "import sys; from pathlib import Path; from cutlayer.files import locked; locked(Path(sys.argv[1])); print(1)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True).stdout == b"1\n"
    locked(tmp_path, wait=True).close()


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


needs_modes = pytest.mark.skipif(os.name == "nt", reason="Windows has no modes of files")


@needs_modes
def test_what_is_made_for_the_owner_alone_is_so_whoever_makes_it(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        one, other = for_owner_alone(), for_owner_alone()
        one.__enter__()
        other.__enter__()
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "file").write_text("x")
        one.__exit__(None, None, None)  # another run of this process is still at work
        (tmp_path / "late").write_text("x")
        other.__exit__(None, None, None)
        (tmp_path / "after").write_text("x")
        assert [mode(tmp_path / name) for name in ("folder", "folder/file", "late", "after")] == [
            0o700,
            0o600,
            0o600,
            0o644,
        ]
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)


@needs_modes
def test_a_private_folder_is_made_or_becomes_one(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        private_folder(tmp_path / "new" / "inner")
        (tmp_path / "open").mkdir()
        private_folder(tmp_path / "open")
    finally:
        os.umask(before)
    assert [mode(tmp_path / name) for name in ("new", "new/inner", "open")] == [0o700] * 3
