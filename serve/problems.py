"""Errors as application/problem+json (RFC 9457) with types that stay."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

log = logging.getLogger("ray.serve")

PREFIX = "urn:ldseg:problem:"
TITLES = {
    "invalid-request": (422, "The request can't be used"),
    "path-not-allowed": (422, "An image lies outside the folders that this service may read"),
    "case-failed": (422, "The volume can't be segmented"),
    "unauthorized": (401, "A bearer token is needed"),
    "not-found": (404, "There is no such thing here"),
    "not-finished": (409, "The result is not there yet"),
    "too-large": (413, "The body is too large"),
    "too-busy": (429, "Too much is waiting already"),
    "not-ready": (503, "The service is not ready"),
    "internal": (500, "The service failed"),
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
    found = [
        f"{'.'.join(str(part) for part in item['loc'] if part != 'body') or 'the body'}: {item['msg']}"
        for item in error.errors()
    ]
    shown = found[:20] + ([f"and {len(found) - 20} more"] if len(found) > 20 else [])
    return Problem("invalid-request", shown[0], errors=shown)


def install(app: FastAPI) -> None:
    """Make every error of an application a problem document."""

    @app.exception_handler(Problem)
    async def on_problem(request: Request, error: Problem) -> JSONResponse:
        return error.response(request.url.path)

    @app.exception_handler(RequestValidationError)
    async def on_validation(request: Request, error: RequestValidationError) -> JSONResponse:
        return from_validation(error).response(request.url.path)

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 404:
            return Problem("not-found", f"there is nothing at {request.url.path}").response(request.url.path)
        title = HTTPStatus(error.status_code).phrase
        content = {"type": "about:blank", "title": title, "status": error.status_code, "detail": str(error.detail)}
        return JSONResponse(
            content, error.status_code, headers=dict(error.headers or {}), media_type="application/problem+json"
        )

    @app.exception_handler(Exception)
    async def on_bug(request: Request, error: Exception) -> JSONResponse:
        log.exception("%s %s failed", request.method, request.url.path, exc_info=error)
        return Problem("internal", "this is a fault of the service; its log says more").response(request.url.path)
