"""Evaluation of random-weight models on small cohorts of real files, against the formulas applied by hand."""

from __future__ import annotations

import math
import os
import runpy
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from posteriors import samples_of
from scored import AFFINE, RANKS, tiny_bundle, write_case
from tiny import random_bundle, tiny_config

from ldseg import ROOT
from ldseg.data.cohort import Case, read_cohort
from ldseg.data.errors import CohortError
from ldseg.data.grid import label_to_grid
from ldseg.data.phantom.cohort import PhantomConfig, draw_posterior, read_parameters, write_phantoms
from ldseg.data.volume import read_label, read_volume
from ldseg.evaluation.cases import known_posterior
from ldseg.evaluation.evaluate import EvaluatedCase, Scoring, evaluate
from ldseg.metrics import overlap
from ldseg.metrics.boundary import boundary_band
from ldseg.posterior.accumulator import sample_labels
from ldseg.posterior.draws import Draws
from ldseg.posterior.sampling import Posterior


@RANKS
def test_scores_are_those_of_the_native_label_map_against_the_first_rater(tmp_path: Path, dims: int) -> None:
    bundle, case = tiny_bundle(tmp_path / "b", dims), write_case(tmp_path, "one", dims, raters=2)
    row = evaluate(bundle, [case], Draws(3, seed=5)).rows[0]
    volume = read_volume(case.image, case="one", spatial_dims=dims)
    truth = read_label(case.labels[0], volume, bundle.config.data)
    summary = Posterior(bundle).segment(volume, samples=3, seed=5)
    assert summary.label.shape == truth.shape and summary.label.any()
    expected = overlap.dice_per_class(summary.label, truth, 3)
    assert [row["dice_organ"], row["dice_nodule"]] == expected.tolist()
    assert row["dice"] == pytest.approx(expected.mean(), rel=1e-12)
    assert row["hd95_organ_mm"] == overlap.hd95_mm(summary.label, truth, 3, volume.spacing_mm)[0]
    assert row["assd_organ_mm"] == overlap.assd_mm(summary.label, truth, 3, volume.spacing_mm)[0]
    assert row["agreement"] == summary.agreement["mean"]
    per_rater = [overlap.nll(summary.mean_probability, read_label(p, volume, bundle.config.data)) for p in case.labels]
    assert row["nll"] == pytest.approx(np.mean(per_rater), rel=1e-12)


@RANKS
def test_scores_near_the_boundary_are_those_of_the_voxels_there(tmp_path: Path, dims: int) -> None:
    bundle, case = tiny_bundle(tmp_path / "b", dims), write_case(tmp_path, "one", dims, raters=2)
    control = tiny_bundle(tmp_path / "c", dims, deterministic=True)
    result = evaluate(bundle, [case], Draws(3, seed=5), control=control, scoring=Scoring(boundary_mm=1))
    row, found = result.rows[0], result.summary["reliability"]
    volume = read_volume(case.image, case="one", spatial_dims=dims)
    raters = [read_label(path, volume, bundle.config.data) for path in case.labels]
    band = boundary_band(raters, volume.spacing_mm, 1)
    p = Posterior(bundle).segment(volume, samples=3, seed=5).mean_probability
    for name in ("nll", "brier"):
        expected = np.mean([getattr(overlap, name)(p[:, band], rater[band]) for rater in raters])
        assert row[f"{name}_boundary"] == pytest.approx(expected, rel=1e-12)
    both = np.concatenate([p[:, band]] * 2, axis=1), np.concatenate([rater[band] for rater in raters])
    assert row["ece_boundary"] == pytest.approx(overlap.expected_calibration_error(*both), rel=1e-10)
    assert 0 < band.sum() < band.size and sum(found["boundary"]["counts"]) == 2 * band.sum()
    assert found["structures"]["nodule"]["ece"] == row["ece_nodule"] and found["boundary"]["ece"] == row["ece_boundary"]
    for name in ("ece_boundary", "nll_boundary", "brier_boundary", "ece_organ", "ece_nodule"):
        assert 0 < row[f"control_{name}"] < math.inf and {name, f"control_{name}"} <= set(result.summary["metrics"])
    assert "near the boundary: ECE" in result.table() and "ECE of nodule" in result.table()
    with pytest.raises(ValueError, match="boundary_mm must be at least 0"):
        evaluate(bundle, [case], scoring=Scoring(boundary_mm=-1))


@RANKS
def test_ged_compares_the_samples_with_all_raters_on_the_working_grid(tmp_path: Path, dims: int) -> None:
    bundle, case = tiny_bundle(tmp_path / "b", dims), write_case(tmp_path, "one", dims, raters=3)
    row = evaluate(bundle, [case], Draws(4, seed=1)).rows[0]
    posterior = Posterior(bundle)
    volume = read_volume(case.image, case="one", spatial_dims=dims)
    grid = posterior.prepare(volume)
    drawn = samples_of(posterior, grid, posterior.encode(grid), seed=1, indices=range(4)) * grid.inside
    raters = torch.stack([label_to_grid(read_label(p, volume, bundle.config.data), grid) for p in case.labels])
    assert row["ged"] == pytest.approx(overlap.ged(drawn.numpy(), raters.numpy(), 3), rel=1e-12)
    assert row["sample_diversity"] == pytest.approx(overlap.diversity(drawn.numpy(), 3), rel=1e-12)
    assert row["rater_diversity"] == pytest.approx(overlap.diversity(raters.numpy(), 3), rel=1e-12)
    assert row["sample_diversity"] > 0 and row["rater_diversity"] > 0 and row["raters"] == 3


@RANKS
def test_unpacked_samples_are_the_samples(tmp_path: Path, dims: int) -> None:
    bundle, case = tiny_bundle(tmp_path / "b", dims), write_case(tmp_path, "one", dims)
    posterior = Posterior(bundle, chunk_size=2)
    grid = posterior.prepare(read_volume(case.image, case="one", spatial_dims=dims))
    embedding = posterior.encode(grid)
    accumulator = posterior.accumulate(grid, embedding, seed=0, indices=range(3))
    expected = samples_of(posterior, grid, embedding, seed=0, indices=range(3)) * grid.inside
    assert not bool(grid.inside.all())
    assert np.array_equal(sample_labels(accumulator), expected.numpy())


@RANKS
def test_the_ceiling_is_the_labels_own_round_trip(tmp_path: Path, dims: int) -> None:
    bundle, case = tiny_bundle(tmp_path / "b", dims), write_case(tmp_path, "one", dims)
    row = evaluate(bundle, [case], Draws(1)).rows[0]
    posterior = Posterior(bundle)
    volume = read_volume(case.image, case="one", spatial_dims=dims)
    grid = posterior.prepare(volume)
    truth = read_label(case.labels[0], volume, bundle.config.data)
    on_grid = label_to_grid(truth, grid)
    one_hot = torch.stack([on_grid == k for k in range(3)])[None].float()
    with torch.no_grad():
        embedding = posterior.encode(grid)
        decoded = bundle.model.decode(bundle.model.encode_label(one_hot), embedding).argmax(1)[0]
    expected = overlap.dice_per_class((decoded * grid.inside).numpy(), on_grid.numpy(), 3)
    assert [row["autoencoder_dice_organ"], row["autoencoder_dice_nodule"]] == pytest.approx(expected.tolist(), rel=1e-6)


@RANKS
def test_the_control_stands_beside_the_model_on_the_same_cases(tmp_path: Path, dims: int) -> None:
    """Its GED is that of one label map repeated: 2 E d(s, Y) - E d(Y, Y')."""
    bundle, control = tiny_bundle(tmp_path / "b", dims), tiny_bundle(tmp_path / "c", dims, deterministic=True)
    case = write_case(tmp_path, "one", dims, raters=2)
    with_control = evaluate(bundle, [case], Draws(2), control=control)
    alone = evaluate(control, [case], Draws(2)).rows[0]
    row = with_control.rows[0]
    for name in ("dice", "dice_organ", "dice_nodule", "nll", "brier", "ece", "ged"):
        # alone it was asked for two samples: a batch of two rounds differently from one
        assert row[f"control_{name}"] == pytest.approx(alone[name], rel=1e-5), name
    assert alone["denoiser_calls"] == alone["sample_diversity"] == 0
    assert "autoencoder_dice" not in alone and with_control.summary["control_digest"] == control.digest


def test_a_control_that_samples_or_names_other_structures_is_refused(tmp_path: Path) -> None:
    bundle, case = tiny_bundle(tmp_path / "b", 2), write_case(tmp_path, "one", 2)
    with pytest.raises(ValueError, match="is no control"):
        evaluate(bundle, [case], control=bundle)
    config = tiny_config(2, ("organ", "other")).with_overrides({"loss.deterministic": True})
    with pytest.raises(ValueError, match="data.structures"):
        evaluate(bundle, [case], control=random_bundle(tmp_path / "c", config))


def test_a_sample_costs_its_steps_and_a_case_one_image_encoding(tmp_path: Path) -> None:
    bundle, case = tiny_bundle(tmp_path / "b", 2), write_case(tmp_path, "one", 2)
    assert Posterior(bundle).bytes_per_voxel  # its trial and this, once for a model, call the networks too
    denoised, encoded = [], []
    bundle.model.denoiser.register_forward_hook(lambda module, inputs, output: denoised.append(len(output)))
    bundle.model.image_encoder.register_forward_hook(lambda module, inputs, output: encoded.append(len(output)))
    row = evaluate(bundle, [case], Draws(8, steps=2)).rows[0]
    assert (sum(denoised), sum(encoded)) == (16, 1)
    assert (row["denoiser_calls"], row["steps"], row["samples"]) == (16, 2, 8)


def test_broken_cases_are_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    bundle, good = tiny_bundle(tmp_path / "b", 2), write_case(tmp_path, "good", 2)
    truncated, nan, unlabelled, odd = (write_case(tmp_path, name, 2) for name in ("truncated", "nan", "bare", "odd"))
    truncated.image.write_bytes(truncated.image.read_bytes()[:200])
    nib.save(nib.Nifti1Image(np.full((13, 15), np.nan, np.float32), AFFINE), nan.image)
    unlabelled.labels[0].unlink()
    nib.save(nib.Nifti1Image(np.full((13, 15), 7, np.uint8), AFFINE), odd.labels[0])
    seen: list[EvaluatedCase] = []
    result = evaluate(bundle, [truncated, nan, good, unlabelled, odd], Draws(2), progress=seen.append)
    assert [row["case"] for row in result.rows] == ["truncated", "nan", "good", "bare", "odd"]
    assert ["error" in row for row in result.rows] == [True, True, False, True, True]
    for row in result.rows:
        assert str(row.get("error", row["case"])).startswith(str(row["case"]))
    assert "7" in str(result.rows[4]["error"])
    assert (result.summary["failed"], result.summary["labelled"]) == (4, 1)
    assert result.rows[2]["dice"] == evaluate(bundle, [good], Draws(2)).rows[0]["dice"]
    assert [(done.number, done.total) for done in seen] == [(n, 5) for n in range(1, 6)]
    assert [done.summary is not None for done in seen] == [False, False, True, False, False]


def test_unlabelled_cases_get_the_numbers_that_need_no_label(tmp_path: Path) -> None:
    bundle, case = tiny_bundle(tmp_path / "b", 3), write_case(tmp_path, "one", 3)
    labelled = evaluate(bundle, [case], Draws(2)).rows[0]
    row = evaluate(bundle, [Case(name="one", image=case.image)], Draws(2)).rows[0]
    assert {"organ_volume_ml_p50", "agreement", "sample_diversity", "seconds", "denoiser_calls"} <= set(row)
    assert not {"dice", "nll", "ged", "autoencoder_dice"} & set(row)
    assert all(row[name] == labelled[name] for name in row if not name.startswith("seconds"))


def test_nothing_to_evaluate_and_no_samples_are_refused(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "b", 2)
    with pytest.raises(CohortError, match="no case"):
        evaluate(bundle, [])
    with pytest.raises(ValueError, match="samples must be at least 1"):
        evaluate(bundle, [write_case(tmp_path, "one", 2)], Draws(0))


def test_the_program_scores_a_folder_and_names_what_it_left_out(tmp_path: Path) -> None:
    tiny_bundle(tmp_path / "b", 2)
    lines = ["case,image,label,split"]
    for name in ("good", "broken", "lost"):
        case = write_case(tmp_path / "data", name, 2)
        lines.append(f"{name},{case.image.name},{case.labels[0].name},test")
    (tmp_path / "data" / "broken.nii.gz").write_bytes(b"no image")
    (tmp_path / "data" / "lost.nii.gz").unlink()
    (tmp_path / "data" / "manifest.csv").write_text("\n".join(lines))
    program = [sys.executable, str(ROOT / "platform" / "evaluate.py"), "--data", str(tmp_path / "data")]
    options = ["--out", str(tmp_path / "out"), "--samples", "2", "--pictures", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*program, "--model", str(tmp_path / "b"), *options], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 1, done.stderr
    for sentence in ("left out: lost", "left out: broken", "/3] good  Dice", "3 cases, 1 labelled, 2 failed"):
        assert sentence in done.stdout, sentence
    assert "own split" in done.stdout, "the card names no case of this cohort"
    written = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*"))
    assert written == ["cases.parquet", "pictures/good.png", "reliability.png", "summary.json", "summary.parquet"]


def test_the_program_answers_a_mistake_with_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = runpy.run_path(str(ROOT / "platform" / "evaluate.py"))
    bundle = tiny_bundle(tmp_path / "b", 2)
    for model, data, problem in (("none", tmp_path, "no model bundle"), (bundle.path, tmp_path / "x", "no folder or")):
        options = ["--model", str(model), "--data", str(data), "--out", str(tmp_path / "out")]
        assert program["main"](options) == 2
        error = capsys.readouterr().err
        assert error.startswith("evaluate: ") and problem in error and error.count("\n") == 1


def test_phantoms_are_also_scored_against_fresh_draws_of_their_true_posterior(tmp_path: Path) -> None:
    write_phantoms(tmp_path / "phantoms", PhantomConfig(dims=2, cases=5, raters=3, shape=(32, 32)))
    cohort = read_cohort(tmp_path / "phantoms")
    case = cohort.cases[0]
    bundle = random_bundle(tmp_path / "b", tiny_config(2, cohort.structures))
    draw = known_posterior(tmp_path / "phantoms")
    assert draw is not None and known_posterior(tmp_path) is None
    assert np.array_equal(draw(case.name, 4), draw(case.name, 4))
    row = evaluate(bundle, [case], Draws(6), scoring=Scoring(draw)).rows[0]
    volume = read_volume(case.image, case=case.name, spatial_dims=2)
    raters = np.stack([read_label(path, volume, bundle.config.data) for path in case.labels])
    assert row["ged_truth"] == pytest.approx(overlap.ged(draw(case.name, 6), raters, 4), rel=1e-12)
    assert row["matched_iou"] < row["matched_iou_truth"]
    one = evaluate(bundle, [case], Draws(1)).rows[0]
    assert one["sample_dice"] == pytest.approx(one["dice"], rel=1e-6)
    assert row["organ_size_ks"] > row["organ_size_ks_truth"] and 0 <= row["lobe_mode_error"] <= 1
    assert row["ged_truth"] < row["ged"], "random weights are no match for the truth"
    more = draw_posterior(read_parameters(tmp_path / "phantoms")[case.name], 3, np.random.default_rng(0))
    assert more.shape == raters.shape
