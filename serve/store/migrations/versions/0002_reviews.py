"""What reviewers say of cases, what ranks cases for them, and names of cohorts."""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")
BATCH = 500


def upgrade() -> None:
    """Make the table and the columns, then fill them from what is stored."""
    op.add_column("job_cohorts", sa.Column("name", sa.String, nullable=False, server_default=""))
    op.add_column("job_cases", sa.Column("unfamiliar", sa.Boolean))
    op.add_column("job_cases", sa.Column("width", sa.Float(53)))
    op.create_table(
        "job_reviews",
        sa.Column("number", NUMBER, primary_key=True, autoincrement=True),
        sa.Column("cohort", NUMBER, sa.ForeignKey("job_cohorts.number", ondelete="CASCADE"), nullable=False),
        sa.Column("case", NUMBER, sa.ForeignKey("job_cases.number", ondelete="CASCADE"), nullable=False),
        sa.Column("reviewer", sa.String, nullable=False),
        sa.Column("verdict", sa.String, nullable=False),
        sa.Column("note", sa.String, nullable=False),
        sa.Column("at", sa.Float(53), nullable=False),
        sa.UniqueConstraint("case", "reviewer", name="job_review_case"),
        sqlite_autoincrement=True,
    )
    op.create_index("job_review_cohort", "job_reviews", ["cohort"])
    _fill(op.get_bind())


def _fill(connection: sa.Connection) -> None:
    metadata = sa.MetaData()
    cohorts, cases = (sa.Table(name, metadata, autoload_with=connection) for name in ("job_cohorts", "job_cases"))
    first = sa.select(cases.c.name).where(cases.c.cohort == cohorts.c.number).order_by(cases.c.number).limit(1)
    connection.execute(sa.update(cohorts).values(name=sa.func.coalesce(first.scalar_subquery(), "")))
    after = 0
    while True:
        result = sa.type_coerce(cases.c.result, sa.Text).label("result")
        query = sa.select(cases.c.number, result).where(cases.c.number > after, cases.c.result.is_not(None))
        rows = connection.execute(query.order_by(cases.c.number).limit(BATCH)).all()
        for row in rows:
            values = _ranked((json.loads(row.result) or {}).get("numbers") or {})
            connection.execute(sa.update(cases).where(cases.c.number == row.number).values(**values))
        if len(rows) < BATCH:
            return
        after = rows[-1].number


def _ranked(numbers: dict[str, Any]) -> dict[str, Any]:
    """As `serve.store.records` had it when this was written."""
    widths = []
    for column in numbers:
        if not column.endswith("_p50") or "_volume_" not in column:
            continue
        start = column.removesuffix("p50")
        ends = (numbers.get(f"{start}low"), numbers.get(f"{start}high"))
        low, high = ends if None not in ends else (numbers.get(f"{start}p05"), numbers.get(f"{start}p95"))
        if low is not None and high is not None and 0 <= low <= high < float("inf"):
            widths.append(2 * (high - low) / (high + low) if high + low > 0 else 0.0)
    strange = numbers.get("unfamiliar")
    return {"unfamiliar": None if strange is None else bool(strange), "width": max(widths, default=None)}
