"""A cohort of thousands of small cases: the post, the pages of its listing, the memory while it is done."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.serving.process import Process, milliseconds, small_cases, table, tiny_model

SERVICE_S, SAMPLERS, SAMPLES = 0.02, 2, 4  # of a simulated chunk; one chunk a case
PAGE = 100  # cases, the default of the listing
LISTINGS = [("posted", PAGE), ("agreement", PAGE), ("posted", 500), ("agreement", 500)]


def walk(service: Process, cohort: str, order: str, limit: int) -> tuple[int, list[float]]:
    """Cases met on all pages, and the milliseconds of each page."""
    path, met, spent = f"/v1/cohorts/{cohort}/cases?limit={limit}&order={order}", 0, []
    while path:
        start = time.perf_counter()
        page = service.http.get(path).json()
        spent.append(1000 * (time.perf_counter() - start))
        met += len(page["cases"])
        path = page["next"]
    return met, spent


def run(count: int) -> str:
    """The tables."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cases = small_cases(folder / "data", count)
        model = tiny_model(folder / "model")
        with Process(model, folder / "data", folder / "runs", SERVICE_S, replicas=SAMPLERS) as service:
            return _measure(service, cases)


def _measure(service: Process, cases: list[dict[str, str]]) -> str:
    count, marks = len(cases), [len(cases) // 10, len(cases) // 2, len(cases)]
    before = service.memory()
    start = time.perf_counter()
    cohort, posted = service.post(cases, samples=SAMPLES)
    rows: list[dict[str, Any]] = [{"cases done": 0, "s since the post": 0.0} | _told(before)]
    pages = []
    while marks:
        done = service.ended(cohort)
        if done >= marks[0]:
            rows.append({"cases done": done, "s since the post": time.perf_counter() - start} | _told(service.memory()))
            print(rows[-1], file=sys.stderr)
            del marks[0]
            if len(rows) == 3:
                pages += _pages(service, cohort, count, "half done, at work")
        time.sleep(0.2)
    took = time.perf_counter() - start
    pages += _pages(service, cohort, count, "done")
    head = [{"cases": count, "POST to 202, s": posted, "all done, s": took, "cases/s": count / took}]
    return "\n\n".join(map(table, (head, rows, pages)))


def _told(memory: dict[str, float]) -> dict[str, float]:
    return {f"{name}, MB": value for name, value in memory.items()}


def _pages(service: Process, cohort: str, count: int, when: str) -> list[dict[str, Any]]:
    rows = []
    for order, limit in LISTINGS:
        met, spent = walk(service, cohort, order, limit)
        if met != count:
            raise RuntimeError(f"the pages showed {met} of {count} cases")
        row = {"pages": when, "order": order, "cases a page": limit, "number": len(spent)}
        rows.append(row | milliseconds(spent))
    return rows
