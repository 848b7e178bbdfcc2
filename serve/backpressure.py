"""A large body waits at the client until it is wanted.

Between a client and the application Ray Serve has two queues, one in its proxy and one in the replica, and takes in
all that comes: a body of a GB would lie in the memory of both. Here each holds a MB or two and then lets the sender
wait. Serve has no setting for it, so its two classes are replaced by these, which do nothing else.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any

from ray.serve._private import http_util
from starlette.middleware import Middleware

from serve import connections

MAX_QUEUED_BYTES = 2**20  # bytes in each of the queues, and what one message is longer than that
VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"  # of Serve: what its proxies call when they start
Message = dict[str, Any]


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


class PatientReceive(http_util.ASGIReceiveProxy):
    """The replica's end: it asks the proxy for more when the application has taken most of what is there."""

    def __init__(self, scope: Any, metadata: Any, receive: Callable[[Any], Awaitable[bytes]]) -> None:
        self._held, self._room = 0, asyncio.Event()

        async def patiently(metadata: Any) -> bytes:
            while self._held >= MAX_QUEUED_BYTES:
                self._room.clear()
                await self._room.wait()
            pickled = await receive(metadata)
            self._held += len(pickled)
            return pickled

        super().__init__(scope, metadata, patiently)

    async def __call__(self) -> Message:
        """The next message."""
        message: Message = await super().__call__()
        if self.queue.empty():  # batches are small enough that a whole one may be waited for
            self._held = 0
            self._room.set()
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
    return connections.install()


def in_replica() -> None:
    """In the process of the application."""
    from ray.serve._private import replica

    replica.ASGIReceiveProxy = PatientReceive
