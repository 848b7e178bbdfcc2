"""The interface's documentation at /docs: Swagger UI from the service's own files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from browsing import Visit
from fastapi import FastAPI
from fastapi.testclient import TestClient
from web import Web

from ldseg import ROOT
from serve.api import pages
from serve.http import problems

BUILT = ROOT / "serve" / "page"


def client() -> TestClient:
    app = FastAPI(docs_url=None, redoc_url=None)
    problems.install(app)
    pages.install(app, None)  # type: ignore[arg-type]
    return TestClient(app)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page's folder as it is without a build."""
    for path in pages.FOLDER.glob("*.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(pages, "FOLDER", tmp_path)
    return tmp_path


def test_it_is_made_of_the_services_own_files_and_allows_no_others(folder: Path) -> None:
    (folder / "dist").mkdir()
    for name in pages.SWAGGER:
        (folder / name).write_text("/* of Swagger UI */")
    asked = client()
    page = asked.get("/docs")
    assert page.status_code == 200 and page.headers["Content-Security-Policy"] == pages.CONTENT_SECURITY_POLICY
    assert not re.search(r"<script>|<style|https?:|\son\w+=", page.text)
    files = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(files) == 4 and {asked.get(file).status_code for file in files} == {200}
    assert {f"/page/{name}" for name in pages.SWAGGER} < set(files)
    assert "https://" not in asked.get("/page/docs.js").text and asked.get("/redoc").status_code == 404


def test_without_a_build_it_says_so_and_where_the_description_is(folder: Path) -> None:
    answer = client().get("/docs")
    assert answer.status_code == 404 and "/openapi.json" in answer.json()["detail"]


def test_the_version_is_pinned_and_its_package_runs_nothing_when_installed() -> None:
    wanted = json.loads((BUILT / "package.json").read_text())["dependencies"]["swagger-ui-dist"]
    locked = json.loads((BUILT / "package-lock.json").read_text())["packages"]["node_modules/swagger-ui-dist"]
    assert wanted == locked["version"] and locked["integrity"]
    assert "ignore-scripts=true" in (BUILT / ".npmrc").read_text().split()


@pytest.mark.skipif(not (BUILT / "dist").is_dir(), reason="the page is not built (make page)")
def test_a_build_holds_it_with_its_licence() -> None:
    names = {path.name for path in (BUILT / "dist").iterdir()}
    assert {Path(name).name for name in pages.SWAGGER} | {"swagger-ui-bundle.js.LICENSE.txt"} <= names


@pytest.mark.skipif(not (BUILT / "dist").is_dir(), reason="the page is not built (make page)")
def test_a_browser_shows_every_route_and_asks_nobody_else(browser: Any, web: Web) -> None:
    visit = Visit(browser, web, viewport={"width": 1400, "height": 900})
    try:
        page = visit.open("docs")
        page.get_by_text("/v1/cohorts", exact=True).first.wait_for()
        described = web.http.get("/openapi.json").json()["paths"]
        page.locator(".opblock").nth(sum(len(methods) for methods in described.values()) - 1).wait_for()
        page.get_by_role("button", name="Authorize").first.click()
        page.locator(".auth-container").first.wait_for()
    finally:
        visit.end()
