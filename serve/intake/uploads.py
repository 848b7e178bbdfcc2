"""Uploaded volumes: streamed to the disk, looked at, and kept until a case needs them."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import time
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from fastapi import Request

from ldseg.data.formats import raster, readers
from ldseg.data.volume import is_image, stem
from ldseg.files import sync, write_atomically
from serve.http.bodies import MAX_FIELD_BYTES, MAX_FIELDS, Part, form_events
from serve.http.problems import Problem
from serve.intake import studies
from serve.settings import Settings

WRITE_BYTES = 2**20
MAX_NAME_BYTES = 100  # of a file; of its case there are more
_ID = re.compile(r"[0-9a-f]{32}")
METADATA_FILE = "upload.json"


@dataclass
class Received:
    """A form with one file.

    Attributes:
        folder: a new one that holds nothing but the file.
        path: of the file.
        sha256: of its bytes.
        size: in bytes.
        fields: the other fields.
    """

    folder: Path
    path: Path
    sha256: str
    size: int
    fields: dict[str, str]

    @property
    def case(self) -> str:
        """The name that the file gives its case."""
        return stem(self.path)

    def discard(self) -> None:
        """Remove the file."""
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass
class _Sink:
    """Writes a file in large pieces, off the event loop, and counts and hashes it."""

    file: BinaryIO
    most: int
    digest: hashlib._Hash = field(default_factory=hashlib.sha256)
    size: int = 0
    waiting: bytearray = field(default_factory=bytearray)

    async def write(self, data: bytes) -> None:
        self.size += len(data)
        if self.size > self.most:
            raise Problem("too-large", f"image: at most {self.most} bytes are taken")
        self.waiting += data
        if len(self.waiting) >= WRITE_BYTES:
            await self.flush()

    async def flush(self) -> None:
        data, self.waiting = self.waiting, bytearray()
        await asyncio.to_thread(self._put, data)

    def _put(self, data: bytearray) -> None:
        self.digest.update(data)
        self.file.write(data)


async def receive(request: Request, settings: Settings, folder: Path) -> Received:
    """Take in a form with a file in the field 'image'; what was written is removed if anything is wrong.

    A zipped DICOM study becomes a NIfTI (`serve.intake.studies`).

    Args:
        folder: on the disk where the file will stay.

    Raises:
        Problem: the form can't be used, is too large or broken off, or the disk is full.
    """
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    _check_space(request, settings, folder)
    target = folder / secrets.token_hex(16)
    try:
        return await _receive(request, settings, target)
    except BaseException as error:
        shutil.rmtree(target, True)  # not awaited: who is cancelled a second time must not leave it
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _storage_full() from error
        raise


async def _receive(request: Request, settings: Settings, folder: Path) -> Received:
    most = settings.max_upload_bytes
    fields: dict[str, str] = {}
    part: Part | None = None
    sink: _Sink | None = None
    path, value = Path(), bytearray()
    try:
        async for event in form_events(request, most):
            if isinstance(event, Part):
                part, value = event, bytearray()
                if part.name == "image":
                    path = _open_target(part, folder, again=sink is not None)
                    sink = _Sink(path.open("xb"), most)
                elif part.filename is not None or len(fields) >= MAX_FIELDS or part.name in fields:
                    raise Problem("invalid-request", f"the field {part.name[:60]!r} is one too many or no text")
            elif event is None:
                assert part is not None
                if part.name != "image":
                    fields[part.name] = _field_text(part.name, value)
            elif part is not None and part.name == "image":
                assert sink is not None
                await sink.write(event)
            else:
                value += event
                if len(value) > MAX_FIELD_BYTES:
                    raise Problem("too-large", f"a field beside the file may have {MAX_FIELD_BYTES} bytes")
        if sink is None:
            raise Problem("invalid-request", "image: the field with the volume's file is missing")
        await sink.flush()
    finally:
        if sink is not None:
            sink.file.close()
    if not sink.size:
        raise Problem("invalid-request", "image: the file is empty; send its bytes")
    received = Received(folder, path, sink.digest.hexdigest(), sink.size, fields)
    if path.suffix.lower() == studies.SUFFIX:
        received.path = await asyncio.to_thread(studies.as_nifti, path, fields.pop("series", ""), settings)
    return received


def _open_target(part: Part, folder: Path, *, again: bool) -> Path:
    """The file to write, which keeps its ending and the letters of its name, composed (NFC)."""
    if again:
        raise Problem("invalid-request", "image: send one file in a request")
    if part.filename is None or not part.filename:
        raise Problem("invalid-request", "image: it must be a file, with a file name")
    last = unicodedata.normalize("NFC", part.filename.replace("\\", "/").rpartition("/")[2])
    whole = re.sub(r"[^\w.-]", "_", last).lstrip(".").encode()
    plain = whole[-MAX_NAME_BYTES:].decode(errors="ignore").lstrip(".")
    if not plain or not (is_image(Path(plain)) or plain.lower().endswith(studies.SUFFIX)):
        known = ", ".join(sorted(readers.SUFFIXES + raster.SUFFIXES))
        detail = f"image: {part.filename[:100]!r} is no {known} or {studies.SUFFIX} file"
        raise Problem("invalid-request", detail)
    folder.mkdir(parents=True)
    return folder / (plain if stem(Path(plain)) else f"volume{plain}")


def _field_text(name: str, value: bytearray) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Problem("invalid-request", f"the field {name[:60]!r} is no UTF-8") from error


def _check_space(request: Request, settings: Settings, folder: Path) -> None:
    declared = request.headers.get("Content-Length", "")
    coming = min(int(declared[:20]), settings.max_upload_bytes) if declared.isdigit() else 0
    if free_bytes(folder) - coming < settings.min_free_bytes:
        raise _storage_full()


def _storage_full() -> Problem:
    detail = "the service's disk has no room for the file; the operator must make some"
    return Problem("storage-full", detail, headers={"Retry-After": "60"})


def keep_upload(received: Received, settings: Settings, owner: str) -> str:
    """Keep an upload for a manifest, which names it as upload:ID.

    Returns:
        Its id, a function of owner, file name and content: the same file sent again is the same upload.
    """
    metadata = {"owner": owner, "file": received.path.name, "sha256": received.sha256, "bytes": received.size}
    upload = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()[:32]
    write_atomically(received.folder / METADATA_FILE, json.dumps(metadata | {"created": time.time()}).encode())
    sync(received.path)  # on the disk before the answer
    target = settings.kept_uploads / upload
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.rename(received.folder, target)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        received.discard()
        os.utime(target)  # it counts as new
    sync(target.parent)
    return upload


def find_upload(upload: str, settings: Settings, owner: str) -> Path:
    """The file of a kept upload.

    Raises:
        Problem: there is none of that id, or it belongs to another token (which is told the same).
    """
    missing = Problem("path-not-allowed", f"there is no upload {upload[:40]!r}; POST /v1/uploads gives its id")
    if not _ID.fullmatch(upload):
        raise missing
    folder = settings.kept_uploads / upload
    try:
        metadata = json.loads((folder / METADATA_FILE).read_text())
    except (OSError, ValueError) as error:
        raise missing from error
    if metadata.get("owner") != owner:
        raise missing
    return (folder / str(metadata["file"])).resolve()


def sweep_uploads(settings: Settings, older_than_s: float, in_use: Iterable[str]) -> int:
    """Remove kept uploads that are old and that no unfinished case needs, and what a crash left half-written.

    Args:
        in_use: images of unfinished cases, as `serve.intake.paths.resolve` gave them.

    Returns:
        How many were removed.
    """
    limit, removed = time.time() - older_than_s, 0
    needed = {Path(image).parent.name for image in in_use}
    kept = settings.kept_uploads
    half_written = [path for path in kept.parent.glob("*") if _ID.fullmatch(path.name) and not needed & {path.name}]
    for folder in (*half_written, *kept.glob("*")):
        if folder.name not in needed and folder.is_dir() and folder.stat().st_mtime < limit:
            shutil.rmtree(folder, ignore_errors=True)
            removed += 1
    return removed


def free_bytes(folder: Path) -> int:
    """Of the disk that a folder lies on."""
    return shutil.disk_usage(folder).free
