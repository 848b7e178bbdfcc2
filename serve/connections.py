"""What one client's connection may take of Ray Serve's proxy, before any token is known.

Ray Serve's HTTP server (uvicorn) has no limit of its own on headers, on how long they take, on connections, and on how
long an answer lies there unread. It takes the protocol from here instead, see `serve.backpressure.in_proxy`.
"""

from __future__ import annotations

import asyncio
import functools
import os
import re
from collections import Counter
from typing import Any

import h11
import uvicorn.config
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import _TrustedHosts
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_HEADER_BYTES = 2**16
MAX_CONNECTIONS, MAX_OF_ADDRESS = 1000, 300
HEADERS_S, WRITE_S = 20.0, 30.0  # for all headers of a request; for the client to take what it was sent
FORWARDERS = "FORWARDED_ALLOW_IPS"  # of uvicorn: proxies in front, whose X-Forwarded-For tells who asks
# Ray Serve's own, by which a client would set its timeouts, or have it not notice that the client has gone
CONTROLS = (
    b"x-request-timeout-seconds",
    b"x-request-disconnect-disabled",
    b"x-session-id",
    b"serve-multiplexed-model-id",
)
REQUEST_ID = re.compile(rb"[!-~]{1,100}")


class Connection(H11Protocol):
    """A connection that ends when it takes too much or too long."""

    open: Counter[str] = Counter()  # of this process, by address

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.conn = h11.Connection(h11.SERVER, MAX_HEADER_BYTES)
        self.ws_protocol_class = None  # nothing here speaks it
        self._headers: asyncio.TimerHandle | None = None
        self._writing: asyncio.TimerHandle | None = None
        self._address = ""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Refuse the one that is too many."""
        super().connection_made(transport)
        self._address = self.client[0] if self.client else ""
        self.open[self._address] += 1
        of_address = 0 if self._address in forwarders() else self.open[self._address]
        if of_address > MAX_OF_ADDRESS or self.open.total() > MAX_CONNECTIONS:
            transport.abort()
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self.open[self._address] -= 1
        if not self.open[self._address]:
            del self.open[self._address]
        for timer in (self._headers, self._writing):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Headers must be whole in time; who sends them byte by byte gains none."""
        super().data_received(data)
        self._await_headers()

    def pause_writing(self) -> None:
        """The client does not read: what it was sent waits here."""
        super().pause_writing()
        if self._writing is None:
            self._writing = self.loop.call_later(WRITE_S, self.transport.abort)

    def resume_writing(self) -> None:
        """It has read."""
        super().resume_writing()
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None

    def _await_headers(self) -> None:
        if self.conn.their_state is h11.IDLE:
            self._headers = self._headers or self.loop.call_later(HEADERS_S, self.transport.abort)
        elif self._headers is not None:
            self._headers.cancel()
            self._headers = None


class PlainHeaders:
    """Takes out of a request what only Ray Serve would read, and fail on or be led by."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] == "http":
            scope["headers"] = [(name, value) for name, value in scope["headers"] if _is_plain(name, value)]
        await self.app(scope, receive, send)


def _is_plain(name: bytes, value: bytes) -> bool:
    if name == b"x-request-id":
        return REQUEST_ID.fullmatch(value) is not None
    return name.replace(b"_", b"-") not in CONTROLS


@functools.cache
def forwarders() -> _TrustedHosts:
    """The proxies in front, of which there may be none."""
    return _TrustedHosts(os.environ.get(FORWARDERS, "127.0.0.1,::1"))


def install() -> list[Middleware]:
    """In a proxy of Ray Serve, before its server starts; what it is to add to its application."""
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{Connection.__name__}"
    return [Middleware(PlainHeaders)]
