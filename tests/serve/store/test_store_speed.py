"""What is asked for often stays fast when there is much; figures are printed, bounds are generous."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event, text
from stores import LEASE_S, add, names

from ldseg.posterior.plan import SamplePlan
from serve.store import JobStore, NewCohort, sqlite_url


def median_ms(task: Callable[[], object], times: int = 50) -> float:
    spent = []
    for _ in range(times):
        start = time.perf_counter()
        task()
        spent.append(time.perf_counter() - start)
    return 1000 * sorted(spent)[times // 2]


def test_a_hundred_thousand_cases_do_not_slow_the_store(store: JobStore) -> None:
    figures = {"claim and finish, nearly empty": claims(store, add(store, *names("c", 300)))}
    start = time.perf_counter()
    big = [add(store, *names("c", 10_000)) for _ in range(10)]
    figures["add 10,000"] = 100 * (time.perf_counter() - start)
    for _ in range(60):
        add(store, "a")
    if not store.database.sqlite:  # as its autovacuum does within a minute
        with store.database.write() as connection:
            connection.execute(text("ANALYZE"))
    for _ in range(300):
        work = store.claim("w", LEASE_S)
        store.finish(work, "w", "done", result={"numbers": {"agreement": (hash(work.name) % 97) / 97}})
    figures["claim and finish, 100,000 queued"] = claims(store, None)
    figures["page of 50 cohorts"] = median_ms(lambda: store.page(None, None, 50))
    figures["page of 100 cases"] = median_ms(lambda: store.cases(big[0], owner="me", limit=100))
    figures["page of 100 cases by agreement"] = median_ms(
        lambda: store.cases(big[0], owner="me", limit=100, order="agreement")
    )
    last = f"p{10**6}"
    figures["page behind the last case"] = median_ms(lambda: store.cases(big[0], owner="me", after=last))
    figures["queue"] = median_ms(store.queue)
    held = [(work.cohort, work.name) for _ in range(20) if (work := store.claim("h", LEASE_S))]
    figures["heartbeat of 20"] = median_ms(lambda: store.heartbeat("h", held, LEASE_S))
    start = time.perf_counter()
    store.cancel(big[1])
    figures["cancel 10,000"] = 1000 * (time.perf_counter() - start)
    start = time.perf_counter()
    store.forget(big[1])
    figures["forget 10,000"] = 1000 * (time.perf_counter() - start)
    print(f"\n{store.database.url.drivername}:")
    for name, figure in figures.items():
        print(f"  {figure:9.2f} ms  {name}")
    assert figures["claim and finish, 100,000 queued"] < 5 * figures["claim and finish, nearly empty"] + 20
    assert max(figure for name, figure in figures.items() if "page" in name or name == "queue") < 500


def claims(store: JobStore, cohort: str | None) -> float:
    def once() -> None:
        assert store.finish(store.claim("w", LEASE_S), "w", "done")

    figure = median_ms(once)
    if cohort is not None:
        store.cancel(cohort)
    return figure


def test_sqlite_finds_everything_by_an_index(tmp_path: Path) -> None:
    store = JobStore(sqlite_url(tmp_path / "jobs.db"))
    asked: list[tuple[str, Any]] = []

    @event.listens_for(Engine, "before_cursor_execute")
    def note(_: Any, __: Any, statement: str, parameters: Any, *___: Any) -> None:
        if statement.startswith(("SELECT", "UPDATE", "DELETE")):
            asked.append((statement, parameters[0] if isinstance(parameters, list) else parameters))

    try:
        cohort = add(store, *names("c", 5))
        add(store, "x", owner="you", priority=1)
        first = store.claim("w", 0.0)
        time.sleep(0.01)
        second = store.claim("w", LEASE_S)
        store.heartbeat("w", [(second.cohort, second.name)], LEASE_S)
        assert not store.finish(first, "w", "done")
        assert store.finish(second, "w", "done", result={"numbers": {"agreement": 0.5}})
        store.release("w")
        for order in ("posted", "agreement"):
            after = store.cases(cohort, owner="me", limit=1, order=order).next
            store.cases(cohort, owner="me", limit=1, order=order, after=after)
        store.page("me", 10, 5), store.page(None, 10, 5), store.events(cohort, owner="me")
        (
            store.case(cohort, "c00000", owner="me"),
            store.unfinished("me", upload=True),
            store.queue(),
            store.cancel(cohort),
        )
        new = NewCohort(owner="me", plan=SamplePlan.fixed(1), key="k", body_digest="d")
        store.add(new, [("a", "")], max_cohorts=9, max_cases_of_owner=9), store.forget(cohort)
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    with store.database.read() as connection:
        for statement, parameters in asked:
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
            slow = [line for *_, line in plan if line.startswith("SCAN job_") and "USING" not in line]
            assert not slow and not any("TEMP B-TREE FOR ORDER" in line for *_, line in plan), (statement, plan)
    store.close()
