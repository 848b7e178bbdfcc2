"""Counters of a cohort, its turn and its events, changed together with its cases.

A transaction locks cases first, in the order of their numbers, and then their cohorts, in the order of theirs. So no
two wait for each other, and a cohort's events are committed in the order of their numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    Row,
    ScalarSelect,
    func,
    insert,
    literal_column,
    select,
    update,
)

from serve.store.records import STATES, UNFINISHED, state_of
from serve.store.schema import COUNTERS, cohorts, events


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


def first_turn(connection: Connection, owner: str, *, upload: bool, priority: int) -> int:
    """Where a cohort begins that comes to the queue: with those whose turn it is, but behind its owner's others.

    With the steps of `_step` an owner's cohorts have turns of their own, so that all of them together are served as
    often as one of somebody else.
    """
    rivals = _queued(cohorts, upload=upload, priority=priority)
    last = connection.scalar(select(func.max(cohorts.c.turn)).where(rivals, cohorts.c.owner == owner))
    if last is not None:
        return int(last) + 1
    return int(connection.scalar(select(func.min(cohorts.c.turn)).where(rivals)) or 0)


def _queued(table: FromClause, *, upload: bool, priority: int) -> ColumnElement[bool]:
    """Cohorts of a class that have something queued."""
    return (table.c.queued > literal_column("0")) & (table.c.upload == upload) & (table.c.priority == priority)


def _step(row: Row[Any]) -> ScalarSelect[int]:
    """How far a claim moves a cohort's turn: by the number of its owner's cohorts, which share what is the owner's."""
    peers = cohorts.alias()
    same = _queued(peers, upload=row.upload, priority=row.priority) & (peers.c.owner == row.owner)
    return select(func.count()).select_from(peers).where(same).scalar_subquery()


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
    turn: Any = row.turn + claimed * _step(row) if claimed else row.turn
    if counts["queued"] and not row.queued:  # it was away from the queue, and turns went on meanwhile
        turn = first_turn(connection, row.owner, upload=row.upload, priority=row.priority)
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
