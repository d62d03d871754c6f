"""Files that are either whole or not there: temporary name, fsync, rename; and whose they are."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock as ThreadLock
from typing import Any

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


OTHERS = 0o077
"""Bits of a file's mode that say what others may do with it."""


class _Alone:
    """Count of the runs of this process that want what they make for its owner alone, and the mask before the first."""

    def __init__(self) -> None:
        self.lock, self.runs, self.before = ThreadLock(), 0, 0


_alone = _Alone()


@contextmanager
def for_owner_alone() -> Iterator[None]:
    """Keeps what this process makes meanwhile for its owner alone: files 0600, folders 0700, also what libraries make.

    A process has one such mask: it is taken back when the last of those who asked for it has ended. Windows has none;
    there a folder of a person's own is for nobody else as it is.
    """
    with _alone.lock:
        if not _alone.runs:
            _alone.before = os.umask(OTHERS)
        _alone.runs += 1
    try:
        yield
    finally:
        with _alone.lock:
            _alone.runs -= 1
            if not _alone.runs:
                os.umask(_alone.before)


def private_folder(path: Path) -> None:
    """Makes a folder, and those above it, which nobody but the owner may look into; one that is there becomes so.

    Raises:
      OSError: It cannot be made, or is somebody else's.
    """
    with for_owner_alone():
        path.mkdir(parents=True, exist_ok=True)
    if path.stat().st_mode & OTHERS:
        path.chmod(path.stat().st_mode & ~OTHERS)


def write_atomically(path: Path, content: bytes | str, *, private: bool = False) -> None:
    """Writes `content` so that a reader, or a crash, sees the old file or the new one and never a part.

    Args:
      path: The file.
      content: All of it.
      private: Whether nobody but the owner may ever read it, not even while it is written.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        if private:
            temporary.unlink(missing_ok=True)  # one that a crash left may be open to others
        with open(temporary, "wb", opener=_private if private else None) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


Retire = Callable[[Path], None]
"""Deals with a folder that another one has taken the place of; the old one stands under another name."""


def remove(folder: Path) -> None:
    """Removes a folder, or leaves of it what cannot be."""
    shutil.rmtree(folder, ignore_errors=True)


def write_folder_atomically(path: Path, fill: Callable[[Path], None], *, retire: Retire = remove) -> None:
    """Calls `fill` on a temporary folder beside `path`, then renames it into place.

    An existing `path` is moved aside first and removed last, so that at any moment one whole version exists,
    as `path` or, for the instant between two renames, as `.NAME.old` (`recover_folder` puts it back). What `fill`
    raises is raised here, and `path` is as it was. By default `retire` removes the one before.
    """
    temporary, old = path.with_name(f".{path.name}.tmp"), path.with_name(f".{path.name}.old")
    recover_folder(path)
    temporary.mkdir(parents=True)
    try:
        fill(temporary)
        for file in temporary.rglob("*"):
            if file.is_file():
                with open(file, "r+b") as handle:  # Windows writes out what may be written
                    os.fsync(handle.fileno())
        sync_folder(temporary)
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
    except BaseException:
        recover_folder(path)
        raise
    sync_folder(path.parent)
    if old.exists():
        retire(old)


def recover_folder(path: Path) -> None:
    """Finishes or undoes a `write_folder_atomically` that was killed: afterwards `path` is whole or absent."""
    temporary, old = path.with_name(f".{path.name}.tmp"), path.with_name(f".{path.name}.old")
    if old.exists():
        if path.exists():
            shutil.rmtree(old)
        else:
            os.replace(old, path)
    shutil.rmtree(temporary, ignore_errors=True)


def sync_folder(path: Path) -> None:
    """Makes renames inside `path` survive a power cut (a no-op where folders cannot be opened)."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:  # Windows cannot open a folder; its renames are journalled
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """The file's SHA-256 digest in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Lock:
    """A file or a folder that this process alone has, until it is closed or the process ends."""

    def __init__(self, handle: int) -> None:
        self._handle: int | None = handle

    def close(self) -> None:
        """Lets others in."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def locked(path: Path, *, wait: bool = False) -> Lock:
    """Takes a file or a folder for this process. Where the system has no such locks, as Windows, everybody gets one.

    Args:
      path: Which; it is there.
      wait: Whether to wait until another process lets go of it.

    Raises:
      BlockingIOError: Another process has it.
    """
    if fcntl is None and path.is_dir():  # Windows opens none
        return Lock(os.open(os.devnull, os.O_RDONLY))
    handle = os.open(path, os.O_RDONLY)
    if fcntl is not None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BaseException:
            os.close(handle)
            raise
    return Lock(handle)
