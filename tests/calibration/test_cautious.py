"""Cautious masks from calibration to files and scores, with random-weight models on real files."""

from __future__ import annotations

import dataclasses
import json
import runpy
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from calibrating import RANKS, bundle_of, cohort, write_case
from tiny import some_calibration

from ldseg import ROOT
from ldseg.bundle import Bundle, BundleError, load_bundle
from ldseg.calibration.file import CALIBRATION, save_calibration
from ldseg.calibration.risk_control import RiskControl, fit_risk_control, missed_curve, missed_share
from ldseg.data.cohort import Case
from ldseg.data.volume import read_label, read_volume
from ldseg.evaluation.calibrate import calibrate, calibration_table
from ldseg.evaluation.evaluate import evaluate
from ldseg.posterior.draws import Draws
from ldseg.posterior.sampling import Posterior
from ldseg.posterior.summary import write_summary


def with_thresholds(bundle: Bundle, thresholds: tuple[float, float], temperature: float = 2.0) -> Bundle:
    calibration = some_calibration(bundle, temperature, samples=3)
    control = RiskControl(0.1, ("organ", "nodule"), thresholds, (9, 9), 3, bundle.config.sampler.num_sample_steps)
    return dataclasses.replace(bundle, calibration=dataclasses.replace(calibration, risk_control=control))


@RANKS
def test_thresholds_are_fitted_on_native_voxels_of_all_raters_before_any_temperature(tmp_path: Path, dims: int) -> None:
    bundle, cases = bundle_of(tmp_path / "b", dims), cohort(tmp_path, dims, 5, raters=2)
    fitted = calibrate(bundle, cases, Draws(3, seed=4), missed=0.4)[0].risk_control
    curves: dict[str, list[np.ndarray]] = {"organ": [], "nodule": []}
    for case in cases:
        volume = read_volume(case.image, case=case.name, spatial_dims=dims)
        p = Posterior(bundle).segment(volume, samples=3, seed=4).mean_probability
        labels = [read_label(path, volume, bundle.config.data) for path in case.labels]
        for k, name in enumerate(curves):
            curves[name].append(missed_curve(p[k], labels, k + 1))
    steps = bundle.config.sampler.num_sample_steps
    assert fitted == fit_risk_control(curves, samples=3, steps=steps, alpha=0.4)
    assert all(0 < threshold < 1 for threshold in fitted.thresholds) and fitted.cases == (5, 5)


def test_the_calibration_cases_miss_what_the_bound_says_also_at_another_temperature(tmp_path: Path) -> None:
    bundle, cases = bundle_of(tmp_path / "b"), cohort(tmp_path, 2, 5)
    calibration = calibrate(bundle, cases, Draws(3), missed=0.4)[0]
    heated = dataclasses.replace(calibration, temperature=some_calibration(bundle, 3.0).temperature)
    rows = [evaluate(dataclasses.replace(bundle, calibration=c), cases, Draws(3)).rows for c in (calibration, heated)]
    for name in ("organ", "nodule"):
        missed = [[row[f"missed_{name}_cautious"] for row in of_cases] for of_cases in rows]
        assert missed[0] == missed[1] and (sum(missed[0]) + 1) / 6 <= 0.4
        assert all(0 <= row[f"excess_{name}_cautious"] < 1 for row in rows[0])


def test_cases_without_a_structure_are_no_cases_for_it(tmp_path: Path) -> None:
    bundle, cases = bundle_of(tmp_path / "b"), cohort(tmp_path, 2, 3)
    label = np.asanyarray(nib.load(cases[1].labels[0]).dataobj)
    nib.save(nib.Nifti1Image(np.minimum(label, 1), np.diag([0.8, 1.5, 2.5, 1])), cases[1].labels[0])
    fitted = calibrate(bundle, cases, Draws(2), missed=0.1)
    assert fitted[0].risk_control.cases == (3, 2) and fitted[0].risk_control.thresholds == (0, 0)
    assert "missed of nodule at most 10% in the mean: everywhere: too few" in calibration_table(*fitted)
    row = evaluate(bundle, cases[1:2], Draws(2)).rows[0]
    assert np.isnan(row["missed_nodule"]) and 0 <= row["missed_organ"] <= 1 and "missed_organ_cautious" not in row


@RANKS
def test_the_masks_are_written_beside_the_others_and_scored(tmp_path: Path, dims: int) -> None:
    bundle, case = with_thresholds(bundle_of(tmp_path / "b", dims), (0.2, 0.35)), write_case(tmp_path, 0, dims)
    volume = read_volume(case.image, case=case.name, spatial_dims=dims)
    plain = Posterior(dataclasses.replace(bundle, calibration=None)).segment(volume, samples=3)
    summary = Posterior(bundle).segment(volume, samples=3)
    paths = write_summary(summary, tmp_path / "out", volume, ("organ", "nodule"))
    label = read_label(case.labels[0], volume, bundle.config.data)
    row = evaluate(bundle, [case], Draws(3)).rows[0]
    for k, (name, threshold) in enumerate((("organ", 0.2), ("nodule", 0.35))):
        assert paths[f"cautious-{name}"].name == f"{case.name}_label-{name}_desc-cautious_mask.nii.gz"
        written = nib.load(paths[f"cautious-{name}"])
        expected = plain.mean_probability[k] >= threshold
        assert written.get_data_dtype() == np.uint8 and np.array_equal(written.affine, nib.load(case.image).affine)
        assert np.array_equal(np.asanyarray(written.dataobj), expected) and 0 < expected.sum() < expected.size
        assert row[f"missed_{name}_cautious"] == missed_share(expected, [label], k + 1)
        assert row[f"missed_{name}"] == missed_share(plain.label == k + 1, [label], k + 1)
        assert row[f"excess_{name}_cautious"] == pytest.approx((label[expected] != k + 1).mean(), rel=1e-12)
    table = evaluate(bundle, [case], Draws(3)).table()
    assert "missed of nodule" in table and "cautious mask" in table


def test_other_drawings_and_bundles_without_thresholds_have_no_masks(tmp_path: Path) -> None:
    bundle, case = bundle_of(tmp_path / "b"), write_case(tmp_path, 0, 2)
    volume = read_volume(case.image, case=case.name, spatial_dims=2)
    assert Posterior(with_thresholds(bundle, (0.2, 0.2))).segment(volume, samples=4).cautious is None
    calibrated = dataclasses.replace(bundle, calibration=some_calibration(bundle))
    summary = Posterior(calibrated).segment(volume, samples=3)
    assert summary.cautious is None
    assert not any("cautious" in name for name in write_summary(summary, tmp_path / "o", volume, ("organ", "nodule")))


def test_a_picture_without_a_header_gets_masks_as_png(tmp_path: Path) -> None:
    from PIL import Image

    array = np.random.default_rng(0).integers(0, 255, (13, 15), dtype=np.uint8)
    Image.fromarray(array).save(tmp_path / "one.png")
    bundle = with_thresholds(bundle_of(tmp_path / "b"), (0.2, 0.2))
    volume = read_volume(tmp_path / "one.png", case="one", spatial_dims=2)
    summary = Posterior(bundle).segment(volume, samples=3)
    path = write_summary(summary, tmp_path / "out", volume, ("organ", "nodule"))["cautious-organ"]
    assert path.name == "one_label-organ_desc-cautious_mask.png"
    assert np.array_equal(np.asarray(Image.open(path)), summary.cautious[0])


def test_a_file_without_thresholds_is_what_it_was_before_there_were_any(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path / "b")
    old = some_calibration(bundle)
    values = json.loads(save_calibration(bundle.path, old).read_text())
    assert sorted(values) == ["digest", "intervals", "model_digest", "temperature"]
    assert load_bundle(bundle.path).calibration == old
    new = with_thresholds(bundle, (0.25, 0.0)).calibration
    file = save_calibration(bundle.path, new)
    assert load_bundle(bundle.path).calibration == new and new.digest != old.digest
    file.write_text(file.read_text().replace("0.25", "0.35"))
    with pytest.raises(BundleError, match="was changed after it was written"):
        load_bundle(bundle.path)
    renamed = dataclasses.replace(new.risk_control, structures=("organ", "other"))
    save_calibration(bundle.path, dataclasses.replace(new, risk_control=renamed))
    with pytest.raises(BundleError, match="belongs to another model"):
        load_bundle(bundle.path)


def test_the_program_finds_thresholds_where_it_is_asked_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle, lines = bundle_of(tmp_path / "b"), ["case,image,label,split"]
    cases: list[Case] = [write_case(tmp_path / "data", seed, 2) for seed in range(3)]
    lines += [f"{case.name},{case.image.name},{case.labels[0].name},validation" for case in cases]
    (tmp_path / "data" / "manifest.csv").write_text("\n".join(lines))
    main = runpy.run_path(str(ROOT / "platform" / "calibrate.py"))["main"]
    options = ["--model", str(bundle.path), "--data", str(tmp_path / "data"), "--samples", "2"]
    assert main([*options, "--missed", "2"]) == 2
    error = capsys.readouterr().err
    assert "share that may be missed must lie in (0, 1)" in error and error.count("\n") == 1
    assert not (bundle.path / CALIBRATION).exists()
    assert main([*options, "--missed", "0.6"]) == 0
    assert "missed of organ at most 60% in the mean" in capsys.readouterr().out
    assert load_bundle(bundle.path).calibration.risk_control.alpha == 0.6
    assert main(options) == 2 and "cautious masks: no --missed" in capsys.readouterr().err
    assert main([*options, "--replace"]) == 0 and load_bundle(bundle.path).calibration.risk_control is None
