"""Uploads of any size pass through with flat memory."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import nibabel as nib
import numpy as np
import pytest
from fastapi import FastAPI, Request
from service import problem
from web import Web

from serve.http import problems
from serve.intake.uploads import receive
from serve.settings import Settings

BOUNDARY = b"----b"
HEAD = b'--%s\r\nContent-Disposition: form-data; name="image"; filename="large.nii"\r\n\r\n' % BOUNDARY
FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY.decode()}"}


def nifti_of(megabytes: int) -> Iterator[bytes]:
    """A large image that is never in one piece."""
    image = nib.Nifti1Image(np.zeros((1, 1, 1), np.float32), np.eye(4))
    image.header.set_data_shape((1024, 256, megabytes))
    image.header.set_data_offset(352)
    yield bytes(image.header.binaryblock) + bytes(4)
    piece = np.random.default_rng(0).bytes(2**20)
    for _ in range(megabytes):
        yield piece


def form_of(pieces: Iterator[bytes]) -> Iterator[bytes]:
    yield HEAD
    yield from pieces
    yield b"\r\n--%s--\r\n" % BOUNDARY


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
