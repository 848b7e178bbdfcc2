"""Cohorts removed or cancelled while they are worked on: nothing of them stays, also after a kill."""

from __future__ import annotations

import os
import signal
import stat
import time
from collections.abc import Callable
from pathlib import Path

from faulting import CASES, Start
from stores import LEASE_S, add
from web import Web

from ldseg.results.removal import REMOVED
from serve.store import JobStore, sqlite_url


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def running(web: Web) -> int:
    lines = web.http.get("/metrics").text.splitlines()
    return int(float(next(line.split()[1] for line in lines if line.startswith('ldseg_cases{state="running"}'))))


def left(results: Path) -> list[str]:
    """Files of results; marks of what was removed are folders."""
    return [str(path.relative_to(results)) for path in results.glob("*/**/*") if path.is_file()]


def test_cohorts_that_are_removed_or_cancelled_amid_their_work_leave_no_results(
    start: Start, images: dict[str, str]
) -> None:
    web = start("web")
    results = web.home / "service" / "results"
    for number in range(16):
        cohort = web.post(images, samples=1, steps=1, seed=number)
        until(lambda folder=results / cohort: folder.exists())  # it is publishing just now
        time.sleep(0.01 * number)
        forget = "?forget=true" if number % 2 else ""
        assert web.http.delete(f"/v1/cohorts/{cohort}{forget}").status_code == 200
        until(lambda: running(web) == 0)
        document = web.http.get(f"/v1/cohorts/{cohort}")
        assert document.status_code == (404 if number % 2 else 200)
        done = set() if number % 2 else {c["name"] for c in document.json()["cases"] if c["state"] == "done"}

        def kept(folder: Path = results / cohort) -> set[str]:
            return {path.name for path in folder.glob("*/")}

        until(lambda kept=kept, done=done: kept() == done)
        assert not number % 2 or not (results / cohort).exists()
    assert "ERROR" not in web.log.read_text()


def test_what_a_kill_left_of_a_removal_goes_at_the_next_start(start: Start, images: dict[str, str]) -> None:
    web = start("web")
    results, jobs = web.home / "service" / "results", web.home / "service" / "jobs.db"
    kept, forgotten, cancelled = (web.post(images, samples=1, steps=1) for _ in range(3))
    for cohort in (kept, forgotten, cancelled):
        assert web.finish(cohort)["counts"]["done"] == CASES
    os.kill(web.process.pid, signal.SIGKILL)
    web.process.wait()
    (results / forgotten).rename(results / f"{REMOVED}{forgotten}")  # killed when the files were to go
    (results / forgotten / "c0").mkdir(parents=True)  # and another one amid publishing into it
    (results / forgotten / "c0" / "half").write_bytes(b"x")
    store = JobStore(sqlite_url(jobs))
    with store.database.write() as connection:  # killed when the case was published and its end not yet written
        connection.exec_driver_sql(
            "UPDATE job_cohorts SET done = done - 1, cancelled_cases = 1 WHERE id = ?", (cancelled,)
        )
        number = f"(SELECT number FROM job_cohorts WHERE id = '{cancelled}')"
        connection.exec_driver_sql(
            f"UPDATE job_cases SET state = 'cancelled', result = NULL WHERE name = 'c3' AND cohort = {number}"
        )
    store.close()
    unknown = results / "0123456789abcdef" / "a"  # of a database that was brought back from a backup
    unknown.mkdir(parents=True)
    (unknown / "map").write_bytes(b"x")
    web = start("again")
    until(lambda: not left(results / f"{REMOVED}{forgotten}") and not (results / forgotten).exists())
    until(lambda: web.http.get(f"/v1/cohorts/{forgotten}").status_code == 404)
    until(lambda: not (results / cancelled / "c3").exists())
    assert {path.name for path in (results / cancelled).glob("*/")} == set(images) - {"c3"}
    assert {path.name for path in (results / kept).glob("*/")} == set(images) and (unknown / "map").exists()


def test_everything_that_the_service_keeps_is_for_its_user_alone(start: Start, images: dict[str, str]) -> None:
    web = start("web")
    cohort = web.post(images, samples=1, steps=1)
    assert web.finish(cohort)["counts"]["done"] == CASES
    with Path(images["c0"]).open("rb") as file:
        assert web.http.post("/v1/uploads", files={"image": ("c0.nii.gz", file)}).status_code == 201
    service = web.home / "service"
    found = [service, *service.rglob("*")]
    assert len(found) > 50
    for path in found:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), (path, oct(mode))


def test_a_case_that_waits_for_room_goes_back_to_the_queue(store: JobStore) -> None:
    cohort = add(store, "a", "b")
    work = store.claim("w", LEASE_S)
    assert store.give_back(work, "w", counted=False) and not store.give_back(work, "w", counted=False)
    assert not store.finish(work, "w", "done"), "it is nobody's"
    assert store.cohort(cohort, None).counts["queued"] == 2
    assert [(event.name, event.state, event.reason) for event in store.events(cohort, owner=None)][-2] == (
        "a", "queued", "no-room"
    )  # fmt: skip
    again = store.claim("w", LEASE_S)
    assert (again.name, again.attempts) == ("a", 1)
    assert store.give_back(again, "w", counted=True) and store.claim("w", LEASE_S).attempts == 2
    store.cancel(cohort)
    assert not store.give_back(again, "w", counted=False)
