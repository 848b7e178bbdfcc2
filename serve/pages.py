"""The page at /: its files, and what it shows of a case beside the results: the image and pictures of planes."""

from __future__ import annotations

import asyncio
import hashlib
import mimetypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.responses import FileResponse, HTMLResponse

from ldseg.data.errors import CaseError
from ldseg.data.volume import is_image, stem
from serve import planes, slices
from serve.problems import Problem
from serve.settings import resolve_image

FOLDER = Path(__file__).resolve().parent / "page"
BUILT = "dist/viewer.js"
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "connect-src 'self' data:",  # NiiVue's font is a data address that it fetches
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
PAGE_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
KEPT_PRIVATELY = {"Cache-Control": "private, no-cache", "Vary": "Authorization"}
AT_ONCE = 2  # pictures drawn at the same time; each holds a plane
CASE = "/cohorts/{cohort}/cases/{name}"


@dataclass(frozen=True)
class Located:
    """Where the files of a case lie.

    Attributes:
        image: the input, None where it can't be had.
        missing: why not.
        files: path and sha256 by key.
    """

    image: Path | None
    missing: str
    files: dict[str, tuple[Path, str]]

    def file(self, name: str, key: str) -> tuple[Path, str]:
        """A result's file.

        Raises:
            Problem: there is none of that key.
        """
        if key not in self.files:
            known = ", ".join(self.files) or "none yet"
            raise Problem("not-found", f"{name} has no file {key!r} to lay over the image; it has: {known}")
        return self.files[key]


def install(app: FastAPI, service: Any, authorised: Callable[..., Any]) -> None:
    """Add the page and the routes that it needs.

    Args:
        service: a `serve.api.Service`, which imports this module.
        authorised: the dependency that every route under /v1 has.
    """
    _add_files(app)
    routes = APIRouter(prefix="/v1", dependencies=[Depends(authorised)])
    _add_volume(routes, service)
    _add_slices(routes, service)
    app.include_router(routes)


def is_built() -> bool:
    """Whether the viewer was built, so that volumes can be shown by WebGL."""
    return (FOLDER / BUILT).is_file()


def _add_files(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    async def index() -> HTMLResponse:
        return HTMLResponse((FOLDER / "index.html").read_text(), headers=PAGE_HEADERS)

    @app.get("/page/features.json", include_in_schema=False)
    async def features() -> dict[str, bool]:
        return {"viewer": is_built()}

    @app.get("/page/{name:path}", include_in_schema=False)
    async def asset(request: Request, name: str) -> Response:
        path = _assets().get(name)
        if path is None:
            raise Problem("not-found", f"the page has no file {name!r}")
        found = path.stat()
        headers = {"Cache-Control": "no-cache", "ETag": _etag(name, found.st_mtime_ns, found.st_size)}
        if request.headers.get("If-None-Match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        return FileResponse(path, headers=headers, media_type=mimetypes.guess_type(name)[0])


def _assets() -> dict[str, Path]:
    """What may be asked for by name: nothing else of the folder is served."""
    plain = [path for end in ("js", "css", "svg") for path in FOLDER.glob(f"*.{end}")]
    return {str(path.relative_to(FOLDER)): path for path in (*plain, *(FOLDER / "dist").glob("*.js"))}


def _add_volume(routes: APIRouter, service: Any) -> None:
    @routes.get(f"{CASE}/volume-info")
    async def volume_info(cohort: str, name: str) -> dict[str, Any]:
        found = await _locate(service, cohort, name)
        return await asyncio.to_thread(_explained, lambda: _describe(service, found, name))

    @routes.get(f"{CASE}/image")
    async def image(request: Request, cohort: str, name: str) -> Response:
        found = await _locate(service, cohort, name)
        if found.image is None:
            raise Problem("not-found", found.missing)
        state = await asyncio.to_thread(found.image.stat)
        headers = KEPT_PRIVATELY | {"ETag": _etag(state.st_mtime_ns, state.st_size)}
        if request.headers.get("If-None-Match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        ending = found.image.name[len(stem(found.image)) :]
        return FileResponse(
            found.image, filename=f"{name}{ending}", media_type="application/octet-stream", headers=headers
        )


def _add_slices(routes: APIRouter, service: Any) -> None:
    turns = asyncio.Semaphore(AT_ONCE)

    @routes.get(f"{CASE}/slice.png", response_class=Response, responses={200: {"content": {"image/png": {}}}})
    async def slice_png(
        request: Request,
        cohort: str,
        name: str,
        axis: int = Query(2, ge=0, le=2, description="0 sagittal, 1 coronal, 2 axial"),
        index: int = Query(0, ge=0, description="counted towards right, anterior, superior"),
        overlay: str = Query("none", description="key of one of the case's files, or none"),
        opacity: float = Query(0.5, ge=0, le=1),
        size: int = Query(640, ge=64, le=2048, description="pixels of the longer side"),
    ) -> Response:
        found = await _locate(service, cohort, name)
        map_file = None if overlay == "none" else found.file(name, overlay)
        state = found.image.stat() if found.image else None
        stamp = (state.st_mtime_ns, state.st_size) if state else ()
        etag = _etag(*stamp, map_file and map_file[1], axis, index, overlay, opacity, size)
        headers = KEPT_PRIVATELY | {"ETag": etag}
        if request.headers.get("If-None-Match") == etag:
            return Response(status_code=304, headers=headers)
        over = (overlay, map_file[0]) if map_file else None
        async with turns:
            content = await asyncio.to_thread(
                _explained, lambda: _draw(service, found, name, (axis, index), over, opacity, size)
            )
        return Response(content, media_type="image/png", headers=headers)


async def _locate(service: Any, cohort: str, name: str) -> Located:
    """The files of a case, from what is stored of it: nothing of a path comes from the request."""
    case = await service.case(cohort, name)
    return await asyncio.to_thread(_located, service, cohort, case)


def _located(service: Any, cohort: str, case: dict[str, Any]) -> Located:
    name, folder = str(case["name"]), service.runner.folder(cohort, case["name"])
    listed = (case["result"] or {}).get("files", {}) if case["state"] == "done" else {}
    files = {key: (folder / entry["name"], str(entry["sha256"])) for key, entry in listed.items()}
    files = {key: entry for key, entry in files.items() if is_image(entry[0]) and entry[0].is_file()}
    try:
        if case["upload"]:
            image = Path(case["image"]).resolve()
            image = image if image.is_relative_to(service.runner.uploads.resolve()) else Path()
        else:
            image = resolve_image(str(case["image"]), service.settings.allow_roots)
    except (ValueError, OSError) as error:
        return Located(None, f"{name}: {error}", files)
    if image.is_file():
        return Located(image, "", files)
    kept = "an upload is not kept once it is segmented" if case["upload"] else "it is no longer where it was"
    return Located(None, f"the image of {name} is not here: {kept}", files)


def _geometry(service: Any, found: Located, name: str) -> planes.Geometry:
    data, most = service.bundle.config.data, service.settings.max_voxels
    if found.image is not None:
        return planes.geometry(
            found.image, case=name, spatial_dims=data.spatial_dims, in_channels=data.in_channels, max_voxels=most
        )
    path = found.file(name, "label")[0]
    return planes.geometry(path, case=name, spatial_dims=data.spatial_dims, in_channels=1, max_voxels=most)


def _describe(service: Any, found: Located, name: str) -> dict[str, Any]:
    geo = _geometry(service, found, name)
    start = tuple(n // 2 for n in geo.shape)
    if "label" in found.files:
        start = planes.fullest(found.files["label"][0], geo, case=name)
    axes = [
        {
            "axis": axis,
            "name": planes.PLANES[axis][0] if geo.anatomical else f"across axis {axis + 1}",
            "count": geo.shape[axis],
            "start": start[axis],
            "spacing": geo.spacing[axis],
        }
        for axis in geo.axes
    ]
    return {
        "name": name,
        "shape": [geo.shape[axis] for axis in geo.axes] if len(geo.axes) == 3 else list(geo.shape[:2]),
        "spacing": [geo.spacing[axis] for axis in (geo.axes if len(geo.axes) == 3 else (0, 1))],
        "axes": axes,
        "orientation": "radiological" if geo.anatomical else "",
        "volume": geo.anatomical,
        "image": found.image is not None,
        "missing": found.missing,
        "range": list(planes.window(found.image, case=name)) if found.image else None,
        "structures": [vars(structure) for structure in _structures(service)],
        "overlays": {key: {"highest": slices.highest(key)} for key in found.files},
    }


def _draw(
    service: Any,
    found: Located,
    name: str,
    place: tuple[int, int],
    over: tuple[str, Path] | None,
    opacity: float,
    size: int,
) -> bytes:
    geo, (axis, index) = _geometry(service, found, name), place
    if axis not in geo.axes or index >= geo.shape[axis]:
        counts = ", ".join(f"axis {k} has {geo.shape[k]}" for k in geo.axes)
        raise Problem("invalid-request", f"there is no plane {index} across axis {axis} of {name}: {counts}")
    if found.image is not None:
        low, high = planes.window(found.image, case=name)
        base = slices.grey(planes.read_plane(found.image, geo, axis, index, case=name), low, high)
    else:
        plane = planes.read_plane(found.files["label"][0], geo, axis, index, case=name, label=True)
        base = np.zeros((*plane.shape[:2], 3))
    if over is not None:
        key, path = over
        values = planes.read_plane(path, geo, axis, index, case=name, label=True)
        colours, cover = slices.overlay(key, values, _structures(service))
        base = slices.blend(base, colours, cover * opacity)
    letters = planes.PLANES[axis][1:] if geo.anatomical else ("", "", "", "")
    return slices.encode(base, geo.pixel(axis), size, letters)


def _structures(service: Any) -> tuple[slices.Structure, ...]:
    data = service.bundle.config.data
    return slices.structures(tuple(data.structures), tuple(data.label_values))


def _explained(make: Callable[[], Any]) -> Any:
    try:
        return make()
    except CaseError as error:
        raise Problem("not-found", str(error)) from error
    except OSError as error:  # removed while it was read
        raise Problem("not-found", f"a file of the case can't be read ({error.strerror}); ask again") from error


def _etag(*parts: object) -> str:
    return f'"{hashlib.sha256(repr(parts).encode()).hexdigest()[:32]}"'
