"""What goes into the job store and what comes out of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ldseg.columns import HIGH, LOW, percentile, read_volume_column, volume
from ldseg.posterior.plan import SamplePlan

UNFINISHED = ("queued", "running")
ENDED = ("done", "failed", "cancelled")
STATES = UNFINISHED + ENDED
MAX_PRIORITY = 10


class StoreError(RuntimeError):
    """The job store can't be used; the message says why and what to do."""


class StoreAway(StoreError):
    """The database does not answer just now; whether what was asked has happened is unknown. Try it again."""


class SchemaError(StoreError):
    """The database's tables are not those that this version works with."""


class KeyConflict(StoreError):
    """The key was used for another body before."""


class QueueFull(StoreError):
    """Too much is unfinished already.

    Attributes:
        limit: max_cases_of_owner or max_cohorts.
    """

    def __init__(self, limit: str, message: str) -> None:
        super().__init__(message)
        self.limit = limit


class BadCursor(ValueError):
    """A cursor that no page of this list has told."""


@dataclass(frozen=True, kw_only=True)
class NewCohort:
    """A cohort to be stored.

    Attributes:
        owner: whose it is; empty where the service asks for no token.
        plan: samples of each case.
        steps: denoiser steps; None takes the model's own.
        seed: of the samples.
        models: references as they were asked for; empty takes the service's own.
        priority: from -10 to 10, higher ones first.
        upload: somebody waits for the answer: it goes before everything else.
        key: the same (owner, key) is stored once.
        body_digest: of the request that the key came with.
        name: what people call it; empty takes that of its first case.
    """

    owner: str
    plan: SamplePlan
    steps: int | None = None
    seed: int = 0
    models: tuple[str, ...] = ()
    priority: int = 0
    upload: bool = False
    key: str | None = None
    body_digest: str | None = None
    name: str = ""

    def __post_init__(self) -> None:
        if not -MAX_PRIORITY <= self.priority <= MAX_PRIORITY:
            raise ValueError(f"{self.priority=} must lie in [{-MAX_PRIORITY}, {MAX_PRIORITY}]")
        if (self.key is None) != (self.body_digest is None):
            raise ValueError("a key and the digest of its body come together")


@dataclass(frozen=True, kw_only=True)
class Post:
    """A cohort on its way into the store.

    Attributes:
        cases: (name, image) of each.
        max_cases_of_owner: that may be unfinished at once, these included; None for no limit.
        max_cohorts: of the owner that may be unfinished at once; for an upload, as many uploads.
    """

    cohort: NewCohort
    cases: Sequence[tuple[str, str]]
    max_cases_of_owner: int | None = None
    max_cohorts: int | None = None

    def __post_init__(self) -> None:
        if not self.cases or len({name for name, _ in self.cases}) < len(self.cases):
            raise ValueError("a cohort has one case at least, and each has its own name")


@dataclass(frozen=True, kw_only=True)
class Work:
    """A case that was claimed, with what is needed to do it.

    Attributes:
        attempts: workers that it was given to, this one included and those that gave it back left out.
        claim: the number of this claim of the case; `JobStore.finish` tells an earlier one by it.
    """

    cohort: str
    name: str
    image: str
    upload: bool
    owner: str
    plan: SamplePlan
    steps: int | None
    seed: int
    models: tuple[str, ...]
    priority: int
    attempts: int
    claim: int


@dataclass(frozen=True, kw_only=True)
class Held:
    """The answer to a heartbeat: cases (cohort, name) that are no longer the worker's, so it should stop them."""

    lost: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """A stored cohort.

    Attributes:
        number: grows from cohort to cohort; the cursor of `JobStore.page`.
        counts: cases by state, every state named.
        events: changes so far; it differs whenever anything of the cohort does.
        purged: the newest event that is no longer kept.
        finished: when the last case ended, seconds since 1970; None before.
        name: what people call it.
    """

    number: int
    id: str
    owner: str
    created: float
    finished: float | None
    plan: SamplePlan
    steps: int | None
    seed: int
    models: tuple[str, ...]
    priority: int
    upload: bool
    cancelled: bool
    counts: dict[str, int]
    events: int
    purged: int
    name: str = ""

    @property
    def total(self) -> int:
        """Cases."""
        return sum(self.counts.values())

    @property
    def state(self) -> str:
        """As `state_of` tells it."""
        return state_of(self.counts, cancelled=self.cancelled)


def state_of(counts: dict[str, int], *, cancelled: bool) -> str:
    """A cohort is queued, running, done (every case has ended, well or not) or cancelled."""
    if counts["running"] or 0 < counts["queued"] < sum(counts.values()):
        return "running"
    if counts["queued"]:
        return "queued"
    return "cancelled" if cancelled else "done"


def agreement_of(result: dict[str, Any] | None) -> float | None:
    """The number that ranks a case for review, if its result has one that can be compared."""
    value = ((result or {}).get("numbers") or {}).get("agreement")
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def unfamiliar_of(result: dict[str, Any] | None) -> bool | None:
    """Whether a case is unlike the training cases, if its model can tell."""
    value = ((result or {}).get("numbers") or {}).get("unfamiliar")
    return None if value is None else bool(value)


def width_of(result: dict[str, Any] | None) -> float | None:
    """The widest interval of a case's structures, over the interval's middle: 0 to 2; None without any.

    It is the interval with a promise where there is one, else the samples' 5th to 95th percentile.
    """
    numbers, found = (result or {}).get("numbers") or {}, list[float]()
    for column in numbers:
        parts = read_volume_column(column)
        if parts is None or parts[2] != percentile(50):
            continue
        for ends in ((LOW, HIGH), (percentile(5), percentile(95))):
            low, high = (numbers.get(volume(*parts[:2], end)) for end in ends)
            if low is not None and high is not None:
                break
        if low is not None and high is not None and math.isfinite(low + high):
            found.append(2 * (high - low) / (high + low) if high + low > 0 else 0.0)
    return max(found, default=None)


@dataclass(frozen=True, kw_only=True)
class StoredCase:
    """A stored case; `result` is None also where results were not asked for."""

    cohort: str
    name: str
    image: str
    state: str
    attempts: int
    worker: str | None
    started: float | None
    finished: float | None
    error: str | None
    reason: str | None
    agreement: float | None
    model_digest: str | None
    result: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class CasePage:
    """Some cases and the cursor of those that follow; None at the end."""

    cases: tuple[StoredCase, ...]
    next: str | None


@dataclass(frozen=True, kw_only=True)
class Event:
    """A change of a case's state, or of the cohort's where the name is None; numbers of a cohort have no gaps."""

    number: int
    at: float
    name: str | None
    state: str
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class Queue:
    """What waits, what is at work and what has failed.

    Attributes:
        queued: cases, uploads included.
        uploads: cases of uploads that are queued.
        oldest: when the oldest cohort with a queued case was posted; None if there is none.
        running: cases by worker.
        failed: cases by reason; the reason is empty where none was given.
    """

    queued: int
    uploads: int
    oldest: float | None
    running: dict[str, int]
    failed: dict[str, int]
