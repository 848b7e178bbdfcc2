"""Leases: who falls silent loses the case, who kills workers is set aside, who stops cleanly gives it back."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
from service import ROOT
from sqlalchemy import update
from stores import LEASE_S, add, names

from serve.store import JobStore
from serve.store.schema import cases


def worker(url: str, name: str) -> subprocess.Popen[str]:
    """tests/serve/store/store_worker.py, which begins when it gets a line."""
    command = [sys.executable, str(ROOT / "tests" / "serve" / "store" / "store_worker.py"), url, name, str(LEASE_S)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def begin(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()


def expire(store: JobStore, worker: str) -> None:
    """As if a worker had been silent for an hour; to wait for it would make the tests depend on the machine's load."""
    late = update(cases).where(cases.c.worker == worker).values(lease=cases.c.lease - 3600)
    with store.database.write() as connection:
        connection.execute(late)


def test_a_lease_that_ran_out_is_taken_over_and_the_late_finish_is_refused(store: JobStore) -> None:
    cohort = add(store, "a")
    first = store.claim("one", LEASE_S)
    assert store.claim("two", LEASE_S) is None
    expire(store, "one")
    second = store.claim("two", LEASE_S)
    assert second.name == "a" and (first.attempts, second.attempts) == (1, 2)
    assert not store.finish(first, "one", "done", result={"x": 1})
    assert store.heartbeat("one", [(cohort, "a")], LEASE_S).lost == ((cohort, "a"),)
    assert store.finish(second, "two", "done", result={"x": 2})
    assert store.case(cohort, "a", owner=None).result == {"x": 2}
    told = [(event.name, event.state, event.reason) for event in store.events(cohort, owner=None)]
    assert told[3:5] == [("a", "queued", "lease-expired"), (None, "queued", None)]


def test_an_earlier_claim_of_the_same_worker_is_told_from_its_later_one(store: JobStore) -> None:
    add(store, "a")
    first = store.claim("w", LEASE_S)
    expire(store, "w")
    second = store.claim("w", LEASE_S)
    assert not store.finish(first, "w", "done") and store.finish(second, "w", "done")


def test_leases_run_out_by_the_clock(store: JobStore) -> None:
    add(store, "a")
    begun = time.time()
    store.claim("one", 0.5)
    while (work := store.claim("two", LEASE_S)) is None:
        assert time.time() < begun + 60
        time.sleep(0.05)
    assert work.attempts == 2 and time.time() - begun >= 0.5


def test_a_silent_worker_may_finish_what_nobody_has_taken(store: JobStore) -> None:
    add(store, "a")
    work = store.claim("w", LEASE_S)
    expire(store, "w")
    assert store.finish(work, "w", "done")


def test_heartbeats_hold_what_they_name_and_nothing_else(store: JobStore) -> None:
    cohort = add(store, "a", "b", "c")
    for _ in range(3):
        store.claim("w", LEASE_S)
    expire(store, "w")
    assert store.heartbeat("w", [(cohort, "a"), (cohort, "c"), ("gone", "x")], LEASE_S).lost == (("gone", "x"),)
    assert store.claim("other", LEASE_S).name == "b" and store.claim("other", LEASE_S) is None
    store.cancel(cohort)
    assert store.heartbeat("w", [(cohort, "c")], LEASE_S).lost == ((cohort, "c"),)
    assert store.heartbeat("w", [], LEASE_S).lost == ()


def test_a_case_that_ends_its_worker_three_times_is_set_aside(store: JobStore) -> None:
    cohort = add(store, "poison", "good")
    for attempt in (1, 2, 3):
        work = store.claim(f"w{attempt}", LEASE_S)
        assert (work.name, work.attempts) == ("poison", attempt)
        expire(store, f"w{attempt}")
    good = store.claim("w4", LEASE_S)
    assert good.name == "good" and store.claim("w4", LEASE_S) is None
    case = store.case(cohort, "poison", owner=None)
    assert (case.state, case.reason, case.attempts) == ("failed", "worker-died", 3)
    assert case.error.startswith("poison: its worker died") and "post it again" in case.error
    assert not store.finish(work, "w3", "done")
    store.finish(good, "w4", "done")
    assert store.cohort(cohort, None).state == "done" and store.queue().failed == {"worker-died": 1}


def test_a_clean_stop_gives_cases_back_without_counting(store: JobStore) -> None:
    cohort = add(store, "a", "b")
    other = store.claim("other", LEASE_S)
    for _ in range(5):
        work = store.claim("w", LEASE_S)
        assert (work.name, work.attempts) == ("b", 1)
        assert store.release("w") == 1
        assert not store.finish(work, "w", "done")
    assert store.release("w") == 0 and store.queue().running == {"other": 1}
    assert store.finish(other, "other", "done")
    assert store.cohort(cohort, None).counts == {"queued": 1, "running": 0, "done": 1, "failed": 0, "cancelled": 0}


def test_each_case_is_done_once_by_several_processes(url: str, store: JobStore) -> None:
    cohorts = [add(store, *names("c", 50)) for _ in range(3)]
    posted = [(cohort, name) for cohort in cohorts for name in names("c", 50)]
    processes = [worker(url, f"w{k}") for k in range(3)]
    begin(processes)
    lines = [tuple(line.split()) for process in processes for line in process.communicate(timeout=100)[0].splitlines()]
    assert all(process.returncode == 0 for process in processes)
    assert Counter(lines) == Counter(posted)
    assert all(cohort.counts["done"] == 50 for cohort in store.page(None, None, 9))


def test_kill_9_at_any_instant_leaves_no_case_stuck_and_none_done_twice(url: str) -> None:
    patient = JobStore(url, max_attempts=100)  # so many kills may hit one case
    cohort, told = add(patient, *names("c", 400)), []
    instants = random.Random(0)
    for number in range(6):
        process = worker(url, f"w{number}")
        begin([process])
        lines = [process.stdout.readline() for _ in range(instants.randint(1, 30))]  # at its own pace, however fast
        time.sleep(instants.uniform(0, 0.005))
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.readlines()
        process.wait()
        told += [line.split()[1] for line in lines if line.endswith("\n") and len(line.split()) == 2]
    assert 0 < len(told) < 400, "the workers were killed too late to leave anything"
    for number in range(6):
        expire(patient, f"w{number}")
    while (work := patient.claim("last", LEASE_S)) is not None:
        assert patient.finish(work, "last", "done", result={"by": "last"})
    found = patient.cohort(cohort, None)
    assert found.state == "done" and found.counts["done"] == 400
    by = {case.name: case.result["by"] for case in patient.every_case(cohort, owner=None, results=True)}
    assert all(by[name] != "last" for name in told)  # what was told as finished was not done again
    ends = Counter(event.name for event in replay(patient, cohort) if event.state == "done")
    assert ends == Counter([*names("c", 400), None])
    patient.close()


def replay(store: JobStore, cohort: str) -> list:
    """All events, by pages as a client reads them."""
    events: list = []
    while page := store.events(cohort, owner=None, after=len(events), limit=97):
        events += page
    assert [event.number for event in events] == list(range(1, len(events) + 1))
    return events


@pytest.mark.parametrize("attempts", [1, 2])
def test_many_leases_that_ran_out_are_all_taken_back(url: str, attempts: int) -> None:
    store = JobStore(url, max_attempts=attempts)
    cohorts = [add(store, *names("c", 130)), add(store, *names("c", 130))]
    for _ in range(260):
        store.claim("dead", LEASE_S)
    expire(store, "dead")
    while store.claim("w", LEASE_S) is not None or store.queue().running.get("dead"):
        pass
    assert store.queue().running == ({"w": 260} if attempts == 2 else {})
    for cohort in cohorts:
        assert store.cohort(cohort, None).counts["failed"] == (0 if attempts == 2 else 130)
    store.close()
