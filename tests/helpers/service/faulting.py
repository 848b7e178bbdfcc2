"""Services without a cluster that faults happen to, and what must hold after each; conftest.py brings the fixtures."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from registered import begin
from service import write_image
from tiny import random_bundle, tiny_config
from web import Web

from ldseg.bundle import Bundle
from ldseg.orchestration.tracking import mlflow_client
from ldseg.orchestration.tracking.registry import register_bundle
from serve.store import JobStore

Start = Callable[..., Web]
Digests = dict[str, dict[str, str]]
CASES = 8
QUICK = {"lease_s": 3.0, "cases_in_flight": 2}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of a cohort."""
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


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> tuple[mlflow_client.Tracker, list[Bundle]]:
    """Three versions of one model, m; the champion is the first."""
    home = tmp_path_factory.mktemp("registry")
    tracker, bundles = mlflow_client.connect(home), []
    for seed in range(3):
        made = random_bundle(home / f"bundle{seed}", tiny_config(), seed=seed)
        run = begin(tracker, f"m-{seed}")
        register_bundle(tracker, made.path, "m", run_id=run, metrics={"test_dice": 0.9})
        tracker.client.set_terminated(run)
        bundles.append(made)
    tracker.client.set_registered_model_alias("m", "champion", "1")
    return tracker, bundles


def digests(web: Web, cohort: str, names: Iterable[str]) -> Digests:
    """The checksum of every file of these cases, which are done and whose files are as long as they should be."""
    found = {}
    for name in names:
        case = web.http.get(f"/v1/cohorts/{cohort}/cases/{name}").json()
        assert case["state"] == "done", case
        for entry in case["files"].values():
            assert len(web.http.get(entry["href"]).content) == entry["bytes"]
        found[name] = {key: entry["sha256"] for key, entry in case["files"].items()}
    return found


def wait_for(web: Web, cohort: str, count: int) -> None:
    """Until so many cases are done."""
    deadline = time.monotonic() + 120
    while web.http.get(f"/v1/cohorts/{cohort}?cases=false").json()["counts"]["done"] < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ends(web: Web, cohort: str) -> Counter[tuple[str, str]]:
    """How often each case ended, and how, as the events of an ended cohort tell it."""
    lines = web.http.get(f"/v1/cohorts/{cohort}/events").text.splitlines()
    told = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
    ended = ("done", "failed", "cancelled")
    return Counter((event["name"], event["state"]) for event in told if "name" in event and event["state"] in ended)


def nothing_left(url: str) -> None:
    """No case waits, no case is leased."""
    store = JobStore(url)
    queue = store.queue()
    store.close()
    assert (queue.queued, queue.running) == (0, {})
