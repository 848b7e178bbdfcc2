"""Opening what a stranger named: nothing but regular files, and never a wait for a pipe or a device."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ldseg.data.errors import CaseError

ANNEX = "annex/objects/"  # in the link or the pointer that git-annex leaves for a file whose content is elsewhere
POINTERS = {  # how a small text begins that stands for a file, what wrote it, and what fetches it
    b"version https://git-lfs.github.com/": ("Git LFS", "git lfs pull --include={}"),
    b"/annex/objects/": ("git-annex", "datalad get {}"),
}
MAX_POINTER_BYTES = 2**15


def absence(path: Path) -> tuple[str, str]:
    """Why there is no regular file at a path, and the cure."""
    if path.is_symlink() and not path.exists():
        if ANNEX in os.readlink(path):
            return f"{path} is a link of git-annex whose content was not fetched", f"datalad get {path}"
        return f"there is no file where the link {path} leads", "put the file there or correct the link"
    if path.exists():
        return f"{path} is no regular file", "correct the path or put the file there"
    return f"there is no file {path}", "correct the path or put the file there"


@contextmanager
def open_regular(path: Path, *, case: str) -> Iterator[BinaryIO]:
    """A regular file for reading; symbolic links are followed to one.

    What was opened is looked at, not the path before: a pipe that is put there in between can't block either.

    Raises:
        CaseError: there is no file, or it is a folder, a pipe, a socket or a device, or stands for a file that was
            not fetched (Git LFS, git-annex).
        OSError: it can't be opened for another reason.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CaseError(case, *absence(path)) from error
    except OSError as error:
        if path.exists() and not path.is_file():  # a socket
            raise CaseError(case, *absence(path)) from error
        raise
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        raise CaseError(case, *absence(path))
    with os.fdopen(descriptor, "rb") as file:
        if found.st_size <= MAX_POINTER_BYTES:
            _refuse_pointer(file.peek(), path, case)
        yield file


def _refuse_pointer(head: bytes, path: Path, case: str) -> None:
    for beginning, (program, command) in POINTERS.items():
        if head.startswith(beginning):
            problem = f"{path} is a pointer of {program}, its content was not fetched"
            raise CaseError(case, problem, command.format(path.name))
