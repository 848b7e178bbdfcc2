"""The Ray Serve application: `build` makes it from settings, here or from serve/config.yaml."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve import Application

from ldseg.bundle import load_bundle
from serve.actors import Actors
from serve.api import Service, create_app
from serve.jobs import Runner
from serve.models import ModelRef
from serve.pool import Pool, spawner
from serve.settings import Settings
from serve.store import JobStore

log = logging.getLogger("ray.serve")

MODELS_HELD = 3  # by a sampler: one in use, one that an alias moves to, one to compare with


@serve.deployment(
    name="Ingress",
    num_replicas=1,  # it owns the job store and the runner
    max_ongoing_requests=200,
    max_queued_requests=200,
    ray_actor_options={"num_cpus": 0.5},
    graceful_shutdown_timeout_s=2,
    graceful_shutdown_wait_loop_s=0.2,
    health_check_period_s=2,
)
@serve.ingress()
class Ingress:
    """HTTP in; it keeps the jobs and the samplers, which end with it."""

    def __init__(self, settings: dict[str, Any], bundle: str) -> None:
        self.settings = Settings.from_dict(settings)
        loaded = load_bundle(Path(bundle))
        store = JobStore(self.settings.folder / "jobs.db")
        self.model = ModelRef(bundle, loaded.digest)
        self.pool = make_pool(self.settings)
        self.service = Service(self.settings, loaded, store, Runner(self.settings, loaded, store, self.pool))
        self.service.runner.start()
        self._testing = asyncio.get_running_loop().create_task(self._self_test())

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_app(self.service)

    async def _self_test(self) -> None:
        while not self.service.self_tested.is_set():
            try:
                await self.pool.load([self.model])
                await self.pool.actors.started()
                self.service.self_tested.set()
            except Exception:  # not ready is told at /health/ready, and tried again
                log.exception("the model did not pass its self test")
                await asyncio.sleep(2)


def make_pool(settings: Settings) -> Pool:
    """The samplers of these settings; they start now, and end with this process."""
    spawn = spawner(
        device=settings.device,
        chunk_size=settings.chunk_size,
        threads=settings.threads_per_replica,
        held=MODELS_HELD,
        cpus=settings.cpus_per_replica,
        gpus=settings.gpus_per_replica,
    )
    return Pool(Actors(spawn, settings.replicas), chunk_size=settings.chunk_size, attempts=settings.chunk_attempts)


def local_model(settings: Settings) -> Path:
    """The model's bundle as a local folder; a registered one is downloaded and verified."""
    if not settings.model.startswith("models:"):
        return Path(settings.model).resolve()
    from ldseg.orchestration.registry import resolve_model  # takes seconds to import, and is not needed for a folder

    return resolve_model(settings.model, Path(settings.home)).resolve()


def build(args: dict[str, Any]) -> Application:
    """The application.

    Args:
        args: the fields of `Settings`.

    Raises:
        SettingsError: an unknown or impossible setting.
        BundleError, RegistryError: there is no such model.
    """
    settings = Settings.from_dict(args)
    bundle = str(local_model(settings))
    load_bundle(Path(bundle))
    return Ingress.bind(settings.to_dict(), bundle)
