"""The Idempotency-Key of a request: the same key with the same request is the same job."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

from fastapi import Request

from serve.http.bodies import media_type
from serve.http.problems import Problem

HEADER = "Idempotency-Key"


def idempotency_key(request: Request) -> str:
    """The key, empty if there is none.

    Raises:
        Problem: it is no usable key, or there are several.
    """
    given = request.headers.getlist(HEADER)
    if not given:
        return ""
    if len(given) > 1 or not re.fullmatch(r"[\x20-\x7e]{1,255}", given[0]) or not given[0].strip():
        raise Problem("invalid-request", f"{HEADER} must be one value of 1 to 255 printable ASCII characters")
    return given[0]


def request_identity(request: Request, body: bytes | Mapping[str, str]) -> tuple[str, str]:
    """The key of a request and a digest of what it asks; keys belong to an owner and are compared per owner.

    Args:
        body: the whole body, or for an upload what it says: its fields, and the file by name and sha256.

    Raises:
        Problem: the key can't be used.
    """
    key = idempotency_key(request)
    digest = hashlib.sha256()
    query = "&".join(sorted(f"{name}={value}" for name, value in request.query_params.multi_items()))
    for part in (request.method, request.url.path, media_type(request), query):
        digest.update(part.encode("utf-8", "surrogatepass") + b"\0")
    if isinstance(body, bytes):
        digest.update(body)
    else:
        digest.update(repr(sorted(body.items())).encode("utf-8", "backslashreplace"))
    return key, digest.hexdigest()
