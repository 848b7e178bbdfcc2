"""What the routes work with."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from ldseg.bundle import Bundle
from serve.documents import cohort_state
from serve.jobs import Runner
from serve.metrics import Metrics
from serve.problems import Problem
from serve.settings import Settings
from serve.sse import Event
from serve.store import UNFINISHED, JobStore

REMEMBERED = 10_000


@dataclass
class Service:
    """What the routes work with.

    Attributes:
        self_tested: a sampler has tested the model.
        remembered: (owner, idempotency key) -> (digest of the request, cohort).
    """

    settings: Settings
    bundle: Bundle
    store: JobStore
    runner: Runner
    self_tested: asyncio.Event = field(default_factory=asyncio.Event)
    metrics: Metrics = field(default_factory=Metrics)
    remembered: dict[tuple[str, str], tuple[str, str]] = field(default_factory=dict)

    @property
    def most_steps(self) -> int:
        """Denoiser steps that the model's schedule has."""
        return int(self.bundle.config.diffusion.num_train_steps)

    async def cohort(self, cohort: str) -> dict[str, Any]:
        """A stored cohort.

        Raises:
            Problem: there is none of that id.
        """
        found = await asyncio.to_thread(self.store.cohort, cohort) if cohort.isalnum() else None
        if found is None:
            raise Problem("not-found", f"there is no cohort {cohort[:60]}; GET /v1/cohorts lists them")
        return found

    async def case(self, cohort: str, name: str) -> dict[str, Any]:
        """A stored case.

        Raises:
            Problem: there is none of that name.
        """
        found = await asyncio.to_thread(self.store.case, cohort, name)
        if found is None:
            raise Problem("not-found", f"the cohort {cohort[:60]} has no case {name[:200]!r}")
        return found

    async def refuse_when_full(self, *, upload: bool) -> None:
        """Raise a 429 problem when too much is waiting."""
        limit = self.settings.max_uploads if upload else self.settings.max_cohorts
        if await asyncio.to_thread(lambda: self.store.unfinished(upload=upload)) >= limit:
            detail = f"{limit} {'uploads' if upload else 'cohorts'} are unfinished already; wait for one to end"
            raise Problem("too-busy", detail, headers={"Retry-After": "10"})

    async def events(self, cohort: str, after: int, limit: int) -> list[Event]:
        """A `serve.sse.Source` over the store: cases in the order in which they ended, then the cohort's end."""
        found = await self.cohort(cohort)
        cases = await asyncio.to_thread(lambda: self.store.cases(cohort, results=False))
        ended = sorted((c for c in cases if c["state"] not in UNFINISHED), key=lambda c: (c["finished"], c["number"]))
        order = {case["number"]: k for k, case in enumerate(cases)}
        events = [
            Event(k, "case", {"case": order[case["number"]], "name": case["name"], "state": case["state"]})
            for k, case in enumerate(ended, start=1)
        ]
        if len(ended) == len(cases):
            state = cohort_state(found["counts"], found["cancelled"])
            events.append(Event(len(ended) + 1, "end", {"state": state, "counts": found["counts"]}, last=True))
        return [event for event in events if event.id > after][:limit]

    def case_counts(self) -> dict[str, int]:
        """Cases of the store by state."""
        total: dict[str, int] = {}
        for cohort in self.store.page(None, 500):
            for state, count in cohort["counts"].items():
                total[state] = total.get(state, 0) + count
        return total
