"""Risk-coverage numbers against closed forms and against all orders of tied cases, one by one."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from ldseg.metrics.ranking import (
    aurc,
    e_aurc,
    failure_detection,
    failure_lines,
    risk_coverage_curve,
    spearman,
    worst_decile_risk,
)


def test_the_curve_is_the_mean_risk_of_the_least_suspect_cases() -> None:
    coverage, risk = risk_coverage_curve(np.array([0.3, 0.1, 0.8, 0.4]), np.array([2.0, 1.0, 3.0, 9.0]))
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert risk == pytest.approx([0.1, 0.2, 0.4, 0.4], rel=1e-12)


@pytest.mark.parametrize("count", [1, 2, 7, 50])
def test_linear_risk_has_the_closed_form_areas(count: int) -> None:
    """Risk i of case i = 1..n: keeping the best k means (k + 1) / 2, keeping the worst k means n - (k - 1) / 2."""
    risk = np.arange(1.0, count + 1)
    assert aurc(risk, risk) == pytest.approx((count + 3) / 4, rel=1e-12)
    assert aurc(risk, -risk) == pytest.approx(count - (count - 1) / 4, rel=1e-12)
    assert e_aurc(risk, risk**3) == 0
    assert e_aurc(risk, -risk) == pytest.approx((count - 1) / 2, rel=1e-12)


def test_failing_cases_that_come_last_have_the_area_of_geifman() -> None:
    """0/1 risk: the perfect curve is 0 up to coverage 1 - r and (k - n + f) / k from there, f = r n failures."""
    risk = np.repeat([0.0, 1.0], [80, 20])
    expected = sum((k - 80) / k for k in range(81, 101)) / 100
    assert aurc(risk, risk) == pytest.approx(expected, rel=1e-12)
    assert expected == pytest.approx(0.2 + 0.8 * math.log(0.8), abs=0.002), "r + (1 - r) ln(1 - r), to order 1 / n"


def test_tied_cases_count_as_the_mean_over_all_their_orders() -> None:
    risk, score = np.array([0.9, 0.2, 0.5, 0.1, 0.7]), np.array([1.0, 1.0, 0.0, 1.0, 2.0])
    curves, deciles = [], []
    for order in itertools.permutations(range(5)):
        if np.all(np.diff(score[list(order)]) >= 0):
            curves.append(np.cumsum(risk[list(order)]) / np.arange(1, 6))
            deciles.append(risk[order[-1]])
    assert len(curves) == 6
    assert risk_coverage_curve(risk, score)[1] == pytest.approx(np.mean(curves, axis=0), rel=1e-12)
    assert aurc(risk, score) == pytest.approx(np.mean(curves), rel=1e-12)
    shuffled = np.array([3, 4, 0, 2, 1])
    assert aurc(risk[shuffled], score[shuffled]) == pytest.approx(aurc(risk, score), rel=1e-12)


def test_a_score_that_tells_nothing_has_the_mean_risk() -> None:
    risk = np.random.default_rng(0).random(31)
    assert aurc(risk, np.ones(31)) == pytest.approx(risk.mean(), rel=1e-12)
    assert worst_decile_risk(risk, np.ones(31)) == pytest.approx(risk.mean(), rel=1e-12)
    assert math.isnan(spearman(risk, np.ones(31)))
    draws = [aurc(risk, np.random.default_rng(seed).random(31)) for seed in range(2000)]
    assert aurc(risk, np.ones(31)) == pytest.approx(np.mean(draws), abs=4 * np.std(draws) / math.sqrt(2000))


def test_the_worst_decile_is_a_tenth_of_the_cases_rounded_up() -> None:
    risk = np.arange(20.0)
    assert worst_decile_risk(risk, risk) == 18.5 and worst_decile_risk(risk, -risk) == 0.5
    assert worst_decile_risk(np.arange(21.0), np.arange(21.0)) == 19
    assert worst_decile_risk(risk[:1], risk[:1]) == 0
    assert worst_decile_risk(np.array([1.0, 3.0, 8.0]), np.array([5.0, 5.0, 1.0])) == 2


def test_spearman_is_the_correlation_of_ranks_with_ties_at_their_mean() -> None:
    generator = np.random.default_rng(3)
    risk, score = generator.integers(0, 6, 40).astype(float), generator.integers(0, 4, 40).astype(float)
    assert spearman(risk, score) == pytest.approx(spearmanr(risk, score).statistic, rel=1e-10)
    assert spearman(np.exp(np.arange(9.0)), np.arange(9.0)) == pytest.approx(1, rel=1e-12)
    assert spearman(np.array([1.0, 2.0, 3.0]), np.array([2.0, 3.0, 1.0])) == pytest.approx(1 - 6 * 6 / 24, rel=1e-12)


def test_an_evaluations_rows_are_ranked_by_what_they_have() -> None:
    dice, agreement = [0.9, 0.5, 0.7, 0.8], [0.95, 0.6, 0.9, 0.8]
    rows = [{"case": str(n), "dice": d, "agreement": a} for n, (d, a) in enumerate(zip(dice, agreement, strict=True))]
    rows += [{"case": "broken", "error": "no"}, {"case": "bare", "agreement": 0.1}, {"case": "nan", "dice": math.nan}]
    found = failure_detection(rows)
    assert list(found) == ["agreement"] and found["agreement"]["n"] == 4
    entry = found["agreement"]
    assert entry["aurc"] == pytest.approx(np.mean([0.1, 0.2, 0.6 / 3, 1.1 / 4]), rel=1e-12)
    assert entry["aurc_perfect"] == pytest.approx(np.mean([0.1, 0.15, 0.6 / 3, 1.1 / 4]), rel=1e-12)
    assert entry["e_aurc"] == pytest.approx(0.05 / 4, rel=1e-9) and entry["spearman"] == pytest.approx(0.8)
    assert entry["worst_decile_risk"] == entry["worst_decile_risk_perfect"] == pytest.approx(0.5)
    with_entropy = failure_detection([{**row, "mean_entropy": 1 - float(row.get("dice", 0))} for row in rows])
    assert with_entropy["mean_entropy"]["e_aurc"] == 0, "high entropy is suspect"
    assert failure_detection(rows[:1]) == {} and failure_detection([]) == {}


def test_the_table_has_a_line_for_each_score() -> None:
    rows = [{"dice": 0.1 * n, "agreement": 0.5, "mean_entropy": -float(n)} for n in range(4)]
    lines = failure_lines(failure_detection(rows))
    assert lines[0].startswith("failures by agreement") and "Spearman -," in lines[0]
    assert lines[1].startswith("failures by mean entropy") and "(excess 0.0000), Spearman 1.00" in lines[1]
    assert max(len(line) for line in lines) <= 120


def test_numbers_that_mean_nothing_are_refused() -> None:
    for risk, score in ((np.ones(2), np.ones(3)), (np.ones(0), np.ones(0)), (np.ones((2, 2)), np.ones((2, 2)))):
        with pytest.raises(ValueError, match="one length"):
            aurc(risk, score)
    with pytest.raises(ValueError, match="finite"):
        aurc(np.ones(2), np.array([1.0, math.nan]))
