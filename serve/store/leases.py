"""Cases go out on a lease and come back, once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, Select, select, update

from ldseg.posterior.plan import SamplePlan
from serve.store.journal import Change, record
from serve.store.records import ENDED, UNFINISHED, Work, agreement_of, unfamiliar_of, width_of
from serve.store.schema import HAS_QUEUED, ORDER_OF_SERVICE, cases, cohorts, in_state

SWEEP = 100  # leases that one claim takes back at most
_BACK = {"state": "queued", "worker": None, "lease": None, "started": None}


def claim(connection: Connection, worker: str, lease_s: float, now: float) -> Work | None:
    """Take the next case of the cohort whose turn it is; None if nothing is queued."""
    busy: list[int] = []  # other claims are at work on all that these have queued
    while True:
        turn = select(cohorts.c.number).where(HAS_QUEUED).order_by(*ORDER_OF_SERVICE).limit(1)
        cohort = connection.scalar(turn.where(cohorts.c.number.not_in(busy)) if busy else turn)
        if cohort is None:
            return None
        first = select(cases).where(cases.c.cohort == cohort, in_state("queued")).order_by(cases.c.number).limit(1)
        case = connection.execute(first.with_for_update(skip_locked=True)).one_or_none()
        if case is not None:
            return _lease(connection, case, worker, lease_s, now)
        busy.append(cohort)


def _lease(connection: Connection, case: Row[Any], worker: str, lease_s: float, now: float) -> Work:
    values = {"state": "running", "worker": worker, "lease": now + lease_s, "started": now}
    values |= {"attempts": case.attempts + 1, "claims": case.claims + 1}
    connection.execute(update(cases).where(cases.c.number == case.number).values(**values))
    row = record(connection, case.cohort, [Change(name=case.name, before="queued", after="running")], now)
    return Work(
        cohort=row.id,
        name=case.name,
        image=case.image,
        upload=row.upload,
        owner=row.owner,
        plan=SamplePlan(min=row.samples_min, max=row.samples_max, tolerance=row.tolerance or 0.0),
        steps=row.steps,
        seed=row.seed,
        models=tuple(row.models),
        priority=row.priority,
        attempts=case.attempts + 1,
        claim=case.claims + 1,
    )


def has_expired(connection: Connection, now: float) -> bool:
    """Whether a lease has run out."""
    late = select(cases.c.number).where(in_state("running"), cases.c.lease < now)
    return connection.scalar(late.limit(1)) is not None


def take_back(connection: Connection, max_attempts: int, now: float) -> int:
    """Queue again what workers died of or left, or set it aside when that happened too often; how many cases."""
    late = select(cases).where(in_state("running"), cases.c.lease < now).order_by(cases.c.lease).limit(SWEEP)
    rows = connection.execute(late.with_for_update(skip_locked=True)).all()
    again = [row for row in rows if row.attempts < max_attempts]
    lost = [row for row in rows if row.attempts >= max_attempts]
    journal = _changes(again, "queued", "lease-expired") + _changes(lost, "failed", "worker-died")
    numbers = _record(connection, journal, now)
    connection.execute(update(cases).where(_among(again)).values(**_BACK))
    for row in lost:
        error = f"{row.name}: its worker died or fell silent {row.attempts} times over it, so it was set aside"
        error += "; see whether the volume is larger than the others, then post it again"
        values = {"state": "failed", "reason": "worker-died", "error": error, "finished": now, "lease": None}
        values |= {"worker": None, "ended": numbers[row.cohort]}
        connection.execute(update(cases).where(cases.c.number == row.number).values(**values))
    return len(rows)


def release(connection: Connection, worker: str, now: float) -> int:
    """Queue again what a worker holds, as if it had never been given to it; how many cases."""
    held = select(cases).where(in_state("running"), cases.c.worker == worker).order_by(cases.c.number)
    rows = connection.execute(held.with_for_update()).all()
    _record(connection, _changes(rows, "queued", "released"), now)
    connection.execute(update(cases).where(_among(rows)).values(**_BACK, attempts=cases.c.attempts - 1))
    return len(rows)


def give_back(connection: Connection, work: Work, worker: str, counted: bool, now: float) -> bool:
    """Queue a case again that is still this claim's; False if it is not."""
    query = _with_cohort().where(cohorts.c.id == work.cohort, cases.c.name == work.name, in_state("running"))
    row = connection.execute(query.with_for_update(of=cases)).one_or_none()
    if row is None or (row.worker, row.claims) != (worker, work.claim):
        return False
    _record(connection, _changes([row], "queued", "no-room"), now)
    attempts = cases.c.attempts - (0 if counted else 1)
    connection.execute(update(cases).where(cases.c.number == row.number).values(**_BACK, attempts=attempts))
    return True


def extend(
    connection: Connection, worker: str, held: Sequence[tuple[str, str]], lease_s: float, now: float
) -> tuple[tuple[str, str], ...]:
    """Extend the leases of the cases that a worker holds; those of them that are no longer its own."""
    mine = _with_cohort().where(in_state("running"), cases.c.worker == worker).order_by(cases.c.number)
    rows = connection.execute(mine.with_for_update(of=cases)).all()
    asked = set(held)
    # Others that are this worker's in the table are left to run out: it has never heard of them.
    alive = [row for row in rows if (row.id, row.name) in asked]
    connection.execute(update(cases).where(_among(alive)).values(lease=now + lease_s))
    names = {(row.id, row.name) for row in alive}
    return tuple(case for case in held if case not in names)


def finish(connection: Connection, work: Work, worker: str, state: str, end: dict[str, Any], now: float) -> bool:
    """End a case that is still this claim's; False if it is not. Said twice, it is done once and true twice."""
    if state not in ENDED:
        raise ValueError(f"{state=} is no end of a case; use {', '.join(ENDED)}")
    query = _with_cohort().where(cohorts.c.id == work.cohort, cases.c.name == work.name)
    row = connection.execute(query.with_for_update(of=cases)).one_or_none()
    if row is None or (row.worker, row.claims) != (worker, work.claim):
        return False
    if row.state != "running":  # the answer to the first time was lost
        return bool(row.state == state)
    change = Change(name=work.name, before="running", after=state, reason=end["reason"])
    ended = _record(connection, [(row.cohort, change)], now)[row.cohort]
    values = {"state": state, "finished": now, "lease": None, "ended": ended, **end}
    values["agreement"] = agreement_of(end["result"])
    values |= {"unfamiliar": unfamiliar_of(end["result"]), "width": width_of(end["result"])}
    connection.execute(update(cases).where(cases.c.number == row.number).values(**values))
    return True


def cancel(connection: Connection, cohort: str, now: float) -> list[str]:
    """End all that is unfinished of a cohort; the names of the cases that were running."""
    mine = _with_cohort().where(cohorts.c.id == cohort, cases.c.state.in_(UNFINISHED)).order_by(cases.c.number)
    rows = connection.execute(mine.with_for_update(of=cases)).all()
    if not rows:
        return []
    number = rows[0].cohort
    changes = [Change(name=row.name, before=row.state, after="cancelled") for row in rows]
    before = record(connection, number, changes, now, cancelling=True)
    values = {"state": "cancelled", "finished": now, "worker": None, "lease": None, "ended": before.events + 1}
    left = (cases.c.cohort == number) & cases.c.state.in_(UNFINISHED)
    connection.execute(update(cases).where(left).values(**values))
    return [row.name for row in rows if row.state == "running"]


def _with_cohort() -> Select[Any]:
    columns = (cases.c[name] for name in ("number", "cohort", "name", "state", "worker", "claims"))
    return select(*columns, cohorts.c.id).join(cohorts, cohorts.c.number == cases.c.cohort)


def _among(rows: Sequence[Row[Any]]) -> Any:
    return cases.c.number.in_([row.number for row in rows])


def _changes(rows: Sequence[Row[Any]], state: str, reason: str) -> list[tuple[int, Change]]:
    return [(row.cohort, Change(name=row.name, before="running", after=state, reason=reason)) for row in rows]


def _record(connection: Connection, journal: Sequence[tuple[int, Change]], now: float) -> dict[int, int]:
    """Write down changes of several cohorts; the number of the first of these events in each."""
    by_cohort: dict[int, list[Change]] = defaultdict(list)
    for cohort, change in journal:
        by_cohort[cohort].append(change)
    return {number: record(connection, number, by_cohort[number], now).events + 1 for number in sorted(by_cohort)}
