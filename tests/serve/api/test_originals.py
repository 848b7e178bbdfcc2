"""Images are sent as they were read; a file that was not read as an image never is."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest
from service import problem, write_image
from web import Web

SECRET = b"root:x:0:0:a line of a file that is no image\n" * 20


@pytest.fixture
def folder(data: Path) -> Path:
    made = data / "originals"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    return made


def refused(web: Web, cohort: str, name: str) -> str:
    """What is told of an image that is not sent, by any of the routes."""
    url = f"/v1/cohorts/{cohort}/cases/{name}"
    answers = [web.http.get(f"{url}/image"), web.http.get(f"{url}/slice.png", params={"axis": 2})]
    for answer in answers:
        assert SECRET[:20] not in answer.content
    info = web.http.get(f"{url}/volume-info").json()
    assert not info["image"] and info["missing"]
    return str(problem(answers[0], 404, "not-found")["detail"])


def test_a_file_that_is_no_image_is_not_sent_whatever_its_name(web: Web, folder: Path) -> None:
    whole = write_image(folder / "whole.nii").read_bytes()
    contents = {
        "secret.txt": SECRET,
        "secret.nii.gz": SECRET,
        "secret.png": SECRET,
        "header.nii": whole[:352] + SECRET,  # it begins like one
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "link.nii.gz").symlink_to(folder / "secret.txt")
    names = [*contents, "link.nii.gz"]
    cohort = web.post({f"c{k}": str(folder / name) for k, name in enumerate(names)})
    assert web.finish(cohort)["counts"]["failed"] == len(names)
    for k in range(len(names)):
        assert "has not been segmented" in refused(web, cohort, f"c{k}")


def test_what_was_read_is_sent_and_nothing_that_took_its_place(web: Web, folder: Path) -> None:
    path = write_image(folder / "a.nii.gz", 5)
    content = path.read_bytes()
    cohort = web.post({"a": str(path)})
    assert web.finish(cohort)["counts"]["done"] == 1
    url = f"/v1/cohorts/{cohort}/cases/a/image"

    def sent() -> bool:
        answer = web.http.get(url)
        return answer.content == content and answer.headers["ETag"] == f'"{hashlib.sha256(content).hexdigest()}"'

    assert sent()
    for other in (SECRET, write_image(folder / "b.nii.gz", 6).read_bytes(), content + b"x"):
        path.write_bytes(other)
        assert "has changed since it was segmented" in refused(web, cohort, "a")
    path.unlink()
    assert "no longer where it was" in refused(web, cohort, "a")
    (folder / "copy").write_bytes(content)
    (folder / "copy").rename(path)  # brought back: another file with the same content
    assert sent()
    path.unlink()
    path.symlink_to(folder / "b.nii.gz")
    assert "has changed" in refused(web, cohort, "a")


def test_an_image_that_waits_is_not_sent(web: Web, folder: Path) -> None:
    path = write_image(folder / "c.nii.gz", 7, shape=(40, 40, 40))
    cohort = web.post({f"c{k}": str(path) for k in range(4)}, samples=64, steps=200)
    try:
        assert "has not been segmented" in refused(web, cohort, "c3")
    finally:
        web.http.delete(f"/v1/cohorts/{cohort}?forget=true")
