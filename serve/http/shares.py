"""What one token may have open at once, so that it leaves the others their part, and all of them health its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from serve.http.problems import Problem
from serve.settings import Settings

MOST_REQUESTS = 800  # of everybody at once
MOST_ONGOING = 1000  # of Ray Serve: health, and what is refused, have the rest
REQUESTS, LISTENERS, BODIES = "requests", "event listeners", "bodies under way"


class Shares:
    """Counts what is open; a service without tokens counts all as one."""

    def __init__(self, settings: Settings) -> None:
        self._most = {
            REQUESTS: settings.max_requests,
            LISTENERS: settings.max_listeners,
            BODIES: settings.max_bodies,
        }
        self._open: Counter[tuple[str, str]] = Counter()

    @contextmanager
    def take(self, owner: str, kind: str) -> Iterator[None]:
        """One more of a kind, for the length of the block.

        Raises:
            Problem: the owner, or everybody together, has as many already.
        """
        if kind == REQUESTS and sum(n for (_, of), n in self._open.items() if of == REQUESTS) >= MOST_REQUESTS:
            raise Problem("overloaded", "too many requests are open; ask again", headers={"Retry-After": "5"})
        if self._open[owner, kind] >= self._most[kind]:
            detail = f"this token has {self._most[kind]} {kind} already; wait for one to end"
            raise Problem("too-busy", detail, headers={"Retry-After": "5"})
        self._open[owner, kind] += 1
        try:
            yield
        finally:
            self._open[owner, kind] -= 1
            if not self._open[owner, kind]:
                del self._open[owner, kind]
