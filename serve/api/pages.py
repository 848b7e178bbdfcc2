"""The page at /, the interface's documentation at /docs, and the files that they are made of."""

from __future__ import annotations

import mimetypes
from pathlib import Path

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import FileResponse, HTMLResponse

from ldseg.columns import COLUMNS, CONTROL, EVALUATION, KNOWN, LABELLED, RATERS
from serve.api import viewer
from serve.api.service import Service
from serve.http.problems import Problem

FOLDER = Path(__file__).resolve().parents[1] / "page"
BUILT = "dist/viewer.js"
SWAGGER = ("dist/swagger-ui-bundle.js", "dist/swagger-ui.css")
NEVER_HERE = (EVALUATION, LABELLED, RATERS, KNOWN, CONTROL)  # columns that no case of a service has
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


def install(app: FastAPI, service: Service) -> None:
    """Add the page and the routes that it needs."""
    _add_files(app)
    routes = APIRouter(prefix="/v1")
    viewer.add(routes, service)
    app.include_router(routes)


def is_built() -> bool:
    """Whether the viewer was built, so that volumes can be shown by WebGL."""
    return (FOLDER / BUILT).is_file()


def _add_files(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    async def index() -> HTMLResponse:
        return HTMLResponse((FOLDER / "index.html").read_text(), headers=PAGE_HEADERS)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        if not all((FOLDER / name).is_file() for name in SWAGGER):
            raise Problem("not-found", "this page was not built (make page); /openapi.json describes the interface")
        return HTMLResponse((FOLDER / "docs.html").read_text(), headers=PAGE_HEADERS)

    @app.get("/page/features.json", include_in_schema=False)
    async def features() -> dict[str, bool]:
        return {"viewer": is_built()}

    @app.get("/page/meanings.json", include_in_schema=False)
    async def meanings() -> dict[str, str]:
        return {column.name_pattern: column.meaning for column in COLUMNS if column.where not in NEVER_HERE}

    @app.get("/page/{name:path}", include_in_schema=False)
    async def asset(request: Request, name: str) -> Response:
        path = _assets().get(name)
        if path is None:
            raise Problem("not-found", f"the page has no file {name!r}")
        found = path.stat()
        headers = {"Cache-Control": "no-cache", "ETag": viewer.etag(name, found.st_mtime_ns, found.st_size)}
        if request.headers.get("If-None-Match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        return FileResponse(path, headers=headers, media_type=mimetypes.guess_type(name)[0])


def _assets() -> dict[str, Path]:
    """What may be asked for by name: nothing else of the folder is served."""
    plain = [path for end in ("js", "css", "svg") for path in FOLDER.glob(f"*.{end}")]
    built = [path for end in ("js", "css") for path in (FOLDER / "dist").glob(f"[!.]*.{end}")]
    return {str(path.relative_to(FOLDER)): path for path in (*plain, *built)}
