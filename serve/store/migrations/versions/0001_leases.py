"""Owners, leases, turns and events; the jobs of version 0.1 are taken over.

What is written here stays as it is: later changes of the tables are further revisions.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")
BATCH = 500


def upgrade() -> None:
    """Make the tables, then fill them from those of 0.1 if there are any."""
    _make_cohorts()
    _make_cases()
    op.create_table(
        "job_events",
        sa.Column("cohort", NUMBER, sa.ForeignKey("job_cohorts.number", ondelete="CASCADE"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("at", sa.Float(53), nullable=False),
        sa.Column("name", sa.String),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("reason", sa.String),
    )
    inspector = sa.inspect(op.get_bind())
    if inspector.has_table("cohorts") and inspector.has_table("cases"):
        if "samples" in {column["name"] for column in inspector.get_columns("cohorts")}:
            _take_over(op.get_bind())
            op.drop_table("cases")
            op.drop_table("cohorts")


def _make_cohorts() -> None:
    integers = ("priority", "queued", "running", "done", "failed", "cancelled_cases", "events", "purged")
    op.create_table(
        "job_cohorts",
        sa.Column("number", NUMBER, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String, nullable=False, unique=True),
        sa.Column("owner", sa.String, nullable=False),
        sa.Column("key", sa.String),
        sa.Column("body_digest", sa.String),
        sa.Column("created", sa.Float(53), nullable=False),
        sa.Column("finished", sa.Float(53)),
        sa.Column("samples_min", sa.Integer, nullable=False),
        sa.Column("samples_max", sa.Integer, nullable=False),
        sa.Column("tolerance", sa.Float(53)),
        sa.Column("steps", sa.Integer),
        sa.Column("seed", sa.BigInteger, nullable=False),
        sa.Column("models", sa.Text, nullable=False),
        sa.Column("upload", sa.Boolean, nullable=False),
        sa.Column("cancelled", sa.Boolean, nullable=False),
        sa.Column("turn", sa.BigInteger, nullable=False),
        *(sa.Column(name, sa.Integer, nullable=False) for name in integers),
        sa.UniqueConstraint("owner", "key", name="job_cohort_key"),
        sqlite_autoincrement=True,
    )
    op.create_index("job_cohort_page", "job_cohorts", ["owner", "number"])
    order = [sa.text("upload DESC"), sa.text("priority DESC"), "turn", "number"]
    _partial("job_cohort_service", "job_cohorts", order, "queued > 0")
    _partial("job_cohort_unfinished", "job_cohorts", ["owner"], "finished IS NULL")


def _make_cases() -> None:
    op.create_table(
        "job_cases",
        sa.Column("number", NUMBER, primary_key=True, autoincrement=True),
        sa.Column("cohort", NUMBER, sa.ForeignKey("job_cohorts.number", ondelete="CASCADE"), nullable=False),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("image", sa.String, nullable=False),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("claims", sa.Integer, nullable=False),
        sa.Column("worker", sa.String),
        sa.Column("lease", sa.Float(53)),
        sa.Column("started", sa.Float(53)),
        sa.Column("finished", sa.Float(53)),
        sa.Column("ended", sa.Integer),
        sa.Column("error", sa.String),
        sa.Column("reason", sa.String),
        sa.Column("agreement", sa.Float(53)),
        sa.Column("model_digest", sa.String),
        sa.Column("result", sa.Text),
        sa.UniqueConstraint("cohort", "name", name="job_case_name"),
        sqlite_autoincrement=True,
    )
    op.create_index("job_case_posted", "job_cases", ["cohort", "number"])
    _partial("job_case_queued", "job_cases", ["cohort", "number"], "state = 'queued'")
    _partial("job_case_lease", "job_cases", ["lease"], "state = 'running'")
    _partial("job_case_worker", "job_cases", ["worker"], "state = 'running'")
    _partial("job_case_failed", "job_cases", ["reason"], "state = 'failed'")
    _partial("job_case_agreement", "job_cases", ["cohort", "agreement", "number"], "agreement IS NOT NULL")


def _partial(name: str, table: str, columns: list[Any], where: str) -> None:
    op.create_index(name, table, columns, sqlite_where=sa.text(where), postgresql_where=sa.text(where))


def _take_over(connection: sa.Connection) -> None:
    metadata = sa.MetaData()
    old_cohorts, old_cases, cohorts, cases = (
        sa.Table(name, metadata, autoload_with=connection) for name in ("cohorts", "cases", "job_cohorts", "job_cases")
    )
    for row in connection.execute(sa.select(old_cohorts).order_by(old_cohorts.c.number)).all():
        number = _add_cohort(connection, cohorts, row)
        # The type is given up so that a result stays the text that it is.
        result = sa.type_coerce(old_cases.c.result, sa.Text)
        kept = ("name", "image", "state", "started", "finished", "error")
        query = sa.select(*(old_cases.c[name] for name in kept), result.label("result"))
        found = connection.execute(query.where(old_cases.c.cohort == row.id).order_by(old_cases.c.number))
        counts: Counter[str] = Counter()
        last = 0.0
        for part in found.partitions(BATCH):
            lines = [_case(case, number, cancelled=row.cancelled) for case in part]
            connection.execute(sa.insert(cases), lines)
            counts.update(line["state"] for line in lines)
            last = max([last, *(line["finished"] or 0.0 for line in lines)])
        values: dict[str, Any] = {state: counts[state] for state in ("queued", "done", "failed")}
        values |= {"cancelled_cases": counts["cancelled"]}
        values |= {"finished": None if counts["queued"] else last or row.created}
        connection.execute(sa.update(cohorts).where(cohorts.c.number == number).values(**values))


def _add_cohort(connection: sa.Connection, cohorts: sa.Table, row: sa.Row[Any]) -> int:
    values = {name: row._mapping[name] for name in ("id", "created", "steps", "seed", "upload", "cancelled")}
    values |= {"samples_min": row.samples, "samples_max": row.samples, "owner": "", "models": "[]"}
    zero = ("priority", "turn", "queued", "running", "done", "failed", "cancelled_cases", "events", "purged")
    values |= dict.fromkeys(zero, 0)
    return int(connection.execute(sa.insert(cohorts).returning(cohorts.c.number), values).scalar_one())


def _case(row: Any, cohort: int, *, cancelled: bool) -> dict[str, Any]:
    """A case of 0.1, where one that was running when the service stopped was queued again."""
    line = dict(row._mapping) | {"cohort": cohort, "attempts": 0, "claims": 0, "ended": 0}
    if line["state"] in ("queued", "running"):
        line |= {"state": "cancelled" if cancelled else "queued", "started": None}
        line["ended"] = 0 if cancelled else None
    result = json.loads(line["result"] or "null")
    line["result"] = None if result is None else line["result"]
    numbers = (result or {}).get("numbers") or {}
    agreement = numbers.get("agreement")
    line["agreement"] = agreement if agreement is not None and math.isfinite(agreement) else None
    line["model_digest"] = numbers.get("model_digest")
    return line
