"""What a cohort survives: services that are killed or stopped, a database that goes away, a disk that is full."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from faulting import CASES, Start, digests, ends, nothing_left, wait_for
from service import problem, write_image
from smalldisk import small_disk
from stores import Server
from web import Web

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
def test_a_disk_that_is_full_in_mid_cohort_makes_cases_wait_and_removing_old_results_is_the_cure(
    database_on_it: bool, start: Start, images: dict[str, str], tmp_path: Path
) -> None:
    """Results are on it, and the database too, as both are by default."""
    jobs = tmp_path / ("home/service" if database_on_it else "") / "jobs.db"
    with small_disk(tmp_path / "home", 16_000) as disk:
        web = start("web", database=sqlite_url(jobs), min_free_bytes=2**17)
        draws = {"samples": 32, "seed": 2}  # so that sampling outlasts writing: a case is in it when the disk is full
        undisturbed, old = web.post(images, **draws), web.post(images, **draws)
        assert web.finish(undisturbed)["counts"]["done"] == web.finish(old)["counts"]["done"] == CASES
        expected = digests(web, undisturbed, images)
        results = web.home / "service" / "results"
        (results / old / "c0" / "large").write_bytes(bytes(6 * 2**20))  # SQLite's log alone may take 4 MiB
        cohort = web.post(images, **draws)
        wait_for(web, cohort, 2)
        fill(disk)
        assert "disk is full" in refused(web, images, 507, "storage-full")
        content = Path(images["c0"]).read_bytes()
        problem(web.http.post("/v1/uploads", files={"image": ("c0.nii.gz", content)}), 507, "storage-full")
        time.sleep(4)  # longer than a lease
        assert web.http.get(f"/v1/cohorts/{cohort}").json()["counts"]["failed"] == 0
        assert web.http.delete(f"/v1/cohorts/{old}?forget=true").status_code == 200
        assert web.finish(cohort)["counts"]["done"] == CASES
        assert digests(web, cohort, images) == expected
        until(lambda: web.http.get(f"/v1/cohorts/{old}").status_code == 404)
        assert web.http.get("/health/ready").status_code == 200
        assert {path.name for path in (results / cohort).iterdir()} == {*images, "dataset_description.json"}
        assert not list(results.glob(f"*{old}/*"))
        nothing_left(sqlite_url(jobs))
        web.stop()


def test_a_case_that_does_not_fit_on_the_disk_fails_alone_and_leaves_its_room(
    start: Start, images: dict[str, str], tmp_path: Path
) -> None:
    large = write_image(tmp_path / "large" / "large.nii.gz", shape=(96, 72, 64))
    roots = [str(Path(images["c0"]).parent), str(large.parent)]
    with small_disk(tmp_path / "home", 1000) as disk:
        database = sqlite_url(tmp_path / "jobs.db")
        web = start("web", database=database, min_free_bytes=2**17, allow_roots=roots)
        free = shutil.disk_usage(disk).free
        cohort = web.post({"large": str(large)} | {name: images[name] for name in ("c0", "c1")}, samples=2)
        counts = web.finish(cohort)["counts"]
        assert (counts["done"], counts["failed"]) == (2, 1)
        failed = web.http.get(f"/v1/cohorts/{cohort}/cases/large").json()
        assert failed["error"].startswith("large: ") and "disk" in failed["error"], failed
        assert str(tmp_path) not in failed["error"]
        assert web.http.get("/health/ready").status_code == 200
        assert free - shutil.disk_usage(disk).free < 2**19
        nothing_left(database)
        web.stop()


def refused(web: Web, images: dict[str, str], status: int, kind: str) -> str:
    """The reason, which /health/ready tells too."""
    answer = web.http.post("/v1/cohorts", json={"cases": [{"name": "a", "image": images["c0"]}], "samples": 1})
    detail = str(problem(answer, status, kind)["detail"])
    assert detail in problem(web.http.get("/health/ready"), 503, "not-ready")["detail"]
    return detail


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


@pytest.mark.parametrize("how", ["read-only", "gone", "replaced"])
def test_cases_wait_for_a_results_folder_that_is_read_only_or_gone(
    how: str, start: Start, images: dict[str, str], tmp_path: Path
) -> None:
    results = tmp_path / "home" / "service" / "results"
    with small_disk(tmp_path / "home", 9000):
        web = start("web", database=sqlite_url(tmp_path / "jobs.db"), min_free_bytes=2**17)
        draws = {"samples": 32, "seed": 2}
        undisturbed = web.post(images, **draws)
        assert web.finish(undisturbed)["counts"]["done"] == CASES
        cohort = web.post(images, **draws)
        wait_for(web, cohort, 2)
        with disturbed(results, how):
            reason = refused(web, images, 503, "storage-unavailable")
            assert ("can't be written" in reason) == (how == "read-only") and str(tmp_path) not in reason
            until(lambda: web.http.get(f"/v1/cohorts/{cohort}?cases=false").json()["counts"]["running"] == 0)
            before = web.http.get(f"/v1/cohorts/{cohort}?cases=false").json()["counts"]
            assert before["failed"] == 0 and before["queued"] == CASES - before["done"] > 0
            forget = web.http.delete(f"/v1/cohorts/{undisturbed}?forget=true")
            problem(forget, 503, "storage-unavailable")
        assert web.finish(cohort)["counts"]["done"] == CASES
        assert web.http.get("/health/ready").status_code == 200
        assert digests(web, cohort, images) == digests(web, undisturbed, images)
        assert ends(web, cohort) == DONE_ONCE
        web.stop()


@contextmanager
def disturbed(results: Path, how: str) -> Iterator[None]:
    """For a time."""
    if how == "read-only":
        # seen through a mount of its own, since files of the service are open for writing on the disk
        subprocess.run(["mount", "--bind", str(results), str(results)], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", str(results)], check=True)
        yield
        subprocess.run(["umount", "--lazy", str(results)], check=True)
        return
    aside = results.rename(results.with_name("aside"))
    if how == "replaced":  # as a mount point without its disk
        results.mkdir()
    yield
    if how == "replaced":
        results.rmdir()  # nothing was written there
    aside.rename(results)


def test_a_database_file_that_was_removed_takes_no_cohort(start: Start, images: dict[str, str], tmp_path: Path) -> None:
    jobs = tmp_path / "jobs.db"
    web = start("web", database=sqlite_url(jobs))
    cohort = web.post(images)
    assert web.finish(cohort)["counts"]["done"] == CASES
    jobs.rename(tmp_path / "aside.db")
    assert "removed or replaced" in refused(web, images, 503, "database-unavailable")
    assert not jobs.exists()
    (tmp_path / "aside.db").rename(jobs)
    assert web.finish(web.post(images))["counts"]["done"] == CASES
    assert len(web.http.get("/v1/cohorts").json()["cohorts"]) == 2


def fill(disk: Path) -> None:
    """To the last byte."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            return
