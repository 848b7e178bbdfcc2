"""Every kind of damage on the same cases: rows, means, ranking and files of a random model on phantoms."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from tiny import random_bundle, tiny_config

from ldseg import ROOT
from ldseg.bundle import Bundle, load_bundle
from ldseg.calibration.file import save_calibration
from ldseg.data.cohort import Cohort, read_cohort
from ldseg.data.phantom.cohort import PhantomConfig, write_phantoms
from ldseg.evaluation.calibrate import calibrate
from ldseg.evaluation.damage import CorruptionStudy, corruption_study, read_corruptions
from ldseg.evaluation.evaluate import evaluate
from ldseg.metrics.ranking import failure_detection
from ldseg.posterior.draws import Draws


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder, PhantomConfig(dims=2, cases=18, raters=1, shape=(32, 32)))
    return read_cohort(folder)


@pytest.fixture(scope="module")
def bundle(phantoms: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    made = random_bundle(tmp_path_factory.mktemp("model") / "b", tiny_config(2, phantoms.structures))
    found = calibrate(made, phantoms.cases[:4], Draws(2), reference=phantoms.cases[4:16])[0]
    save_calibration(made.path, found)
    return load_bundle(made.path)


@pytest.fixture(scope="module")
def study(phantoms: Cohort, bundle: Bundle) -> CorruptionStudy:
    return corruption_study(bundle, phantoms.cases[16:], ["noise", "empty"], Draws(2))


def test_each_kind_is_scored_on_the_same_cases_and_none_is_the_evaluation(
    phantoms: Cohort, bundle: Bundle, study: CorruptionStudy
) -> None:
    names = [case.name for case in phantoms.cases[16:]]
    assert [(row["corruption"], row["case"]) for row in study.rows] == [
        (kind, name) for kind in ("none", "noise", "empty") for name in names
    ]
    plain = evaluate(bundle, phantoms.cases[16:], Draws(2)).rows
    for row, expected in zip(study.rows, plain, strict=False):
        for name in ("dice", "agreement", "nll", "distance", "unfamiliar"):
            assert row[name] == expected[name]
    assert study.rows[0]["nll"] != study.rows[2]["nll"] != study.rows[4]["nll"]
    assert study.summary["corruptions"]["empty"]["unfamiliar"] == 1


def test_means_are_over_the_cases_of_a_kind_and_the_ranking_is_over_all(study: CorruptionStudy, tmp_path: Path) -> None:
    for k, kind in enumerate(("none", "noise", "empty")):
        entry, rows = study.summary["corruptions"][kind], study.rows[2 * k : 2 * k + 2]
        assert entry["cases"] == 2
        for name in ("dice", "agreement", "nll", "distance", "unfamiliar"):
            assert entry[name] == pytest.approx(np.mean([row[name] for row in rows]), rel=1e-12)
    found = study.summary["failure_detection"]
    assert found == failure_detection(study.rows) and found["distance"]["n"] == 6
    lines = study.table().splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:5]] == ["none", "noise", "empty"]
    assert f"{study.summary['corruptions']['noise']['nll']:.3f}" in lines[3]
    assert sum(line.startswith("failures by") for line in lines) == len(found)
    assert set(found) == {"agreement", "soft_dice_confidence", "mean_entropy", "sample_variance", "distance"}
    paths = study.write(tmp_path)
    assert pq.read_table(paths["corruption.parquet"]).column("distance").to_pylist() == [
        row["distance"] for row in study.rows
    ]
    stored = json.loads(paths["corruption.json"].read_text())
    assert stored["corruptions"] == study.summary["corruptions"] and stored["severity"] == 1.0


def test_severity_zero_is_the_evaluation_again_and_an_unlabelled_case_is_only_judged(
    phantoms: Cohort, bundle: Bundle, tmp_path: Path
) -> None:
    case = phantoms.cases[16]
    study = corruption_study(bundle, [case], ["crop"], Draws(2), severity=0.0)
    assert study.rows[0]["nll"] == study.rows[1]["nll"] and study.rows[0]["distance"] == study.rows[1]["distance"]
    bare = type(case)(name=case.name, image=case.image)
    entry = corruption_study(bundle, [bare], [], Draws(1)).summary["corruptions"]["none"]
    assert entry.keys() == {"cases", "agreement", "distance", "unfamiliar"} - (
        {"agreement"} if math.isnan(evaluate(bundle, [bare], Draws(1)).rows[0]["agreement"]) else set()
    )


def test_a_mistake_is_told_before_anything_is_drawn(phantoms: Cohort, bundle: Bundle) -> None:
    assert read_corruptions("noise, crop") == ["noise", "crop"]
    for wrong in ("", "blur", "noise,noise", "noise,"):
        with pytest.raises(
            ValueError, match="--corrupt .* must be a list of some of noise,bias,motion,crop,flip,empty"
        ):
            read_corruptions(wrong)
    with pytest.raises(ValueError, match="severity must lie in"):
        corruption_study(bundle, phantoms.cases, ["noise"], severity=1.5)


def test_the_program_prints_the_table_and_writes_both_files(bundle: Bundle, phantoms: Cohort, tmp_path: Path) -> None:
    program = [sys.executable, str(ROOT / "platform" / "evaluate.py"), "--model", str(bundle.path), "--samples", "2"]
    data = ["--data", str(phantoms.cases[0].image.parents[1]), "--limit", "2", "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [*program, *data, "--corrupt", "flip,empty", "--severity", "0.5", "--split", "all"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert "| empty | 2 | " in done.stdout and "failures by distance" in done.stdout
    assert "unfamiliar (distance" in done.stdout
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["corruption.json", "corruption.parquet"]
