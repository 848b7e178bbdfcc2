"""Uploads that mean harm get a 4xx soon, with little memory, and nothing of them stays."""

from __future__ import annotations

import gzip
import socket
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from service import problem, write_image
from web import Web, bounded

OTHERS: set[Path] = set()


def image_bytes(change: Any = None, *, shape: tuple[int, ...] = (13, 15, 11), array: Any = None) -> bytes:
    image = nib.Nifti1Image(np.zeros(shape, np.float32) if array is None else array, np.diag([1, 1, 2, 1.0]))
    content = bytearray(image.to_bytes())
    if change is not None:
        change(content)
    return bytes(content)


def put(offset: int, values: Any, kind: str) -> Any:
    def change(content: bytearray) -> None:
        raw = np.asarray(values, kind).tobytes()
        content[offset : offset + len(raw)] = raw

    return change


DIM, PIXDIM, DATATYPE, OFFSET = 40, 76, 70, 108  # where NIfTI-1 has them


def with_voxel(value: float) -> bytes:
    array = np.zeros((13, 15, 11), np.float32)
    array[3, 4, 5] = value
    return image_bytes(array=array)


IMAGES = {
    "huge": image_bytes(put(DIM, [3, 32767, 32767, 32767], "<i2")),
    "longer": image_bytes(put(DIM, [3, 130, 150, 110], "<i2")),
    "none": image_bytes(put(DIM, [3, 0, 15, 11], "<i2")),
    "negative": image_bytes(put(DIM, [3, -13, 15, 11], "<i2")),
    "many": image_bytes(put(DIM, [9, 13, 15, 11], "<i2")),
    "time": image_bytes(shape=(13, 15, 11, 5)),
    "rod": image_bytes(shape=(30000, 1, 1)),  # padded to 64 times as many voxels and more
    "plane": image_bytes(shape=(13, 15)),
    "zero spacing": image_bytes(put(PIXDIM, [1, 0, 1, 1], "<f4")),
    "nan spacing": image_bytes(put(PIXDIM, [1, float("nan"), 1, 1], "<f4")),
    "inf spacing": image_bytes(put(PIXDIM, [1, 1, float("inf"), 1], "<f4")),
    "nan": with_voxel(float("nan")),
    "inf": with_voxel(float("-inf")),
    "nothing": image_bytes(),
    "type": image_bytes(put(DATATYPE, [77], "<i2")),
    "complex": image_bytes(array=np.zeros((13, 15, 11), np.complex64)),
    "offset": image_bytes(put(OFFSET, [1e9], "<f4")),
    "short": image_bytes()[:2000],
    "text": b"no image",
}


@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.parametrize("path", ["/v1/uploads", "/v1/segmentations"])
def test_images_that_cannot_be_used_name_the_cure(web: Web, kind: str, path: str) -> None:
    for name, content in (("x.nii", IMAGES[kind]), ("x.nii.gz", gzip.compress(IMAGES[kind], 9))):
        with bounded(web, seconds=5, megabytes=160):
            detail = problem(web.http.post(path, files={"image": (name, content)}), 422, "invalid-image")["detail"]
        assert "; " in detail and str(web.home) not in detail
    assert not left_over(web)


def test_what_unpacks_to_more_than_it_claims_is_not_unpacked(web: Web, tmp_path: Path) -> None:
    with gzip.open(tmp_path / "bomb", "wb", compresslevel=1) as file:
        file.write(image_bytes())
        for _ in range(512):
            file.write(bytes(2**20))
    content = (tmp_path / "bomb").read_bytes()
    for path in ("/v1/uploads", "/v1/segmentations"):
        with bounded(web, seconds=1.5, megabytes=40):
            told = problem(web.http.post(path, files={"image": ("x.nii.gz", content)}), 422, "invalid-image")
        assert "goes on after" in told["detail"]


def uploads(web: Web) -> set[Path]:
    return {path for path in (web.home / "service" / "uploads").glob("*") if path.name != "kept"}


@pytest.fixture(scope="module", autouse=True)
def of_others(web: Web) -> set[Path]:
    """Uploads of other modules' cases, which stay as long as these."""
    OTHERS.update(uploads(web))
    return OTHERS


def left_over(web: Web) -> set[Path]:
    return uploads(web) - OTHERS


FORM = "multipart/form-data; boundary=b"
HEAD = b'--b\r\nContent-Disposition: form-data; name="image"; filename="x.nii"\r\n\r\n'


@pytest.mark.parametrize(
    ("kind", "body", "status", "type_"),
    [
        ("multipart/form-data", HEAD + b"x\r\n--b--", 422, "invalid-request"),
        ("multipart/form-data; boundary=", HEAD + b"x\r\n--b--", 422, "invalid-request"),
        ("multipart/form-data; boundary=" + "b" * 300, HEAD, 422, "invalid-request"),
        ("multipart/form-data; boundary=other", HEAD + b"x\r\n--b--", 422, "invalid-request"),
        (FORM, b"", 400, "incomplete-body"),
        (FORM, HEAD + b"x" * 1000, 400, "incomplete-body"),
        (FORM, HEAD + b"\r\n--b--", 422, "invalid-request"),
        (FORM, b"--b--", 422, "invalid-request"),
        (FORM, b"nonsense", 422, "invalid-request"),
        (FORM, b"--b\r\n\r\nx\r\n--b--", 422, "invalid-request"),
        (FORM, b"--b\r\n" + b"x" * 100_000, 422, "invalid-request"),
        (FORM, b"--b\r\n" + b"X-A: b\r\n" * 1000 + b"\r\nx\r\n--b--", 422, "invalid-request"),
        (FORM, HEAD.replace(b"image", b"other") + b"x\r\n--b--", 422, "invalid-request"),
        (FORM, HEAD.replace(b"x.nii", b"x.exe") + b"x\r\n--b--", 422, "invalid-request"),
        (FORM, HEAD.replace(b"x.nii", b"\xff.nii") + b"x\r\n--b--", 422, "invalid-image"),
        (FORM, HEAD.replace(b'; filename="x.nii"', b"") + b"x\r\n--b--", 422, "invalid-request"),
        (FORM, HEAD + b"x\r\n" + HEAD + b"x\r\n--b--", 422, "invalid-request"),
        (
            FORM,
            b'--b\r\nContent-Disposition: form-data; name="seed"\r\n\r\n' + b"1" * 10_000 + b"\r\n--b--",
            413,
            "too-large",
        ),
    ],
    ids=range(18),
)
def test_forms_that_cannot_be_used(web: Web, kind: str, body: bytes, status: int, type_: str) -> None:
    for path in ("/v1/uploads", "/v1/segmentations"):
        with bounded(web):
            problem(web.http.post(path, content=body, headers={"Content-Type": kind}), status, type_)
    assert not left_over(web)


def test_an_upload_that_is_broken_off_leaves_nothing(web: Web) -> None:
    token = web.http.headers["Authorization"]
    for length in (b"Content-Length: 1000000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", web.port), timeout=120) as connection:
            head = f"POST /v1/uploads HTTP/1.1\r\nHost: localhost\r\nAuthorization: {token}\r\nContent-Type: {FORM}\r\n"
            body = HEAD + b"x" * 200_000
            chunk = f"{len(body):x}\r\n".encode() if length.startswith(b"T") else b""
            connection.sendall(head.encode() + length + chunk + body)
            deadline = time.monotonic() + 120
            while not left_over(web) and time.monotonic() < deadline:
                time.sleep(0.01)
            assert left_over(web)
        while left_over(web) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not left_over(web)
    assert "Traceback" not in web.log.read_text()


def test_uploads_are_named_in_a_manifest_by_their_owner_alone(web: Web, data: Path, tmp_path: Path) -> None:
    content = write_image(tmp_path / "telling name.nii.gz", 7).read_bytes()
    uploads = [web.http.post("/v1/uploads", files={"image": ("telling name.nii.gz", content)}) for _ in range(2)]
    assert [answer.status_code for answer in uploads] == [201, 201]
    assert uploads[0].json() == uploads[1].json()  # the same file is the same upload
    image = uploads[0].json()["image"]
    document = web.finish(web.post({"a": image, "b": image}))
    assert document["counts"]["done"] == 2
    body = {"cases": [{"name": "a", "image": image}]}
    other = {"Authorization": "Bearer another-token"}
    problem(web.http.post("/v1/cohorts", json=body, headers=other), 403, "path-not-allowed")
