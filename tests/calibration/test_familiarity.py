"""Distances and p-values against closed forms and simulations, and their way through a bundle."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from calibrating import cohort
from sklearn.covariance import ledoit_wolf
from tiny import random_bundle, tiny_config

from ldseg.bundle import BundleError, load_bundle
from ldseg.calibration.conformal import VolumeIntervals
from ldseg.calibration.familiarity import (
    LEAST_REFERENCE,
    MOST_FEATURES,
    Familiarity,
    fit_familiarity,
    image_features,
    shrunk_covariance,
)
from ldseg.calibration.file import Calibration, save_calibration
from ldseg.calibration.temperature import TemperatureFit
from ldseg.data.cohort import read_cohort
from ldseg.data.volume import read_volume
from ldseg.evaluation.calibrate import calibrate, calibration_table
from ldseg.evaluation.cases import reference_cases
from ldseg.evaluation.corruptions import corrupt
from ldseg.evaluation.evaluate import evaluate
from ldseg.posterior.draws import Draws
from ldseg.posterior.sampling import Posterior
from ldseg.results.segment import segment_here

RANKS = pytest.mark.parametrize("dims", [2, 3])


def embedding_of(features: np.ndarray) -> torch.Tensor:
    """An embedding of two voxels whose means and standard deviations are these: mean - sd, mean + sd."""
    mean, sd = np.split(features, 2)
    return torch.from_numpy(np.stack([mean - sd, mean + sd], axis=-1))[None]


def population(seed: int, count: int, size: int) -> np.ndarray:
    """Correlated features of unlike scales; sd columns above 0."""
    mix = np.random.default_rng(99).normal(size=(size, size))
    return 50 + np.random.default_rng(seed).normal(size=(count, size)) @ mix


@pytest.mark.parametrize("shape", [(20, 8), (12, 30), (300, 5)])
def test_the_shrunk_covariance_is_scikit_learns(shape: tuple[int, int]) -> None:
    features = population(1, *shape)
    centred = features - features.mean(0)
    expected, share = ledoit_wolf(centred, assume_centered=True)
    assert 0.001 < share < 1
    np.testing.assert_allclose(shrunk_covariance(centred), expected, rtol=1e-9, atol=1e-9)


@RANKS
def test_features_are_each_channels_mean_and_standard_deviation_at_any_size(dims: int) -> None:
    embedding = torch.randn((1, 3, *(4, 5, 6)[:dims]))
    features = image_features(embedding)
    expected = [*embedding.mean(dim=tuple(range(2, dims + 2)))[0], *embedding.flatten(2).std(2, correction=0)[0]]
    np.testing.assert_allclose(features, np.array(expected), rtol=1e-5, atol=1e-6)
    twice = torch.cat([embedding, embedding], dim=2)
    np.testing.assert_allclose(image_features(twice), features, rtol=1e-6, atol=1e-6)
    given = np.array([1.0, -2.0, 0.5, 3.0])
    np.testing.assert_allclose(image_features(embedding_of(given)), given, rtol=1e-12)


@pytest.mark.parametrize("size", [6, MOST_FEATURES + 36])
def test_the_squared_distance_of_like_cases_is_their_number_of_features(size: int) -> None:
    """A chi-squared of min(size, 64) degrees, to the order 1 / sqrt(N); no unit matters but for the projection."""
    reference, fresh = population(2, 3000, size), population(3, 500, size)
    fitted = fit_familiarity(reference, fresh)
    used = min(size, MOST_FEATURES)
    squared = np.square(fitted.distances)
    assert squared.mean() == pytest.approx(used, rel=0.1)
    assert squared.std() == pytest.approx(math.sqrt(2 * used), rel=0.2)
    assert len(fitted.factor) == used * (used + 1) // 2
    units = np.geomspace(1e-3, 1e3, size)
    scaled = fit_familiarity(reference * units, fresh * units)
    assert scaled.distances == pytest.approx(fitted.distances, rel=1e-4)


@pytest.mark.parametrize("count", [4, 9, 20])
def test_a_like_case_is_told_as_unfamiliar_once_in_n_plus_one(count: int) -> None:
    """Over calibration sets and cases, also with a Gaussian that does not fit: the features here are lognormal. The
    p-value is uniform on 1 / (n + 1), ..., 1."""
    generator, trials = np.random.default_rng(5), 800
    reference = np.exp(generator.normal(size=(60, 4)))
    gaussian, p_values = fit_familiarity(reference, reference[:1]), []
    for _ in range(trials):
        features = np.exp(generator.normal(size=(count + 1, 4)))
        judgement = known(gaussian, features[1:]).judge(embedding_of(features[0]))
        assert judgement.unfamiliar == (judgement.p_value == 1 / (count + 1))
        p_values.append(judgement.p_value)
    error = 4 * math.sqrt(0.25 / trials)
    for share in (1 / (count + 1), 0.5, 1.0):
        at_most = math.floor(share * (count + 1) + 1e-9) / (count + 1)
        assert np.mean(np.array(p_values) <= share + 1e-9) == pytest.approx(at_most, abs=error)
    false_alarms = np.mean(np.array(p_values) == 1 / (count + 1))
    assert false_alarms == pytest.approx(1 / (count + 1), abs=4 * math.sqrt(1 / (count + 1) / trials))


def test_ninety_five_of_a_hundred_calibration_sets_stay_below_the_likely_false_alarms() -> None:
    """Of ranks alone: the share beyond the largest of 20 uniform numbers."""
    generator = np.random.default_rng(6)
    shares = 1 - generator.uniform(size=(4000, 20)).max(1)
    fitted = fit_familiarity(population(1, 50, 6), population(2, 20, 6))
    assert np.mean(shares <= fitted.likely_false_alarms) == pytest.approx(0.95, abs=4 * math.sqrt(0.05 * 0.95 / 4000))


def known(fitted: Familiarity, calibration: np.ndarray) -> Familiarity:
    """The same Gaussian with other calibration cases."""
    return dataclasses.replace(fitted, distances=tuple(sorted(fitted.distance(f) for f in calibration)))


def test_a_far_case_is_unfamiliar_a_near_one_is_not_and_a_blank_one_always_is() -> None:
    fitted = fit_familiarity(population(1, 50, 6), population(2, 19, 6))
    near, far = population(1, 50, 6).mean(0), population(1, 50, 6).mean(0) + 40
    assert fitted.judge(embedding_of(near)).p_value == 1 and not fitted.judge(embedding_of(near)).unfamiliar
    judgement = fitted.judge(embedding_of(far))
    assert judgement.unfamiliar and judgement.p_value == 0.05 and judgement.distance > fitted.distances[-1]
    blank = fitted.judge(embedding_of(near), blank=True)
    assert blank.unfamiliar and blank.p_value == 0.05
    tie = dataclasses.replace(fitted, distances=(judgement.distance,) * 3)
    assert not tie.judge(embedding_of(far)).unfamiliar, "as far is not farther"


def test_features_that_never_vary_or_repeat_each_other_do_no_harm() -> None:
    features = population(1, 30, 4)
    features = np.concatenate([features, features, np.full((30, 2), 3.0)], axis=1)
    fitted = fit_familiarity(features, features[:3])
    assert all(math.isfinite(d) for d in fitted.distances)
    moved = features[0] + np.eye(10)[8]
    assert fitted.distance(moved) > 100 * fitted.distances[-1], "what never varied in training has changed"
    constant = fit_familiarity(np.ones((10, 4)), np.ones((1, 4)))
    assert constant.distances == (0.0,)


def test_too_few_cases_and_numbers_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="10 training cases and 1 calibration case or more, got 9 and 3"):
        fit_familiarity(population(1, LEAST_REFERENCE - 1, 4), population(2, 3, 4))
    fitted = fit_familiarity(population(1, 20, 4), population(2, 3, 4))
    with pytest.raises(ValueError, match="must have 4 features"):
        fitted.judge(embedding_of(np.ones(6)))
    for wrong in ({"scale": (0.0,) * 4}, {"factor": ()}, {"distances": ()}, {"centre": (math.nan,) * 4}):
        with pytest.raises(ValueError, match="familiarity: "):
            dataclasses.replace(fitted, **wrong)


def test_a_calibration_without_it_has_the_digest_that_it_always_had() -> None:
    """The digest was printed by the version before familiarity was part of the file."""
    intervals = VolumeIntervals(0.1, ("organ",), (0.5,), (0.01,), 9, 3, 4, "sha256:cases", "ml")
    old = Calibration(intervals, TemperatureFit(2.0, 0.2, 0.1, 9, 900), "sha256:model")
    assert old.digest == "sha256:dde7dbaed0bee9afeaca8d8c05b30652c513f63fc2f84fd5561272534ea706ff"
    assert "familiarity" not in json.loads(old.to_json())


@RANKS
def test_it_comes_from_the_training_cases_and_reaches_every_row_and_table(tmp_path: Path, dims: int) -> None:
    bundle, cases = random_bundle(tmp_path / "b", tiny_config(dims)), cohort(tmp_path, dims, 16)
    told: list[str] = []
    cases[4].image.write_bytes(b"no image")
    held, reference = cases[:3], cases[3:]
    calibration, rows = calibrate(bundle, held, Draws(2), reference=reference, progress=told.append)
    assert calibration.familiarity is not None and calibration.familiarity.reference == 12
    assert [line for line in told if "case4" in line][0].startswith("training case left out: case4")
    assert "1 in 4 is told" in calibration_table(calibration, rows)
    save_calibration(bundle.path, calibration)
    loaded = load_bundle(bundle.path)
    assert loaded.calibration == calibration and loaded.digest == bundle.digest
    assert loaded.calibration is not None and loaded.calibration.digest == calibration.digest
    found = evaluate(loaded, held, Draws(2))
    assert sorted(row["distance"] for row in found.rows) == pytest.approx(calibration.familiarity.distances, rel=1e-12)
    assert sorted(row["familiarity"] for row in found.rows) == [0.5, 0.75, 1.0], "each counts itself"
    assert [row["unfamiliar"] for row in found.rows] == [0, 0, 0]
    assert "distance" in found.summary["failure_detection"] and "share of unfamiliar cases" in found.table()
    table = segment_here(loaded, held, Draws(2, None, 0), tmp_path / "out", lambda *_: None).to_pylist()
    assert [row["distance"] for row in table] == [row["distance"] for row in found.rows]


@RANKS
def test_an_empty_volume_is_unfamiliar_and_an_uncalibrated_bundle_says_nothing(tmp_path: Path, dims: int) -> None:
    bundle, cases = random_bundle(tmp_path / "b", tiny_config(dims)), cohort(tmp_path, dims, 12)
    calibration = calibrate(bundle, cases[:1], Draws(2), reference=cases[1:])[0]
    volume = read_volume(cases[0].image, case="case0", spatial_dims=dims)
    judged = Posterior(dataclasses.replace(bundle, calibration=calibration))
    row = judged.segment(corrupt(volume, "empty"), samples=1).numbers()
    assert row["unfamiliar"] == 1 and row["familiarity"] == 0.5
    assert judged.segment(volume, samples=1).numbers()["unfamiliar"] == 0
    for bare in (bundle, dataclasses.replace(bundle, calibration=calibrate(bundle, cases[:1], Draws(2))[0])):
        assert (
            not {"distance", "familiarity", "unfamiliar"} & Posterior(bare).segment(volume, samples=1).numbers().keys()
        )


def test_a_damaged_familiarity_is_refused_and_a_reference_is_never_calibrated_on(tmp_path: Path) -> None:
    bundle, cases = random_bundle(tmp_path / "b", tiny_config(2)), cohort(tmp_path, 2, 12)
    file = save_calibration(bundle.path, calibrate(bundle, cases[:1], Draws(2), reference=cases[1:])[0])
    values = json.loads(file.read_text())
    for change in ({"distances": []}, {"centre": "x"}, {"more": 1}, {"reference": 5}):
        file.write_text(json.dumps(values | {"familiarity": values["familiarity"] | change}))
        with pytest.raises(
            BundleError, match=r"calibration\.json (can't be used|was changed).*calibrate the model anew"
        ):
            load_bundle(bundle.path)
    with pytest.raises(ValueError, match="trained on 1 of the cases, such as case0"):
        calibrate(bundle, cases[:1], reference=cases)


def test_reference_cases_are_those_of_the_card_evenly_spread(tmp_path: Path) -> None:
    listed = cohort(tmp_path / "data", 2, 9)
    lines = [f"{case.name},{case.image.name},{case.labels[0].name},train" for case in listed]
    (tmp_path / "data" / "manifest.csv").write_text("\n".join(["case,image,label,split", *lines]))
    found = read_cohort(tmp_path / "data")
    card = {"split": {"train": [f"case{k}" for k in range(1, 9)] + ["elsewhere"]}}
    assert [case.name for case in reference_cases(found, card)] == [f"case{k}" for k in range(1, 9)]
    assert [case.name for case in reference_cases(found, card, most=3)] == ["case1", "case3", "case6"]
    assert reference_cases(found, {}) == ()
