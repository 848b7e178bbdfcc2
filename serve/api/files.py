"""Routes of what comes in and goes out as files: uploads, a case's maps, tables, the zip of all."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import iterate_in_threadpool

from ldseg.results.tables import as_csv, as_parquet, table
from serve.api.documents import CaseDocument, case_document
from serve.api.review.routes import with_verdicts
from serve.api.service import Service
from serve.http.archive import stream_zip
from serve.http.problems import Problem
from serve.http.sending import disposition, send_bytes, send_file
from serve.store import UNFINISHED, Cohort

PARQUET, CSV = "application/vnd.apache.parquet", "text/csv; charset=utf-8"


def binary(media_type: str, summary: str, **more: dict[str, Any]) -> dict[str, Any]:
    """Of a route that answers a file: its description."""
    content = {media_type: {"schema": {"type": "string", "contentMediaType": media_type.partition(";")[0]}}}
    responses: dict[int | str, dict[str, Any]] = {
        200: {"description": "the bytes; ETag is their sha256", "content": content},
        206: {"description": "the range that was asked for", "content": content},
        304: {"description": "the client has it already"},
        416: {"$ref": "#/components/responses/Problem"},
    }
    return {"responses": responses | more, "response_class": Response, "summary": summary}


def add(routes: APIRouter, service: Service) -> None:
    """To a router."""
    _add_tables(routes, service)
    _add_cases(routes, service)
    _add_archive(routes, service)


def _add_tables(routes: APIRouter, service: Service) -> None:
    async def rows(request: Request, cohort: str) -> Any:
        owner = request.state.owner
        found = await service.cohort(cohort, request)
        return await service.ask(lambda: reviewed_table(service, found, owner))

    async def get_parquet(request: Request, cohort: str) -> Response:
        content = await asyncio.to_thread(as_parquet, await rows(request, cohort))
        return send_bytes(request, content, "table.parquet", PARQUET)

    async def get_csv(request: Request, cohort: str) -> Response:
        content = await asyncio.to_thread(as_csv, await rows(request, cohort))
        return send_bytes(request, content, "table.csv", CSV)

    _get_and_head(
        routes, "/cohorts/{cohort}/table.parquet", get_parquet, binary(PARQUET, "Numbers of all cases, as Parquet")
    )
    _get_and_head(routes, "/cohorts/{cohort}/table.csv", get_csv, binary(CSV, "Numbers of all cases, as CSV"))


def reviewed_table(service: Service, cohort: Cohort, owner: str | None) -> Any:
    """The numbers of all cases; with what reviewers said once they have said something."""
    rows = table(service.store.every_case(cohort.id, owner=owner, results=True))
    said = service.reviews.of_cohort(cohort)
    return with_verdicts(rows, rows.column("case").to_pylist(), said) if said else rows


def _get_and_head(routes: APIRouter, path: str, endpoint: Any, described: dict[str, Any]) -> None:
    routes.add_api_route(path, endpoint, methods=["GET"], **described)
    routes.add_api_route(path, endpoint, methods=["HEAD"], include_in_schema=False, response_class=Response)


def _add_cases(routes: APIRouter, service: Service) -> None:
    @routes.get("/cohorts/{cohort}/cases/{name}", response_model=CaseDocument, summary="A case and its numbers")
    async def get_case(request: Request, cohort: str, name: str) -> Any:
        return case_document(await service.case(cohort, name, request))

    async def get_file(request: Request, cohort: str, name: str, key: str) -> Response:
        case = await service.case(cohort, name, request)
        if case.state in UNFINISHED:
            raise Problem("not-finished", f"{name} is {case.state}; ask again later", headers={"Retry-After": "2"})
        files = (case.result or {}).get("files", {})
        if key not in files:
            known = ", ".join(files) or f"none, it is {case.state}"
            raise Problem("not-found", f"{name} has no file {key[:200]!r}; it has: {known}")
        path = service.casework.folder(cohort, name) / files[key]["name"]
        try:
            return send_file(request, path, files[key]["sha256"])
        except FileNotFoundError as error:
            raise Problem(
                "not-found", f"the file {key} of {name} is no longer kept; post the case again"
            ) from error  # fmt: skip

    described = binary("application/octet-stream", "A map of a case")
    _get_and_head(routes, "/cohorts/{cohort}/cases/{name}/files/{key}", get_file, described)


def _add_archive(routes: APIRouter, service: Service) -> None:
    def members(cohort: str) -> Iterator[tuple[str, Path]]:
        for case in service.store.every_case(cohort, owner=None, results=True):
            for entry in (case.result or {}).get("files", {}).values():
                path = service.casework.folder(cohort, case.name) / entry["name"]
                yield f"maps/{case.name}/{entry['name']}", path

    def tables(cohort: Cohort) -> Iterator[tuple[str, bytes]]:
        rows = reviewed_table(service, cohort, None)
        yield "table.parquet", as_parquet(rows)
        yield "table.csv", as_csv(rows)

    async def get_archive(request: Request, cohort: str) -> Response:
        found = await service.cohort(cohort, request)
        headers = {"Content-Disposition": disposition(f"{cohort}.zip")}
        if request.method == "HEAD":
            return Response(headers=headers, media_type="application/zip")
        pieces = iterate_in_threadpool(stream_zip(members(cohort), tables(found)))
        return StreamingResponse(pieces, headers=headers, media_type="application/zip")

    described = binary("application/zip", "Every finished case's maps and the tables, as one zip")
    for status in (206, 304, 416):
        del described["responses"][status]
    _get_and_head(routes, "/cohorts/{cohort}/archive.zip", get_archive, described)
