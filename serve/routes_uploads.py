"""Routes that take volumes."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import ValidationError

from ldseg.data.errors import CaseError
from serve.context import Service
from serve.documents import CaseDocument, CohortDocument, UploadDocument, case_document, cohort_document
from serve.idempotency import idempotency_key
from serve.inspection import inspect
from serve.paths import UPLOAD
from serve.problems import Problem, from_validation
from serve.schemas import UploadRequest, check_name
from serve.uploads import Received, keep, receive

IMAGE = {"type": "string", "format": "binary", "description": "the volume's file"}


def form(properties: dict[str, Any]) -> dict[str, Any]:
    """The description of a form with a file."""
    schema = {"type": "object", "required": ["image"], "properties": {"image": IMAGE} | properties}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


def add(routes: APIRouter, service: Service) -> None:
    """To a router."""
    _add_upload(routes, service)
    _add_segmentation(routes, service)


async def _inspect(received: Received, name: str, service: Service) -> None:
    """Refuse at once what can't be segmented."""
    data, most = service.bundle.config.data, service.settings.max_voxels
    try:
        await asyncio.to_thread(inspect, received.path, name, data, most)
    except CaseError as error:
        raise Problem("invalid-image", str(error).replace(str(received.path), received.path.name)) from error


def _add_upload(routes: APIRouter, service: Service) -> None:
    settings = service.settings

    @routes.post(
        "/uploads",
        status_code=201,
        response_model=UploadDocument,
        openapi_extra=form({}),
        summary="Keep a volume for a manifest",
    )
    async def post_upload(request: Request) -> JSONResponse:
        idempotency_key(request)  # the same file is the same upload anyhow
        received = await receive(request, settings, settings.folder / "uploads")
        try:
            if received.fields:
                raise Problem("invalid-request", f"the field {next(iter(received.fields))[:60]!r} is unknown here")
            await _inspect(received, received.case or "volume", service)
            upload = await asyncio.to_thread(keep, received, settings, request.state.owner)
        finally:
            await asyncio.to_thread(received.discard)
        document = {"upload": upload, "image": UPLOAD + upload, "sha256": received.sha256, "bytes": received.size}
        return JSONResponse(document, 201)


def _add_segmentation(routes: APIRouter, service: Service) -> None:
    settings = service.settings
    fields = UploadRequest.model_json_schema()["properties"]
    described: dict[int | str, dict[str, Any]] = {
        202: {"model": CohortDocument, "description": "it takes longer and goes on as a cohort of one case"}
    }

    @routes.post(
        "/segmentations",
        status_code=201,
        response_model=CaseDocument,
        responses=described,
        openapi_extra=form(fields),
        summary="Segment one uploaded volume and wait for it",
    )
    async def post_segmentation(request: Request) -> JSONResponse:
        await service.refuse_when_full(upload=True)
        received = await receive(request, settings, service.runner.uploads)
        try:
            cohort, name = await _queue(received, service)
        except BaseException:
            await asyncio.to_thread(received.discard)
            raise
        service.runner.wake()
        where = {"Location": f"/v1/cohorts/{cohort}"}
        if not await service.runner.wait(cohort, settings.upload_wait_s):
            return JSONResponse(cohort_document(await service.cohort(cohort)), 202, headers=where)
        case = await service.case(cohort, name)
        if case["state"] != "done":
            raise Problem("case-failed", case["error"] or f"{name}: it was cancelled", headers=where)
        return JSONResponse(case_document(case), 201, headers=where)


async def _queue(received: Received, service: Service) -> tuple[str, str]:
    try:
        wanted = UploadRequest.model_validate_strings(received.fields)
    except ValidationError as error:
        raise from_validation(error) from error
    wanted.check(service.settings, service.most_steps)
    name = wanted.name or check_name(received.case)
    await _inspect(received, name, service)
    cohort = await asyncio.to_thread(
        lambda: service.store.add(
            [(name, str(received.path))], samples=wanted.samples, steps=wanted.steps, seed=wanted.seed, upload=True
        )
    )
    return cohort, name
