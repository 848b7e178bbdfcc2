"""The HTTP interface: requests in, documents and files out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from pydantic import ValidationError

from ldseg.bundle import Bundle
from serve import pages, problems
from serve.jobs import Runner
from serve.problems import Problem
from serve.results import as_parquet, table
from serve.schemas import COHORT_EXAMPLE, CohortRequest
from serve.settings import Settings, resolve_image
from serve.store import UNFINISHED, JobStore
from serve.uploads import limited, receive

MAX_JSON_BYTES = 64 * 2**20


@dataclass
class Service:
    """What the routes work with.

    Attributes:
        self_tested: a sampler has tested the model.
    """

    settings: Settings
    bundle: Bundle
    store: JobStore
    runner: Runner
    self_tested: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def most_steps(self) -> int:
        """Denoiser steps that the model's schedule has."""
        return int(self.bundle.config.diffusion.num_train_steps)

    async def cohort(self, cohort: str) -> dict[str, Any]:
        """A stored cohort.

        Raises:
            Problem: there is none of that id.
        """
        found = await asyncio.to_thread(self.store.cohort, cohort)
        if found is None:
            raise Problem("not-found", f"there is no cohort {cohort}; GET /v1/cohorts lists them")
        return found

    async def case(self, cohort: str, name: str) -> dict[str, Any]:
        """A stored case.

        Raises:
            Problem: there is none of that name.
        """
        found = await asyncio.to_thread(self.store.case, cohort, name)
        if found is None:
            raise Problem("not-found", f"the cohort {cohort} has no case {name!r}")
        return found

    async def refuse_when_full(self, *, upload: bool) -> None:
        """Raise a 429 problem when too much is waiting."""
        limit = self.settings.max_uploads if upload else self.settings.max_cohorts
        if await asyncio.to_thread(lambda: self.store.unfinished(upload=upload)) >= limit:
            detail = f"{limit} {'uploads' if upload else 'cohorts'} are unfinished already; wait for one to end"
            raise Problem("too-busy", detail, headers={"Retry-After": "10"})


def cohort_document(cohort: dict[str, Any], cases: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """A cohort as clients see it."""
    counts, home = cohort["counts"], f"/v1/cohorts/{cohort['id']}"
    document = {key: cohort[key] for key in ("id", "created", "samples", "steps", "seed", "upload")}
    document |= {"state": cohort_state(counts, cohort["cancelled"]), "total": sum(counts.values()), "counts": counts}
    document["links"] = {"self": home, "table": f"{home}/table.parquet"}
    if cases is not None:
        document["cases"] = [case_line(case) for case in cases]
    return document


def cohort_state(counts: dict[str, int], cancelled: bool) -> str:
    """queued, running, done (every case has ended) or cancelled."""
    if counts["running"] or (counts["queued"] and counts["queued"] < sum(counts.values())):
        return "running"
    if counts["queued"]:
        return "queued"
    return "cancelled" if cancelled else "done"


def case_line(case: dict[str, Any]) -> dict[str, Any]:
    """A case in a list."""
    link = f"/v1/cohorts/{case['cohort']}/cases/{quote(case['name'], safe='')}"
    return {key: case[key] for key in ("name", "state", "error")} | {"href": link}


def case_document(case: dict[str, Any]) -> dict[str, Any]:
    """A case with its numbers and links to its files."""
    document = case_line(case) | {"cohort": case["cohort"], "started": case["started"], "finished": case["finished"]}
    result = case["result"] or {}
    files = {
        key: entry | {"href": f"{document['href']}/files/{quote(key, safe='')}"}
        for key, entry in result.get("files", {}).items()
    }
    return document | result | ({"files": files} if files else {})


def create_app(service: Service) -> FastAPI:
    """The application; the documentation pages are off because they would load scripts from the network."""
    app = FastAPI(title="LDSeg", docs_url=None, redoc_url=None)
    problems.install(app)
    settings = service.settings

    @app.middleware("http")
    async def add_headers(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await call_next(request)
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers.setdefault("Cache-Control", "no-store")
        return response

    def authorised(request: Request) -> None:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if settings.token_sha256 and (scheme.lower() != "bearer" or not settings.accepts(token.strip())):
            detail = "send the header Authorization: Bearer TOKEN with the token that the service was started with"
            raise Problem("unauthorized", detail, headers={"WWW-Authenticate": "Bearer"})

    @app.get("/health/live")
    async def live() -> dict[str, str]:
        return {"status": "live"}

    @app.get("/health/ready")
    async def ready() -> dict[str, str]:
        if not service.self_tested.is_set() or not service.runner.alive:
            raise Problem("not-ready", "the model has not passed its self test yet", headers={"Retry-After": "2"})
        return {"status": "ready", "model_digest": service.bundle.digest}

    routes = APIRouter(prefix="/v1", dependencies=[Depends(authorised)])
    _add_model(routes, service)
    _add_cohorts(routes, service)
    _add_results(routes, service)
    app.include_router(routes)
    pages.install(app, service, [Depends(authorised)])
    return app


def _add_model(routes: APIRouter, service: Service) -> None:
    @routes.get("/model")
    async def model() -> dict[str, Any]:
        bundle, data = service.bundle, service.bundle.config.data
        described = {"uri": service.settings.model, **bundle.identity, "structures": list(data.structures)}
        described |= {"label_values": list(data.label_values), "spatial_dims": data.spatial_dims}
        steps = bundle.config.sampler.num_sample_steps
        return described | {"in_channels": data.in_channels, "steps": steps, "card": bundle.card}


def _add_cohorts(routes: APIRouter, service: Service) -> None:
    settings = service.settings
    body = {"required": True, "content": {"application/json": {"example": COHORT_EXAMPLE}}}

    @routes.post("/cohorts", status_code=202, openapi_extra={"requestBody": body})
    async def post_cohort(request: Request) -> JSONResponse:
        content = b"".join([chunk async for chunk in limited(request, MAX_JSON_BYTES)])
        try:
            wanted = CohortRequest.model_validate_json(content)
        except ValidationError as error:
            raise problems.from_validation(error) from error
        wanted.check(settings, service.most_steps)
        await service.refuse_when_full(upload=False)
        cases, outside = [], []
        for case in wanted.cases:
            try:
                cases.append((case.name, str(resolve_image(case.image, settings.allow_roots))))
            except (ValueError, OSError) as error:
                outside.append(f"{case.name}: {error}")
        if outside:
            raise Problem("path-not-allowed", outside[0], errors=outside[:20])
        cohort = await asyncio.to_thread(
            lambda: service.store.add(cases, samples=wanted.samples, steps=wanted.steps, seed=wanted.seed)
        )
        service.runner.wake()
        document = cohort_document(await service.cohort(cohort))
        return JSONResponse(document, 202, headers={"Location": document["links"]["self"]})

    @routes.post("/segmentations", status_code=201)
    async def post_segmentation(request: Request) -> JSONResponse:
        await service.refuse_when_full(upload=True)
        cohort, name = await receive(request, settings, service.most_steps, service.runner.uploads, service.store)
        service.runner.wake()
        where = {"Location": f"/v1/cohorts/{cohort}"}
        if not await service.runner.wait(cohort, settings.upload_wait_s):
            return JSONResponse(cohort_document(await service.cohort(cohort)), 202, headers=where)
        case = await service.case(cohort, name)
        if case["state"] != "done":
            raise Problem("case-failed", case["error"] or f"{name}: it was cancelled", headers=where)
        return JSONResponse(case_document(case), 201, headers=where)

    @routes.get("/cohorts")
    async def list_cohorts(
        limit: int = Query(50, ge=1, le=500), before: int | None = Query(None, ge=0)
    ) -> dict[str, Any]:
        found = await asyncio.to_thread(service.store.page, before, limit + 1)
        shown = found[:limit]
        following = f"/v1/cohorts?limit={limit}&before={shown[-1]['number']}" if len(found) > limit else None
        return {"cohorts": [cohort_document(cohort) for cohort in shown], "next": following}

    @routes.get("/cohorts/{cohort}")
    async def get_cohort(cohort: str, cases: bool = True) -> dict[str, Any]:
        found = await service.cohort(cohort)
        listed = await asyncio.to_thread(lambda: service.store.cases(cohort, results=False)) if cases else None
        return cohort_document(found, listed)

    @routes.delete("/cohorts/{cohort}")
    async def cancel_cohort(cohort: str) -> dict[str, Any]:
        await service.cohort(cohort)
        await service.runner.cancel(cohort)
        return cohort_document(await service.cohort(cohort))


def _add_results(routes: APIRouter, service: Service) -> None:
    @routes.get("/cohorts/{cohort}/table.parquet")
    async def get_table(cohort: str) -> Response:
        await service.cohort(cohort)

        def build() -> bytes:
            return as_parquet(table(service.store.cases(cohort, results=True)))

        return Response(await asyncio.to_thread(build), media_type="application/vnd.apache.parquet")

    @routes.get("/cohorts/{cohort}/cases/{name}")
    async def get_case(cohort: str, name: str) -> dict[str, Any]:
        return case_document(await service.case(cohort, name))

    @routes.get("/cohorts/{cohort}/cases/{name}/files/{key}")
    async def get_file(cohort: str, name: str, key: str) -> FileResponse:
        case = await service.case(cohort, name)
        if case["state"] in UNFINISHED:
            raise Problem("not-finished", f"{name} is {case['state']}; ask again later", headers={"Retry-After": "2"})
        files = (case["result"] or {}).get("files", {})
        if key not in files:
            known = ", ".join(files) or f"none, it is {case['state']}"
            raise Problem("not-found", f"{name} has no file {key!r}; it has: {known}")
        path = service.runner.folder(cohort, name) / files[key]["name"]
        if not path.is_file():
            raise Problem("not-found", f"the file {key} of {name} is no longer kept; post the case again")
        return FileResponse(path, filename=path.name, headers={"ETag": f'"{files[key]["sha256"]}"'})
