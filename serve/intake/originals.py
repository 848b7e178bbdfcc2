"""Images as they were read: who asks for a case's image gets what was read as one, known by its content."""

from __future__ import annotations

import hashlib
import io
import os
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from ldseg.data.errors import CaseError
from ldseg.data.formats.regular import open_regular

Identity = tuple[int, ...]
REMEMBERED = 4096  # files whose checksum is not computed again while nothing of them changes


def identity(path: Path) -> Identity:
    """Of a file as it lies there: it changes whenever the content does.

    Raises:
        OSError: there is none.
    """
    return _identity(path.stat())


def describe_original(path: Path, case: str, before: Identity) -> dict[str, Any]:
    """Checksum and size of an image that was just read, for `is_original`.

    Args:
        before: its identity before it was read.

    Raises:
        CaseError: it has changed since.
    """
    try:
        if identity(path) == before:
            return {"sha256": checksum(path, case), "bytes": path.stat().st_size}
    except FileNotFoundError:
        pass
    raise CaseError(case, f"{path} was changed while it was read", "post the cohort again when it is complete")


def is_original(path: Path, case: str, described: dict[str, Any]) -> bool:
    """Whether a file holds what was read of the case.

    Raises:
        CaseError, OSError: it can't be read.
    """
    return path.stat().st_size == described["bytes"] and checksum(path, case) == described["sha256"]


def checksum(path: Path, case: str) -> str:
    """sha256 of a regular file's bytes.

    Raises:
        CaseError, OSError: it can't be read.
    """
    return _checksum(path, case, identity(path))


@lru_cache(REMEMBERED)
def _checksum(path: Path, case: str, known: Identity) -> str:
    with open_regular(path, case=case) as file:
        digest = hashlib.file_digest(cast(io.BufferedReader, file), "sha256").hexdigest()
        if _identity(os.fstat(file.fileno())) != known:
            raise CaseError(case, f"{path} is being changed", "ask again when it is complete")
    return digest


def _identity(found: os.stat_result) -> Identity:
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
