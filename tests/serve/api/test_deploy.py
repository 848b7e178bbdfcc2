"""`ray start --head` and `serve deploy serve/config.yaml`: a cohort, growth with the work, an update under load."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from deployed import CONFIG, Deployed, Head
from ray.serve.schema import ServeDeploySchema
from service import write_image

from ldseg.bundle import Bundle
from serve.settings import Settings

NAMES, WAIT_S = 12, 240.0


def test_the_file_is_a_serve_config_and_its_arguments_are_settings() -> None:
    parsed = ServeDeploySchema.model_validate(yaml.safe_load(CONFIG.read_text()))
    (application,) = parsed.applications
    settings = Settings.from_dict(application.args)
    assert application.import_path == "serve.app:build" and [d.name for d in application.deployments] == ["Ingress"]
    assert settings.most_replicas == 1000 and settings.replicas == 1


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("many")
    return {f"case_{k}": write_image(folder / f"case_{k}.nii.gz", k, (20, 20, 20)) for k in range(NAMES)}


@pytest.fixture(scope="module")
def deployed(bundle: Bundle, images: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    folder = tmp_path_factory.mktemp("deploy")
    head = Head(folder, cpus=3)
    try:
        root = str(images["case_0"].parent)
        made = Deployed(
            folder, head.dashboard, model=str(bundle.path), allow_roots=[root], idle_replica_s=4, cpus_per_replica=0.8
        )
        yield made.wait_ready()
    finally:
        head.stop()


@pytest.mark.slow
def test_samplers_are_added_while_cases_wait_and_given_back_when_idle(
    deployed: Deployed, images: dict[str, Path]
) -> None:
    assert deployed.samplers("alive") == 1
    cohort = deployed.post(images, samples=256, steps=100)  # much more than will be waited for
    until(lambda: deployed.samplers("alive") == 3)  # 3 CPUs less 0.5 for the ingress, and 0.8 each
    until(lambda: deployed.samplers("starting") == 1)  # waits for a node
    time.sleep(5)
    assert deployed.samplers("alive") + deployed.samplers("starting") == 4
    assert deployed.http.delete(f"/v1/cohorts/{cohort}").status_code < 300
    until(lambda: deployed.samplers("alive") + deployed.samplers("starting") == 1)
    small = deployed.post({"case_0": images["case_0"]}, samples=4)
    assert deployed.wait(small)["counts"]["done"] == 1


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.5)


class Asking(threading.Thread):
    """A client that asks all the time, and what it was answered."""

    def __init__(self, deployed: Deployed, method: str, path: str, **body: Any) -> None:
        super().__init__(daemon=True)
        self.http = httpx.Client(
            base_url=deployed.url, headers=dict(deployed.http.headers), timeout=120, trust_env=False
        )
        self.request, self.ended = (method, path, body), threading.Event()
        self.failed: list[str] = []
        self.count = 0
        self.start()

    def run(self) -> None:
        method, path, body = self.request
        while not self.ended.is_set():
            try:
                answer = self.http.request(method, path, **body)
                if answer.status_code >= 400:
                    self.failed.append(f"{answer.status_code} {answer.text[:200]}")
            except httpx.HTTPError as error:
                self.failed.append(repr(error))
            self.count += 1
            time.sleep(0.02)


@pytest.mark.slow
def test_an_update_under_load_fails_no_request_and_no_case(deployed: Deployed, images: dict[str, Path]) -> None:
    cohort = deployed.post(images, samples=16, steps=40)
    one = {"cases": [{"name": "a", "image": str(images["case_0"])}], "samples": 4}
    clients = [Asking(deployed, "GET", f"/v1/cohorts/{cohort}"), Asking(deployed, "GET", "/health/live")]
    clients += [Asking(deployed, "GET", "/v1/cohorts"), Asking(deployed, "POST", "/v1/cohorts", json=one)]
    clients[-1].http.headers["Idempotency-Key"] = "the same one"
    try:
        time.sleep(2)
        before = [client.count for client in clients]
        deployed.deploy(max_samples=128)
        until(lambda: "at most 128" in deployed.http.post("/v1/cohorts", json=one | {"samples": 1000}).text)
        ended = deployed.wait(cohort)
    finally:
        for client in clients:
            client.ended.set()
        for client in clients:
            client.join(130)
    assert [client.failed for client in clients] == [[], [], [], []]
    assert all(client.count > count for client, count in zip(clients, before, strict=True))
    assert ended["counts"]["done"] == NAMES
    deployed.wait_ready()
