"""A study in a zip file, unpacked below the folder of copies: no more than it says, and under no name of its own."""

from __future__ import annotations

import hashlib
import os
import shutil
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from ldseg.data.errors import CohortError
from ldseg.files import locked

MAX_FILES, MAX_BYTES = 100_000, 2**36
MAX_RATIO = 1040  # of deflate
CHUNK_BYTES = 2**20
UNREADABLE = (OSError, ValueError, EOFError, RuntimeError, NotImplementedError, zlib.error, zipfile.BadZipFile)


def unpack(path: Path, base: Path, *, most: int = MAX_BYTES) -> Path:
    """The folder into which a zip file was unpacked; again only when the file has changed.

    Only this user may look into it: the files name a patient.

    Args:
        base: holds such folders.
        most: bytes that its files may have together.

    Raises:
        CohortError: it can't be read, or claims more than it can hold.
    """
    status = path.stat()
    key = f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"
    folder = base / hashlib.sha256(key.encode()).hexdigest()[:16] / path.stem
    base.mkdir(parents=True, exist_ok=True)
    with locked(base / "lock"):
        if folder.is_dir():
            return folder
        part = folder.parent / "part"
        shutil.rmtree(part, ignore_errors=True)
        folder.parent.mkdir(mode=0o700, exist_ok=True)
        try:
            with zipfile.ZipFile(path) as archive:
                _extract(archive, path, part, most)
        except UNREADABLE as error:
            shutil.rmtree(folder.parent, ignore_errors=True)
            if isinstance(error, CohortError):
                raise
            raise CohortError(f"{path} can't be unpacked ({type(error).__name__}); pack it again as a zip") from error
        part.rename(folder)
    return folder


def _extract(archive: zipfile.ZipFile, path: Path, target: Path, most: int) -> None:
    members = [member for member in archive.infolist() if not member.is_dir()]
    whole = sum(member.file_size for member in members)
    if len(members) > MAX_FILES or whole > min(most, path.stat().st_size * MAX_RATIO):
        raise CohortError(f"{path} claims {len(members)} files of {whole} bytes; unpack it and give the folder")
    target.mkdir(mode=0o700)
    if whole > shutil.disk_usage(target).free:
        raise CohortError(f"{path} needs {whole} bytes in {target.parent}; free some space, or set LDSEG_CACHE")
    for member in members:
        name = PurePosixPath(member.filename.replace("\\", "/"))
        if name.is_absolute() or ".." in name.parts:
            raise CohortError(f"{path} holds a file that would lie outside of it; pack it again")
        file = target / name
        file.parent.mkdir(parents=True, exist_ok=True)
        left = member.file_size
        with archive.open(member) as source, file.open("xb") as copy:
            while block := source.read(CHUNK_BYTES):
                left -= len(block)
                if left < 0:
                    raise ValueError("it holds more than it says")
                copy.write(block)
        os.utime(file, (0, 0))  # its own time would be that of the unpacking
