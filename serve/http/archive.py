"""A cohort's results as one zip, made while it is sent: no temporary file, and memory that does not grow with it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from zipstream import ZIP_STORED, ZipStream

CHUNK_BYTES = 2**18


def stream_zip(files: Iterable[tuple[str, Path]], extra: Iterable[tuple[str, bytes]]) -> Iterator[bytes]:
    """The bytes of a zip. Files are stored as they are, since they are compressed already; ZIP64 where needed.

    Args:
        files: name in the archive and where it lies; asked for one at a time. One that is gone is listed in
            missing.json instead.
        extra: small members from memory, asked for when the files are through.
    """
    archive, missing = ZipStream(compress_type=ZIP_STORED), []

    def members() -> Iterator[bytes]:
        for name, path in files:
            try:
                archive.add_path(str(path), name, recurse=False)
            except OSError:
                missing.append(name)
                continue
            yield from archive.all_files()
        for name, content in extra:
            archive.add(content, name)
        if missing:
            archive.add(json.dumps(missing).encode(), "missing.json")
        yield from archive.finalize()

    return _in_large_pieces(members())


def _in_large_pieces(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Fewer hand-overs between threads."""
    waiting = bytearray()
    for piece in pieces:
        waiting += piece
        if len(waiting) >= CHUNK_BYTES:
            yield bytes(waiting)
            waiting.clear()
    if waiting:
        yield bytes(waiting)
