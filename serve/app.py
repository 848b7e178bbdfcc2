"""The Ray Serve application: `build` makes it from settings, here or from serve/config.yaml."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, cast

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve import Application
from ray.serve.context import _get_global_client

from serve import backpressure, listening
from serve.api.application import Service, create_app
from serve.http.security import check_reach, known_tokens
from serve.http.shares import MOST_ONGOING
from serve.jobs.casework import Casework
from serve.jobs.runner import Runner
from serve.jobs.scaling import autoscale
from serve.jobs.storage import Storage
from serve.sampling.actors import Actors
from serve.sampling.catalog import Catalog
from serve.sampling.pool import Pool, spawner
from serve.sampling.sampler import Sampler
from serve.settings import Settings
from serve.store import JobStore, sqlite_url
from serve.telemetry import Metrics

log = logging.getLogger("ray.serve")

MODELS_HELD = 3  # by a sampler: one in use, one that an alias moves to, one to compare with


@serve.deployment(
    name="Ingress",
    num_replicas=1,  # it owns the job store and the runner
    max_ongoing_requests=MOST_ONGOING,  # more than serve.http.shares lets in, so that health is always answered
    max_queued_requests=200,
    ray_actor_options={"num_cpus": 0.5},
    graceful_shutdown_timeout_s=2,
    graceful_shutdown_wait_loop_s=0.2,
    health_check_period_s=2,
)
@serve.ingress()
class Ingress:
    """HTTP in; it keeps the jobs and the samplers, which end with it.

    Args:
        sampler: the class of the samplers; a benchmark has one that does not compute.
    """

    def __init__(self, settings: dict[str, Any], sampler: type[Sampler] = Sampler) -> None:
        backpressure.in_replica()
        listening.in_replica()
        self.settings = Settings.from_dict(settings)
        self.settings.folder.mkdir(parents=True, exist_ok=True)
        self.pool = make_pool(self.settings, sampler)
        self.service = make_service(self.settings, self.pool)
        self.service.metrics.watch(self.pool.actors)
        self.service.runner.start()
        work = [self._self_test()]
        if self.settings.most_replicas > self.settings.replicas:
            work.append(autoscale(self.settings, self.pool, self.service.runner))
        self._tasks = [asyncio.get_running_loop().create_task(task) for task in work]

    async def __del__(self) -> None:
        for task in self._tasks:
            task.cancel()
        await self.service.runner.stop()

    def __serve_build_asgi_app__(self) -> FastAPI:
        app = create_app(self.service)
        app.add_middleware(backpressure.PatientSend)
        return app

    async def _self_test(self) -> None:
        while not self.service.self_tested.is_set():
            try:
                own = await asyncio.to_thread(self.service.catalog.own)
                measured = asyncio.to_thread(self.service.casework.measure, own)
                await asyncio.gather(self.pool.load([own.ref]), measured)
                await self.pool.actors.started(self.settings.replicas)
                self.service.self_tested.set()
            except Exception:  # not ready is told at /health/ready, and tried again
                log.exception("the model did not pass its self test")
                await asyncio.sleep(2)


def make_service(settings: Settings, pool: Pool) -> Service:
    """What the routes work with, and the runner, not yet started."""
    catalog, metrics = Catalog(settings), Metrics()
    store = JobStore(settings.database_url or sqlite_url(settings.folder / "jobs.db"))
    storage = Storage(settings, store)
    casework = Casework(settings, catalog, pool, storage, slots=settings.case_threads)
    runner = Runner(settings, store, casework, metrics)
    return Service(settings, catalog, store, casework, runner, metrics)


def make_pool(settings: Settings, sampler: type[Sampler] = Sampler) -> Pool:
    """The samplers of these settings; they start now, and end with this process."""
    spawn = spawner(
        sampler,
        device=settings.device,
        chunk_size=settings.chunk_size,
        threads=settings.threads_per_replica,
        held=MODELS_HELD,
        cpus=settings.cpus_per_replica,
        gpus=settings.gpus_per_replica,
    )
    return Pool(Actors(spawn, settings.replicas), chunk_size=settings.chunk_size, attempts=settings.chunk_attempts)


def build(args: dict[str, Any]) -> Application:
    """The application.

    Args:
        args: the fields of `Settings`.

    Raises:
        SettingsError: an unknown or impossible setting, or Serve listens to others and they are not kept out.
        TokenError: the file of tokens can't be used.
        UnknownModel, UnusableModel: there is no such model.
    """
    settings = Settings.from_dict(args)
    known_tokens(settings)
    if ray.is_initialized() and (running := _get_global_client(raise_if_no_controller_running=False)) is not None:
        listens = running.http_config
        check_reach(listens.host or "localhost", settings, certificate=bool(listens.ssl_certfile))
    Catalog(settings).own()
    return cast(Application, Ingress.bind(settings.to_dict()))  # type: ignore[attr-defined]
