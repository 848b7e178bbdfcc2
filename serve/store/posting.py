"""Cohorts come in, once, while there is room for them."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, func, insert, select

from serve.store.journal import first_turn, write
from serve.store.records import KeyConflict, NewCohort, Post, QueueFull
from serve.store.schema import IS_UNFINISHED, cases, cohorts


def add(connection: Connection, post: Post, now: float) -> tuple[str, bool]:
    """Store a cohort, see `JobStore.add`."""
    if (existing := find_by_key(connection, post.cohort)) is not None:
        return existing, False
    limits = {"max_cases_of_owner": post.max_cases_of_owner, "max_cohorts": post.max_cohorts}
    refuse_when_full(connection, post.cohort, len(post.cases), **limits)
    return insert_cohort(connection, post.cohort, post.cases, now), True


def find_by_key(connection: Connection, cohort: NewCohort) -> str | None:
    """The id of the cohort that was stored under the same key.

    Raises:
        KeyConflict: it came with another body.
    """
    if cohort.key is None:
        return None
    same = (cohorts.c.owner == cohort.owner) & (cohorts.c.key == cohort.key)
    row = connection.execute(select(cohorts.c.id, cohorts.c.body_digest).where(same)).one_or_none()
    if row is not None and row.body_digest != cohort.body_digest:
        raise KeyConflict(f"the key {cohort.key[:100]!r} was used for another request before; take a new one")
    return None if row is None else str(row.id)


def unfinished(connection: Connection, owner: str, *, upload: bool) -> int:
    """Cohorts (or uploads) of an owner that have cases left to do."""
    own = (cohorts.c.owner == owner) & (cohorts.c.upload == upload)
    return int(connection.scalar(select(func.count()).select_from(cohorts).where(IS_UNFINISHED, own)) or 0)


def refuse_when_full(
    connection: Connection, cohort: NewCohort, new: int, *, max_cases_of_owner: int | None, max_cohorts: int | None
) -> None:
    """Raise QueueFull if a limit would be passed by so many new cases."""
    if max_cohorts is not None and unfinished(connection, cohort.owner, upload=cohort.upload) >= max_cohorts:
        what = "uploads" if cohort.upload else "cohorts"
        raise QueueFull("max_cohorts", f"{max_cohorts} of your {what} are unfinished already; wait for one to end")
    if max_cases_of_owner is not None:
        left = select(func.sum(cohorts.c.queued + cohorts.c.running)).where(IS_UNFINISHED)
        have = int(connection.scalar(left.where(cohorts.c.owner == cohort.owner)) or 0)
        if have + new > max_cases_of_owner:
            text = f"{have} of your cases are unfinished and {new} more would be above {max_cases_of_owner}"
            raise QueueFull("max_cases_of_owner", f"{text}; wait for some to end, or post fewer at once")


def insert_cohort(connection: Connection, cohort: NewCohort, new: Sequence[tuple[str, str]], now: float) -> str:
    """Store a cohort and its cases (name, image) as queued; its id."""
    values: dict[str, Any] = {
        "id": secrets.token_hex(8),
        "owner": cohort.owner,
        "key": cohort.key,
        "body_digest": cohort.body_digest,
        "created": now,
        "samples_min": cohort.plan.min,
        "samples_max": cohort.plan.max,
        "tolerance": cohort.plan.tolerance if cohort.plan.adaptive else None,
        "steps": cohort.steps,
        "seed": cohort.seed,
        "models": list(cohort.models),
        "priority": cohort.priority,
        "upload": cohort.upload,
        "turn": first_turn(connection, cohort.owner, upload=cohort.upload, priority=cohort.priority),
        "queued": len(new),
        "name": cohort.name or (new[0][0] if len(new) == 1 else f"{new[0][0]} and {len(new) - 1} more"),
        "events": 1,
    }
    values |= dict.fromkeys(("running", "done", "failed", "cancelled_cases", "purged"), 0) | {"cancelled": False}
    number = connection.execute(insert(cohorts).returning(cohorts.c.number), values).scalar_one()
    common = {"cohort": number, "state": "queued", "attempts": 0, "claims": 0}
    connection.execute(insert(cases), [{"name": name, "image": image, **common} for name, image in new])
    write(connection, number, 0, [{"name": None, "state": "queued", "reason": None}], now)
    return str(values["id"])
