"""Files and tables as HTTP has them: entity tags, ranges, conditions, HEAD."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from serve.http.problems import Problem

CHUNK_BYTES = 2**18


def send_file(request: Request, path: Path, sha256: str, media_type: str = "application/octet-stream") -> Response:
    """A file, or the one range of it that is asked for, or 304 if the client has it already.

    Args:
        sha256: of its bytes; it is the entity tag.

    Raises:
        Problem: the range lies outside of the file.
    """
    return _send(request, path, path.stat().st_size, path.name, sha256, media_type)


def send_bytes(request: Request, content: bytes, filename: str, media_type: str) -> Response:
    """As `send_file`, from memory."""
    digest = hashlib.sha256(content).hexdigest()
    return _send(request, content, len(content), filename, digest, media_type)


def disposition(filename: str) -> str:
    """Content-Disposition of a download; names beyond ASCII as RFC 6266 has them."""
    plain = re.sub(r'[^\x20-\x7e]|["\\%]', "_", filename)
    header = f'attachment; filename="{plain}"'
    return header if plain == filename else f"{header}; filename*=UTF-8''{quote(filename, safe='')}"


def _send(request: Request, source: Path | bytes, size: int, filename: str, sha256: str, media_type: str) -> Response:
    etag = f'"{sha256}"'
    headers = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-cache",
        "Content-Disposition": disposition(filename),
    }
    if _matches(request.headers.get("If-None-Match"), etag):
        return Response(status_code=304, headers=headers)
    start, end, status = 0, size, 200
    found = _range(request, size, etag)
    if found is not None:
        (start, end), status = found, 206
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    headers["Content-Length"] = str(end - start)
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=media_type)
    if isinstance(source, bytes):
        return Response(source[start:end], status, headers, media_type)
    return StreamingResponse(_read(source, start, end), status, headers, media_type)


def _matches(condition: str | None, etag: str) -> bool:
    """Whether If-None-Match names the entity tag; the comparison is weak, as RFC 9110 wants it here."""
    if condition is None:
        return False
    tags = [tag.strip().removeprefix("W/") for tag in condition.split(",")]
    return "*" in tags or etag in tags


def _range(request: Request, size: int, etag: str) -> tuple[int, int] | None:
    """First byte and the one behind the last; None for all of it: no range, several, nonsense, or another version."""
    given = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", request.headers.get("Range", "").replace(" ", ""))
    if given is None or given.group() == "bytes=-" or request.headers.get("If-Range", etag) != etag:
        return None
    first, last = given.groups()
    if first and last and int(first) > int(last):
        return None
    start = int(first) if first else max(size - int(last), 0)
    end = min(int(last) + 1, size) if first and last else size
    if start >= size or not (first or int(last)):
        detail = f"the file has {size} bytes, Range asks for {given.group()[:60]}"
        raise Problem("range-not-satisfiable", detail, headers={"Content-Range": f"bytes */{size}"})
    return start, end


async def _read(path: Path, start: int, end: int) -> AsyncIterator[bytes]:
    file = await asyncio.to_thread(path.open, "rb")
    try:
        await asyncio.to_thread(file.seek, start)
        while start < end:
            chunk = await asyncio.to_thread(file.read, min(CHUNK_BYTES, end - start))
            if not chunk:
                raise EOFError("the file has become shorter while it was sent")
            start += len(chunk)
            yield chunk
    finally:
        file.close()
