"""What the routes work with."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from fastapi import Request

from ldseg.bundle import Bundle
from serve.api.review.verdicts import Reviews
from serve.http.problems import Problem
from serve.http.security import limits
from serve.http.sse import Event, Source
from serve.jobs.casework import Casework
from serve.jobs.postbox import Postbox
from serve.jobs.runner import Runner
from serve.sampling.catalog import Catalog
from serve.settings import Settings
from serve.store import Cohort, JobStore, KeyConflict, NewCohort, Post, QueueFull, StoreAway, StoredCase
from serve.telemetry import Metrics

T = TypeVar("T")


@dataclass
class Service:
    """What the routes work with.

    Attributes:
        self_tested: a sampler has tested the service's own model.
    """

    settings: Settings
    catalog: Catalog
    store: JobStore
    casework: Casework
    runner: Runner
    metrics: Metrics
    self_tested: asyncio.Event = field(default_factory=asyncio.Event)
    posts: Postbox = field(init=False)
    reviews: Reviews = field(init=False)

    def __post_init__(self) -> None:
        self.posts = Postbox(self.store)
        self.reviews = Reviews(self.store.database)

    @property
    def bundle(self) -> Bundle:
        """The service's own model, as of now."""
        return self.catalog.own().bundle

    @property
    def most_steps(self) -> int:
        """Denoiser steps that may be asked for: those of the settings or the model's own, within its schedule."""
        config = self.bundle.config
        wanted = max(self.settings.max_steps, config.sampler.num_sample_steps)
        return int(min(wanted, config.diffusion.num_train_steps))

    async def ask(self, call: Callable[[], T]) -> T:
        """Something of the store, off the event loop.

        Raises:
            Problem: the database does not answer.
        """
        try:
            return await asyncio.to_thread(call)
        except StoreAway as error:
            raise _database_unavailable() from error

    async def cohort(self, cohort: str, request: Request) -> Cohort:
        """A stored cohort of the request's owner.

        Raises:
            Problem: there is none of that id.
        """
        owner = request.state.owner
        found = await self.ask(lambda: self.store.cohort(cohort, owner)) if cohort.isalnum() else None
        if found is None:
            raise Problem("not-found", f"there is no cohort {cohort[:60]}; GET /v1/cohorts lists them")
        return found

    async def case(self, cohort: str, name: str, request: Request) -> StoredCase:
        """A stored case of the request's owner.

        Raises:
            Problem: there is none of that name.
        """
        owner = request.state.owner
        found = await self.ask(lambda: self.store.case(cohort, name, owner=owner))
        if found is None:
            raise Problem("not-found", f"the cohort {cohort[:60]} has no case {name[:200]!r}")
        return found

    async def add(self, cohort: NewCohort, cases: list[tuple[str, str]]) -> Cohort:
        """Store a cohort; when this returns, it is on the disk.

        Raises:
            Problem: too much is waiting, nothing can be kept just now, the token does not permit it, or its key was
                used for something else.
        """
        if (fault := await asyncio.to_thread(self.runner.storage.fault)) is not None:
            raise Problem(fault.kind, fault.sentence, headers={"Retry-After": "30"})
        token, settings = limits(self.settings, cohort.owner), self.settings
        if token is not None and cohort.priority > token.max_priority:
            raise Problem("not-permitted", f"priority: this token may ask for {token.max_priority} at most")
        most = settings.max_uploads if cohort.upload else settings.max_cohorts
        own = token.max_unfinished_cases if token is not None else None
        post = Post(cohort=cohort, cases=cases, max_cases_of_owner=own, max_cohorts=most)
        try:
            added = await self.posts.put(post)
        except StoreAway as error:
            raise _database_unavailable() from error
        except KeyConflict as error:
            raise Problem("idempotency-conflict", str(error)) from error
        except QueueFull as error:
            raise Problem("too-busy", str(error), headers={"Retry-After": "10"}) from error
        self.runner.wake()
        return added

    async def forget(self, cohort: str) -> None:
        """Remove a cohort with its files.

        Raises:
            Problem: it can't be done just now.
        """
        fault = await asyncio.to_thread(self.runner.storage.fault)
        if fault is not None and fault.kind == "storage-unavailable":  # the results would come back with their folder
            raise Problem(fault.kind, fault.sentence, headers={"Retry-After": "30"})
        try:
            await self.runner.forget(cohort)
        except StoreAway as error:
            raise _database_unavailable() from error
        except OSError as error:
            detail = f"its results can't be removed ({error.strerror}); the operator must see to the results folder"
            raise Problem("storage-unavailable", detail) from error

    def events(self, owner: str) -> Source:
        """A `serve.http.sse.Source` of an owner's cohorts over the store."""

        async def source(cohort: str, after: int, limit: int) -> list[Event]:
            found = await self.ask(lambda: self.store.events(cohort, owner=owner, after=after, limit=limit))
            events = []
            for event in found:
                if event.name is not None:
                    data = {"name": event.name, "state": event.state, "reason": event.reason}
                    events.append(Event(event.number, "case", data))
                else:
                    events.append(await self._cohort_event(cohort, owner, event.number, event.state))
            return events

        return source

    async def _cohort_event(self, cohort: str, owner: str, number: int, state: str) -> Event:
        if state not in ("done", "cancelled"):
            return Event(number, "cohort", {"state": state})
        found = await self.ask(lambda: self.store.cohort(cohort, owner))
        return Event(number, "end", {"state": state, "counts": found.counts if found else {}}, last=True)


def _database_unavailable() -> Problem:
    detail = "the job store does not answer just now; ask again"
    return Problem("database-unavailable", detail, headers={"Retry-After": "2"})
