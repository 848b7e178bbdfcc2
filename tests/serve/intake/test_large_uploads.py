"""Uploads of any size pass through with flat memory."""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI, Request
from forms import FORM, form_of, nifti_of
from service import problem
from web import Web

from serve.http import problems
from serve.intake.uploads import receive
from serve.settings import Settings


@pytest.mark.parametrize("megabytes", [64, pytest.param(1024, marks=pytest.mark.slow)])
def test_an_upload_takes_little_memory(web: Web, megabytes: int) -> None:
    web.http.get("/v1/model")
    web.reset_peak()
    before = web.rss()
    answer = web.http.post("/v1/uploads", content=form_of(nifti_of(megabytes)), headers=FORM, timeout=300)
    assert answer.status_code == 201, answer.text
    print(f"{megabytes} MB: the process grew by {(web.peak() - before) / 2**20:.1f} MB at most")
    assert web.peak() - before < 64 * 2**20
    expected = hashlib.sha256()
    for piece in nifti_of(megabytes):
        expected.update(piece)
    assert answer.json()["sha256"] == expected.hexdigest()
    kept = web.home / "service" / "uploads" / "kept" / answer.json()["upload"] / "large.nii"
    assert kept.stat().st_size == answer.json()["bytes"] == megabytes * 2**20 + 352
    kept.unlink()


def test_too_large_is_refused_while_it_comes(web: Web, tmp_path: Path) -> None:
    small = Web(web_bundle(web), tmp_path, max_upload_bytes=2**20).wait_ready()
    try:
        for pieces in (nifti_of(3), iter([b"x" * (2**20 + 1)])):
            answer = small.http.post("/v1/uploads", content=form_of(pieces), headers=FORM)
            problem(answer, 413, "too-large")
        whole = b"".join(form_of(nifti_of(3)))
        problem(small.http.post("/v1/uploads", content=whole, headers=FORM), 413, "too-large")
        uploads = tmp_path / "service" / "uploads"
        assert [path.name for path in uploads.glob("*") if path.name != "kept"] == []
    finally:
        small.stop()


def test_a_disk_without_room_is_told(tmp_path: Path) -> None:
    app, own = FastAPI(), Settings(model="m", home=str(tmp_path), min_free_bytes=2**60)
    problems.install(app)

    @app.post("/")
    async def post(request: Request) -> None:
        await receive(request, own, tmp_path)

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
            return await client.post("/", content=b"".join(form_of(nifti_of(1))), headers=FORM)

    problem(asyncio.run(ask()), 507, "storage-full")


def web_bundle(web: Web) -> Path:
    return Path(json.loads((web.home / "settings.json").read_text())["model"])
