"""What a cohort survives: services that are killed, a database that goes away, models that change under it."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from registered import begin
from service import problem, write_image
from stores import Server
from tiny import random_bundle, tiny_config
from web import Web

from ldseg.bundle import Bundle
from ldseg.orchestration import tracking
from ldseg.orchestration.registry import register_bundle
from serve.store import JobStore

Start = Callable[..., Web]
CASES = 8
QUICK = {"lease_s": 3.0, "cases_in_flight": 2}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("cohort")
    return {f"c{k}": str(write_image(folder / f"c{k}.nii.gz", seed=k)) for k in range(CASES)}


@pytest.fixture
def start(bundle: Bundle, images: dict[str, str], tmp_path: Path) -> Iterator[Start]:
    """Starts services on one home, and ends them."""
    started: list[Web] = []
    root = str(Path(next(iter(images.values()))).parent)

    def one(folder: str, **settings: object) -> Web:
        home = tmp_path / "home"
        web = Web(bundle.path, tmp_path / folder, **{"home": str(home), "allow_roots": [root]} | QUICK | settings)
        started.append(web)
        return web.wait_ready()

    yield one
    for web in started:
        web.stop()


def digests(web: Web, cohort: str) -> dict[str, dict[str, str]]:
    """The checksum of every file of every case, as the service has them on disk."""
    found = {}
    for name in (f"c{k}" for k in range(CASES)):
        case = web.http.get(f"/v1/cohorts/{cohort}/cases/{name}").json()
        assert case["state"] == "done", case
        entries = {key: entry for key, entry in case["files"].items()}
        for entry in entries.values():
            assert len(web.http.get(entry["href"]).content) == entry["bytes"]
        found[name] = {key: entry["sha256"] for key, entry in entries.items()}
    return found


def wait_for(web: Web, cohort: str, count: int) -> None:
    """Until so many cases are done."""
    deadline = time.monotonic() + 120
    while web.http.get(f"/v1/cohorts/{cohort}?cases=false").json()["counts"]["done"] < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def nothing_left(url: str) -> None:
    store = JobStore(url)
    queue = store.queue()
    store.close()
    assert (queue.queued, queue.running) == (0, {})


def test_two_services_share_a_database_and_one_finishes_what_the_other_was_killed_at(
    start: Start, postgres: Server, images: dict[str, str]
) -> None:
    url = postgres.new()
    one, two = start("one", database=url), start("two", database=url)
    undisturbed = one.post(images, samples=3, seed=1)
    assert one.finish(undisturbed)["counts"]["done"] == CASES
    cohort = one.post(images, samples=3, seed=1)
    wait_for(two, cohort, 1)
    os.kill(one.process.pid, signal.SIGKILL)
    one.process.wait()
    assert two.finish(cohort)["counts"]["done"] == CASES
    assert digests(two, cohort) == digests(two, undisturbed)
    events = two.http.get(f"/v1/cohorts/{cohort}/events", headers={"Accept": "text/event-stream"}).text
    ended = [json.loads(line[6:]) for line in events.splitlines() if line.startswith("data: ")]
    assert sorted(e["name"] for e in ended if e.get("state") == "done" and "name" in e) == sorted(images)
    nothing_left(url)


def test_a_cohort_waits_for_a_database_that_is_gone_and_goes_on(
    start: Start, postgres: Server, images: dict[str, str]
) -> None:
    url = postgres.new()
    web = start("web", database=url)
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
    digests(web, cohort)
    nothing_left(url)


def test_the_same_key_from_many_clients_at_once_is_one_cohort(start: Start, images: dict[str, str]) -> None:
    web = start("web")
    body = {"cases": [{"name": "a", "image": images["c0"]}], "samples": 2}
    answers: list[httpx.Response] = []
    barrier = threading.Barrier(12)

    def post() -> None:
        barrier.wait()
        answers.append(web.http.post("/v1/cohorts", json=body, headers={"Idempotency-Key": "k"}))

    threads = [threading.Thread(target=post) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {answer.status_code for answer in answers} == {202} and len({a.json()["id"] for a in answers}) == 1
    other = web.http.post("/v1/cohorts", json=body | {"seed": 5}, headers={"Idempotency-Key": "k"})
    problem(other, 422, "idempotency-conflict")


def test_a_small_cohort_does_not_wait_for_a_large_one(start: Start, images: dict[str, str]) -> None:
    web = start("web")
    large = web.post({f"n{k}": images[f"c{k % CASES}"] for k in range(200)}, samples=4, seed=3)
    wait_for(web, large, 1)
    small = web.post({f"s{k}": images[f"c{k}"] for k in range(3)}, samples=4, seed=3)
    assert web.finish(small)["counts"]["done"] == 3
    counts = web.http.get(f"/v1/cohorts/{large}?cases=false").json()["counts"]
    assert counts["done"] < 100, counts
    assert web.http.delete(f"/v1/cohorts/{large}").json()["state"] == "cancelled"
    assert web.finish(large)["counts"]["running"] == 0
    assert web.http.delete(f"/v1/cohorts/{large}?forget=true").status_code == 200
    problem(web.http.get(f"/v1/cohorts/{large}"), 404, "not-found")
    assert not (web.home / "service" / "results" / large).exists()


def test_samples_are_drawn_until_they_are_enough(start: Start, images: dict[str, str]) -> None:
    web = start("web")
    wanted = {"min": 4, "max": 40, "tolerance": 0.02}
    cohort = web.post({"a": images["c0"]}, samples=wanted)
    document = web.finish(cohort)
    assert document["samples"] == wanted and document["counts"]["done"] == 1
    used = web.http.get(f"/v1/cohorts/{cohort}/cases/a").json()["numbers"]["samples"]
    assert 4 <= used <= 40
    strict = web.post({"a": images["c0"]}, samples=wanted | {"tolerance": 1e-6})
    web.finish(strict)
    assert web.http.get(f"/v1/cohorts/{strict}/cases/a").json()["numbers"]["samples"] == 40
    assert used < 40


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> tuple[tracking.Tracker, list[Bundle]]:
    """Three versions of one model."""
    home = tmp_path_factory.mktemp("registry")
    tracker, bundles = tracking.connect(home), []
    for seed in range(3):
        made = random_bundle(home / f"bundle{seed}", tiny_config(), seed=seed)
        run = begin(tracker, f"m-{seed}")
        register_bundle(tracker, made.path, "m", run_id=run, metrics={"test_dice": 0.9})
        tracker.client.set_terminated(run)
        bundles.append(made)
    tracker.client.set_registered_model_alias("m", "champion", "1")
    return tracker, bundles


def test_a_promotion_in_mid_cohort_reaches_new_cases_and_fails_none(
    start: Start, images: dict[str, str], registry: tuple[tracking.Tracker, list[Bundle]]
) -> None:
    tracker, bundles = registry
    home = str(tracker.home)
    web = start("web", model="models:/m@champion", home=home)
    cohort = web.post({f"n{k}": images[f"c{k % CASES}"] for k in range(60)}, samples=4)
    wait_for(web, cohort, 2)
    tracker.client.set_registered_model_alias("m", "champion", "2")
    assert web.finish(cohort)["counts"]["done"] == 60
    cases = web.http.get(f"/v1/cohorts/{cohort}/cases?limit=500").json()["cases"]
    used = [case["model_digest"] for case in sorted(cases, key=lambda case: case["numbers"]["case"])]
    assert set(used) == {bundles[0].digest, bundles[1].digest}
    assert all(case["numbers"]["model_digest"] == case["model_digest"] for case in cases)
    pinned = web.post({"a": images["c0"]}, models=["models:/m/1"])
    by_digest = web.post({"a": images["c0"]}, models=[bundles[1].digest])
    several = web.post({"a": images["c0"]}, models=["models:/m/1", "models:/m/2"])
    for posted, digest in ((pinned, bundles[0].digest), (by_digest, bundles[1].digest)):
        web.finish(posted)
        assert web.http.get(f"/v1/cohorts/{posted}/cases/a").json()["model_digest"] == digest
    web.finish(several)
    ensemble = web.http.get(f"/v1/cohorts/{several}/cases/a").json()
    assert ensemble["model_digest"] == f"{bundles[0].digest} {bundles[1].digest}"
    assert {"total", "epistemic", "aleatoric"} <= set(ensemble["files"])
    for unknown in ("models:/other@champion", "models:/m/99", "/etc/passwd", "sha256:" + "0" * 64):
        body = {"cases": [{"name": "a", "image": images["c0"]}], "models": [unknown]}
        problem(web.http.post("/v1/cohorts", json=body), 422, "model-not-usable")


def test_a_damaged_version_under_the_alias_is_refused_and_the_one_before_serves_on(
    start: Start, images: dict[str, str], registry: tuple[tracking.Tracker, list[Bundle]]
) -> None:
    tracker, bundles = registry
    tracker.client.set_registered_model_alias("m", "champion", "2")
    web = start("web", model="models:/m@champion", home=str(tracker.home))
    version = tracker.client.get_model_version("m", "3")
    stored = [p for p in tracker.home.rglob("weights.safetensors") if p.parent.parent != tracker.home]
    source = bundles[2].path / "weights.safetensors"
    (damaged,) = [p for p in stored if p.read_bytes() == source.read_bytes()]
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    tracker.client.set_registered_model_alias("m", "champion", str(version.version))
    time.sleep(2.5)  # the answer to an alias is kept for two seconds
    cohort = web.post({"a": images["c0"]})
    assert web.finish(cohort)["counts"]["done"] == 1
    assert web.http.get(f"/v1/cohorts/{cohort}/cases/a").json()["model_digest"] == bundles[1].digest
    assert "the model that it meant before goes on" in web.log.read_text()
    body = {"cases": [{"name": "a", "image": images["c0"]}], "models": ["models:/m/3"]}
    assert "can't be used" in problem(web.http.post("/v1/cohorts", json=body), 422, "model-not-usable")["detail"]
