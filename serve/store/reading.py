"""What is told of cohorts and cases; another owner's are as absent."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, delete, func, or_, select, true, tuple_, update

from ldseg.posterior.plan import SamplePlan
from serve.store.journal import counts_of
from serve.store.records import BadCursor, CasePage, Cohort, Event, Queue, StoredCase
from serve.store.schema import HAS_AGREEMENT, HAS_QUEUED, cases, cohorts, events, in_state

ORDERS = ("posted", "agreement")
_MOST = 2**31 - 1, 2**63 - 1  # a client may send more than the columns of events and numbers can be compared with


def owned(owner: str | None) -> ColumnElement[bool]:
    """What an owner may see; None is the operator, who sees all."""
    return true() if owner is None else cohorts.c.owner == owner


def as_cohort(row: Row[Any]) -> Cohort:
    """A row of the table of cohorts."""
    same = ("number", "id", "owner", "created", "finished", "steps", "seed", "priority", "upload", "cancelled")
    values = {name: row._mapping[name] for name in (*same, "events", "purged", "name")}
    plan = SamplePlan(min=row.samples_min, max=row.samples_max, tolerance=row.tolerance or 0.0)
    return Cohort(**values, plan=plan, models=tuple(row.models), counts=counts_of(row))


def find(connection: Connection, cohort: str, owner: str | None) -> Cohort | None:
    """A cohort."""
    row = connection.execute(select(cohorts).where(cohorts.c.id == cohort, owned(owner))).one_or_none()
    return None if row is None else as_cohort(row)


def get(connection: Connection, cohort: str) -> Cohort:
    """A cohort that is there."""
    return as_cohort(connection.execute(select(cohorts).where(cohorts.c.id == cohort)).one())


def page(connection: Connection, owner: str | None, before: int | None, limit: int, search: str = "") -> list[Cohort]:
    """Cohorts with a number below `before`, the newest first; with `search` those whose name or id holds it."""
    query = select(cohorts).where(owned(owner)).order_by(cohorts.c.number.desc()).limit(limit)
    if before is not None:
        query = query.where(cohorts.c.number < min(before, _MOST[1]))
    if search:
        query = query.where(
            or_(cohorts.c.name.icontains(search, autoescape=True), cohorts.c.id.icontains(search, autoescape=True))
        )
    return [as_cohort(row) for row in connection.execute(query)]


def _case_query(results: bool) -> Select[Any]:
    left_out = {"cohort", "claims", "lease", "ended", "unfamiliar", "width"} | (set() if results else {"result"})
    return select(*(column for column in cases.c if column.name not in left_out))


def _as_case(row: Row[Any], cohort: str) -> StoredCase:
    return StoredCase(cohort=cohort, **{name: value for name, value in row._mapping.items() if name != "number"})


def case(connection: Connection, cohort: str, name: str, owner: str | None) -> StoredCase | None:
    """A case with its result."""
    query = _case_query(True).join(cohorts, cohorts.c.number == cases.c.cohort)
    row = connection.execute(query.where(cohorts.c.id == cohort, owned(owner), cases.c.name == name)).one_or_none()
    return None if row is None else _as_case(row, cohort)


def by_number(connection: Connection, cohort: Cohort, numbers: Sequence[int], results: bool) -> list[StoredCase]:
    """Cases of a cohort with these numbers, in this order."""
    query = _case_query(results).where(cases.c.cohort == cohort.number, cases.c.number.in_(numbers))
    found = {row.number: row for row in connection.execute(query)}
    return [_as_case(found[number], cohort.id) for number in numbers if number in found]


def case_page(
    connection: Connection, cohort: Cohort, *, after: str | None, limit: int, order: str, results: bool
) -> CasePage:
    """Cases in the order in which they were posted, or those with the lowest agreement first.

    The second order is that of the moment when its first page was asked for, so that a walk through its pages meets
    every case once while others end: those that had an agreement then, and after them the rest as posted.
    """
    if order not in ORDERS:
        raise ValueError(f"{order=} is none of {', '.join(ORDERS)}")
    if order == "posted":
        number = 0 if after is None else int(_parse(r"p(\d{1,18})", after)[0])
        rows = _posted(connection, cohort, number, limit, true(), results)
        return _cut(rows, cohort, limit, [f"p{row.number}" for row in rows])
    after = f"a{cohort.events}:-1:0" if after is None else after
    moment, agreement, number_text = _parse(r"a(\d{1,18}):([^:]{1,25}):(\d{1,18})", after)
    then, number = min(int(moment), _MOST[0]), int(number_text)
    known = HAS_AGREEMENT & (cases.c.ended <= then)
    rows = []
    if agreement != "none":
        place = tuple_(cases.c.agreement, cases.c.number) > tuple_(_float(agreement), number)
        query = _case_query(results).where(cases.c.cohort == cohort.number, known, place)
        rows += connection.execute(query.order_by(cases.c.agreement, cases.c.number).limit(limit + 1)).all()
        number = 0
    marks = [f"a{then}:{row.agreement!r}:{row.number}" for row in rows]
    if len(rows) <= limit:
        rest = or_(cases.c.agreement.is_(None), cases.c.ended > then)
        more = _posted(connection, cohort, number, limit - len(rows), rest, results)
        rows += more
        marks += [f"a{then}:none:{row.number}" for row in more]
    return _cut(rows, cohort, limit, marks)


def _posted(
    connection: Connection, cohort: Cohort, number: int, limit: int, where: ColumnElement[bool], results: bool
) -> list[Row[Any]]:
    query = _case_query(results).where(cases.c.cohort == cohort.number, cases.c.number > number, where)
    return list(connection.execute(query.order_by(cases.c.number).limit(limit + 1)))


def _cut(rows: Sequence[Row[Any]], cohort: Cohort, limit: int, marks: Sequence[str]) -> CasePage:
    shown = tuple(_as_case(row, cohort.id) for row in rows[:limit])
    return CasePage(cases=shown, next=marks[limit - 1] if len(rows) > limit else None)


def _parse(pattern: str, cursor: str) -> tuple[str, ...]:
    found = re.fullmatch(pattern, cursor)
    if found is None:
        raise BadCursor(f"{cursor[:60]!r} is no cursor of this list; take the one that the page before it told")
    return found.groups()


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise BadCursor(f"{text[:60]!r} is no agreement; take the cursor that the page before told") from None


def since(connection: Connection, cohort: Cohort, after: int, limit: int) -> list[Event]:
    """Events with a number above `after`, in order."""
    query = select(events).where(events.c.cohort == cohort.number, events.c.number > min(after, _MOST[0]))
    rows = connection.execute(query.order_by(events.c.number).limit(limit))
    return [Event(number=row.number, at=row.at, name=row.name, state=row.state, reason=row.reason) for row in rows]


def purge(connection: Connection, keep_last: int, finished_before: float) -> int:
    """Remove all but the last events of cohorts that finished before a time; how many."""
    old = (cohorts.c.finished < finished_before) & (cohorts.c.events - keep_last > cohorts.c.purged)
    query = select(cohorts.c.number, cohorts.c.events).where(old).order_by(cohorts.c.number).with_for_update()
    removed = 0
    for row in connection.execute(query).all():
        newest = row.events - keep_last
        gone = delete(events).where(events.c.cohort == row.number, events.c.number <= newest)
        removed += connection.execute(gone).rowcount
        connection.execute(update(cohorts).where(cohorts.c.number == row.number).values(purged=newest))
    return removed


def queue(connection: Connection) -> Queue:
    """Counts for metrics."""
    waiting = select(cohorts.c.upload, func.sum(cohorts.c.queued), func.min(cohorts.c.created)).where(HAS_QUEUED)
    queued = connection.execute(waiting.group_by(cohorts.c.upload)).all()
    running = select(cases.c.worker, func.count()).where(in_state("running")).group_by(cases.c.worker)
    failed = select(cases.c.reason, func.count()).where(in_state("failed")).group_by(cases.c.reason)
    return Queue(
        queued=sum(int(count) for _, count, _ in queued),
        uploads=sum(int(count) for upload, count, _ in queued if upload),
        oldest=min((float(created) for _, _, created in queued), default=None),
        running={worker: int(count) for worker, count in connection.execute(running)},
        failed={reason or "": int(count) for reason, count in connection.execute(failed)},
    )
