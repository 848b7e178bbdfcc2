"""Nodes that come and go under the service: several Ray nodes on this machine, killed by signal 9."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
from deployed import Deployed, ray_environment
from drawn import CHUNK, alone, case, ref, same
from ray.cluster_utils import Cluster
from raying import Loop
from service import free_port, write_image
from tiny import random_bundle, tiny_config

from ldseg.bundle import Bundle
from ldseg.orchestration.cluster import connection
from ldseg.posterior.plan import SamplePlan
from serve.sampling.actors import Actors
from serve.sampling.pool import Drawn, Pool
from serve.sampling.sampler import Sampler

pytestmark = pytest.mark.slow  # minutes: a cluster, and processes that import torch anew
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers can't import a test

NAMES, WAIT_S = 16, 400.0
QUICK = {  # a node that is gone is noticed within seconds
    "health_check_initial_delay_ms": 2000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 5,
}


class Nodes:
    """A head with room for the service's HTTP process alone, and nodes with room for one sampler each."""

    def __init__(self) -> None:
        self.dashboard = free_port()
        head = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "_system_config": QUICK}
        head |= {"include_dashboard": True, "dashboard_port": self.dashboard, "dashboard_host": "127.0.0.1"}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)

    def add(self, **resources: float) -> Any:
        return self.cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20, resources=resources)

    def kill(self, node: Any) -> None:
        self.cluster.remove_node(node, allow_graceful=False)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    connection.shutdown()  # other tests of the same process may have left theirs
    before = dict(os.environ)
    os.environ.update(ray_environment(RAY_AUTH_MODE="disabled"))  # this process has read the mode already
    made = Nodes()
    yield made
    ray.shutdown()
    made.cluster.shutdown()
    os.environ.clear()
    os.environ.update(before)


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.2)


def test_a_node_that_joins_is_used_and_one_that_is_lost_costs_no_case(
    nodes: Nodes, bundle: Bundle, tmp_path: Path
) -> None:
    images = {f"case_{k}": write_image(tmp_path / "images" / f"case_{k}.nii.gz", k) for k in range(NAMES)}
    served = Deployed(tmp_path, nodes.dashboard, model=str(bundle.path), allow_roots=[str(tmp_path / "images")])
    until(lambda: _status(served, "/health/live") == 200)
    assert _status(served, "/health/ready") == 503, "there is no room for a sampler yet"
    nodes.add()
    served.wait_ready()

    draws = {"samples": 48, "steps": 200, "seed": 3}
    cohort = served.post(images, **draws)
    second = nodes.add()
    until(lambda: served.samplers("alive") == 2)
    time.sleep(1)
    assert served.http.get(f"/v1/cohorts/{cohort}").json()["state"] == "running", "else this shows nothing"
    nodes.kill(second)
    until(lambda: served.samplers("alive") == 1)
    assert _ended(served, cohort) == {"queued": 0, "running": 0, "done": NAMES, "failed": 0, "cancelled": 0}

    again = served.post(images, **draws)
    nodes.add()
    until(lambda: served.samplers("alive") == 2)
    assert _ended(served, again)["done"] == NAMES
    for name in images:
        assert served.maps(cohort, name) == served.maps(again, name), "work that was done again has the same bytes"


def _status(served: Deployed, path: str) -> int:
    """0 before the service listens."""
    try:
        return served.http.get(path).status_code
    except httpx.HTTPError:
        return 0


def _ended(served: Deployed, cohort: str) -> dict[str, int]:
    until(lambda: served.http.get(f"/v1/cohorts/{cohort}").json()["state"] == "done")
    return dict(served.http.get(f"/v1/cohorts/{cohort}").json()["counts"])


class Counting(Sampler):
    """Writes down each chunk that it begins."""

    async def sample(self, *args: Any) -> Any:
        with open(os.environ["CHUNKS_BEGUN"], "a") as file:
            file.write("+")
        return await super().sample(*args)


def test_a_lost_node_costs_the_chunks_that_it_was_given(nodes: Nodes, tmp_path: Path) -> None:
    model, plan = random_bundle(tmp_path / "model", tiny_config(3)), SamplePlan.fixed(96)
    ray.init(address=nodes.cluster.address, log_to_driver=False)
    begun, loop = tmp_path / "begun", Loop()
    lost, _ = nodes.add(place=1), nodes.add(place=1)
    options = {"num_cpus": 0, "resources": {"place": 1}, "max_concurrency": 100}
    spawn = ray.remote(Counting).options(runtime_env={"env_vars": {"CHUNKS_BEGUN": str(begun)}}, **options)

    async def start() -> Pool:
        actors = Actors(lambda: spawn.remote("cpu", CHUNK, 1, 1), 2)
        await actors.started()
        return Pool(actors, chunk_size=CHUNK)

    pool = loop.run(start())
    grid = case(model)
    work = asyncio.run_coroutine_threadsafe(_draw(pool, grid, plan, model), loop.loop)
    until(lambda: begun.exists() and len(begun.read_text()) >= 10)
    assert not work.done()
    nodes.kill(lost)
    drawn = work.result(WAIT_S)
    assert same(drawn.totals, alone([model], grid, plan, seed=3, num_steps=100))
    chunks, extra = 96 // CHUNK, len(begun.read_text()) - 96 // CHUNK
    assert 1 <= extra <= pool.actors.depth, f"{extra} of {chunks} chunks were begun again"
    loop.run(pool.actors.close())
    loop.close()


async def _draw(pool: Pool, grid: Any, plan: SamplePlan, model: Bundle) -> Drawn:
    return await pool.draw(grid, seed=3, plan=plan, num_steps=100, models=[ref(model)], whole=False)
