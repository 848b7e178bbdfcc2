"""Counters in Prometheus' text format. No label names a case, a file or a client."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from serve.store import Queue

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
STAGE_BUCKETS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)
REQUEST_BUCKETS = (0.005, 0.02, 0.1, 0.5, 2, 10, 60, 600)
METHODS = ("GET", "HEAD", "POST", "DELETE", "PUT", "PATCH", "OPTIONS")


class Samplers(Protocol):
    """How many there are."""

    @property
    def alive(self) -> int: ...

    @property
    def starting(self) -> int: ...


class Metrics:
    """Of one service; each has a registry of its own, so that two in one process don't meet."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own = self.registry
        self._queue = Gauge("ldseg_cases", "Cases of the job store by state", ["state"], registry=own)
        self._oldest = Gauge("ldseg_queue_age_seconds", "Age of the oldest cohort that waits", registry=own)
        self._finished = Counter("ldseg_cases_finished", "Cases that ended", ["state", "reason"], registry=own)
        self._stages = Histogram(
            "ldseg_stage_seconds", "Seconds of a case by stage", ["stage"], buckets=STAGE_BUCKETS, registry=own
        )
        self._bytes_in = Counter("ldseg_received_bytes", "Bytes of request bodies", registry=own)
        self._bytes_out = Counter("ldseg_sent_bytes", "Bytes of response bodies", registry=own)
        self._requests = Counter("ldseg_http_requests", "Requests", ["method", "route", "status"], registry=own)
        self._seconds = Histogram(
            "ldseg_http_request_seconds", "Seconds of a request", ["route"], buckets=REQUEST_BUCKETS, registry=own
        )

    def watch(self, samplers: Samplers) -> None:
        """Tell how many samplers there are."""
        description = "Samplers that answer, and those that are wanted and don't yet"
        gauge = Gauge("ldseg_samplers", description, ["state"], registry=self.registry)
        gauge.labels("alive").set_function(lambda: samplers.alive)
        gauge.labels("starting").set_function(lambda: samplers.starting)

    def case_finished(self, state: str, reason: str = "") -> None:
        """A case ended.

        Args:
            state: done, failed or cancelled.
            reason: a short word from a fixed list, such as invalid-image; never a sentence, it might name a case.
        """
        self._finished.labels(state, reason).inc()

    def stages(self, seconds: Mapping[str, float]) -> None:
        """What a case took, by stage."""
        for stage, value in seconds.items():
            self._stages.labels(stage).observe(value)

    def received(self, count: int) -> None:
        """Bytes of a request's body came."""
        self._bytes_in.inc(count)

    def sent(self, count: int) -> None:
        """Bytes of a response's body went."""
        self._bytes_out.inc(count)

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """A request was answered.

        Args:
            route: the route's template, such as /v1/cohorts/{cohort}; never the path.
        """
        self._requests.labels(method if method in METHODS else "other", route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self, queue: Queue) -> bytes:
        """All of it.

        Args:
            queue: of the job store.
        """
        counts = {"queued": queue.queued, "running": sum(queue.running.values()), "failed": sum(queue.failed.values())}
        for state, count in counts.items():
            self._queue.labels(state).set(count)
        self._oldest.set(0.0 if queue.oldest is None else max(time.time() - queue.oldest, 0.0))
        return generate_latest(self.registry)
