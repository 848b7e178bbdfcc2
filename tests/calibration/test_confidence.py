"""The promise for one calibration set, and intervals of a model of several members from their folds."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import beta, betabinom

from ldseg.calibration.conformal import (
    VolumeIntervals,
    VolumeRow,
    check_confidence,
    conformal_rank,
    conformity_score,
    fit_cross_intervals,
    fit_intervals,
    least_cases,
)
from ldseg.metrics.coverage import coverage, coverage_lines


@pytest.mark.parametrize("cases", [29, 30, 60, 208])
@pytest.mark.parametrize(("alpha", "confidence"), [(0.1, 0.95), (0.2, 0.9)])
def test_the_rank_is_the_smallest_whose_beta_distribution_lies_above(cases, alpha, confidence):
    below = [beta.cdf(1 - alpha, k, cases + 1 - k) for k in range(1, cases + 1)]
    assert conformal_rank(cases, alpha, confidence) == 1 + int(np.argmax(np.array(below) <= 1 - confidence))


@pytest.mark.parametrize("cases", [29, 60, 208])
def test_nineteen_of_twenty_calibration_sets_cover_ninety_percent_and_one_rank_less_does_not(cases):
    """What the k-th smallest of n uniform scores covers is the score itself."""
    scores = np.sort(np.random.default_rng(cases).uniform(size=(20_000, cases)), axis=1)
    rank = conformal_rank(cases, 0.1, 0.95)
    error = 4 * np.sqrt(0.95 * 0.05 / len(scores))
    assert (scores[:, rank - 1] >= 0.9).mean() >= 0.95 - error
    assert (scores[:, rank - 2] >= 0.9).mean() < 0.95 + error
    marginal = conformal_rank(cases, 0.1)
    assert marginal < rank or cases == 29
    assert (scores[:, marginal - 1] >= 0.9).mean() < 0.97


def test_the_number_of_cases_that_a_confidence_takes_has_a_closed_form():
    assert [least_cases(0.1, 0.95), least_cases(0.05, 0.95), least_cases(0.1, 0.9)] == [29, 59, 22]
    assert [least_cases(0.1), least_cases(0.05), least_cases(0.3)] == [9, 19, 3]
    for alpha, confidence in ((0.1, 0.95), (0.05, 0.95), (0.1, 0.9), (0.25, 0.99), (0.1, 0.0)):
        needed = least_cases(alpha, confidence)
        assert conformal_rank(needed, alpha, confidence) <= needed
        assert conformal_rank(needed - 1, alpha, confidence) == needed, "one less leaves the interval unbounded"


def test_a_confidence_that_the_cases_cannot_give_is_refused_with_the_number_that_can():
    with pytest.raises(
        ValueError, match=r"at least 0\.9 of .*confidence of 0\.95 take 29 .*and there are 28; give more"
    ):
        check_confidence(28, 0.1, 0.95)
    check_confidence(29, 0.1, 0.95)
    check_confidence(1, 0.1, 0.0)
    with pytest.raises(ValueError, match="confidence must lie"):
        check_confidence(100, 0.1, 1.0)


def _rows(generator, count, bias=0.0, samples=8, name="case"):
    """Cases of a model that is biased by so much and half as unsure as it should be."""
    rows = []
    for number in range(count):
        truth = 10 + generator.normal()
        volumes = truth + bias + 0.5 * generator.normal() + 0.25 * generator.normal(size=samples)
        rows.append(VolumeRow(f"{name}{number}", {"organ": volumes}, {"organ": truth}))
    return rows


def _covered(intervals, rows):
    ends = [intervals.interval("organ", row.volumes["organ"]) for row in rows]
    return float(np.mean([low <= row.truth["organ"] <= high for row, (low, high) in zip(rows, ends, strict=True)]))


def test_confident_intervals_cover_ninety_percent_from_nineteen_of_twenty_calibration_sets():
    found, sets = {0.0: [], 0.95: []}, 200
    new = _rows(np.random.default_rng(0), 2000)
    for seed in range(sets):
        rows = _rows(np.random.default_rng(1 + seed), 40)
        for confidence, shares in found.items():
            intervals = fit_intervals(rows, steps=1, unit="ml", confidence=confidence)
            shares.append(_fast(intervals, new))
    tolerance = 4 * np.sqrt(0.95 * 0.05 / sets)
    assert np.mean(np.array(found[0.95]) >= 0.9) >= 0.95 - tolerance
    assert np.mean(np.array(found[0.0]) >= 0.9) < 0.9, "in the mean over calibration sets is less of a promise"
    assert abs(np.mean(found[0.0]) - conformal_rank(40, 0.1) / 41) < 0.015


def _fast(intervals, rows):
    """As `_covered`, of a plain calibration, by the scores."""
    floor, quantile = intervals.floors[0], intervals.quantiles[0]
    scores = np.array([row.volumes["organ"] for row in rows])
    low, high = np.percentile(scores, (5, 95), axis=1)
    truth = np.array([row.truth["organ"] for row in rows])
    return float((np.maximum(low - truth, truth - high) / (high - low + floor) <= quantile).mean())


def _folds(seed, members=5, cases=8):
    """For each member its cases, and new ones: sample i of a new case is member i mod 5's, each with its own bias."""
    generator = np.random.default_rng(seed)
    biases = 0.3 * generator.normal(size=members)
    folds = [_rows(generator, cases, bias, name=f"fold{k}-") for k, bias in enumerate(biases)]
    new = []
    for number in range(25):
        truth = 10 + generator.normal()
        per_member = truth + biases + 0.5 * generator.normal() + 0.25 * generator.normal(size=(8, members))
        new.append(VolumeRow(f"new{number}", {"organ": per_member.reshape(-1)}, {"organ": truth}))
    return folds, new


def test_an_interval_from_folds_is_that_of_each_members_samples_and_its_own_scores():
    folds, new = _folds(0)
    intervals = fit_cross_intervals(folds, steps=1, unit="ml")
    assert (intervals.cases, intervals.samples, intervals.rank) == (40, 40, 37)
    floor, volumes = intervals.floors[0], new[0].volumes["organ"]
    ends = []
    for member, fold in enumerate(folds):
        low, high = np.percentile(volumes[member::5], (5, 95))
        for row in fold:
            widened = conformity_score(row.volumes["organ"], row.truth["organ"], floor) * (high - low + floor)
            ends.append((low - widened, high + widened))
    lows, highs = np.sort([low for low, _ in ends]), np.sort([high for _, high in ends])
    assert intervals.interval("organ", volumes) == pytest.approx((lows[40 - 37], highs[37 - 1]), rel=1e-12)


def test_what_is_proven_is_a_number_for_the_cases_at_hand():
    rows = _rows(np.random.default_rng(0), 39)
    assert fit_intervals(rows, steps=1, unit="ml").proven == pytest.approx(36 / 40)
    assert fit_intervals(rows[:8], steps=1, unit="ml").proven == 1.0, "an interval without a bound"
    folds = fit_cross_intervals(_folds(0)[0], steps=1, unit="ml")
    assert folds.proven == pytest.approx(1 - 2 * (1 - 37 / 41) - (1 - 1 / 8) / 6)
    many = fit_cross_intervals(_folds(0, cases=100)[0], steps=1, unit="ml", confidence=0.95)
    assert many.proven == pytest.approx(1 - 2 * (1 - many.rank / 501) - 2 * 0.8 / 101)


def test_intervals_from_folds_cover_about_ninety_percent():
    found = []
    for seed in range(120):
        folds, new = _folds(seed)
        found.append(_covered(fit_cross_intervals(folds, steps=1, unit="ml"), new))
    assert 0.88 < np.mean(found) < 0.97, "1 - 2 alpha = 0.8 is what is proven"


def test_one_fold_is_the_plain_calibration_and_files_without_the_new_promise_are_as_before():
    rows = _rows(np.random.default_rng(3), 30)
    plain = fit_intervals(rows, steps=1, unit="ml")
    assert fit_cross_intervals([rows], steps=1, unit="ml") == plain
    assert not {"confidence", "scores"} & plain.to_dict().keys()
    confident = fit_intervals(rows, steps=1, unit="ml", confidence=0.95)
    folds = fit_cross_intervals(_folds(1)[0], steps=1, unit="ml", confidence=0.95)
    for intervals in (confident, folds):
        text = json.dumps(intervals.to_dict(), allow_nan=False)
        assert VolumeIntervals.from_dict(json.loads(text)) == intervals
    assert not folds.holds_for(8, 1) and folds.holds_for(40, 1)


def test_folds_of_too_few_cases_leave_the_interval_unbounded_and_scores_that_do_not_fit_are_refused():
    folds = [fold[:1] for fold in _folds(0)[0]]
    few = fit_cross_intervals(folds, steps=1, unit="ml")
    assert few.interval("organ", np.arange(40.0)) == (0.0, np.inf)
    with pytest.raises(ValueError, match="take 29 calibration cases and there are 5"):
        fit_cross_intervals(folds, steps=1, unit="ml", confidence=0.95)
    values = fit_cross_intervals(_folds(0)[0], steps=1, unit="ml").to_dict()
    values["scores"][0][0].pop()
    with pytest.raises(ValueError, match="scores of the folds don't fit"):
        VolumeIntervals.from_dict(values)


def test_the_range_that_is_told_is_that_of_the_rank():
    rows = _rows(np.random.default_rng(3), 40)
    told = [{"case": row.case, "organ_covered_raw": 1, "organ_covered": 1} for row in rows]
    for confidence, rank in ((0.0, 37), (0.95, 40)):
        intervals = fit_intervals(rows, steps=1, unit="ml", confidence=confidence)
        found = coverage(told, ["organ"], intervals)["conformal"]
        low, high = betabinom(40, rank, 41 - rank).interval(0.95)
        assert intervals.rank == rank and found["band"] == [low / 40, high / 40]
        line = coverage_lines({"conformal": found})[0]
        assert ("at least 90% with 95% confidence of 40 cases" in line) is bool(confidence)
