"""The tables. serve/store/migrations makes them; a test holds the two side by side."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    literal_column,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator

VERSION_TABLE = "job_schema"  # not alembic_version: MLflow may keep its own in the same database


class JsonText(TypeDecorator[Any]):
    """JSON as text: PostgreSQL's own type refuses the NaN of a number that is not known."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        return None if value is None else json.dumps(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        return None if value is None else json.loads(value)


Number = BigInteger().with_variant(Integer, "sqlite")  # only INTEGER can be SQLite's row number
metadata = MetaData()

cohorts = Table(
    "job_cohorts",
    metadata,
    Column("number", Number, primary_key=True, autoincrement=True),
    Column("id", String, nullable=False, unique=True),
    Column("owner", String, nullable=False),
    Column("key", String),
    Column("body_digest", String),
    Column("created", Float(53), nullable=False),
    Column("finished", Float(53)),
    Column("samples_min", Integer, nullable=False),
    Column("samples_max", Integer, nullable=False),
    Column("tolerance", Float(53)),
    Column("steps", Integer),
    Column("seed", BigInteger, nullable=False),
    Column("models", JsonText, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("upload", Boolean, nullable=False),
    Column("cancelled", Boolean, nullable=False),
    Column("turn", BigInteger, nullable=False),
    Column("queued", Integer, nullable=False),
    Column("running", Integer, nullable=False),
    Column("done", Integer, nullable=False),
    Column("failed", Integer, nullable=False),
    Column("cancelled_cases", Integer, nullable=False),
    Column("events", Integer, nullable=False),
    Column("purged", Integer, nullable=False),
    Column("name", String, nullable=False, server_default=""),
    UniqueConstraint("owner", "key", name="job_cohort_key"),
    Index("job_cohort_page", "owner", "number"),
    sqlite_autoincrement=True,
)
COUNTERS = {
    "queued": cohorts.c.queued,
    "running": cohorts.c.running,
    "done": cohorts.c.done,
    "failed": cohorts.c.failed,
    "cancelled": cohorts.c.cancelled_cases,
}

cases = Table(
    "job_cases",
    metadata,
    Column("number", Number, primary_key=True, autoincrement=True),
    Column("cohort", Number, ForeignKey(cohorts.c.number, ondelete="CASCADE"), nullable=False),
    Column("name", String, nullable=False),
    Column("image", String, nullable=False),
    Column("state", String, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("claims", Integer, nullable=False),
    Column("worker", String),
    Column("lease", Float(53)),
    Column("started", Float(53)),
    Column("finished", Float(53)),
    Column("ended", Integer),
    Column("error", String),
    Column("reason", String),
    Column("agreement", Float(53)),
    Column("model_digest", String),
    Column("result", JsonText),
    Column("unfamiliar", Boolean),
    Column("width", Float(53)),
    UniqueConstraint("cohort", "name", name="job_case_name"),
    Index("job_case_posted", "cohort", "number"),
    sqlite_autoincrement=True,
)

events = Table(
    "job_events",
    metadata,
    Column("cohort", Number, ForeignKey(cohorts.c.number, ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("at", Float(53), nullable=False),
    Column("name", String),
    Column("state", String, nullable=False),
    Column("reason", String),
)

reviews = Table(
    "job_reviews",
    metadata,
    Column("number", Number, primary_key=True, autoincrement=True),
    Column("cohort", Number, ForeignKey(cohorts.c.number, ondelete="CASCADE"), nullable=False),
    Column("case", Number, ForeignKey(cases.c.number, ondelete="CASCADE"), nullable=False),
    Column("reviewer", String, nullable=False),
    Column("verdict", String, nullable=False),
    Column("note", String, nullable=False),
    Column("at", Float(53), nullable=False),
    UniqueConstraint("case", "reviewer", name="job_review_case"),
    Index("job_review_cohort", "cohort"),
    sqlite_autoincrement=True,
)


# SQLite takes a partial index only for a condition that it can read, so these hold no parameters.
def in_state(state: str) -> ColumnElement[bool]:
    """Cases in a state."""
    return cases.c.state == literal_column(f"'{state}'")


HAS_QUEUED: ColumnElement[bool] = cohorts.c.queued > literal_column("0")
IS_UNFINISHED: ColumnElement[bool] = cohorts.c.finished.is_(None)
HAS_AGREEMENT: ColumnElement[bool] = cases.c.agreement.is_not(None)
ORDER_OF_SERVICE = (cohorts.c.upload.desc(), cohorts.c.priority.desc(), cohorts.c.turn, cohorts.c.number)


def _partial(name: str, *columns: Any, where: ColumnElement[bool]) -> Index:
    return Index(name, *columns, sqlite_where=where, postgresql_where=where)


_partial("job_cohort_service", *ORDER_OF_SERVICE, where=HAS_QUEUED)
_partial("job_cohort_unfinished", cohorts.c.owner, where=IS_UNFINISHED)
_partial("job_case_queued", cases.c.cohort, cases.c.number, where=in_state("queued"))
_partial("job_case_lease", cases.c.lease, where=in_state("running"))
_partial("job_case_worker", cases.c.worker, where=in_state("running"))
_partial("job_case_failed", cases.c.reason, where=in_state("failed"))
_partial("job_case_agreement", cases.c.cohort, cases.c.agreement, cases.c.number, where=HAS_AGREEMENT)
