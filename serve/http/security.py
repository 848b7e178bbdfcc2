"""Who asks: the owner of a request is the name of its token."""

from __future__ import annotations

import functools
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from starlette.datastructures import Headers

from serve.http.origins import is_loopback
from serve.http.problems import Problem
from serve.settings import Settings, SettingsError
from serve.tokens import Token, TokenFile, find_owner, hash_token

K = TypeVar("K")
V = TypeVar("V")
PROTECTED = ("/v1", "/metrics")
OPERATORS = "/metrics"
SCHEME = {"bearer": {"type": "http", "scheme": "bearer", "description": "where the service was started with tokens"}}


def is_protected(path: str) -> bool:
    """Whether a path needs a token where there are tokens; also where there is nothing at the path."""
    return any(path == start or path.startswith(f"{start}/") for start in PROTECTED)


def check_reach(host: str, settings: Settings, *, certificate: bool) -> None:
    """Refuse a service that others reach without a token, or that they send their tokens to unencrypted.

    Args:
        host: that it listens on.
        certificate: it speaks TLS itself.

    Raises:
        SettingsError: with the cure.
    """
    if is_loopback(host):
        return
    if not known_tokens(settings):
        raise SettingsError(f"others can reach {host}, and no token is asked for; set one, or listen on 127.0.0.1")
    if not (certificate or settings.behind_proxy):
        cure = (
            "give a certificate (--certificate, --key), or let a proxy with TLS stand in front and say --behind-proxy"
        )
        raise SettingsError(f"others can reach {host}, and tokens would be sent there unencrypted; {cure}")


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


class Attempts:
    """Unknown tokens by address: after some of them, one a second is looked at.

    Who guesses does not shut out the others of an address: a token that was known from there is known at any time. And
    one that was unknown counts once, so a page that is still open does not use up the tries for its new token.

    Args:
        now: seconds, of a clock that only goes on.
    """

    FREE, REMEMBERED = 20, 10_000

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._wrong: OrderedDict[str, float] = OrderedDict()  # when an address will have nothing against it
        self._seen: OrderedDict[tuple[str, str], None] = OrderedDict()  # (address, hash) that was looked at

    def find(self, tokens: Mapping[str, Token], token: str, address: str) -> str | None:
        """The owner of a token that came from an address; None if it is unknown.

        Raises:
            Problem: too many unknown ones came from there.
        """
        tried, now = (address, hash_token(token)), self._now()
        until = max(self._wrong.get(address, now), now)
        if tried not in self._seen and until - now >= self.FREE:
            headers = {"Retry-After": str(int(until - now - self.FREE) + 1)}
            raise Problem("too-many-attempts", "wait some seconds, then send the right token", headers=headers)
        owner = find_owner(tokens, token)
        if owner is None and tried not in self._seen:
            _remember(self._wrong, address, until + 1, self.REMEMBERED)
        _remember(self._seen, tried, None, self.REMEMBERED)
        return owner


def _remember(kept: OrderedDict[K, V], key: K, value: V, most: int) -> None:
    kept[key] = value
    kept.move_to_end(key)
    if len(kept) > most:
        kept.popitem(last=False)


def authorise(headers: Headers, settings: Settings, attempts: Attempts, address: str) -> str:
    """The owner of a request; empty where the service asks for no token.

    Args:
        address: that it came from.

    Raises:
        Problem: the token is missing or unknown, or too many unknown ones came from the address.
    """
    tokens = known_tokens(settings)
    if not tokens:
        return ""
    scheme, _, token = headers.get("Authorization", "").partition(" ")
    owner = attempts.find(tokens, token.strip(), address) if scheme.lower() == "bearer" else None
    if owner is None:
        detail = "send the header Authorization: Bearer TOKEN with a token that the service knows"
        raise Problem("unauthorized", detail, headers={"WWW-Authenticate": 'Bearer realm="ldseg"'})
    return owner


def limits(settings: Settings, owner: str) -> Token | None:
    """What an owner may do; None where the service asks for no token."""
    return known_tokens(settings).get(owner)


def check_operator(path: str, settings: Settings, owner: str) -> None:
    """Refuse what is the operator's to others.

    Raises:
        Problem: the token is no operator's.
    """
    token = limits(settings, owner)
    if path == OPERATORS and token is not None and not token.operator:
        raise Problem("not-permitted", "metrics tell of everybody's work; they are for a token with operator = true")
