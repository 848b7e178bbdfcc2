"""Opening what a stranger named: nothing but regular files, and never a wait for a pipe or a device."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ldseg.data.errors import CaseError


@contextmanager
def open_regular(path: Path, *, case: str) -> Iterator[BinaryIO]:
    """A regular file for reading; symbolic links are followed to one.

    What was opened is looked at, not the path before: a pipe that is put there in between can't block either.

    Raises:
        CaseError: there is no file, or it is a folder, a pipe, a socket or a device.
        OSError: it can't be opened for another reason.
    """
    cure = "correct the path or put the file there"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CaseError(case, f"there is no file {path}", cure) from error
    except OSError as error:
        if path.exists() and not path.is_file():  # a socket
            raise CaseError(case, f"{path} is no regular file", cure) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CaseError(case, f"{path} is no regular file", cure)
    with os.fdopen(descriptor, "rb") as file:
        yield file
