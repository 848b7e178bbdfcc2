"""Uploads of any size pass through with flat memory."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterable
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


def test_too_large_is_refused_while_it_comes(tmp_path: Path) -> None:
    for pieces in (nifti_of(3), iter([b"x" * (2**20 + 1)])):
        rest = form_of(pieces)
        problem(received(rest, tmp_path, max_upload_bytes=2**20), 413, "too-large")
        assert next(rest, None) is not None, "the end was not waited for"
    problem(received([b"".join(form_of(nifti_of(3)))], tmp_path, max_upload_bytes=2**20), 413, "too-large")
    assert list((tmp_path / "uploads").iterdir()) == []


def test_a_disk_without_room_is_told(tmp_path: Path) -> None:
    problem(received(form_of(nifti_of(1)), tmp_path, min_free_bytes=2**60), 507, "storage-full")


def received(pieces: Iterable[bytes], folder: Path, **settings: int) -> httpx.Response:
    """The answer of a service with these settings to a form that comes piece by piece."""
    app, own = FastAPI(), Settings(model="m", home=str(folder), **settings)
    problems.install(app)

    @app.post("/")
    async def post(request: Request) -> None:
        await receive(request, own, folder / "uploads")

    async def body() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
            return await client.post("/", content=body(), headers=FORM)

    return asyncio.run(send())
