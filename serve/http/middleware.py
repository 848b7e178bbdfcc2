"""What happens to every request: a token is asked for, bytes are counted, a fault becomes a problem document."""

from __future__ import annotations

import logging
import re
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.http.problems import Problem
from serve.http.security import authorise, is_protected
from serve.redaction import describe_exception
from serve.settings import Settings
from serve.telemetry import Metrics

JSON_TYPES = {"*/*", "application/*", "application/json", "application/problem+json"}
FILES = re.compile(r"/files/[^/]+$|/table\.\w+$|/archive\.zip$|/events$|^/metrics$")
log = logging.getLogger("ray.serve")


class Guard:
    """Pure ASGI, so that bodies stream through it in both directions and the client's leaving is seen.

    The request's owner is `request.state.owner`. The body is not touched before the token is known.
    """

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self.app, self.settings, self.metrics = app, settings, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 0

        async def counted_receive() -> Message:
            message = await receive()
            self.metrics.received(len(message.get("body", b"")))
            return message

        async def finished_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])
                headers = MutableHeaders(scope=message)
                headers["X-Content-Type-Options"] = "nosniff"
                headers.setdefault("Cache-Control", "no-store")
            else:
                self.metrics.sent(len(message.get("body", b"")))
            await send(message)

        try:
            await self._answer(scope, counted_receive, finished_send)
        except ClientDisconnect:
            log.info("%s %s: the client went away", scope["method"], _route(scope))
        except Exception as error:  # its message may hold a name, so neither the log nor the client gets it
            log.error("%s %s failed: %s", scope["method"], _route(scope), describe_exception(error))
            if status:  # the answer has begun: only breaking the connection tells that it is not whole
                raise ConnectionError("the answer was broken off; the log says why") from None
            detail = "this is a fault of the service; its log says more"
            await Problem("internal", detail).response(scope["path"])(scope, receive, finished_send)
        finally:
            self.metrics.request(scope["method"], _route(scope), status, time.perf_counter() - start)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        owner, headers = "", Headers(scope=scope)
        try:
            if is_protected(scope["path"]):
                owner = authorise(headers, self.settings)
                check_accept(scope["path"], headers.get("Accept", ""))
        except Problem as problem:
            await problem.response(scope["path"])(scope, receive, send)
            return
        scope.setdefault("state", {})["owner"] = owner
        await self.app(scope, receive, send)


def check_accept(path: str, accept: str) -> None:
    """Refuse who wants no JSON where there is nothing but JSON; files are sent to everyone.

    Raises:
        Problem: none of the accepted types can be given.
    """
    wanted = {part.partition(";")[0].strip().lower() for part in accept.split(",")} - {""}
    if wanted and not wanted & JSON_TYPES and not FILES.search(path):
        raise Problem("not-acceptable", f"this is answered as application/json, Accept is {accept[:100]!r}")


def _route(scope: Scope) -> str:
    """The route's template; requests that reached none are counted together, their paths might name a case."""
    path = getattr(scope.get("route"), "path", None)
    return path if isinstance(path, str) else "none"
