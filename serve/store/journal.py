"""Counters of a cohort, its turn and its events, changed together with its cases.

A transaction locks cases first, in the order of their numbers, and then their cohorts, in the order of theirs. So no
two wait for each other, and a cohort's events are committed in the order of their numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, func, insert, select, update

from serve.store.records import STATES, UNFINISHED, state_of
from serve.store.schema import COUNTERS, HAS_QUEUED, cohorts, events


@dataclass(frozen=True, kw_only=True)
class Change:
    """Of a case's state."""

    name: str
    before: str
    after: str
    reason: str | None = None


def counts_of(row: Row[Any]) -> dict[str, int]:
    """Cases by state of a cohort's row."""
    return {state: int(row._mapping[COUNTERS[state]]) for state in STATES}


def first_turn(connection: Connection, *, upload: bool, priority: int) -> int:
    """The smallest turn of the cohorts of a class that have something queued; where a new one begins."""
    rivals = HAS_QUEUED & (cohorts.c.upload == upload) & (cohorts.c.priority == priority)
    return int(connection.scalar(select(func.min(cohorts.c.turn)).where(rivals)) or 0)


def record(
    connection: Connection, cohort: int, changes: Sequence[Change], now: float, *, cancelling: bool = False
) -> Row[Any]:
    """Write down changes that are made to cases of a cohort in this transaction.

    Returns:
        The cohort's row before them, locked until the transaction ends.
    """
    row = connection.execute(select(cohorts).where(cohorts.c.number == cohort).with_for_update()).one()
    counts, cancelled = counts_of(row), row.cancelled or cancelling
    was = state_of(counts, cancelled=row.cancelled)
    claimed = 0
    for change in changes:
        counts[change.before] -= 1
        counts[change.after] += 1
        claimed += change.after == "running"
    lines = [{"name": change.name, "state": change.after, "reason": change.reason} for change in changes]
    if (state := state_of(counts, cancelled=cancelled)) != was:
        lines.append({"name": None, "state": state, "reason": None})
    turn = row.turn + claimed
    if counts["queued"] and not row.queued:  # it was away from the queue, and turns went on meanwhile
        turn = first_turn(connection, upload=row.upload, priority=row.priority)
    unfinished = any(counts[state] for state in UNFINISHED)
    values: dict[str, Any] = {COUNTERS[state].name: count for state, count in counts.items()}
    values |= {"turn": turn, "cancelled": cancelled, "finished": None if unfinished else now}
    values["events"] = row.events + len(lines)
    connection.execute(update(cohorts).where(cohorts.c.number == cohort).values(**values))
    write(connection, cohort, row.events, lines, now)
    return row


def write(connection: Connection, cohort: int, after: int, lines: Sequence[dict[str, Any]], now: float) -> None:
    """Append events to those that a cohort has."""
    rows = [{"cohort": cohort, "number": after + k, "at": now, **line} for k, line in enumerate(lines, 1)]
    if rows:
        connection.execute(insert(events), rows)
