"""Bodies of a bounded size: read whole when small, parsed as a form while they come when large."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from fastapi import Request
from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive

from serve.http.problems import Problem

MAX_FIELDS, MAX_FIELD_BYTES = 8, 4096
FORM_BYTES = 2**16  # headers, boundaries and fields beside the file


def media_type(request: Request) -> str:
    """Of the body, without its parameters, in lower case."""
    return request.headers.get("Content-Type", "").partition(";")[0].strip().lower()


def has_body(headers: Headers) -> bool:
    """Whether a body comes with a request."""
    return "Transfer-Encoding" in headers or headers.get("Content-Length", "0") != "0"


def impatient(receive: Receive, seconds: float, ended: Callable[[], None]) -> Receive:
    """`receive` of a request with a body, which it does not wait for without end.

    Args:
        seconds: that nothing of the body may come for.
        ended: called when all of it has come, or the client has gone.

    Raises:
        Problem: on receiving, nothing came for so long.
    """
    more = True

    async def next_message() -> Message:
        nonlocal more
        if not more:
            return await receive()
        try:
            async with asyncio.timeout(seconds):
                message = await receive()
        except TimeoutError:
            detail = f"nothing of the body came for {seconds:g} seconds; send it again"
            raise Problem("body-timeout", detail, headers={"Connection": "close"}) from None
        more = message.get("more_body", False)
        if not more:
            ended()
        return message

    return next_message


async def limited(request: Request, most: int) -> AsyncIterator[bytes]:
    """The body in pieces.

    Raises:
        Problem: it is larger than `most` bytes; known from Content-Length, or when that much has come. Or it ended
            before its declared length.
    """
    too_large = Problem("too-large", f"at most {most} bytes are taken in one request here")
    declared = request.headers.get("Content-Length", "")
    if declared.isdigit() and int(declared[:20]) > most:
        raise too_large
    total = 0
    try:
        async for chunk in request.stream():
            total += len(chunk)
            if total > most:
                raise too_large
            yield chunk
    except ClientDisconnect as error:
        raise Problem("incomplete-body", "the connection ended before the body; send it again") from error
    if declared.isdigit() and total < int(declared[:20]):
        raise Problem("incomplete-body", f"{total} of {declared} bytes came; send it again")


async def read_whole(request: Request, most: int) -> bytes:
    """A small body, see `limited`."""
    return b"".join([chunk async for chunk in limited(request, most)])


@dataclass
class Part:
    """The beginning of a part of a form.

    Attributes:
        name: of its field.
        filename: None where it is no file.
    """

    name: str
    filename: str | None


@dataclass
class _Events:
    """What the parser tells of one chunk, in order: a Part begins, bytes of it, None where it ends."""

    found: list[Part | bytes | None] = field(default_factory=list)
    header: dict[bytes, bytes] = field(default_factory=dict)
    key: bytes = b""
    value: bytes = b""
    ended: bool = False

    def callbacks(self) -> dict[str, object]:
        """For the parser."""
        return {
            "on_part_begin": self.header.clear,
            "on_header_field": lambda data, start, end: setattr(self, "key", self.key + data[start:end]),
            "on_header_value": lambda data, start, end: setattr(self, "value", self.value + data[start:end]),
            "on_header_end": self._header_end,
            "on_headers_finished": lambda: self.found.append(_part(self.header.get(b"content-disposition", b""))),
            "on_part_data": lambda data, start, end: self.found.append(bytes(data[start:end])),
            "on_part_end": lambda: self.found.append(None),
            "on_end": lambda: setattr(self, "ended", True),
        }

    def _header_end(self) -> None:
        self.header[self.key.lower()] = self.value
        self.key = self.value = b""

    def drain(self) -> list[Part | bytes | None]:
        """What has come since the last call."""
        found, self.found = self.found, []
        return found


def _part(disposition: bytes) -> Part:
    kind, options = parse_options_header(disposition.decode("latin-1"))
    if kind != b"form-data" or b"name" not in options:
        raise Problem("invalid-request", "a part of the form has no Content-Disposition: form-data; name=...")
    filename = options.get(b"filename")
    return Part(
        _text(options[b"name"], "a field's name"), None if filename is None else filename.decode(errors="replace")
    )


def _text(value: bytes, what: str) -> str:
    # parse_options_header has gone through latin-1 where it could
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Problem("invalid-request", f"{what} is no UTF-8; send the form in UTF-8") from error


def _boundary(request: Request) -> bytes:
    if media_type(request) != "multipart/form-data":
        detail = "send multipart/form-data with the volume's file in the field 'image'"
        raise Problem("unsupported-media-type", detail, headers={"Accept": "multipart/form-data"})
    boundary = parse_options_header(request.headers["Content-Type"])[1].get(b"boundary", b"")
    if not re.fullmatch(rb"[\x20-\x7e]{1,70}", boundary):
        raise Problem("invalid-request", "Content-Type has no usable boundary; let the HTTP library write the header")
    return boundary


async def form_events(request: Request, most: int) -> AsyncIterator[Part | bytes | None]:
    """A multipart form as it comes: each part's beginning, its bytes, and None at its end.

    Raises:
        Problem: the body is no form, is broken, ends too early or is too large.
    """
    events = _Events()
    boundary = _boundary(request)
    try:
        parser = MultipartParser(boundary, events.callbacks(), max_header_count=8, max_header_size=4096)  # type: ignore[arg-type]
        async for chunk in limited(request, most + FORM_BYTES):
            parser.write(chunk)
            for event in events.drain():
                yield event
        parser.finalize()
    except FormParserError as error:
        raise Problem("invalid-request", f"the form can't be read: {error}") from error
    if not events.ended:
        raise Problem("incomplete-body", "the form ends before its last boundary; send it again")
