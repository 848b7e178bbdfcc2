"""Processes of a whole service killed or stopped in mid-cohort: samplers, the replica with the runner, the node."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from service import JOB_S, Service, descendants, write_image

from ldseg.bundle import Bundle
from ldseg.results.publication import STAGING
from serve.store import JobStore, sqlite_url

pytestmark = pytest.mark.slow  # minutes: leases run out, silent processes are given up
NAMES = tuple(f"c{k}" for k in range(8))
DRAWS = {"samples": 32, "steps": 100, "seed": 4}  # a second and more of a case, so that something can happen in it
Files = dict[str, dict[str, bytes]]


class Running:
    """A service on a folder of runs of its own; it can be started again on the same.

    Attributes:
        undisturbed: the files of every case of a cohort that nothing happened to.
    """

    def __init__(self, bundle: Bundle, folder: Path) -> None:
        self.images = {name: write_image(folder / "data" / f"{name}.nii.gz", k) for k, name in enumerate(NAMES)}
        self.bundle, self.folder = bundle, folder
        self.start()
        cohort = self.service.post(self.images, **DRAWS)
        assert self.service.wait(cohort)["counts"]["done"] == len(NAMES)
        self.undisturbed = self.files(cohort)

    def start(self) -> None:
        self.service = Service(self.bundle.path, self.folder / "data", self.folder / "runs").wait_ready()

    def files(self, cohort: str) -> Files:
        return {name: self.service.maps(cohort, name) for name in NAMES}

    def begun(self) -> str:
        """A cohort that is in its midst."""
        cohort = self.service.post(self.images, **DRAWS)
        until(lambda: 1 <= self.counts(cohort)["done"] < len(NAMES) - 2)
        return cohort

    def counts(self, cohort: str) -> dict[str, int]:
        return dict(self.service.http.get(f"/v1/cohorts/{cohort}?cases=false").json()["counts"])

    def finished(self, cohort: str) -> None:
        """Wait for its end: every case was done once, with the bytes of the undisturbed one, and nothing is left."""
        until(lambda: self.ended(cohort))
        assert self.counts(cohort)["done"] == len(NAMES)
        assert self.files(cohort) == self.undisturbed
        store = JobStore(sqlite_url(self.folder / "runs" / "service" / "jobs.db"))
        queue, events = store.queue(), store.events(cohort, owner=None)
        store.close()
        assert (queue.queued, queue.running, queue.failed) == (0, {}, {})
        assert Counter(event.name for event in events if event.state == "done") == Counter([*NAMES, None])
        results = self.folder / "runs" / "service" / "results" / cohort
        found = {path.name for path in results.iterdir()}
        # what was half-written at a kill is swept when no other service can be at work on it any more: after an hour
        assert {name for name in found if not name.startswith(STAGING)} == {*NAMES, "dataset_description.json"}

    def ended(self, cohort: str) -> bool:
        """Also while the service is away."""
        try:
            answer = self.service.http.get(f"/v1/cohorts/{cohort}?cases=false", timeout=10)
        except httpx.HTTPError:
            return False
        return answer.status_code == 200 and answer.json()["state"] in ("done", "cancelled")

    def processes(self, name: bytes) -> list[int]:
        """Of this service whose title has a word."""
        return [pid for pid in descendants(self.service.process.pid) if name in title(pid)]


def title(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def until(condition: Callable[[], Any], seconds: float = JOB_S) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def running(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    made = Running(bundle, tmp_path_factory.mktemp("killed"))
    yield made
    status, _ = made.service.stop()
    assert status == 0, made.service.log.read_text()[-2000:]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_sampler_that_is_killed_or_stopped_is_replaced_and_no_byte_differs(running: Running, number: int) -> None:
    cohort = running.begun()
    hit = running.processes(b"ray::Sampler")[0]
    os.kill(hit, number)
    running.finished(cohort)
    until(lambda: len(set(running.processes(b"ray::Sampler")) - {hit}) == 2)
    until(lambda: hit not in running.processes(b"ray::Sampler"))
    assert running.service.http.get("/health/ready").status_code == 200


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_the_replica_that_owns_the_runner_is_replaced_and_its_cases_go_on(running: Running, number: int) -> None:
    cohort = running.begun()
    (hit,), samplers = running.processes(b"Ingress"), running.processes(b"ray::Sampler")
    os.kill(hit, number)
    running.finished(cohort)
    assert hit not in running.processes(b"Ingress") and len(running.processes(b"Ingress")) == 1
    running.service.wait_ready()
    now = running.processes(b"ray::Sampler")
    assert len(now) == 2 and not set(now) & set(samplers)  # they end with who made them


def test_serves_own_processes_killed_come_back_and_the_cohort_goes_on(running: Running) -> None:
    cohort = running.begun()
    hit = [*running.processes(b"ServeController"), *running.processes(b"ProxyActor")]
    assert len(hit) == 2
    for pid in hit:
        os.kill(pid, signal.SIGKILL)
    running.finished(cohort)
    until(lambda: len(running.processes(b"ServeController")) == len(running.processes(b"ProxyActor")) == 1)


def test_the_whole_node_killed_ends_the_program_and_its_restart_goes_on(running: Running) -> None:
    cohort = running.begun()
    for pid in descendants(running.service.process.pid):
        os.kill(pid, signal.SIGKILL)
    assert running.service.process.wait(JOB_S) == 1, "else whoever restarts services never learns of it"
    log = running.service.log.read_text()
    assert "Ray has ended" in log and "Traceback" not in log
    running.start()
    running.finished(cohort)
