"""Routes that take volumes."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import ValidationError

from ldseg.data.errors import CaseError
from ldseg.posterior.sampling import Posterior
from serve.api.documents import CaseDocument, CohortDocument, UploadDocument, case_document, cohort_document
from serve.api.service import Service
from serve.http.idempotency import idempotency_key, request_identity
from serve.http.problems import Problem, from_validation
from serve.intake.inspection import inspect
from serve.intake.paths import UPLOAD, without_folders
from serve.intake.requests import UploadRequest, check_name
from serve.intake.uploads import Received, keep_upload, receive
from serve.store import NewCohort

PATIENCE_S = 1.0  # between two looks at whether the client is still there
SERIES = {"type": "string", "description": "of a zipped DICOM study: its number, UID or a pattern, as *flair*"}
IMAGE = {"type": "string", "format": "binary", "description": "the volume's file, or a zip of a DICOM study"}


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

    def look() -> None:
        bundle, settings = service.bundle, service.settings
        volume = inspect(received.path, name, bundle.config.data, settings.max_voxels)
        if volume is not None:
            Posterior(bundle, chunk_size=settings.chunk_size).check_memory(volume, limit=settings.case_bytes)

    try:
        await asyncio.to_thread(look)
    except CaseError as error:
        raise Problem("invalid-image", without_folders(str(error), received.path, service.settings)) from error


def _add_upload(routes: APIRouter, service: Service) -> None:
    settings = service.settings

    @routes.post(
        "/uploads",
        status_code=201,
        response_model=UploadDocument,
        openapi_extra=form({"series": SERIES}),
        summary="Keep a volume for a manifest",
    )
    async def post_upload(request: Request) -> JSONResponse:
        idempotency_key(request)  # the same file is the same upload anyhow
        received = await receive(request, settings, settings.folder / "uploads")
        try:
            if received.fields:
                raise Problem("invalid-request", f"the field {next(iter(received.fields))[:60]!r} is unknown here")
            await _inspect(received, received.case or "volume", service)
            upload = await asyncio.to_thread(keep_upload, received, settings, request.state.owner)
            request.state.ids = {"upload": upload}
        finally:
            received.discard()  # not awaited: who is cancelled a second time must not leave it
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
        openapi_extra=form(fields | {"series": SERIES}),
        summary="Segment one uploaded volume and wait for it",
    )
    async def post_segmentation(request: Request) -> JSONResponse:
        await _refuse_when_full(service, request.state.owner)
        received = await receive(request, settings, settings.uploads)
        try:
            cohort, name = await _queue(received, request, service)
        except BaseException:
            received.discard()
            raise
        where = {"Location": f"/v1/cohorts/{cohort}"}
        if not await _wait(cohort, request, service):
            return JSONResponse(cohort_document(await service.cohort(cohort, request)), 202, headers=where)
        case = await service.case(cohort, name, request)
        if case.state != "done":
            raise Problem("case-failed", case.error or f"{name}: it was cancelled", headers=where)
        return JSONResponse(case_document(case), 201, headers=where)


async def _refuse_when_full(service: Service, owner: str) -> None:
    """Before a large body is read for nothing; the store counts again when the upload is queued."""
    most = service.settings.max_uploads
    if await service.ask(lambda: service.store.unfinished(owner, upload=True)) >= most:
        detail = f"{most} of your uploads are unfinished already; wait for one to end"
        raise Problem("too-busy", detail, headers={"Retry-After": "10"})


async def _wait(cohort: str, request: Request, service: Service) -> bool:
    """Wait for the end; False if it takes longer. A client that goes away takes its cohort along."""
    deadline = time.monotonic() + service.settings.upload_wait_s
    try:
        while time.monotonic() < deadline:
            if await service.runner.wait(cohort, PATIENCE_S):
                return True
            if await request.is_disconnected():
                await service.runner.cancel(cohort)
                return True
    except asyncio.CancelledError:  # so Ray Serve tells that the client has gone
        await asyncio.shield(service.runner.cancel(cohort))
        raise
    return False


async def _queue(received: Received, request: Request, service: Service) -> tuple[str, str]:
    try:
        wanted = UploadRequest.model_validate_strings(received.fields)
    except ValidationError as error:
        raise from_validation(error) from error
    wanted.check(service.settings, service.most_steps)
    name = wanted.name or check_name(received.case)
    await _inspect(received, name, service)
    key = idempotency_key(request)
    asked = {**received.fields, "file": received.path.name, "sha256": received.sha256}
    new = NewCohort(
        owner=request.state.owner,
        plan=wanted.plan,
        steps=wanted.steps,
        seed=wanted.seed,
        upload=True,
        key=key or None,
        body_digest=request_identity(request, asked)[1] if key else None,
    )
    added = await service.add(new, [(name, str(received.path))])
    return added.id, name
