"""The job store: cohorts and cases that survive a crash, in SQLite."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Connection,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    create_engine,
    event,
    func,
    insert,
    select,
    update,
)

UNFINISHED = ("queued", "running")
STATES = ("queued", "running", "done", "failed", "cancelled")

_metadata = MetaData()
_cohorts = Table(
    "cohorts",
    _metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("id", String, nullable=False, unique=True),
    Column("created", Float, nullable=False),
    Column("samples", Integer, nullable=False),
    Column("steps", Integer),
    Column("seed", Integer, nullable=False),
    Column("upload", Boolean, nullable=False),
    Column("cancelled", Boolean, nullable=False, default=False),
)
_cases = Table(
    "cases",
    _metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("cohort", String, ForeignKey("cohorts.id"), nullable=False),
    Column("name", String, nullable=False),
    Column("image", String, nullable=False),
    Column("state", String, nullable=False),
    Column("upload", Boolean, nullable=False),
    Column("started", Float),
    Column("finished", Float),
    Column("error", String),
    Column("result", JSON),
    Index("case_of_cohort", "cohort", "name", unique=True),
    Index("case_queue", "state", "upload", "number"),
)


@dataclass(frozen=True)
class Work:
    """A case that was claimed, with what is needed to do it."""

    cohort: str
    name: str
    image: Path
    upload: bool
    samples: int
    steps: int | None
    seed: int


class JobStore:
    """Every method is one transaction and may be called from any thread.

    A commit is on the disk when it returns (write-ahead log, synchronous=FULL).
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": 30}, isolation_level="AUTOCOMMIT")

        @event.listens_for(self._engine, "connect")
        def _configure(connection: Any, _: Any) -> None:
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=30000"):
                connection.execute(f"PRAGMA {pragma}")

        _metadata.create_all(self._engine)

    def _transaction(self) -> _Immediate:
        return _Immediate(self._engine.connect())

    def add(
        self, cases: Sequence[tuple[str, str]], *, samples: int, steps: int | None, seed: int, upload: bool = False
    ) -> str:
        """Store a cohort of (name, image) as queued.

        Returns:
            Its id.
        """
        cohort = secrets.token_hex(8)
        row = {"id": cohort, "created": time.time(), "samples": samples, "steps": steps, "seed": seed}
        rows = [
            {"cohort": cohort, "name": name, "image": image, "state": "queued", "upload": upload}
            for name, image in cases
        ]
        with self._transaction() as connection:
            connection.execute(insert(_cohorts).values(**row, upload=upload, cancelled=False))
            connection.execute(insert(_cases), rows)
        return cohort

    def recover(self) -> int:
        """After a restart: what was running is queued again (or cancelled with its cohort). How many cases wait."""
        cancelled = select(_cohorts.c.id).where(_cohorts.c.cancelled)
        running = update(_cases).where(_cases.c.state.in_(UNFINISHED))
        with self._transaction() as connection:
            connection.execute(running.where(_cases.c.cohort.in_(cancelled)).values(state="cancelled"))
            connection.execute(running.values(state="queued", started=None))
            return int(connection.scalar(select(func.count()).where(_cases.c.state == "queued")) or 0)

    def claim(self) -> Work | None:
        """Take the next case: uploads first, then in the order of arrival."""
        first = select(_cases).where(_cases.c.state == "queued").order_by(_cases.c.upload.desc(), _cases.c.number)
        with self._transaction() as connection:
            case = connection.execute(first.limit(1)).one_or_none()
            if case is None:
                return None
            taken = update(_cases).where(_cases.c.number == case.number)
            connection.execute(taken.values(state="running", started=time.time()))
            cohort = connection.execute(select(_cohorts).where(_cohorts.c.id == case.cohort)).one()
        return Work(
            case.cohort, case.name, Path(case.image), case.upload, cohort.samples, cohort.steps, cohort.seed
        )  # fmt: skip

    def finish(
        self, cohort: str, name: str, state: str, *, error: str | None = None, result: dict[str, Any] | None = None
    ) -> bool:
        """End a running case; False if it was cancelled meanwhile."""
        case = (_cases.c.cohort == cohort) & (_cases.c.name == name) & (_cases.c.state == "running")
        values = {"state": state, "error": error, "result": result, "finished": time.time()}
        with self._transaction() as connection:
            return connection.execute(update(_cases).where(case).values(**values)).rowcount == 1

    def cancel(self, cohort: str) -> list[str]:
        """Cancel what is unfinished; the names of the cases that were running."""
        mine = (_cases.c.cohort == cohort) & _cases.c.state.in_(UNFINISHED)
        with self._transaction() as connection:
            running = select(_cases.c.name).where(mine, _cases.c.state == "running")
            names = list(connection.scalars(running))
            count = connection.execute(update(_cases).where(mine).values(state="cancelled", finished=time.time()))
            if count.rowcount:
                connection.execute(update(_cohorts).where(_cohorts.c.id == cohort).values(cancelled=True))
        return names

    def unfinished(self, *, upload: bool) -> int:
        """Cohorts (or uploads) that have cases left to do."""
        left = select(func.count(_cases.c.cohort.distinct()))
        with self._transaction() as connection:
            where = _cases.c.state.in_(UNFINISHED), _cases.c.upload == upload
            return int(connection.scalar(left.where(*where)) or 0)

    def cohort(self, cohort: str) -> dict[str, Any] | None:
        """A cohort's own columns and the count of its cases by state."""
        found = self._cohorts(_cohorts.c.id == cohort, 1)
        return found[0] if found else None

    def page(self, before: int | None, limit: int) -> list[dict[str, Any]]:
        """Cohorts with a number below `before`, the newest first."""
        return self._cohorts(_cohorts.c.number < before if before is not None else _cohorts.c.number > 0, limit)

    def _cohorts(self, where: Any, limit: int) -> list[dict[str, Any]]:
        with self._transaction() as connection:
            query = select(_cohorts).where(where).order_by(_cohorts.c.number.desc()).limit(limit)
            cohorts = [dict(row._mapping) for row in connection.execute(query)]
            ids = [cohort["id"] for cohort in cohorts]
            count = select(_cases.c.cohort, _cases.c.state, func.count()).where(_cases.c.cohort.in_(ids))
            counts = connection.execute(count.group_by(_cases.c.cohort, _cases.c.state)).all()
        for cohort in cohorts:
            cohort["counts"] = dict.fromkeys(STATES, 0) | {state: n for id, state, n in counts if id == cohort["id"]}
        return cohorts

    def cases(self, cohort: str, *, results: bool) -> list[dict[str, Any]]:
        """A cohort's cases in the order in which they were posted."""
        columns = [c for c in _cases.c if results or c.name != "result"]
        with self._transaction() as connection:
            query = select(*columns).where(_cases.c.cohort == cohort).order_by(_cases.c.number)
            return [dict(row._mapping) for row in connection.execute(query)]

    def case(self, cohort: str, name: str) -> dict[str, Any] | None:
        """One case with its result."""
        with self._transaction() as connection:
            query = select(_cases).where(_cases.c.cohort == cohort, _cases.c.name == name)
            row = connection.execute(query).one_or_none()
        return None if row is None else dict(row._mapping)

    def close(self) -> None:
        """Let go of the file."""
        self._engine.dispose()


class _Immediate:
    """A transaction that takes SQLite's write lock at once, so that it can't fail half-way for another writer."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def __enter__(self) -> Connection:
        self.connection.exec_driver_sql("BEGIN IMMEDIATE")
        return self.connection

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.connection.exec_driver_sql("COMMIT" if kind is None else "ROLLBACK")
        finally:
            self.connection.close()
