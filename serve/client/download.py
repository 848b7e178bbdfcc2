"""Downloads that go on where they were broken off, and are checked in the end."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from ldseg.results.publication import is_complete


def fetch(
    http: httpx.Client,
    entry: dict[str, Any],
    target: Path,
    *,
    patience_s: float,
    check: Callable[[httpx.Response], None],
) -> bool:
    """Fetch a file; False if it is complete already.

    What has come is kept beside the target under a name that holds the checksum, so a later call goes on there.

    Args:
        entry: href, bytes, sha256.
        patience_s: it is given up when nothing has come for so long.
        check: raises if an answer is an error.

    Raises:
        ValueError: it came damaged twice.
        httpx.HTTPError: the service can't be reached.
    """
    if is_complete(target, entry):
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{entry['sha256'][:32]}.part")
    for _ in range(2):
        _fill(http, entry, part, patience_s, check)
        if is_complete(part, entry):
            part.replace(target)
            return True
        part.unlink()
    raise ValueError("came damaged")


def _fill(
    http: httpx.Client, entry: dict[str, Any], part: Path, patience_s: float, check: Callable[[httpx.Response], None]
) -> None:
    """Add to the part what it lacks, over as many connections as it takes."""
    last, wait, size = time.monotonic(), 0.25, -1
    part.touch()
    while size < entry["bytes"]:
        if part.stat().st_size > size:
            size, last, wait = part.stat().st_size, time.monotonic(), 0.25
            if size >= entry["bytes"]:
                return
        headers = {"Range": f"bytes={size}-", "If-Range": f'"{entry["sha256"]}"'} if size else {}
        try:
            with http.stream("GET", entry["href"], headers=headers) as answer:
                if answer.status_code == 416:
                    return  # it is shorter than it should be
                check(answer)
                with part.open("ab" if answer.status_code == 206 else "wb") as file:
                    for chunk in answer.iter_raw():  # larger pieces would be lost when the connection breaks
                        file.write(chunk)
            if part.stat().st_size <= size:
                return  # it is shorter than it should be
        except httpx.TransportError:
            if time.monotonic() - last > patience_s:
                raise
            time.sleep(wait)
            wait = min(2 * wait, 5)
