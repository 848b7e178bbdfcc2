"""Conformal volume intervals on simulated populations, where the coverage can be counted."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from ldseg.calibration.conformal import VolumeIntervals, VolumeRow, conformal_quantile, conformity_score, fit_intervals

REPETITIONS = 300


def population(count: int, generator: np.random.Generator, samples: int = 16) -> list[VolumeRow]:
    """Cases of a model that is sure of itself by half, biased by 3 %, and knows which of its cases are hard."""
    rows = []
    for number in range(count):
        centre, spread = 3.0 * np.exp(0.3 * generator.normal()), 0.05 * np.exp(0.8 * generator.normal())
        truth = centre * np.exp(spread * generator.normal())
        volumes = 1.03 * centre * np.exp(0.5 * spread * generator.normal(size=samples))
        rows.append(VolumeRow(f"case{number}", {"organ": volumes}, {"organ": float(truth)}))
    return rows


def coverage(intervals: VolumeIntervals, rows: list[VolumeRow]) -> float:
    ends = [intervals.interval("organ", row.volumes["organ"]) for row in rows]
    return float(np.mean([low <= row.truth["organ"] <= high for row, (low, high) in zip(rows, ends, strict=True)]))


def standard_error(calibration: int, tests: int, share: float = 0.9) -> float:
    """Of the mean coverage: a calibration set's own is Beta distributed, the tests' share given it is binomial."""
    return math.sqrt(share * (1 - share) * (1 / (calibration + 2) + 1 / tests) / REPETITIONS)


def test_ninety_percent_intervals_cover_ninety_percent_of_new_cases() -> None:
    covered, raw = [], []
    for seed in range(REPETITIONS):
        generator = np.random.default_rng(seed)
        calibration, new = population(39, generator), population(25, generator)
        intervals = fit_intervals(calibration, steps=2, unit="ml")
        covered.append(coverage(intervals, new))
        if seed % 10 == 0:
            raw.append(coverage(replace(intervals, quantiles=(0.0,)), new))
    assert abs(np.mean(covered) - 0.9) < 4 * standard_error(39, 25)
    assert np.mean(covered) <= 0.97
    assert np.mean(raw) < 0.75, "the samples' own percentiles are no such interval"


def test_the_rank_counts_the_new_case_itself() -> None:
    """With 10 cases the 10th score covers 10/11 of new cases, and the 9th, which n in place of n + 1 takes, 9/11."""
    covered, off_by_one = [], []
    for seed in range(REPETITIONS):
        generator = np.random.default_rng(1000 + seed)
        calibration, new = population(10, generator), population(15, generator)
        intervals = fit_intervals(calibration, steps=2, unit="ml")
        floor = intervals.floors[0]
        scores = sorted(conformity_score(row.volumes["organ"], row.truth["organ"], floor) for row in calibration)
        covered.append(coverage(intervals, new))
        off_by_one.append(coverage(replace(intervals, quantiles=(scores[math.ceil(10 * 0.9) - 1],)), new))
    assert abs(np.mean(covered) - 10 / 11) < 4 * standard_error(10, 15)
    assert np.mean(off_by_one) < 0.9 - 4 * standard_error(10, 15)


@pytest.mark.parametrize(("count", "alpha", "rank"), [(9, 0.1, 9), (10, 0.1, 10), (19, 0.05, 19), (29, 0.3, 21)])
def test_the_quantile_is_the_score_of_that_rank(count: int, alpha: float, rank: int) -> None:
    scores = [float(n) for n in np.random.default_rng(0).permutation(np.arange(1, count + 1))]
    assert conformal_quantile(scores, alpha) == rank


def test_too_few_cases_leave_the_interval_unbounded() -> None:
    generator = np.random.default_rng(0)
    for count, bounded in ((8, False), (9, True)):
        rows = population(count, generator)
        low, high = fit_intervals(rows, steps=2, unit="ml").interval("organ", rows[0].volumes["organ"])
        assert math.isfinite(high) is bounded and (low > 0) is bounded
        assert bounded or (low, high) == (0.0, math.inf)


def test_intervals_come_back_from_json_as_they_were() -> None:
    fitted = fit_intervals(population(12, np.random.default_rng(0)), steps=3, unit="ml")
    unbounded = replace(fitted, quantiles=(math.inf,))
    for intervals in (fitted, unbounded):
        text = json.dumps(intervals.to_dict(), allow_nan=False)
        assert VolumeIntervals.from_dict(json.loads(text)) == intervals
    assert unbounded.to_dict()["quantiles"] == [None]
    assert (fitted.cases, fitted.samples, fitted.steps, fitted.unit) == (12, 16, 3, "ml")
    assert fitted.holds_for(16, 3) and not fitted.holds_for(8, 3) and not fitted.holds_for(16, 2)
    with pytest.raises(TypeError, match="width"):
        VolumeIntervals.from_dict({**fitted.to_dict(), "width": 3})


def test_the_interval_is_the_percentiles_widened_in_their_own_width() -> None:
    intervals = VolumeIntervals(0.1, ("organ",), (0.5,), (2.0,), 20, 101, 2, "sha256:0", "ml")
    volumes = np.arange(100.0, 201.0)
    assert intervals.interval("organ", volumes) == pytest.approx((105 - 46, 195 + 46), rel=1e-12)
    assert intervals.interval("organ", np.zeros(101)) == (0.0, 1.0), "no volume is negative"
    narrow = replace(intervals, quantiles=(-0.4,))
    assert narrow.interval("organ", volumes) == pytest.approx((105 + 36.8, 195 - 36.8), rel=1e-12)
    assert narrow.interval("organ", np.full(101, 7.0)) == (7.0, 7.0), "ends that cross meet in their middle"
    with pytest.raises(ValueError, match="no interval for 'other'"):
        intervals.interval("other", volumes)


def test_the_floor_is_two_percent_of_the_median_volume_where_there_is_any() -> None:
    rows = [VolumeRow(str(v), {"a": np.full(3, v), "b": np.zeros(3)}, {"a": v, "b": 0.0}) for v in (0.0, 1.0, 2.0, 9.0)]
    intervals = fit_intervals(rows, steps=1, unit="ml", alpha=0.5)
    assert intervals.floors == pytest.approx((0.04, 1.0), rel=1e-12)
    assert intervals.interval("b", np.zeros(3)) == (0.0, 0.0)


def test_the_digest_names_the_calibration_set_whatever_its_order() -> None:
    rows = population(12, np.random.default_rng(0))
    digest = fit_intervals(rows, steps=2, unit="ml").calibration_digest
    assert digest == fit_intervals(rows[::-1], steps=2, unit="ml").calibration_digest
    other = [replace(rows[0], case="renamed"), *rows[1:]]
    assert digest.startswith("sha256:") and digest != fit_intervals(other, steps=2, unit="ml").calibration_digest


def test_calibration_sets_that_mean_nothing_are_refused() -> None:
    rows = population(3, np.random.default_rng(0))
    short = replace(rows[0], case="short", volumes={"organ": np.ones(2)})
    nameless = replace(rows[0], case="nameless", truth={"other": 1.0})
    lost = replace(rows[0], case="lost", truth={"organ": math.nan})
    for bad, problem in (([], "no case"), ([rows[0]] * 2, "twice"), ([rows[1], short], "short: .* 16 samples")):
        with pytest.raises(ValueError, match=problem):
            fit_intervals(bad, steps=1, unit="ml")
    for bad, problem in (([rows[1], nameless], "nameless: its structures"), ([rows[1], lost], "lost: a true volume")):
        with pytest.raises(ValueError, match=problem):
            fit_intervals(bad, steps=1, unit="ml")
    with pytest.raises(ValueError, match="alpha"):
        fit_intervals(rows, steps=1, unit="ml", alpha=1.0)
