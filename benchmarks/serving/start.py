"""From the start of the program to its page's address, to ready, and from the post of one case to its result."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.common import table
from benchmarks.serving.process import START_S, Service
from benchmarks.serving.throughput import MODEL, images_of

LINES = {"Ray begins": "starting Ray\n", "Serve begins": "starting Ray Serve", "address": "serving "}  # of its output


def start(data: Path | None, cases: int, samples: int, rounds: int) -> str:
    """The table: a row for each start, seconds since it, and of the cases that are then posted one after another."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        images = images_of(data, cases, Path(folder) / "phantoms")
        for number in range(rounds):
            rows.append({"start": number + 1} | one_start(images, samples, Path(folder) / f"runs_{number}"))
    return table(rows)


def one_start(images: list[Path], samples: int, runs: Path) -> dict[str, float]:
    """Seconds from the start to each line of the output and to ready, and of the first and the median case."""
    begin = time.perf_counter()
    service = Service(MODEL, images[0].parent, runs)
    found: dict[str, float] = {}
    try:
        for name, text in LINES.items():
            _until(service, lambda text=text: f"\n{text}" in "\n" + service.log.read_text())  # type: ignore[misc]
            found[name] = time.perf_counter() - begin
        _until(service, lambda: service.http.get("/health/ready").status_code == 200)
        found["ready"] = time.perf_counter() - begin
        spent = [_case_seconds(service, image, samples) for image in images]
    finally:
        service.__exit__()
    return found | {"first case": spent[0], "median case": statistics.median(spent), "slowest case": max(spent)}


def _case_seconds(service: Service, image: Path, samples: int) -> float:
    begin = time.perf_counter()
    cohort, _ = service.post([{"name": "case", "image": str(image)}], samples=samples)
    _until(service, lambda: service.ended(cohort) == 1)
    return time.perf_counter() - begin


def _until(service: Service, holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_S
    while not holds():
        if service.process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the service did not start:\n{service.log.read_text()[-3000:]}")
        time.sleep(0.02)
