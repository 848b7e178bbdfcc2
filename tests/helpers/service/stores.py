"""Job stores on real databases: SQLite in a file, PostgreSQL in a server of its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from postgres import Server as Server
from postgres import postgres as postgres

from ldseg.posterior.plan import SamplePlan
from serve.store import JobStore, NewCohort, sqlite_url

LEASE_S = 60.0  # never runs out in a test that doesn't want it to


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of an empty database."""
    if request.param == "sqlite":
        return sqlite_url(tmp_path / "jobs.db")
    return str(request.getfixturevalue("postgres").new())


@pytest.fixture
def store(url: str) -> Iterator[JobStore]:
    opened = JobStore(url)
    yield opened
    opened.close()


def add(store: JobStore, *names: str, owner: str = "me", upload: bool = False, priority: int = 0) -> str:
    """A cohort of cases with these names; its id."""
    cohort = NewCohort(owner=owner, plan=SamplePlan.fixed(2), upload=upload, priority=priority)
    return store.add(cohort, [(name, f"/{name}") for name in names])[0]


def names(prefix: str, number: int) -> list[str]:
    return [f"{prefix}{k:05d}" for k in range(number)]


def at_once(number: int, task: object) -> list[object]:
    """Results of a function of k called by so many threads at the same instant; an exception is a result."""
    barrier, results = threading.Barrier(number), [None] * number

    def run(k: int) -> None:
        barrier.wait()
        try:
            results[k] = task(k)
        except Exception as error:
            results[k] = error

    threads = [threading.Thread(target=run, args=(k,)) for k in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
