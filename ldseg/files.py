"""Every durable write and lock: whole or absent, also after a crash, and a full disk is one sentence."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

FULL = "the disk is full"
TRIAL_BYTES = 2**16  # more than one block: a file without content may find room on a full disk
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)


class DiskFullError(OSError):
    """No room for what has to be written; the message says where."""


def as_disk_error(error: OSError, folder: Path) -> OSError:
    """The error itself, or a `DiskFullError` that says where and how much is free."""
    return disk_full(folder) if error.errno in _FULL else error


def disk_full(folder: Path) -> DiskFullError:
    """What to raise when there is no room in a folder."""
    free = shutil.disk_usage(folder).free / 2**20
    return DiskFullError(f"{FULL} under {folder} ({free:.1f} MiB free); free some space and resume")


def os_sentence(error: OSError, where: Path | None = None) -> str:
    """What the system said, as one sentence with the path.

    Args:
        where: the place to name where the error names none.
    """
    if error.errno is None or error.strerror is None:
        return " ".join(str(error).split())
    if error.errno in _FULL and where is not None:
        return str(disk_full(_existing(where)))
    path = error.filename if error.filename is not None else where
    return error.strerror if path is None else f"{os.fsdecode(path)}: {error.strerror}"


def check_writable(folder: Path) -> None:
    """Try whether files can be written into a folder, which is made: before the work whose results go there.

    Raises:
        OSError: they can't be; one sentence with the path and the cure.
    """
    trial = folder / f".{uuid.uuid4().hex}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with writing(trial) as file:
                file.write(bytes(TRIAL_BYTES))
        finally:
            trial.unlink(missing_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise OSError(f"{folder} can't be a folder, a file lies in its way; choose another place") from error
    except OSError as error:
        if error.errno in _FULL:
            raise disk_full(_existing(folder)) from error
        raise OSError(f"nothing can be written into {folder} ({error.strerror}); choose another place") from error


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that is there."""
    return next((place for place in (folder, *folder.absolute().parents) if place.is_dir()), Path("/"))


def append_line(path: Path, line: str) -> None:
    """Append to a file of lines: after a line that a killed process left torn, and not half of it if the disk is full.

    Raises:
        DiskFullError: the file is as it was.
    """
    with open(path, "a+b", buffering=0) as file:
        content = path.read_bytes()
        file.truncate(size := content.rfind(b"\n") + 1)
        try:
            left = memoryview(line.encode() + b"\n")
            while left:
                left = left[file.write(left) :]
        except OSError as error:
            file.truncate(size)
            raise as_disk_error(error, path.parent) from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that is either whole or absent, also after a crash."""
    with replacing(path) as file:
        file.write(content)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write into, which gets the name at the end: what has the name is whole, also after a crash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with writing(temporary) as file:
            yield file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """A file to write into, on the disk at the end: for folders that get their name when all files are in them."""
    with path.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, content: Any) -> None:
    """Write a value as indented JSON, atomically."""
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


@contextmanager
def locked(path: Path, kind: int = fcntl.LOCK_EX) -> Iterator[int]:
    """The file, opened for appending, with no other process in here; a killed process lets go by itself."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        flock(file, kind)
        yield file
    finally:
        os.close(file)


def flock(file: int, kind: int) -> None:
    """Lock an open file; where the file system has no locks, one writer is for the caller to see to."""
    try:
        fcntl.flock(file, kind)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


def sync(path: Path) -> None:
    """Bring a file's content, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
