"""What happens to every request: who sends it is asked, what it may take is counted, and a fault becomes a document."""

from __future__ import annotations

import logging
import re
import time
from contextlib import ExitStack
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve import audit
from serve.http import origins
from serve.http.bodies import has_body, impatient
from serve.http.problems import Problem
from serve.http.security import Attempts, authorise, check_operator, is_protected
from serve.http.shares import BODIES, LISTENERS, REQUESTS, Shares
from serve.redaction import describe_exception
from serve.settings import Settings
from serve.telemetry import Metrics

JSON_TYPES = {"*/*", "application/*", "application/json", "application/problem+json"}
FILES = re.compile(r"/files/[^/]+$|/table\.\w+$|/archive\.zip$|/events$|^/metrics$")
EVENTS = re.compile(r"/v1/cohorts/[^/]+/events$")
HEALTH = ("/health/live", "/health/ready")  # for probes: by any name, and whatever else is open
OWN_HEADERS = {"X-Content-Type-Options": "nosniff", "Cross-Origin-Resource-Policy": "same-origin"}
log = logging.getLogger("ray.serve")


@dataclass
class Exchange:
    """A request and what was answered.

    Attributes:
        status: 0 before the answer begins.
        location: header of the answer.
    """

    scope: Scope
    start: float = field(default_factory=time.perf_counter)
    status: int = 0
    sent: int = 0
    location: str = ""

    @property
    def route(self) -> str:
        """Its template; requests that reached none are counted together, their paths might name a case."""
        path = getattr(self.scope.get("route"), "path", None)
        return path if isinstance(path, str) else "none"

    @property
    def client(self) -> str:
        """Address that it came from."""
        return str((self.scope.get("client") or ("",))[0])

    @property
    def ids(self) -> dict[str, str]:
        """Of what it was about."""
        found = {**self.scope.get("path_params", {}), **self.scope.get("state", {}).get("ids", {})}
        posted = re.fullmatch(r"/v1/cohorts/(\w+)", self.location)
        return found | ({"cohort": posted[1]} if posted else {})


class Guard:
    """Pure ASGI, so that bodies stream through it in both directions and the client's leaving is seen.

    The request's owner is `request.state.owner`. The body is not touched before the token is known.
    """

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self.app, self.settings, self.metrics = app, settings, metrics
        self.attempts, self.shares = Attempts(), Shares(settings)
        self.logs = audit.Logs(settings.logs, names=settings.log_names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = Exchange(scope)

        async def counted_receive() -> Message:
            message = await receive()
            self.metrics.received(len(message.get("body", b"")))
            return message

        async def finished_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = int(message["status"])
                headers = MutableHeaders(scope=message)
                headers.update(OWN_HEADERS)
                headers.setdefault("Cache-Control", "no-store")
                exchange.location = headers.get("Location", "")
            else:
                exchange.sent += len(message.get("body", b""))
                self.metrics.sent(len(message.get("body", b"")))
            await send(message)

        try:
            with ExitStack() as held:
                await self._answer(exchange, counted_receive, finished_send, held)
        except ClientDisconnect:
            log.info("%s %s: the client went away", scope["method"], exchange.route)
        except Exception as error:  # its message may hold a name, so neither the log nor the client gets it
            log.error("%s %s failed: %s", scope["method"], exchange.route, describe_exception(error))
            if exchange.status:  # the answer has begun: only breaking the connection tells that it is not whole
                raise ConnectionError("the answer was broken off; the log says why") from None
            detail = "this is a fault of the service; its log says more"
            await Problem("internal", detail).response(scope["path"])(scope, receive, finished_send)
        finally:
            self._note(exchange)

    async def _answer(self, exchange: Exchange, receive: Receive, send: Send, held: ExitStack) -> None:
        scope = exchange.scope
        scope.setdefault("state", {})["owner"] = ""
        if scope["path"] not in HEALTH:
            try:
                receive = self._admit(exchange, Headers(scope=scope), receive, held)
            except Problem as problem:
                await problem.response(scope["path"])(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _admit(self, exchange: Exchange, headers: Headers, receive: Receive, held: ExitStack) -> Receive:
        """Let a request in, or raise the problem; what it takes is given back with `held`."""
        scope, path, allowed = exchange.scope, exchange.scope["path"], self.settings.allow_hosts
        origins.check_host(headers, allowed)
        if is_protected(path) or scope["method"] not in origins.READING:
            origins.check_origin(headers, allowed)
        if not is_protected(path):
            return receive
        owner = authorise(headers, self.settings, self.attempts, exchange.client)
        scope["state"]["owner"] = owner
        check_operator(path, self.settings, owner)
        check_accept(path, headers.get("Accept", ""))
        held.enter_context(self.shares.take(owner, REQUESTS))
        if EVENTS.fullmatch(path):
            held.enter_context(self.shares.take(owner, LISTENERS))
        if not has_body(headers):
            return receive
        body = held.enter_context(ExitStack())
        body.enter_context(self.shares.take(owner, BODIES))
        return impatient(receive, self.settings.body_wait_s, body.close)

    def _note(self, exchange: Exchange) -> None:
        scope, seconds = exchange.scope, time.perf_counter() - exchange.start
        method, route = scope["method"], exchange.route
        self.metrics.request(method, route, exchange.status, seconds)
        if scope["path"] in HEALTH:
            return
        line = {"owner": scope["state"]["owner"], "client": exchange.client, "method": method, "route": route}
        line |= {"status": exchange.status, "bytes": exchange.sent, "seconds": round(seconds, 4)}
        line["request"] = Headers(scope=scope).get("X-Request-ID", "")[:100]
        query = QueryParams(scope.get("query_string", b""))
        self.logs.request(line, audit.action(method, route, query), exchange.ids)


def check_accept(path: str, accept: str) -> None:
    """Refuse who wants no JSON where there is nothing but JSON; files are sent to everyone.

    Raises:
        Problem: none of the accepted types can be given.
    """
    wanted = {part.partition(";")[0].strip().lower() for part in accept.split(",")} - {""}
    if wanted and not wanted & JSON_TYPES and not FILES.search(path):
        raise Problem("not-acceptable", f"this is answered as application/json, Accept is {accept[:100]!r}")
