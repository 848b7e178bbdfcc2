"""The HTTP interface: requests in, documents and files out."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, FastAPI, Response
from fastapi.responses import JSONResponse

from ldseg import __version__
from serve import redaction, telemetry
from serve.api import cohorts, files, openapi, pages, uploads
from serve.api.documents import Health, ModelDocument, ProblemTypes
from serve.api.review import routes as review
from serve.api.service import Service
from serve.http import problems
from serve.http.middleware import Guard
from serve.http.problems import Problem

__all__ = ["Service", "create_app"]


def create_app(service: Service) -> FastAPI:
    """The application; documentation pages of FastAPI would load scripts from the network, `pages` has its own."""
    app = FastAPI(
        title="LDSeg", version=__version__, docs_url=None, redoc_url=None, description=openapi.DESCRIPTION,
        redirect_slashes=False,  # a redirect would name the host that the client has named
    )  # fmt: skip
    redaction.install()
    problems.install(app)
    app.add_middleware(Guard, settings=service.settings, metrics=service.metrics)
    _add_health(app, service)
    routes = APIRouter(prefix="/v1")
    _add_model(routes, service)
    cohorts.add(routes, service)
    files.add(routes, service)
    uploads.add(routes, service)
    review.add(routes, service)
    app.include_router(routes)
    pages.install(app, service)
    openapi.install(app)
    return app


def _add_health(app: FastAPI, service: Service) -> None:
    @app.get("/health/live", response_model=Health, summary="Whether the process answers")
    async def live() -> dict[str, str]:
        return {"status": "live"}

    @app.get("/health/ready", response_model=Health, summary="Whether cohorts are taken: the model is tested")
    async def ready() -> dict[str, str]:
        if not service.self_tested.is_set() or not service.runner.alive:
            raise Problem("not-ready", "the model has not passed its self test yet", headers={"Retry-After": "2"})
        if (fault := await asyncio.to_thread(service.runner.storage.health)) is not None:
            raise Problem("not-ready", f"posts are refused: {fault.sentence}", headers={"Retry-After": "30"})
        return {"status": "ready", "model_digest": service.bundle.digest}

    @app.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {telemetry.CONTENT_TYPE: {"schema": {"type": "string"}}}}},
        summary="Counters for Prometheus",
    )
    async def get_metrics() -> Response:
        queue = await service.ask(service.store.queue)
        return Response(service.metrics.text(queue), headers={"Content-Type": telemetry.CONTENT_TYPE})


def _add_model(routes: APIRouter, service: Service) -> None:
    @routes.get("/model", response_model=ModelDocument, summary="The model that is served")
    async def model() -> Any:
        bundle, data = service.bundle, service.bundle.config.data
        described: dict[str, Any] = {"uri": service.settings.model, **bundle.identity}
        described["structures"] = list(data.structures)
        described |= {"label_values": list(data.label_values), "spatial_dims": data.spatial_dims}
        steps = bundle.config.sampler.num_sample_steps
        return JSONResponse(described | {"in_channels": data.in_channels, "steps": steps, "card": bundle.card})

    @routes.get("/problems", response_model=ProblemTypes, summary="Every kind of error")
    async def list_problems() -> dict[str, Any]:
        return {"problems": problems.listed()}
