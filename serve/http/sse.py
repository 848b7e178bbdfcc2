"""Server-sent events: what happens to a cohort, from any point on."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from fastapi.responses import StreamingResponse

from serve.http.problems import Problem

MEDIA_TYPE = "text/event-stream"
HEARTBEAT_S, POLL_S, RETRY_MS, PAGE = 15.0, 0.5, 2000, 500
MAX_ID = 2**63 - 1


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    Attributes:
        id: grows within a cohort; a client that gives it gets what came after it.
        kind: a word, such as case.
        data: what is last_sent as JSON.
        last: nothing can come after it.
    """

    id: int
    kind: str
    data: dict[str, Any]
    last: bool = False

    def encode(self) -> bytes:
        """As it is sent."""
        return f"id: {self.id}\nevent: {self.kind}\ndata: {json.dumps(self.data)}\n\n".encode()


Source = Callable[[str, int, int], Awaitable[Sequence[Event]]]  # (cohort, after, limit) -> the next events


def start_after(request: Request, after: int | None) -> int:
    """Where a client wants to go on: the header Last-Event-ID of a reconnection, else ?after=, else the beginning.

    Raises:
        Problem: it is no id.
    """
    given = request.headers.get("Last-Event-ID", "").strip()
    if not given:
        return after or 0
    if not given.isascii() or not given.isdigit() or int(given[:20]) > MAX_ID:
        raise Problem("invalid-request", f"Last-Event-ID must be the id of an event, got {given[:60]!r}")
    return int(given)


async def stream(
    source: Source,
    cohort: str,
    after: int,
    *,
    heartbeat_s: float = HEARTBEAT_S,
    poll_s: float = POLL_S,
    wake: Callable[[float], Awaitable[object]] = asyncio.sleep,
    gone: Callable[[], Awaitable[bool]] | None = None,
) -> AsyncIterator[bytes]:
    """Events as bytes until the last one; a comment where nothing happens, so that proxies keep the connection.

    It ends when the client goes away.

    Args:
        source: gives the events after an id, at most so many.
        wake: waits for news, at most so many seconds.
        gone: whether the client has left.
    """
    yield f"retry: {RETRY_MS}\n\n".encode()
    last_sent = time.monotonic()
    while gone is None or not await gone():
        events = await source(cohort, after, PAGE)
        for event in events:
            after, last_sent = event.id, time.monotonic()
            yield event.encode()
            if event.last:
                return
        if len(events) < PAGE:
            if time.monotonic() - last_sent >= heartbeat_s:
                last_sent = time.monotonic()
                yield b": still here\n\n"
            await wake(poll_s)


def respond(events: AsyncIterator[bytes]) -> StreamingResponse:
    """The answer that carries them; proxies must not hold them back."""
    return StreamingResponse(events, media_type=MEDIA_TYPE, headers={"X-Accel-Buffering": "no"})
