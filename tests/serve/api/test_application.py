"""Faults, paths and the shelf of uploads, without a process."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from pathlib import Path

import fsspec
import httpx
import pytest
from fastapi import FastAPI, Request
from service import problem, write_image

from ldseg.data.errors import CaseError
from serve.http import problems
from serve.http.middleware import Guard
from serve.http.problems import Problem
from serve.http.security import limits
from serve.intake.paths import check_url, local_image, resolve
from serve.intake.uploads import Received, find_upload, keep_upload, sweep_uploads
from serve.settings import Settings
from serve.telemetry import Metrics

SECRET = "DOE_JOHN"


def ask(app: FastAPI, path: str) -> httpx.Response:
    async def get() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            return await client.get(path)

    return asyncio.run(get())


@pytest.fixture
def app() -> FastAPI:
    made = FastAPI()
    problems.install(made)
    made.add_middleware(Guard, settings=Settings(model="m"), metrics=Metrics())
    return made


def test_a_fault_is_told_without_details_and_logged_without_names(
    app: FastAPI, caplog: pytest.LogCaptureFixture
) -> None:
    @app.get("/fault/{name}")
    async def fault(name: str) -> None:
        try:
            raise KeyError(name)
        except KeyError as error:
            raise ValueError(f"{name} is not there") from error

    with caplog.at_level(logging.INFO):
        answer = ask(app, f"/fault/{SECRET}")
    told = problem(answer, 500, "internal")
    assert SECRET not in told["detail"] and "Traceback" not in answer.text
    line = next(record.getMessage() for record in caplog.records if "failed" in record.getMessage())
    assert "ValueError at" in line and "caused by KeyError" in line and "test_application.py" in line
    assert SECRET not in line


def test_the_owner_of_a_request_is_known_to_it(app: FastAPI) -> None:
    @app.get("/")
    async def owner(request: Request) -> str:
        return f"<{request.state.owner}>"

    assert ask(app, "/").json() == "<>"
    assert limits(Settings(model="m"), "") is None


@pytest.mark.parametrize(
    ("url", "good"),
    [
        ("s3://bucket/a/x.nii", True),
        ("s3://bucket/a/b/x.nii", True),
        ("s3://bucket/a/", False),
        ("s3://bucket/ab/x.nii", False),
        ("s3://bucket/a/../b/x.nii", False),
        ("s3://bucket/a/%2e%2e/b/x.nii", False),
        ("s3://bucket/a/%252e%252e/b/x.nii", False),
        ("s3://bucket/a/..\\b", False),
        ("S3://bucket/a/x.nii", False),
        ("s3://user@bucket/a/x.nii", False),
        ("simplecache::s3://bucket/a/x.nii", False),
        ("s3://bucket/a/x.zip::file:///etc/passwd", False),
    ],
)
def test_urls_stay_below_their_prefix(url: str, good: bool) -> None:
    settings = Settings(model="m", allow_urls=("s3://bucket/a",))
    if good:
        assert resolve(url, settings, "") == url
    else:
        with pytest.raises(Problem) as caught:
            resolve(url, settings, "")
        assert caught.value.kind == "path-not-allowed"
    with pytest.raises(ValueError, match="allowed: none"):
        check_url(url, Settings(model="m"))


def test_a_url_is_fetched_for_as_long_as_it_is_needed(tmp_path: Path) -> None:
    content = write_image(tmp_path / "a.nii.gz").read_bytes()
    with fsspec.open("memory://place/in/a.nii.gz", "wb") as file:
        file.write(content)
    settings = Settings(model="m", allow_urls=("memory://place/in/",))
    with local_image("memory://place/in/a.nii.gz", settings, "a") as path:
        assert path.name == "a.nii.gz" and path.read_bytes() == content
    assert not path.exists()
    small = Settings(model="m", allow_urls=("memory://place/in/",), max_upload_bytes=10)
    for image, own, word in (
        ("memory://place/in/a.nii.gz", small, "larger than"),
        ("memory://place/in/none.nii.gz", settings, "can't be fetched"),
        ("memory://place/out/a.nii.gz", settings, "no URL that"),
    ):
        with pytest.raises(CaseError, match=word), local_image(image, own, "a"):
            raise AssertionError


def test_a_file_that_became_a_link_is_refused_when_it_is_read(tmp_path: Path) -> None:
    settings = Settings(model="m", allow_roots=(str(tmp_path / "in"),))
    inside, outside = write_image(tmp_path / "in" / "a.nii.gz"), write_image(tmp_path / "out.nii.gz")
    image = resolve("a.nii.gz", settings, "")
    with local_image(image, settings, "a") as path:
        assert path == inside
    inside.unlink()
    inside.symlink_to(outside)
    with pytest.raises(CaseError, match="does not lie under"), local_image(image, settings, "a"):
        raise AssertionError


def received(folder: Path, content: bytes, name: str = "x.nii") -> Received:
    folder.mkdir(parents=True)
    (folder / name).write_bytes(content)
    return Received(folder, folder / name, f"digest of {content!r}", len(content), {})


def test_kept_uploads_belong_to_their_owner_and_are_swept_when_nobody_needs_them(tmp_path: Path) -> None:
    settings = Settings(model="m", home=str(tmp_path))
    place = settings.folder / "uploads"
    first = keep_upload(received(place / ("a" * 32), b"1"), settings, "ward")
    again = keep_upload(received(place / ("b" * 32), b"1"), settings, "ward")
    other = keep_upload(received(place / ("c" * 32), b"1"), settings, "lab")
    assert first == again != other
    assert sorted(path.name for path in place.iterdir()) == ["kept"]
    assert find_upload(first, settings, "ward").read_bytes() == b"1"
    with local_image(resolve(f"upload:{first}", settings, "ward"), settings, "a") as path:
        assert path.read_bytes() == b"1"
    for upload, owner in ((first, "lab"), (first, ""), ("0" * 32, "ward"), ("../..", "ward"), ("", "ward")):
        with pytest.raises(Problem):
            find_upload(upload, settings, owner)
    received(place / ("d" * 32), b"half")  # as a crash leaves it
    old = time.time() - 1000
    for folder in (*place.glob("*"), *settings.kept_uploads.glob("*")):
        os.utime(folder, (old, old))
    needed = str(find_upload(first, settings, "ward"))
    assert sweep_uploads(settings, 2000, [needed]) == 0
    assert sweep_uploads(settings, 500, [needed]) == 2
    assert find_upload(first, settings, "ward").is_file() and not (place / ("d" * 32)).exists()
    with pytest.raises(Problem):
        find_upload(other, settings, "lab")
