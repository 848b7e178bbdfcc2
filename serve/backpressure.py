"""A large body waits at the client until it is wanted, and a large answer at the application until it is taken.

Between a client and the application Ray Serve has two queues each way, one in its proxy and one in the replica, and
takes in all that comes: a body of a GB would lie in the memory of both, and so would an answer that its client does not
read. Here each holds a MB or two and then lets the sender wait. Serve has no setting for it, so its two classes are
replaced by these, which do nothing else; what the client has taken the replica is told where it asks for the body.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any, cast

from ray.exceptions import RayError
from ray.serve._private import http_util
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve import connections

MAX_QUEUED_BYTES = 2**20  # bytes in each of the queues, and what one message is longer than that
MAX_AHEAD_BYTES, TOLD_BYTES = 2**21, 2**18  # of an answer: sent and not yet taken; taken between two reports
# without a report in between; a client that takes as little as `serve.connections` lets it needs 160 s for TOLD_BYTES
STALLED_S = 240.0
TAKEN = "ldseg.taken"  # an extension of ASGI between these classes, and the type of its messages
VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"  # of Serve: what its proxies call when they start


class PatientQueue(http_util.MessageQueue):
    """The proxy's queue of what a client sends; who puts a message into a full one waits."""

    def __init__(self) -> None:
        super().__init__()
        self._held, self._room = 0, asyncio.Event()

    async def __call__(self, message: Message) -> None:
        """Put a message in, and return when there is room for another."""
        await super().__call__(message)
        self._held += len(message.get("body", b""))
        while self._held >= MAX_QUEUED_BYTES:
            self._room.clear()
            await self._room.wait()

    def get_messages_nowait(self) -> list[Message]:
        """All that has come."""
        self._held = 0
        self._room.set()
        return super().get_messages_nowait()


class Report:
    """In the proxy: how much of an answer the client has taken, among the messages that come from the client."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope["extensions"] = {**scope.get("extensions", {}), TAKEN: {}}
        exchange = _Exchange(receive, send)
        try:
            await self.app(scope, exchange.receive, exchange.send)
        finally:
            exchange.end()


class _Exchange:
    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self._taken = self._told = 0
        self._news = asyncio.Event()
        self._coming: asyncio.Future[Any] | None = None

    async def send(self, message: Message) -> None:
        await self._send(message)  # it waits while the client does not read
        self._taken += len(message.get("body", b""))
        if self._taken - self._told >= TOLD_BYTES:
            self._news.set()

    async def receive(self) -> Message:
        self._coming = self._coming or asyncio.ensure_future(self._receive())
        news: asyncio.Future[Any] = asyncio.ensure_future(self._news.wait())
        try:
            await asyncio.wait({self._coming, news}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            news.cancel()
        if self._coming.done():
            came, self._coming = self._coming, None
            return cast(Message, came.result())
        self._news.clear()
        self._told = self._taken
        return {"type": TAKEN, "bytes": self._taken}

    def end(self) -> None:
        if self._coming is not None:
            self._coming.cancel()


class Room:
    """In the replica: how far an answer may be ahead of its client."""

    def __init__(self) -> None:
        self._sent = self._taken = 0
        self._more = asyncio.Event()

    def taken(self, total: int) -> None:
        """So many bytes, from the beginning on."""
        self._taken = total
        self._more.set()

    async def sent(self, count: int) -> None:
        """So many bytes more; returns when there is room for others.

        Raises:
            ClientDisconnect: nothing was taken for too long. Where a body of the same client fills the queues, neither
                reports nor its leaving come through.
        """
        self._sent += count
        while self._sent - self._taken > MAX_AHEAD_BYTES:
            self._more.clear()
            try:
                async with asyncio.timeout(STALLED_S):
                    await self._more.wait()
            except TimeoutError:
                raise ClientDisconnect from None


class PatientSend:
    """The application's end of an answer: it goes on when the client has taken most of what there is."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        room = scope.get("extensions", {}).get(TAKEN)

        async def patiently(message: Any) -> None:
            await send(message)
            if message.get("more_body", False):
                await room.sent(len(message["body"]))

        await self.app(scope, receive, patiently if isinstance(room, Room) else send)


class _Inbox(asyncio.Queue[Any]):
    """What has come of a replica's request; the proxy's reports in between are not for the application."""

    def __init__(self, answer: Room) -> None:
        super().__init__()
        self.held, self.room, self._answer = 0, asyncio.Event(), answer

    def put_nowait(self, message: Any) -> None:
        if isinstance(message, dict) and message["type"] == TAKEN:
            self._answer.taken(message["bytes"])
            return
        self.held += len(message.get("body", b"")) if isinstance(message, dict) else 0
        super().put_nowait(message)

    async def wait_for_room(self) -> None:
        while self.held >= MAX_QUEUED_BYTES:
            self.room.clear()
            await self.room.wait()


class PatientReceive(http_util.ASGIReceiveProxy):
    """The replica's end: it asks the proxy for more when the application has taken most of what is there."""

    def __init__(self, scope: Any, metadata: Any, receive: Callable[[Any], Awaitable[bytes]]) -> None:
        answer = Room()
        inbox = self._inbox = _Inbox(answer)

        async def patiently(metadata: Any) -> bytes:
            await inbox.wait_for_room()
            try:
                return await receive(metadata)
            except RayError as error:  # the request was cancelled, or the proxy has ended, and its client with it
                raise KeyError("the request") from error

        super().__init__(scope, metadata, patiently)
        self._queue = inbox
        if TAKEN in scope.get("extensions", {}):  # there is somebody who tells
            scope["extensions"][TAKEN] = answer

    async def __call__(self) -> Message:
        """The next message."""
        message: Message = await super().__call__()
        if self._inbox.empty():  # batches are small enough that a whole one may be waited for
            self._inbox.held = 0
            self._inbox.room.set()
        return message


def announce(*, behind_proxy: bool) -> None:
    """Before a local Ray starts: have its proxies call `in_proxy`.

    Args:
        behind_proxy: another proxy stands in front, and tells who asks; otherwise nobody is believed to.
    """
    os.environ.setdefault(VARIABLE, f"{__name__}.in_proxy")
    if not behind_proxy:
        os.environ[connections.FORWARDERS] = ""


def in_proxy() -> list[Middleware]:
    """In a proxy, when it starts; the middleware that it is to add."""
    from ray.serve._private import proxy

    proxy.MessageQueue = PatientQueue
    return [Middleware(Report), *connections.install()]


def in_replica() -> None:
    """In the process of the application."""
    from ray.serve._private import replica

    replica.ASGIReceiveProxy = PatientReceive
