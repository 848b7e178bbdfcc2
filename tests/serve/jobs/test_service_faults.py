"""What a cohort survives: services that are killed or stopped, a database that goes away, a disk that is full."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from faulting import CASES, Start, digests, ends, nothing_left, wait_for
from service import problem
from smalldisk import small_disk
from stores import Server

from serve.store import sqlite_url

DONE_ONCE = Counter({(f"c{k}", "done"): 1 for k in range(CASES)})


def test_one_of_two_services_on_one_database_finishes_what_the_other_was_stopped_or_killed_at(
    start: Start, postgres: Server, images: dict[str, str]
) -> None:
    url = postgres.new()
    one, two = start("one", database=url), start("two", database=url)
    draws = {"samples": 3, "seed": 1}
    undisturbed = one.post(images, **draws)
    assert one.finish(undisturbed)["counts"]["done"] == CASES
    expected = digests(two, undisturbed, images)
    cohort = one.post(images, **draws)
    wait_for(two, cohort, 1)
    os.kill(one.process.pid, signal.SIGSTOP)
    assert two.finish(cohort)["counts"]["done"] == CASES
    os.kill(one.process.pid, signal.SIGCONT)  # it goes on with cases that are no longer its own
    another = one.post(images, **draws)
    wait_for(one, another, 1)
    os.kill(one.process.pid, signal.SIGKILL)
    one.process.wait()
    assert two.finish(another)["counts"]["done"] == CASES
    for disturbed in (cohort, another):
        assert digests(two, disturbed, images) == expected and ends(two, disturbed) == DONE_ONCE
    nothing_left(url)


def test_a_cohort_waits_for_a_database_that_is_gone_and_goes_on(
    start: Start, postgres: Server, images: dict[str, str]
) -> None:
    url = postgres.new()
    web = start("web", database=url)
    undisturbed = web.post(images, samples=3, seed=2)
    web.finish(undisturbed)
    cohort = web.post(images, samples=3, seed=2)
    wait_for(web, cohort, 1)
    postgres.stop("immediate")
    try:
        body = {"cases": [{"name": "a", "image": images["c0"]}]}
        refused = problem(web.http.post("/v1/cohorts", json=body), 503, "database-unavailable")
        assert "ask again" in refused["detail"]
        assert web.http.get("/health/live").status_code == 200
        time.sleep(4)  # longer than a lease
    finally:
        postgres.start()
    assert web.finish(cohort)["counts"]["done"] == CASES
    assert digests(web, cohort, images) == digests(web, undisturbed, images) and ends(web, cohort) == DONE_ONCE
    nothing_left(url)


@pytest.mark.parametrize("database_on_it", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_disk_that_is_full_in_mid_cohort_fails_cases_with_a_reason_and_leaves_no_halves(
    database_on_it: bool, start: Start, images: dict[str, str], tmp_path: Path
) -> None:
    """Results are on it, and the database too, as both are by default: a failure it has no room for is tried again."""
    jobs = tmp_path / ("home/service" if database_on_it else "") / "jobs.db"
    with small_disk(tmp_path / "home", 3000) as disk:
        web = start("web", database=sqlite_url(jobs), min_free_bytes=2**17)
        draws = {"samples": 32, "seed": 2}  # so that sampling outlasts writing: a case is in it when the disk is full
        undisturbed = web.post(images, **draws)
        assert web.finish(undisturbed)["counts"]["done"] == CASES
        expected = digests(web, undisturbed, images)
        cohort = web.post(images, **draws)
        wait_for(web, cohort, 2)
        ballast = fill(disk)
        time.sleep(4)  # longer than a lease
        body = {"cases": [{"name": "a", "image": images["c0"]}], "samples": 1}
        assert web.http.post("/v1/cohorts", json=body).status_code in (202, 503)  # the database may have room
        content = Path(images["c0"]).read_bytes()
        problem(web.http.post("/v1/uploads", files={"image": ("c0.nii.gz", content)}), 507, "storage-full")
        assert web.http.get(f"/v1/cohorts/{cohort}").status_code == 200
        ballast.unlink()
        counts = web.finish(cohort)["counts"]
        assert counts["done"] + counts["failed"] == CASES and counts["done"] >= 2, counts
        assert database_on_it or counts["failed"], counts
        states = {case["name"]: case for case in web.http.get(f"/v1/cohorts/{cohort}").json()["cases"]}
        for name, case in states.items():
            assert case["state"] == "done" or "is full, its results can't be kept" in case["error"], (name, case)
        kept = [name for name, case in states.items() if case["state"] == "done"]
        assert digests(web, cohort, kept) == {name: expected[name] for name in kept}
        assert sorted(name for name, _ in ends(web, cohort).elements()) == sorted(images)
        results = web.home / "service" / "results" / cohort
        assert {path.name for path in results.iterdir()} == {*kept, "dataset_description.json"}
        lost = {name: images[name] for name in images if name not in kept}
        if lost:  # with the database on the disk too, every case may have waited for room
            again = web.post(lost, **draws)
            assert web.finish(again)["counts"]["done"] == len(lost)
            assert digests(web, again, lost) == {name: expected[name] for name in lost}
        nothing_left(sqlite_url(jobs))
        web.stop()


def fill(disk: Path) -> Path:
    """To the last byte."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            return ballast
    raise AssertionError("unreachable")
