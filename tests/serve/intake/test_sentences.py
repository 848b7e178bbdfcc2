"""What a client reads names files, not where they lie."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from web import Web

from serve.intake.paths import without_folders
from serve.settings import Settings

SETTINGS = Settings(model="m", home="/srv/ldseg", allow_roots=("/data/cohort", "/"))


@pytest.mark.parametrize(
    ("said", "image", "read"),
    [
        ("a: /data/cohort/x y/a.nii is cut; copy it", "/data/cohort/x y/a.nii", "a: a.nii is cut; copy it"),
        ("a: '/data/cohort/b/a.nii' is gone", "/data/cohort/b/a.nii", "a: 'a.nii' is gone"),
        ("/data/cohort/dicom/1.dcm and 2", "/data/cohort/dicom", "dicom/1.dcm and 2"),
        ("/srv/ldseg/service/results/c/a/label.nii", "", "results/c/a/label.nii"),
        ("/srv/ldseg/models/m/1 holds another model", "s3://bucket/a.nii", "models/m/1 holds another model"),
        (f"{tempfile.gettempdir()}/ldseg-fetched-x1_y/a.nii is cut", "s3://bucket/a.nii", "a.nii is cut"),
        ("s3://bucket/a.nii can't be fetched", "s3://bucket/a.nii", "s3://bucket/a.nii can't be fetched"),
    ],
)
def test_sentences_name_files_without_their_folders(said: str, image: str, read: str) -> None:
    assert without_folders(said, image, SETTINGS) == read


def test_a_broken_case_is_told_without_where_it_lies(web: Web, data: Path) -> None:
    cohort = web.post({"cut": str(data / "broken" / "cut.nii"), "gone": str(data / "gone.nii.gz")})
    web.finish(cohort)
    for name, file in (("cut", "cut.nii"), ("gone", "gone.nii.gz")):
        base = f"/v1/cohorts/{cohort}/cases/{name}"
        case = web.http.get(base).json()
        assert case["error"].startswith(f"{name}: ") and file in case["error"], case
        for path in (base, f"{base}/volume-info", f"/v1/cohorts/{cohort}/table.csv"):
            answer = web.http.get(path)
            assert answer.status_code == 200 and str(data) not in answer.text, answer.text
