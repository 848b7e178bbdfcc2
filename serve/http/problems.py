"""Errors as application/problem+json (RFC 9457) with types that stay."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import compile_path

PREFIX = "urn:ldseg:problem:"
SOURCES = ("body", "query", "path", "header")
TITLES = {
    "invalid-request": (422, "The request can't be used"),
    "incomplete-body": (400, "The body ended too early"),
    "unauthorized": (401, "A bearer token is needed"),
    "path-not-allowed": (403, "An image lies outside of what this service may read"),
    "not-permitted": (403, "The token does not permit it"),
    "cross-site": (403, "A page of another site may not use the service"),
    "not-found": (404, "There is no such thing here"),
    "method-not-allowed": (405, "The method is not allowed here"),
    "not-acceptable": (406, "None of the accepted types can be given"),
    "body-timeout": (408, "The body did not come"),
    "not-finished": (409, "The result is not there yet"),
    "too-large": (413, "The body is too large"),
    "unsupported-media-type": (415, "The body is of a type that is not taken here"),
    "range-not-satisfiable": (416, "The range lies outside of the file"),
    "unknown-host": (421, "The service is not known by this name"),
    "model-not-usable": (422, "The model can't be used here"),
    "case-failed": (422, "The volume can't be segmented"),
    "invalid-image": (422, "The image can't be used"),
    "idempotency-conflict": (422, "The idempotency key was used for another request"),
    "too-busy": (429, "Too much is waiting already"),
    "too-many-attempts": (429, "Too many unknown tokens came from this address"),
    "internal": (500, "The service failed"),
    "not-ready": (503, "The service is not ready"),
    "overloaded": (503, "The service has too much to do"),
    "database-unavailable": (503, "The job store can't be reached"),
    "storage-unavailable": (503, "The results can't be kept just now"),
    "storage-full": (507, "The disk is full"),
}


class Problem(Exception):
    """An answer that is an error.

    Attributes:
        kind: a key of `TITLES`, the stable part of the type.
        detail: what is wrong and what to do.
        errors: one sentence for each thing that is wrong, where there are several.
        headers: further ones, such as Retry-After.
    """

    def __init__(
        self, kind: str, detail: str, *, errors: list[str] | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.kind, self.detail, self.errors, self.headers = kind, detail, errors or [], headers or {}

    def response(self, instance: str) -> JSONResponse:
        """The answer."""
        status, title = TITLES[self.kind]
        content: dict[str, Any] = {"type": PREFIX + self.kind, "title": title, "status": status, "detail": self.detail}
        content |= {"instance": instance} | ({"errors": self.errors} if self.errors else {})
        return JSONResponse(content, status, headers=self.headers, media_type="application/problem+json")


def from_validation(error: ValidationError | RequestValidationError) -> Problem:
    """All that pydantic found wrong, one sentence each."""
    brief = {"include_url": False, "include_input": False}  # a manifest of thousands of wrong cases is not copied
    wrong = error.errors(**brief) if isinstance(error, ValidationError) else error.errors()
    found = [
        f"{'.'.join(str(part)[:60] for part in item['loc'] if part not in SOURCES) or 'the body'}: {item['msg']}"
        for item in wrong[:20]
    ]
    shown = found + ([f"and {len(wrong) - 20} more"] if len(wrong) > 20 else [])
    return Problem("invalid-request", shown[0], errors=shown)


def of_status(status: int, detail: str, path: str) -> Problem:
    """The problem that a status of the framework stands for."""
    if status == 404:
        return Problem("not-found", f"there is nothing at {path}")
    kind = next((kind for kind, (number, _) in TITLES.items() if number == status), "invalid-request")
    return Problem(kind, detail)


def listed() -> list[dict[str, Any]]:
    """Every type of problem, for clients that want to know them all."""
    return [{"type": PREFIX + kind, "status": status, "title": title} for kind, (status, title) in TITLES.items()]


def install(app: FastAPI) -> None:
    """Make every error of an application a problem document; what is unexpected is `serve.http.middleware`'s."""

    @app.exception_handler(Problem)
    async def on_problem(request: Request, error: Problem) -> JSONResponse:
        return error.response(request.url.path)

    @app.exception_handler(RequestValidationError)
    async def on_validation(request: Request, error: RequestValidationError) -> JSONResponse:
        return from_validation(error).response(request.url.path)

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> JSONResponse:
        problem = of_status(error.status_code, str(error.detail), request.url.path)
        problem.headers |= dict(error.headers or {})
        if error.status_code == 405:
            allowed = allowed_methods(app, request.url.path)
            problem.headers["Allow"] = ", ".join(allowed)
            problem.detail = f"{request.method} is not possible here; possible: {', '.join(allowed)}"
        return problem.response(request.url.path)

    @app.exception_handler(ClientDisconnect)
    async def on_disconnect(request: Request, error: ClientDisconnect) -> JSONResponse:
        return Problem("incomplete-body", "the connection ended before the body").response(request.url.path)


def allowed_methods(app: FastAPI, path: str) -> list[str]:
    """The methods that some route takes at a path."""
    found: set[str] = set()
    for template, operations in app.openapi()["paths"].items():
        if compile_path(template)[0].match(path):
            found |= {method.upper() for method in operations}
    return sorted(found | ({"HEAD"} if "GET" in found else set()))
