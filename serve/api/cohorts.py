"""Routes of cohorts: post, list, look at, follow, cancel."""

from __future__ import annotations

import asyncio
from typing import Any, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from serve.api import openapi
from serve.api.documents import CasePageDocument, CohortDocument, CohortPage, case_line, cohort_document
from serve.api.review.routes import verdict_document
from serve.api.service import Service
from serve.http import sse
from serve.http.idempotency import HEADER, request_identity
from serve.http.problems import Problem
from serve.intake import manifests
from serve.intake.paths import resolve
from serve.intake.requests import COHORT_EXAMPLE, CohortRequest, Draws
from serve.sampling.catalog import UnknownModel, UnusableModel
from serve.settings import Settings
from serve.store import BadCursor, Cohort, NewCohort, StoreAway

SHOWN = 500  # cases in one answer
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
        manifests.JSON: {"schema": openapi.reference(CohortRequest), "example": COHORT_EXAMPLE},
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
    _add_cancel(routes, service)
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
        wanted, body = await manifests.read_manifest(request, settings)
        key, digest = request_identity(request, body)
        cases = await asyncio.to_thread(_checked_cases, wanted, service, owner)
        new = NewCohort(
            owner=owner,
            plan=wanted.plan,
            steps=wanted.steps,
            seed=wanted.seed,
            models=tuple(wanted.models),
            priority=wanted.priority,
            name=wanted.name,
            key=key or None,
            body_digest=digest if key else None,
        )
        return _accepted(await service.add(new, cases))


def _checked_cases(wanted: CohortRequest, service: Service, owner: str) -> list[tuple[str, str]]:
    """(name, image) of every case of a cohort that this service can do.

    Raises:
        Problem: too much of something, images that are not allowed, or models that are not there; these are found
            again when a case begins.
    """
    try:
        wanted.check(service.settings, service.most_steps)
        service.catalog.resolve(wanted.models)
    except (UnknownModel, UnusableModel) as error:
        raise Problem("model-not-usable", f"models: {error}") from error
    return resolve_all(wanted, service.settings, owner)


def _accepted(cohort: Cohort) -> JSONResponse:
    document = cohort_document(cohort)
    return JSONResponse(document, 202, headers={"Location": document["links"]["self"]})


def _add_reading(routes: APIRouter, service: Service) -> None:
    @routes.get("/cohorts", response_model=CohortPage, summary="Cohorts, the newest first")
    async def list_cohorts(
        request: Request,
        limit: int = Query(50, ge=1, le=500),
        before: int | None = Query(None, ge=0, lt=2**63),
        search: str = Query("", max_length=150, pattern="^[^\\x00]*$", description="those whose name or id holds it"),
    ) -> JSONResponse:
        owner = request.state.owner
        found = await service.ask(lambda: service.store.page(owner, before, limit + 1, search))
        shown = found[:limit]
        following = None
        if len(found) > limit:
            query = urlencode({"limit": limit, "before": shown[-1].number} | ({"search": search} if search else {}))
            following = f"/v1/cohorts?{query}"
        reviews = await service.ask(lambda: _review_counts(service, shown))
        listed = [cohort_document(cohort) | {"review": reviews[cohort.number]} for cohort in shown]
        return JSONResponse({"cohorts": listed, "next": following}, headers=_link(following))

    @routes.get("/cohorts/{cohort}", response_model=CohortDocument, summary="A cohort and the first of its cases")
    async def get_cohort(request: Request, cohort: str, cases: bool = True) -> JSONResponse:
        found, owner = await service.cohort(cohort, request), request.state.owner
        listed = None
        if cases:
            listed = (await service.ask(lambda: service.store.cases(cohort, owner=owner, limit=SHOWN))).cases
        reviews = await service.ask(lambda: _review_counts(service, [found]))
        return JSONResponse(cohort_document(found, listed) | {"review": reviews[found.number]})

    @routes.get("/cohorts/{cohort}/cases", response_model=CasePageDocument, summary="Its cases and their numbers")
    async def list_cases(
        request: Request,
        cohort: str,
        limit: int = Query(100, ge=1, le=SHOWN),
        after: str | None = Query(None, max_length=400, description="from the address of the next page"),
        order: Literal["posted", "agreement", "review"] = Query(
            "posted", description="agreement: the lowest first; review: those that need it first, with the reasons"
        ),
        numbers: bool = Query(True, description="with the numbers of those that are done"),
    ) -> JSONResponse:
        owner, found = request.state.owner, await service.cohort(cohort, request)
        try:
            if order == "review":
                lines, cursor = await service.ask(lambda: _lines_for_review(service, found, after, limit, numbers))
            else:
                asked = {"owner": owner, "after": after, "limit": limit, "order": order, "results": numbers}
                page = await service.ask(lambda: service.store.cases(cohort, **asked))
                lines, cursor = [case_line(case) for case in page.cases], page.next or ""
        except BadCursor as error:
            raise Problem("invalid-request", f"after: {error}") from error
        following = None
        if cursor:
            query = urlencode({"limit": limit, "order": order, "numbers": numbers, "after": cursor})
            following = f"/v1/cohorts/{cohort}/cases?{query}"
        return JSONResponse({"cases": lines, "next": following}, headers=_link(following))


def _review_counts(service: Service, shown: list[Cohort]) -> dict[int, dict[str, Any]]:
    """Of each cohort, by its number: how many cases need review, how many were reviewed, and by which models."""
    reviewed, found = service.reviews.reviewed(shown), dict[int, dict[str, Any]]()
    for cohort in shown:
        counts = service.reviews.counts(cohort)
        told = {"needed": counts.needed, "reviewed": reviewed.get(cohort.number, 0)}
        found[cohort.number] = told | {"models": list(counts.models)}
    return found


def _lines_for_review(
    service: Service, cohort: Cohort, after: str | None, limit: int, results: bool
) -> tuple[list[dict[str, Any]], str]:
    """Lines of cases, those that need review first, and the cursor of the next page."""
    found, cursor = service.reviews.page(cohort, after, limit, results=results)
    reasons, said = service.reviews.attention(cohort).reasons, service.reviews.of_cohort(cohort)
    lines = [
        case_line(case)
        | {"attention": list(reasons.get(case.name, ())), "review": verdict_document(said.get(case.name))}
        for case in found
    ]
    return lines, cursor


def _add_cancel(routes: APIRouter, service: Service) -> None:
    @routes.delete("/cohorts/{cohort}", response_model=CohortDocument, summary="Cancel what is unfinished of it")
    async def cancel_cohort(
        request: Request,
        cohort: str,
        forget: bool = Query(False, description="also remove it with all of its files, once it has ended"),
    ) -> JSONResponse:
        await service.cohort(cohort, request)
        try:
            await service.runner.cancel(cohort)
        except StoreAway as error:
            if not forget:  # which makes room, also for this
                raise Problem("database-unavailable", "ask again", headers={"Retry-After": "2"}) from error
        found = await service.cohort(cohort, request)
        if forget:
            await service.forget(cohort)
        return JSONResponse(cohort_document(found))


def _link(following: str | None) -> dict[str, str]:
    return {"Link": f'<{following}>; rel="next"'} if following else {}


def _add_events(routes: APIRouter, service: Service) -> None:
    described: dict[int | str, dict[str, Any]] = {
        200: {"content": {sse.MEDIA_TYPE: {"schema": {"type": "string"}}}, "description": "events until its end"},
        204: {"description": "nothing can come any more"},
    }

    @routes.get(
        "/cohorts/{cohort}/events", responses=described, response_class=Response, summary="Its events, as they happen"
    )
    async def follow_cohort(request: Request, cohort: str, after: int | None = Query(None, ge=0, lt=2**63)) -> Response:
        start = sse.start_after(request, after)
        found = await service.cohort(cohort, request)
        source = service.events(request.state.owner)
        if found.finished is not None and not await source(cohort, start, 1):
            return Response(status_code=204)
        return sse.respond(sse.stream(source, cohort, start, gone=request.is_disconnected))
