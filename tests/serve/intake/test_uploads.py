"""Single volumes, uploaded."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import httpx
import nibabel as nib
import numpy as np
import programs
import pyarrow.parquet as pq
import pytest
from dicoms import PATIENT_ID, affine_lps, turned, write_series
from service import TOKEN, Service, problem

from ldseg.commands import segment


def test_an_uploaded_volume_is_segmented_at_once(service: Service, data: Path) -> None:
    with (data / "case_0.nii.gz").open("rb") as file:
        answer = service.http.post(
            "/v1/segmentations", files={"image": ("some where.nii.gz", file)}, data={"samples": "6", "seed": "5"}
        )
    assert answer.status_code == 201, answer.text
    case = answer.json()
    assert case["name"] == "some_where" and case["numbers"]["samples"] == 6
    cohort = service.post({"some_where": data / "case_0.nii.gz"}, seed=5)
    service.wait(cohort)
    files = {key: service.http.get(entry["href"]).content for key, entry in case["files"].items()}
    assert files == service.maps(cohort, "some_where")


def test_uploads_that_cannot_be_used_are_problems(service: Service, data: Path) -> None:
    def post(file: str, content: bytes, **fields: str) -> httpx.Response:
        return service.http.post("/v1/segmentations", files={"image": (file, content)}, data=fields)

    good = (data / "case_0.nii.gz").read_bytes()
    failed = problem(post("x.nii.gz", b"no image"), 422, "invalid-image")
    assert failed["detail"].startswith("x: ") and "/uploads/" not in failed["detail"]
    problem(post("x.exe", good), 422, "invalid-request")
    problem(post("x.nii.gz", good, samples="0"), 422, "invalid-request")
    problem(post("x.nii.gz", good, sample="1"), 422, "invalid-request")
    problem(post("x.nii.gz", good, name="../x"), 422, "invalid-request")
    problem(post("x.nii.gz", bytes(2**21)), 413, "too-large")
    problem(service.http.post("/v1/segmentations", json={}), 415, "unsupported-media-type")
    problem(service.http.post("/v1/segmentations", files={"other": ("x.nii.gz", good)}), 422, "invalid-request")


def test_a_zipped_study_is_a_nifti_from_then_on_and_a_folder_of_a_series_is_a_case(
    service: Service, data: Path, tmp_path: Path
) -> None:
    pytest.importorskip("pydicom")
    values = np.random.default_rng(0).integers(0, 900, (13, 15, 11)).astype(np.int16)
    affine = affine_lps(turned(20, (1, 2, 0.5)), (0.8, 1.5, 2.5), (4, -3, 7))
    write_series(tmp_path / "t1", values[::-1], affine, uid="1.2.8", SeriesDescription="T1", StudyInstanceUID="1.2.3.1")
    write_series(tmp_path / "flair", values, affine)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(tmp_path.rglob("*.dcm")):
            archive.write(path, path.relative_to(tmp_path))

    def post(content: bytes, **fields: str) -> httpx.Response:
        return service.http.post("/v1/segmentations", files={"image": ("study.zip", content)}, data=fields)

    several = problem(post(buffer.getvalue(), samples="2"), 422, "invalid-image")
    assert "2 series" in several["detail"] and "T2 FLAIR" in several["detail"] and "/runs" not in several["detail"]
    problem(post(b"PK no zip", samples="2"), 422, "invalid-image")
    answer = post(buffer.getvalue(), samples="2", seed="5", series="*flair*")
    assert answer.status_code == 201 and answer.json()["name"] == "study", answer.text
    files = {key: service.http.get(entry["href"]).content for key, entry in answer.json()["files"].items()}
    assert PATIENT_ID not in answer.text and all(PATIENT_ID.encode() not in content for content in files.values())
    label = nib.Nifti1Image.from_bytes(gzip.decompress(files["label"]))
    np.testing.assert_allclose(label.affine, np.diag([-1.0, -1, 1, 1]) @ affine, atol=1e-4)
    assert service.http.post(
        "/v1/uploads", files={"image": ("s.zip", buffer.getvalue())}, data={"series": "T1"}
    ).is_success
    assert not [*Path(service.log).parent.rglob("*.dcm")]

    write_series(data / "series", values, affine)
    cohort = service.post({"study": data / "series"}, samples=2, seed=5)
    service.wait(cohort)
    assert service.maps(cohort, "study")["label"] == files["label"]


def test_a_path_in_the_file_name_is_not_followed(service: Service, data: Path) -> None:
    content = (data / "case_0.nii.gz").read_bytes()
    answer = service.http.post(
        "/v1/segmentations", files={"image": ("../../../x.nii.gz", content)}, data={"samples": "1"}
    )
    assert answer.status_code == 201 and answer.json()["name"] == "x"


def test_the_program_sends_what_the_service_cannot_read_by_its_path(
    service: Service, data: Path, tmp_path: Path
) -> None:
    outside = str(data.parent / "outside.nii.gz")
    options = ["--url", service.url, "--data", outside, "--out", str(tmp_path), "--samples", "2"]
    refused = programs.run(segment.main, *options, LDSEG_TOKEN=TOKEN)
    assert refused.returncode == 2 and "(403)" in refused.stderr and "Traceback" not in refused.stderr
    done = programs.run(segment.main, *options, "--upload", LDSEG_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "maps" / "outside" / "outside_desc-entropy_uncertainty.nii.gz").is_file()


def test_names_of_any_script_survive_an_upload(service: Service, data: Path) -> None:
    content = (data / "case_0.nii.gz").read_bytes()
    for name, kept in (
        ("U\u0308ni\u0308code_海馬.nii.gz", "\u00dcn\u00efcode_海馬"),
        ("a b/c'd.nii.gz", "c_d"),
        ("海" * 90 + ".nii.gz", "海" * 31),
    ):
        answer = service.http.post("/v1/segmentations", files={"image": (name, content)}, data={"samples": "1"})
        assert answer.status_code == 201 and answer.json()["name"] == kept, answer.text
        file = service.http.get(answer.json()["files"]["label"]["href"])
        assert file.status_code == 200 and len(file.content) == answer.json()["files"]["label"]["bytes"]
    form = b'--x\r\nContent-Disposition: form-data; name="image"; filename="caf\xe9.nii.gz"\r\n\r\n'
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = service.http.post("/v1/segmentations", content=form + content + b"\r\n--x--\r\n", headers=headers)
    assert answer.status_code == 201 and answer.json()["name"] == "caf_", answer.text


def test_an_image_that_cannot_be_sent_ends_no_cohort(service: Service, data: Path, tmp_path: Path) -> None:
    folder = data / "strange"
    folder.mkdir()
    try:
        strange = folder / os.fsdecode(b"caf\xe9.nii.gz")
        shutil.copy(data / "case_0.nii.gz", strange)
        shutil.copy(data / "case_1.nii.gz", folder / "good.nii.gz")
        (folder / "bad.nii.gz").write_bytes(b"no image")
        (folder / "lost.nii.gz").symlink_to("gone")
        options = ["--url", service.url, "--data", str(folder), "--samples", "1", "--out"]
        states = {}
        for out, more in (("told", []), ("sent", ["--upload"]), ("sent", ["--upload"])):
            done = programs.run(segment.main, *options, str(tmp_path / out), *more, LDSEG_TOKEN=TOKEN)
            assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
            rows = _rows(tmp_path / out)
            states[out] = {row["case"]: row["state"] for row in rows}
            assert sorted(row["rank"] for row in rows) == [1, 2, 3, 4]
        assert "--upload sends the image" in next(
            row["error"] for row in _rows(tmp_path / "told") if "caf" in row["case"]
        )
        common = {"good": "done", "bad": "failed", "lost": "left out"}
        assert states == {"told": common | {"caf\ufffd": "failed"}, "sent": common | {"caf\ufffd": "done"}}
    finally:
        shutil.rmtree(folder)


def _rows(out: Path) -> list[dict[str, Any]]:
    return list(pq.read_table(out / "table.parquet").to_pylist())
