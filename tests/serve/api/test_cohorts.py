"""Cohorts over real HTTP: results, their geometry, the same bytes however they are made, what goes wrong."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
from pathlib import Path

import httpx
import nibabel as nib
import numpy as np
import programs
import pyarrow.parquet as pq
import pytest
import torch
from service import AFFINE, TOKEN, Service, load, problem

from ldseg.bundle import Bundle, load_bundle
from ldseg.commands import segment
from ldseg.data.cohort import Case
from ldseg.posterior.draws import Draws
from ldseg.results.segment import segment_here

MAPS = {"label", "prob-organ", "prob-nodule", "entropy", "variance", *(f"sample-{k}" for k in range(4))}
FILES = MAPS | {"lookup", "sidecar", "manifest"}
SLOW = {"samples": 64, "steps": 1000}  # long enough to interfere with


@pytest.fixture(scope="module")
def finished(service: Service, data: Path) -> str:
    """A cohort of two good cases, a missing and a truncated one."""
    cases = {f"case_{k}": data / f"case_{k}.nii.gz" for k in range(2)}
    cohort = service.post(cases | {"gone": data / "gone.nii.gz", "cut": data / "broken" / "cut.nii"}, seed=5)
    service.wait(cohort)
    return cohort


def test_broken_cases_get_a_sentence_and_the_others_go_on(service: Service, finished: str) -> None:
    document = service.http.get(f"/v1/cohorts/{finished}").json()
    assert document["counts"] == {"queued": 0, "running": 0, "done": 2, "failed": 2, "cancelled": 0}
    cases = {case["name"]: case for case in document["cases"]}
    assert cases["gone"]["error"].startswith("gone: there is no file")
    assert cases["cut"]["error"].startswith("cut: ") and "cut.nii" in cases["cut"]["error"]
    assert cases["case_0"]["error"] is None


def test_maps_have_the_geometry_of_the_input(service: Service, finished: str, data: Path) -> None:
    source, maps = nib.load(data / "case_0.nii.gz"), service.maps(finished, "case_0")
    assert set(maps) == FILES
    for key in MAPS:
        image = load(maps[key])
        assert image.shape == source.shape
        np.testing.assert_allclose(image.affine, AFFINE, atol=1e-5)
        for code in ("qform_code", "sform_code", "xyzt_units"):
            assert image.header[code] == source.header[code]
    assert set(np.unique(np.asarray(load(maps["label"]).dataobj))) <= {0, 1, 2}
    probability = load(maps["prob-organ"]).get_fdata()
    assert probability.min() >= 0 and probability.max() <= 1


def test_numbers_of_a_case_follow_from_its_samples(service: Service, finished: str, bundle: Bundle) -> None:
    case = service.http.get(f"/v1/cohorts/{finished}/cases/case_1").json()
    sizes = case["volumes"]["organ"]
    assert len(sizes) == 6
    assert case["numbers"]["organ_volume_ml_p95"] == pytest.approx(np.percentile(sizes, 95))
    assert case["numbers"]["model_digest"] == bundle.digest
    assert case["numbers"]["seed"] == 5 and case["numbers"]["samples"] == 6
    assert 0 <= case["numbers"]["agreement"] <= 1


def test_one_table_holds_every_case(service: Service, finished: str) -> None:
    answer = service.http.get(f"/v1/cohorts/{finished}/table.parquet")
    rows = {row["case"]: row for row in pq.read_table(io.BytesIO(answer.content)).to_pylist()}
    assert list(rows) == ["case_0", "case_1", "gone", "cut"]
    assert [row["state"] for row in rows.values()] == ["done", "done", "failed", "failed"]
    numbers = service.http.get(f"/v1/cohorts/{finished}/cases/case_0").json()["numbers"]
    assert all(rows["case_0"][key] == value for key, value in numbers.items())
    assert rows["gone"]["agreement"] is None and rows["gone"]["error"]


def test_same_case_and_seed_give_the_same_bytes_alone_and_in_this_process(
    service: Service, finished: str, data: Path, bundle: Bundle, tmp_path: Path
) -> None:
    alone = service.post({"case_0": data / "case_0.nii.gz"}, seed=5)
    other = service.post({"case_0": data / "case_0.nii.gz"}, seed=6)
    service.wait(alone), service.wait(other)
    maps = service.maps(finished, "case_0")
    assert service.maps(alone, "case_0") == maps
    assert service.maps(other, "case_0")["entropy"] != maps["entropy"]
    case = Case(name="case_0", image=data / "case_0.nii.gz")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the samplers have: the order of float sums depends on it
    try:
        segment_here(load_bundle(bundle.path), [case], Draws(6, None, 5), tmp_path, lambda *_: None)
    finally:
        torch.set_num_threads(threads)
    here = {path.name: path.read_bytes() for path in (tmp_path / "maps" / "case_0").iterdir()}
    entries = service.http.get(f"/v1/cohorts/{finished}/cases/case_0").json()["files"]
    assert here == {entry["name"]: maps[key] for key, entry in entries.items()}
    told = service.http.get(f"/v1/cohorts/{finished}/cases/case_0").json()["numbers"]
    mine = json.loads((tmp_path / "cases" / "case_0.json").read_text())["numbers"]
    for name in ("distance", "familiarity", "unfamiliar"):
        assert told[name] == mine[name]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"cases": []}, "cases"),
        ({"samples": 0}, "samples"),
        ({"samples": 257}, "at most 256"),
        ({"steps": 0}, "steps"),
        ({"steps": 1001}, "at most 1000"),
        ({"seed": -1}, "seed"),
        ({"sample": 3}, "sample"),
        ({"cases": [{"name": "a", "image": "case_0.nii.gz"}] * 2}, "'a' appears more than once"),
        ({"cases": [{"name": "../a", "image": "case_0.nii.gz"}]}, "file name"),
        ({"cases": [{"name": "", "image": "case_0.nii.gz"}]}, "file name"),
        ({"cases": [{"name": "a", "image": "case_0.nii.gz", "label": "x"}]}, "label"),
        ({"cases": [{"name": "a", "image": "a\x00b"}]}, "zero byte"),
    ],
)
def test_bad_requests_name_what_is_wrong(service: Service, change: dict, word: str) -> None:
    body = {"cases": [{"name": "a", "image": "case_0.nii.gz"}], "samples": 2} | change
    assert word in problem(service.http.post("/v1/cohorts", json=body), 422, "invalid-request")["detail"]


def test_a_body_that_is_no_json_is_a_problem(service: Service) -> None:
    problem(service.http.post("/v1/cohorts", content=b"{"), 415, "unsupported-media-type")


@pytest.mark.parametrize("image", ["/etc/passwd", "../outside.nii.gz", "link.nii.gz", "x/../../outside.nii.gz"])
def test_images_outside_the_allowed_folders_are_refused(service: Service, image: str) -> None:
    body = {"cases": [{"name": "a", "image": image}]}
    problem(service.http.post("/v1/cohorts", json=body), 403, "path-not-allowed")


@pytest.mark.parametrize(
    "path",
    [
        "/v1/cohorts/none",
        "/v1/cohorts/{id}/cases/none",
        "/v1/cohorts/{id}/cases/case_0/files/none",
        "/v1/cohorts/{id}/cases/case_0/files/..%2F..%2Fjobs.db",
        "/v1/cohorts/..%2F..%2Fjobs.db",
        "/v1/none",
    ],
)
def test_what_is_not_there_is_a_problem(service: Service, finished: str, path: str) -> None:
    problem(service.http.get(path.replace("{id}", finished)), 404, "not-found")


def test_without_the_token_nothing_but_health_answers(service: Service) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic a-token-for-tests"}):
        with httpx.Client(base_url=service.url, headers=headers, trust_env=False) as stranger:
            problem(stranger.get("/v1/cohorts"), 401, "unauthorized")
            problem(stranger.post("/v1/segmentations"), 401, "unauthorized")
            assert stranger.get("/health/live").status_code == 200
            assert stranger.get("/health/ready").json()["status"] == "ready"


def test_the_model_is_described(service: Service, bundle: Bundle) -> None:
    model = service.http.get("/v1/model").json()
    assert (model["digest"], model["structures"]) == (bundle.digest, ["organ", "nodule"])


def test_cohorts_are_listed_by_pages_newest_first(service: Service, finished: str) -> None:
    seen, path = [], "/v1/cohorts?limit=2"
    while path:
        page = service.http.get(path).json()
        assert len(page["cohorts"]) <= 2
        seen += [cohort["id"] for cohort in page["cohorts"]]
        path = page["next"]
    created = [service.http.get(f"/v1/cohorts/{cohort}").json()["created"] for cohort in seen]
    assert finished in seen and len(set(seen)) == len(seen) and created == sorted(created, reverse=True)


def test_a_cancelled_cohort_stops_and_one_too_many_is_refused(service: Service, data: Path) -> None:
    cohorts = [service.post({"a": data / "case_0.nii.gz", "b": data / "case_1.nii.gz"}, **SLOW) for _ in range(3)]
    body = {"cases": [{"name": "a", "image": "case_0.nii.gz"}]}
    refused = service.http.post("/v1/cohorts", json=body)
    problem(refused, 429, "too-busy")
    assert int(refused.headers["Retry-After"]) > 0
    early = service.http.get(f"/v1/cohorts/{cohorts[2]}/cases/a/files/label")
    problem(early, 409, "not-finished")
    for cohort in cohorts:
        assert service.http.delete(f"/v1/cohorts/{cohort}").json()["state"] == "cancelled"
    problem(service.http.get(f"/v1/cohorts/{cohorts[0]}/cases/a/files/label"), 404, "not-found")
    service.wait(service.post({"a": data / "case_0.nii.gz"}))  # the service goes on


def test_a_sampler_that_is_killed_does_not_change_the_result(service: Service, data: Path) -> None:
    draws = {"samples": 24, "steps": 200, "seed": 9}
    undisturbed = service.post({"a": data / "case_2.nii.gz"}, **draws)
    service.wait(undisturbed)
    cohort = service.post({"a": data / "case_2.nii.gz"}, **draws)
    service.wait(cohort, "running")
    killed = service.samplers()
    assert len(killed) == 2
    os.kill(killed[0], signal.SIGKILL)
    assert service.http.get(f"/v1/cohorts/{cohort}").json()["state"] == "running"
    assert service.wait(cohort)["counts"]["done"] == 1
    assert service.maps(cohort, "a") == service.maps(undisturbed, "a")


def test_the_program_brings_a_cohort_home_and_fetches_nothing_twice(
    service: Service, data: Path, tmp_path: Path
) -> None:
    options = ["--url", service.url, "--data", str(data), "--out", str(tmp_path), "--samples", "3", "--pictures", "1"]

    def run(token: str = TOKEN) -> subprocess.CompletedProcess[str]:
        return programs.run(segment.main, *options, LDSEG_TOKEN=token)

    first = run()
    # the folder's link leads outside: the service refuses it, and the program says so
    assert first.returncode == 2 and "link" in first.stderr and "Traceback" not in first.stderr
    options[3] = str(data / "case_1.nii.gz")
    done = run()
    assert done.returncode == 0, done.stderr
    assert "case_1" in done.stdout and "organ in ml" in done.stdout
    assert (tmp_path / "pictures" / "case_1.png").stat().st_size > 10_000
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "maps" / "case_1").iterdir()}
    assert len(files) == len(FILES) - 1  # three samples were drawn, so there is no fourth one
    assert pq.read_table(tmp_path / "table.parquet").num_rows == 1
    assert run().returncode == 0
    assert {path: path.stat().st_mtime_ns for path in files} == files
    refused = run("wrong")
    assert refused.returncode == 2 and "token" in refused.stderr and "Traceback" not in refused.stderr
