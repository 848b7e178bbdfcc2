"""Calibration of random-weight models on small cohorts of real files, against the formulas applied by hand."""

from __future__ import annotations

import dataclasses
import math
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from calibrating import RANKS, SHAPE, bundle_of, cohort, write_case
from tiny import some_calibration

from ldseg import ROOT
from ldseg.bundle import load_bundle
from ldseg.calibration.conformal import FLOOR
from ldseg.calibration.file import save_calibration
from ldseg.data.cohort import Case
from ldseg.data.volume import read_volume
from ldseg.evaluation.calibrate import Promises, calibrate, calibration_table, raw_coverage
from ldseg.evaluation.evaluate import evaluate
from ldseg.posterior.draws import Draws
from ldseg.posterior.sampling import Posterior
from ldseg.results.segment import segment_here


@RANKS
def test_the_intervals_are_those_of_the_evaluations_volumes(tmp_path: Path, dims: int) -> None:
    """With 9 cases and alpha 0.1 the quantile is the largest score."""
    bundle, cases = bundle_of(tmp_path / "b", dims), cohort(tmp_path, dims, 9)
    calibration, drawn = calibrate(bundle, cases, Draws(3, seed=4))
    rows = evaluate(bundle, cases, Draws(3, seed=4)).rows
    unit = "ml" if dims == 3 else "mm2"
    for index, name in enumerate(("organ", "nodule")):
        low, high, truth = (
            np.array([row[f"{name}_volume_{unit}_{end}"] for row in rows]) for end in ("p05", "p95", "reference")
        )
        scores = np.maximum(low - truth, truth - high) / (high - low + FLOOR * np.median(truth))
        assert calibration.intervals.quantiles[index] == pytest.approx(scores.max(), rel=1e-10)
        assert raw_coverage(drawn, name) == np.mean((low <= truth) & (truth <= high))
    assert (calibration.intervals.unit, calibration.intervals.cases) == (unit, 9)
    assert calibration.model_digest == bundle.digest and calibration.intervals.holds_for(3, 3)


@RANKS
def test_the_temperature_sees_every_raters_voxels_of_the_image_and_no_padding(tmp_path: Path, dims: int) -> None:
    """Nothing is interpolated here, so the voxels drawn are all of the native ones: the NLL is the evaluation's."""
    bundle, cases = bundle_of(tmp_path / "b", dims), cohort(tmp_path, dims, 2, raters=2)
    fit = calibrate(bundle, cases, Draws(2))[0].temperature
    assert (fit.cases, fit.voxels) == (4, 4 * math.prod(SHAPE[:dims]))
    rows = evaluate(bundle, cases, Draws(2)).rows
    # random weights are sure of wrong classes, more or less of them by the noise that the digest of the configuration
    # gives; the two floors under such probabilities differ
    assert fit.nll_before == pytest.approx(np.mean([row["nll"] for row in rows]), rel=3e-3)
    warm = dataclasses.replace(bundle, calibration=calibrate(bundle, cases, Draws(2))[0])
    after = np.mean([row["nll"] for row in evaluate(warm, cases, Draws(2)).rows])
    assert fit.nll_after == pytest.approx(after, rel=3e-3) and fit.nll_after < 0.95 * fit.nll_before


def test_a_calibrated_bundle_is_calibrated_to_the_same_numbers_again(tmp_path: Path) -> None:
    bundle, cases = bundle_of(tmp_path / "b"), cohort(tmp_path, 2, 3)
    first = calibrate(bundle, cases, Draws(2))[0]
    save_calibration(bundle.path, first)
    assert calibrate(load_bundle(bundle.path), cases, Draws(2))[0] == first
    assert first.intervals.quantiles == (math.inf, math.inf)


def test_cases_that_the_model_was_trained_on_and_cases_without_labels_are_refused(tmp_path: Path) -> None:
    bundle, cases = bundle_of(tmp_path / "b"), cohort(tmp_path, 2, 2)
    known = dataclasses.replace(bundle, card={"split": {"train": ["case1"], "validation": ["case0"]}})
    with pytest.raises(ValueError, match="trained on 1 of the cases, such as case1"):
        calibrate(known, cases)
    with pytest.raises(ValueError, match="needs labelled cases"):
        calibrate(bundle, [Case(name="bare", image=cases[0].image)])
    with pytest.raises(ValueError, match="alpha must"):
        calibrate(bundle, cases, promises=Promises(alpha=1.0))


def test_a_broken_case_is_named_and_the_rest_is_what_it_would_be_alone(tmp_path: Path) -> None:
    bundle, cases = bundle_of(tmp_path / "b"), cohort(tmp_path, 2, 3)
    cases[2].image.write_bytes(b"no image")
    told: list[str] = []
    calibration, rows = calibrate(bundle, cases, Draws(2), progress=told.append)
    assert [line.split()[0] for line in told] == ["[1/3]", "[2/3]", "[3/3]"] and "left out: case2" in told[2]
    assert [row.case for row in rows] == ["case0", "case1"]
    assert calibration == calibrate(bundle, cases[:2], Draws(2))[0]


def test_the_table_tells_each_structure_the_temperature_and_too_few_cases(tmp_path: Path) -> None:
    bundle, cases = bundle_of(tmp_path / "b"), cohort(tmp_path, 2, 9)
    calibration, rows = calibrate(bundle, cases, Draws(2))
    lines = calibration_table(calibration, rows).splitlines()
    assert [line.split()[0] for line in lines] == ["structure", "organ", "nodule", "intervals:", "temperature"]
    assert "0.95 confidence takes 29 cases" in lines[3]
    assert f"{raw_coverage(rows, 'organ'):.0%}" in lines[1] and f"{calibration.intervals.quantiles[0]:.3f}" in lines[1]
    assert f"{calibration.temperature.nll_before:.5f} -> {calibration.temperature.nll_after:.5f}" in lines[4]
    few = calibrate(bundle, cases[:8], Draws(2))
    assert "8 cases are too few" in calibration_table(*few)


def test_the_program_calibrates_on_the_validation_cases_of_the_card(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path / "b")
    lines = ["case,image,label,split"]
    for seed in range(11):
        case, split = write_case(tmp_path / "data", seed, 2), ("train" if seed > 8 else "validation")
        lines.append(f"{case.name},{case.image.name},{case.labels[0].name},{split}")
    (tmp_path / "data" / "manifest.csv").write_text("\n".join(lines))
    program = [sys.executable, str(ROOT / "platform" / "calibrate.py"), "--model", str(bundle.path), "--samples", "2"]
    done = subprocess.run(
        [*program, "--data", str(tmp_path / "data")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert "[9/9] case8" in done.stdout and done.stdout.strip().endswith("calibration.json")
    loaded = load_bundle(bundle.path)
    assert loaded.digest == bundle.digest and loaded.calibration is not None
    cases = cohort(tmp_path / "again", 2, 9)
    assert loaded.calibration == calibrate(bundle, cases, Draws(2))[0]


def test_the_program_answers_a_mistake_with_one_sentence_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = runpy.run_path(str(ROOT / "platform" / "calibrate.py"))
    bundle, case = bundle_of(tmp_path / "b"), write_case(tmp_path / "data", 0, 2)
    (tmp_path / "data" / "manifest.csv").write_text(
        f"case,image,label,split\none,{case.image.name},{case.labels[0].name},validation"
    )
    for model, extra, problem in (("none", [], "no model bundle"), (bundle.path, ["--alpha", "2"], "alpha must")):
        assert program["main"](["--model", str(model), "--data", str(tmp_path / "data"), *extra]) == 2
        error = capsys.readouterr().err
        assert error.startswith("calibrate: ") and problem in error and error.count("\n") == 1
    assert not (bundle.path / "calibration.json").exists()


def test_a_calibration_makes_finished_cases_anew_and_its_columns_reach_the_table(tmp_path: Path) -> None:
    bundle, case, draws = bundle_of(tmp_path / "b"), write_case(tmp_path, 0, 2), Draws(3, None, 0)
    tables = [segment_here(bundle, [case], draws, tmp_path / "out", lambda *_: None)]
    calibrated = dataclasses.replace(bundle, calibration=some_calibration(bundle, unit="mm2"))
    tables += [segment_here(calibrated, [case], draws, tmp_path / "out", lambda *_: None) for _ in range(2)]
    low = [table.to_pylist()[0].get("organ_volume_mm2_low") for table in tables]
    summary = Posterior(calibrated).segment(read_volume(case.image, case=case.name, spatial_dims=2), samples=3)
    assert low[0] is None and low[1] == low[2] == summary.numbers()["organ_volume_mm2_low"]
    seconds = [table.to_pylist()[0]["seconds"] for table in tables]
    assert seconds[1] == seconds[2], "the same calibration: taken from the disk"
