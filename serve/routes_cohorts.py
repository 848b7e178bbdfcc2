"""Routes of cohorts: post, list, look at, follow, cancel."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from serve import manifests, sse
from serve.context import Service
from serve.documents import CohortDocument, CohortPage, cohort_document
from serve.idempotency import HEADER, conflict, request_identity
from serve.paths import resolve
from serve.problems import Problem
from serve.schemas import COHORT_EXAMPLE, CohortRequest, Draws
from serve.settings import Settings

CSV_EXAMPLE = "case,image\ncase_001,/data/cohort/case_001.nii.gz\n"
PARAMETERS: list[dict[str, Any]] = [
    {
        "name": HEADER,
        "in": "header",
        "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
        "description": "the same key with the same body gives the same cohort, with another body 422",
    }
]
DRAWS = [
    {"name": name, "in": "query", "schema": schema, "description": "for CSV and Parquet; in JSON it is in the body"}
    for name, schema in Draws.model_json_schema()["properties"].items()
]
MANIFEST = {
    "required": True,
    "content": {
        manifests.JSON: {"schema": CohortRequest.model_json_schema(), "example": COHORT_EXAMPLE},
        manifests.CSV: {"schema": {"type": "string"}, "example": CSV_EXAMPLE},
        manifests.PARQUET: {"schema": {"type": "string", "contentMediaType": manifests.PARQUET}},
    },
}


def resolve_all(wanted: CohortRequest, settings: Settings, owner: str) -> list[tuple[str, str]]:
    """(name, image) of every case.

    Raises:
        Problem: some images are not allowed; it lists them.
    """
    cases, outside = [], []
    for case in wanted.cases:
        try:
            cases.append((case.name, resolve(case.image, settings, owner)))
        except Problem as problem:
            outside.append(f"{case.name}: {problem.detail}")
    if outside:
        raise Problem("path-not-allowed", outside[0], errors=outside[:20])
    return cases


def add(routes: APIRouter, service: Service) -> None:
    """To a router."""
    _add_post(routes, service)
    _add_reading(routes, service)
    _add_events(routes, service)


def _add_post(routes: APIRouter, service: Service) -> None:
    settings = service.settings

    @routes.post(
        "/cohorts",
        status_code=202,
        response_model=CohortDocument,
        openapi_extra={"requestBody": MANIFEST, "parameters": PARAMETERS + DRAWS},
        summary="Segment a cohort",
    )
    async def post_cohort(request: Request) -> JSONResponse:
        owner: str = request.state.owner
        wanted, body = await manifests.read_manifest(request, settings, service.most_steps)
        key, digest = request_identity(request, body)
        known = service.remembered.get((owner, key)) if key else None
        if known is not None:
            if known[0] != digest:
                raise conflict(key)
            return _accepted(await service.cohort(known[1]))
        await service.refuse_when_full(upload=False)
        cases = await asyncio.to_thread(resolve_all, wanted, settings, owner)
        cohort = await asyncio.to_thread(
            lambda: service.store.add(cases, samples=wanted.samples, steps=wanted.steps, seed=wanted.seed)
        )
        if key:
            service.remembered[owner, key] = (digest, cohort)
        service.runner.wake()
        return _accepted(await service.cohort(cohort))


def _accepted(cohort: dict[str, Any]) -> JSONResponse:
    document = cohort_document(cohort)
    return JSONResponse(document, 202, headers={"Location": document["links"]["self"]})


def _add_reading(routes: APIRouter, service: Service) -> None:
    @routes.get("/cohorts", response_model=CohortPage, summary="Cohorts, the newest first")
    async def list_cohorts(
        limit: int = Query(50, ge=1, le=500), before: int | None = Query(None, ge=0, lt=2**63)
    ) -> JSONResponse:
        found = await asyncio.to_thread(service.store.page, before, limit + 1)
        shown = found[:limit]
        following = f"/v1/cohorts?limit={limit}&before={shown[-1]['number']}" if len(found) > limit else None
        links = {"Link": f'<{following}>; rel="next"'} if following else None
        return JSONResponse(
            {"cohorts": [cohort_document(cohort) for cohort in shown], "next": following}, headers=links
        )  # fmt: skip

    @routes.get("/cohorts/{cohort}", response_model=CohortDocument, summary="A cohort and its cases")
    async def get_cohort(cohort: str, cases: bool = True) -> JSONResponse:
        found = await service.cohort(cohort)
        listed = await asyncio.to_thread(lambda: service.store.cases(cohort, results=False)) if cases else None
        return JSONResponse(cohort_document(found, listed))

    @routes.delete("/cohorts/{cohort}", response_model=CohortDocument, summary="Cancel what is unfinished of it")
    async def cancel_cohort(cohort: str) -> JSONResponse:
        await service.cohort(cohort)
        await service.runner.cancel(cohort)
        return JSONResponse(cohort_document(await service.cohort(cohort)))


def _add_events(routes: APIRouter, service: Service) -> None:
    described: dict[int | str, dict[str, Any]] = {
        200: {"content": {sse.MEDIA_TYPE: {"schema": {"type": "string"}}}, "description": "events until its end"},
        204: {"description": "nothing can come any more"},
    }

    @routes.get(
        "/cohorts/{cohort}/events", responses=described, response_class=Response, summary="Its events, as they happen"
    )
    async def follow_cohort(
        request: Request, cohort: str, after: int | None = Query(None, ge=0, lt=2**63)
    ) -> Response:
        start = sse.start_after(request, after)
        found = await service.cohort(cohort)
        over = not (found["counts"]["queued"] or found["counts"]["running"])
        if over and not await service.events(cohort, start, 1):
            return Response(status_code=204)
        return sse.respond(sse.stream(service.events, cohort, start, gone=request.is_disconnected))
