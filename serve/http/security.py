"""Who asks: the owner of a request is the name of its token."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

from starlette.datastructures import Headers

from serve.http.problems import Problem
from serve.settings import Settings
from serve.tokens import Token, TokenFile, find_owner

PROTECTED = ("/v1", "/metrics")
SCHEME = {"bearer": {"type": "http", "scheme": "bearer", "description": "where the service was started with tokens"}}


def is_protected(path: str) -> bool:
    """Whether a path needs a token where there are tokens; also where there is nothing at the path."""
    return any(path == start or path.startswith(f"{start}/") for start in PROTECTED)


def known_tokens(settings: Settings) -> Mapping[str, Token]:
    """The tokens as they are now, by name; those of the file come before settings of the same name.

    Raises:
        TokenError: the file can't be used, and never could.
    """
    if not settings.tokens_file:
        return settings.tokens
    return {**settings.tokens, **_file(settings.tokens_file).current()}


@functools.cache
def _file(path: str) -> TokenFile:
    return TokenFile(Path(path))


def authorise(headers: Headers, settings: Settings) -> str:
    """The owner of a request; empty where the service asks for no token.

    Raises:
        Problem: the token is missing or unknown.
    """
    tokens = known_tokens(settings)
    if not tokens:
        return ""
    scheme, _, token = headers.get("Authorization", "").partition(" ")
    owner = find_owner(tokens, token.strip()) if scheme.lower() == "bearer" else None
    if owner is None:
        detail = "send the header Authorization: Bearer TOKEN with a token that the service knows"
        raise Problem("unauthorized", detail, headers={"WWW-Authenticate": 'Bearer realm="ldseg"'})
    return owner


def limits(settings: Settings, owner: str) -> Token | None:
    """What an owner may do; None where the service asks for no token."""
    return known_tokens(settings).get(owner)
