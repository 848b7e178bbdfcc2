"""Bearer tokens by name, with what each may do. Only their hashes are kept anywhere."""

from __future__ import annotations

import ctypes
import hashlib
import hmac
import json
import logging
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

log = logging.getLogger("ray.serve")

DEFAULT = "default"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
CURES = {
    "sha256": "must be the 64 hex digits of a token's hash; platform/serve_model.py --hash-token prints it",
    "max_unfinished_cases": "must be an integer of at least 1, got {input}",
    "max_priority": "must be an integer of at least 0, got {input}",
    "operator": "must be true or false, got {input}",
}


class TokenError(ValueError):
    """A token or a file of tokens that can't be used; the message names the cure."""


class Token(BaseModel):
    """What one token may do.

    Attributes:
        sha256: hex digest of the token.
        max_unfinished_cases: of its cohorts together; None for no limit of its own.
        max_priority: the highest priority that it may ask for.
        operator: it may read the metrics, which tell of everybody's work.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    max_unfinished_cases: int | None = Field(default=None, ge=1)
    max_priority: int = Field(default=0, ge=0)
    operator: bool = False


def explain(found: ErrorDetails) -> str:
    """One thing that pydantic found wrong, as a sentence that names the key."""
    key = ".".join(part for part in found["loc"] if isinstance(part, str))
    message = str(found["ctx"]["error"]) if found["type"] == "value_error" else found["msg"]
    return f"{key}: {message}" if key else message


def hash_token(token: str) -> str:
    """Hex sha256 of a token."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def take_token(variable: str) -> str:
    """The token in a variable of the environment, which is without it then: here, in /proc and for children."""
    libc = ctypes.CDLL(None)
    libc.getenv.restype = ctypes.c_void_p
    if place := libc.getenv(variable.encode()):
        token = ctypes.string_at(place)
        ctypes.memset(place, 0, len(token))  # what /proc/PID/environ shows stays in its place when the variable goes
    return os.environ.pop(variable, "")


def parse_tokens(values: Mapping[str, Any]) -> dict[str, Token]:
    """Tokens from a configuration: name -> its `Token`'s fields.

    Raises:
        TokenError: a name, a key or a value can't be used, or two names have the same token.
    """
    found: dict[str, Token] = {}
    for name, value in values.items():
        if not _NAME.fullmatch(name):
            raise TokenError(f"the token's name {name[:60]!r} must be 1 to 64 letters, digits, '.', '-' and '_'")
        try:
            found[name] = Token.model_validate(value)
        except ValidationError as error:
            raise TokenError(f"the token {name!r} can't be used: {_sentence(error)}") from error
    if len({token.sha256 for token in found.values()}) < len(found):
        raise TokenError("two names have the same token; give each its own")
    return found


def _sentence(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    key = str(first["loc"][0]) if first["loc"] else ""
    return f"{key} {CURES[key].format(input=first['input'])}" if key in CURES else explain(first)


def load_tokens(path: Path) -> dict[str, Token]:
    """Tokens from a TOML or JSON file, see `parse_tokens`; in TOML a table [NAME] for each.

    Raises:
        TokenError: the file can't be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise TokenError(f"the tokens in {path} can't be read ({error}); give a TOML or JSON file") from error
    if not isinstance(values, dict) or not values:
        raise TokenError(f"{path} holds no tokens; give it a table [NAME] with sha256 = '...' for each")
    return parse_tokens(values)


class TokenFile:
    """A file of tokens that may be changed or replaced at any time.

    Args:
        path: see `load_tokens`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tokens: dict[str, Token] = {}
        self._seen: object = None

    def current(self) -> dict[str, Token]:
        """Of the file as it is now. One that can't be used any more is told in the log, and the last tokens stay.

        Raises:
            TokenError: it never could be used.
        """
        try:
            stat = self.path.stat()
            now: object = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        except OSError:
            now = None
        if now != self._seen or not self._tokens:
            try:
                self._tokens = load_tokens(self.path)
            except TokenError as error:
                if not self._tokens:
                    raise
                log.error("the tokens stay as they were: %s", error)
            self._seen = now
        return self._tokens


def find_owner(tokens: Mapping[str, Token], token: str) -> str | None:
    """The name of a token; every known one is compared, so the time tells nothing. None if it is unknown."""
    digest, owner = hash_token(token), None
    for name, known in tokens.items():
        if hmac.compare_digest(digest, known.sha256):
            owner = name
    return owner
