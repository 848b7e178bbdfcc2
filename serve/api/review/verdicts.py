"""What reviewers say of cases, and what of a cohort is left for them, in the job store."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, delete, func, insert, select, update

from serve.api.review.attention import Attention, Line, rank
from serve.store import BadCursor, Cohort, StoredCase
from serve.store.database import Database
from serve.store.reading import by_number
from serve.store.schema import cases, cohorts, reviews

VERDICTS = ("accept", "correct", "reject")
REVIEWABLE = ("done", "failed")
STALE_S = 5.0  # an unfinished cohort is not ranked anew for each of its events
RANKED, COUNTED = 8, 1000  # cohorts whose order, and whose counts, are remembered


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What one reviewer says of a case.

    Attributes:
        reviewer: the name of the token; empty where the service asks for none.
        verdict: accept, correct (usable once it is corrected) or reject.
        at: seconds since 1970.
    """

    case: str
    reviewer: str
    verdict: str
    note: str
    at: float


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Of a cohort.

    Attributes:
        needed: cases that need review.
        models: digests of those that drew it.
    """

    needed: int
    models: tuple[str, ...]


@dataclass(frozen=True)
class _Known:
    events: int
    at: float
    counts: Counts
    attention: Attention


class Reviews:
    """Verdicts, and the order in which cases are looked at, over the job store's database.

    A method is one transaction and may be called from any thread. `StoreAway` as of the job store.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self._known: OrderedDict[int, _Known] = OrderedDict()
        self._counts: OrderedDict[int, tuple[int, float, Counts]] = OrderedDict()
        self._lock = threading.Lock()

    def attention(self, cohort: Cohort) -> Attention:
        """The order of a cohort's cases; of an unfinished one as of some seconds ago at most."""
        with self._lock:
            known = self._known.get(cohort.number)
        if known is not None and _is_fresh(cohort, known.events, known.at):
            return known.attention
        return self._rank(cohort).attention

    def counts(self, cohort: Cohort) -> Counts:
        """What of a cohort needs review; of an unfinished one as of some seconds ago at most."""
        with self._lock:
            known = self._counts.get(cohort.number)
        if known is not None and _is_fresh(cohort, *known[:2]):
            return known[2]
        return self._rank(cohort).counts

    def _rank(self, cohort: Cohort) -> _Known:
        read = ("number", "name", "state", "agreement", "unfamiliar", "width")
        query = select(*(cases.c[name] for name in read), cases.c.model_digest).where(cases.c.cohort == cohort.number)
        with self.database.read() as connection:
            # read in the same transaction as the cases: what `cohort` holds may be older than they are
            events = connection.scalar(select(cohorts.c.events).where(cohorts.c.number == cohort.number))
            rows = connection.execute(query.order_by(cases.c.number)).all()
        attention = rank([Line(**{name: row._mapping[name] for name in read}) for row in rows])
        models = tuple(dict.fromkeys(row.model_digest for row in rows if row.model_digest))
        counts = Counts(needed=len(attention.reasons), models=models)
        found = _Known(int(events or 0), time.monotonic(), counts, attention)
        with self._lock:
            self._known[cohort.number] = found
            self._counts[cohort.number] = (found.events, found.at, counts)
            for remembered, most in ((self._known, RANKED), (self._counts, COUNTED)):
                remembered.move_to_end(cohort.number)
                while len(remembered) > most:
                    remembered.popitem(last=False)
        return found

    def page(self, cohort: Cohort, after: str | None, limit: int, *, results: bool) -> tuple[list[StoredCase], str]:
        """Cases that need review first, as the order is now, and the cursor of those that follow ("" at the end).

        Raises:
            BadCursor: `after` was told by no page of this order.
        """
        start = 0
        if after is not None:
            if not (after[:1] == "r" and after[1:].isascii() and after[1:].isdigit() and len(after) < 20):
                raise BadCursor(f"{after[:60]!r} is no cursor of this list; take the one that the page before it told")
            start = int(after[1:])
        order = self.attention(cohort).order
        with self.database.read() as connection:
            found = by_number(connection, cohort, order[start : start + limit], results)
        return found, f"r{start + limit}" if start + limit < len(order) else ""

    def neighbours(self, cohort: Cohort, name: str) -> tuple[str | None, str | None, int]:
        """The names of the cases before and after one in the order of review, and its place in it, from 1."""
        order = self.attention(cohort).order
        with self.database.read() as connection:
            number = connection.scalar(_number(cohort, name))
            place = order.index(number) if number in order else -1
            if place < 0:
                return None, None, 0
            near = [order[k] if 0 <= k < len(order) else None for k in (place - 1, place + 1)]
            names = by_number(connection, cohort, [n for n in near if n is not None], False)
        found = iter(names)
        before, behind = (None if n is None else next(found).name for n in near)
        return before, behind, place + 1

    def put(self, cohort: Cohort, name: str, reviewer: str, verdict: str, note: str) -> Verdict | None:
        """Keep what a reviewer says of a case, in the place of what they said before; None if there is no case."""
        if verdict not in VERDICTS:
            raise ValueError(f"{verdict=} is none of {', '.join(VERDICTS)}")
        with self.database.write() as connection:
            number = connection.scalar(_number(cohort, name).with_for_update())
            if number is None:
                return None
            at = self.database.now(connection)
            values: dict[str, Any] = {"verdict": verdict, "note": note, "at": at}
            mine = (reviews.c.case == number) & (reviews.c.reviewer == reviewer)
            if not connection.execute(update(reviews).where(mine).values(**values)).rowcount:
                new = {"cohort": cohort.number, "case": number, "reviewer": reviewer, **values}
                connection.execute(insert(reviews), [new])
        return Verdict(case=name, reviewer=reviewer, **values)

    def remove(self, cohort: Cohort, name: str, reviewer: str) -> None:
        """Take back what a reviewer said of a case."""
        with self.database.write() as connection:
            number = connection.scalar(_number(cohort, name))
            mine = (reviews.c.case == number) & (reviews.c.reviewer == reviewer)
            connection.execute(delete(reviews).where(mine))

    def of_cohort(self, cohort: Cohort, name: str | None = None) -> dict[str, Verdict]:
        """The last verdict on each case of a cohort, or on one of them, by name."""
        query = select(cases.c.name, reviews).join(cases, cases.c.number == reviews.c.case)
        query = query.where(reviews.c.cohort == cohort.number).order_by(reviews.c.at, reviews.c.number)
        if name is not None:
            query = query.where(cases.c.name == name)
        with self.database.read() as connection:
            return {
                row.name: Verdict(
                    case=row.name, reviewer=row.reviewer, verdict=row.verdict, note=row.note, at=float(row.at)
                )
                for row in connection.execute(query)
            }

    def reviewed(self, of: Sequence[Cohort]) -> dict[int, int]:
        """How many cases of each cohort have a verdict, by the cohort's number."""
        with self.database.read() as connection:
            return _reviewed(connection, [cohort.number for cohort in of])


def _reviewed(connection: Connection, numbers: Sequence[int]) -> dict[int, int]:
    query = select(reviews.c.cohort, func.count(reviews.c.case.distinct())).where(reviews.c.cohort.in_(numbers))
    return {int(number): int(count) for number, count in connection.execute(query.group_by(reviews.c.cohort))}


def _number(cohort: Cohort, name: str) -> Select[Any]:
    return select(cases.c.number).where(cases.c.cohort == cohort.number, cases.c.name == name)


def _is_fresh(cohort: Cohort, events: int, at: float) -> bool:
    return events >= cohort.events or (cohort.finished is None and time.monotonic() - at < STALE_S)
