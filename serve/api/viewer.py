"""What a viewer needs of a case beside its results: how its volume lies, the image itself, pictures of planes."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field

from ldseg.data.errors import CaseError
from ldseg.data.volume import is_image, stem
from ldseg.pictures import overlays, planes
from serve.api.files import binary
from serve.api.service import Service
from serve.http.problems import Problem
from serve.intake.originals import is_original
from serve.intake.paths import is_url, resolve_image, without_folders
from serve.store import StoredCase

PRIVATE_CACHE = {"Cache-Control": "private, no-cache", "Vary": "Authorization"}
MAX_DRAWING = 2  # pictures drawn at the same time; each holds a plane
CASE = "/cohorts/{cohort}/cases/{name}"
PICTURE = {"schema": {"type": "string", "contentMediaType": "image/png"}}
PNG: dict[int | str, dict[str, Any]] = {
    200: {"description": "the picture", "content": {"image/png": PICTURE}},
    304: {"description": "it is unchanged"},
}


@dataclass(frozen=True)
class Located:
    """Where the files of a case lie.

    Attributes:
        image: the input, None where it can't be had.
        missing: why not.
        sha256: of the input.
        files: path and sha256 of the results by key.
    """

    name: str
    image: Path | None
    missing: str
    files: dict[str, tuple[Path, str]]
    sha256: str = ""

    def file(self, key: str) -> tuple[Path, str]:
        """A result's file.

        Raises:
            Problem: there is none of that key.
        """
        if key not in self.files:
            known = ", ".join(self.files) or "none"
            raise Problem("not-found", f"{self.name} has no file {key[:60]!r} to show; it has: {known}")
        return self.files[key]


class Picture(BaseModel):
    """A picture as it is asked for."""

    axis: int = Field(2, ge=0, le=2, description="0 sagittal, 1 coronal, 2 axial")
    index: int = Field(0, ge=0, description="of the plane, counted towards right, anterior, superior")
    overlay: str = Field("none", max_length=200, description="key of one of the case's files, or none")
    opacity: float = Field(0.5, ge=0, le=1, description="of the map")
    contours: bool = Field(False, description="those of the label map over it")
    size: int = Field(640, ge=64, le=2048, description="pixels of the longer side")


def add(routes: APIRouter, service: Service) -> None:
    """Add the routes to those under /v1."""
    _add_volume(routes, service)
    _add_slices(routes, service)


def etag(*parts: object) -> str:
    """An ETag of whatever an answer depends on."""
    return f'"{hashlib.sha256(repr(parts).encode()).hexdigest()[:32]}"'


def _add_volume(routes: APIRouter, service: Service) -> None:
    @routes.get(f"{CASE}/volume-info", summary="How its volume lies, and what can be shown of it")
    async def volume_info(request: Request, cohort: str, name: str) -> dict[str, Any]:
        found = await _locate(service, cohort, name, request)
        return await asyncio.to_thread(_describe, service, found)

    @routes.get(f"{CASE}/image", **binary("application/octet-stream", "The image that was segmented"))
    async def image(request: Request, cohort: str, name: str) -> Response:
        found = await _locate(service, cohort, name, request)
        if found.image is None:
            raise Problem("not-found", found.missing)
        path, headers = found.image, PRIVATE_CACHE | {"ETag": f'"{found.sha256}"'}
        if request.headers.get("If-None-Match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        filename = f"{name}{path.name[len(stem(path)) :]}"
        return FileResponse(path, filename=filename, media_type="application/octet-stream", headers=headers)


def _add_slices(routes: APIRouter, service: Service) -> None:
    turns = asyncio.Semaphore(MAX_DRAWING)

    @routes.get(
        f"{CASE}/slice.png", response_class=Response, responses=PNG, summary="A plane of the image with a map over it"
    )
    async def slice_png(request: Request, cohort: str, name: str, picture: Annotated[Picture, Query()]) -> Response:
        found = await _locate(service, cohort, name, request)
        path, digest = (None, "") if picture.overlay == "none" else found.file(picture.overlay)
        digest += found.file("label")[1] if picture.contours else ""
        headers = PRIVATE_CACHE | {"ETag": etag(found.sha256, digest, *picture.model_dump().values())}
        if request.headers.get("If-None-Match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        async with turns:
            content = await asyncio.to_thread(_draw, service, found, picture, path)
        return Response(content, media_type="image/png", headers=headers)


async def _locate(service: Service, cohort: str, name: str, request: Request) -> Located:
    """The files of a case, from what is stored of it: nothing of a path comes from the request."""
    await service.cohort(cohort, request)
    case = await service.case(cohort, name, request)
    return await asyncio.to_thread(_located, service, cohort, case)


def _located(service: Service, cohort: str, case: StoredCase) -> Located:
    name, folder = case.name, service.casework.folder(cohort, case.name)
    listed = (case.result or {}).get("files", {}) if case.state == "done" else {}
    files = {key: (folder / entry["name"], str(entry["sha256"])) for key, entry in listed.items()}
    files = {key: entry for key, entry in files.items() if is_image(entry[0]) and entry[0].is_file()}
    try:
        image, sha256 = _original(service, case)
    except (ValueError, OSError) as error:
        return Located(name, None, str(error), files)
    return Located(name, image, "", files, sha256)


def _original(service: Service, case: StoredCase) -> tuple[Path, str]:
    """A case's image and its sha256: the file that was read as an image, as it was then, and no other.

    Raises:
        ValueError, OSError: it can't be had; the sentence says why.
    """
    name, read = case.name, (case.result or {}).get("image")
    if is_url(case.image):
        raise ValueError(f"the image of {name} lies at an address and is not kept here")
    if read is None:
        raise ValueError(f"the image of {name} has not been segmented by this version, so it is not shown")
    settings = service.settings
    image = resolve_image(case.image, (*settings.readable_roots, str(settings.uploads.resolve())))
    if not image.is_file():
        raise ValueError(f"the image of {name} is no longer where it was")
    if not is_original(image, name, read):
        raise ValueError(f"the image of {name} has changed since it was segmented; post it again")
    return image, str(read["sha256"])


def _geometry(service: Service, found: Located) -> planes.Geometry:
    data, most = service.bundle.config.data, service.settings.max_voxels
    path, channels = (found.image, data.in_channels) if found.image else (found.file("label")[0], 1)
    return planes.geometry(
        path, case=found.name, spatial_dims=data.spatial_dims, in_channels=channels, max_voxels=most
    )  # fmt: skip


def _describe(service: Service, found: Located) -> dict[str, Any]:
    """Of a case of which nothing can be shown, `axes` is empty and `missing` says why."""
    known = [vars(structure) for structure in _structures(service)]
    described: dict[str, Any] = {"name": found.name, "image": found.image is not None, "missing": found.missing}
    described |= {"axes": [], "volume": False, "orientation": "", "range": None, "structures": known}
    described["overlays"] = {key: {"highest": overlays.highest(key)} for key in found.files}
    described["heat"] = {"colours": overlays.HEAT, "faded_below": overlays.FADED_BELOW}
    if found.image is None and "label" not in found.files:
        return described
    try:
        geo = _geometry(service, found)
        start = (geo.shape[0] // 2, geo.shape[1] // 2, geo.shape[2] // 2)
        if "label" in found.files:
            start = planes.fullest(found.files["label"][0], geo, case=found.name)
        described["range"] = planes.window(found.image, case=found.name) if found.image else None
    except (CaseError, OSError) as error:
        return described | {"image": False, "missing": _sentence(error, service, found)}
    described["axes"] = [
        {
            "axis": axis,
            "name": planes.PLANES[axis][0] if geo.anatomical else f"across axis {axis + 1}",
            "count": geo.shape[axis],
            "spacing": geo.spacing[axis],
            "start": start[axis],
        }
        for axis in geo.axes
    ]
    dims = 3 if len(geo.axes) == 3 else 2
    described |= {"shape": geo.shape[:dims], "spacing": geo.spacing[:dims], "volume": geo.anatomical}
    return described | {"orientation": "radiological" if geo.anatomical else ""}


def _sentence(error: Exception, service: Service, found: Located) -> str:
    return without_folders(str(error), found.image or "", service.settings)


def _draw(service: Service, found: Located, picture: Picture, overlay: Path | None) -> bytes:
    """A picture as PNG.

    Raises:
        Problem: there is no such plane, or a file of the case can't be read.
    """
    try:
        return _drawn(service, found, picture, overlay)
    except CaseError as error:
        raise Problem("not-found", _sentence(error, service, found)) from error
    except OSError as error:  # removed while it was read
        raise Problem("not-found", f"a file of the case can't be read ({error.strerror}); ask again") from error


def _drawn(service: Service, found: Located, picture: Picture, overlay: Path | None) -> bytes:
    geo, axis, index = _geometry(service, found), picture.axis, picture.index
    if axis not in geo.axes or index >= geo.shape[axis]:
        counts = ", ".join(f"axis {k} has {geo.shape[k]}" for k in geo.axes)
        raise Problem("invalid-request", f"there is no plane {index} across axis {axis} of {found.name}: {counts}")
    if found.image is not None:
        low, high = planes.window(found.image, case=found.name)
        base = overlays.grey(planes.read_plane(found.image, geo, axis, index, case=found.name), low, high)
    else:
        plane = planes.read_plane(found.file("label")[0], geo, axis, index, case=found.name, label=True)
        base = np.zeros((*plane.shape[:2], 3))
    if overlay is not None:
        values = planes.read_plane(overlay, geo, axis, index, case=found.name, label=True)
        if values.shape != base.shape[:2]:
            raise Problem("not-found", f"the image of {found.name} has changed since it was segmented; post it again")
        colours, cover = overlays.overlay(picture.overlay, values, _structures(service))
        base = overlays.blend(base, colours, cover * picture.opacity)
    outlined = None
    if picture.contours:
        label = planes.read_plane(found.file("label")[0], geo, axis, index, case=found.name, label=True)
        if label.shape == base.shape[:2]:
            outlined = (label, _structures(service))
    letters = planes.PLANES[axis][1:] if geo.anatomical else ("", "", "", "")
    return overlays.encode(base, geo.pixel(axis), picture.size, letters, outlined)


def _structures(service: Service) -> tuple[overlays.Structure, ...]:
    data = service.bundle.config.data
    return overlays.structures(tuple(data.structures), tuple(data.label_values))
