"""Conformal risk control against its definition, and its promise in simulations."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from ldseg.calibration.risk_control import LEVELS, RiskControl, fit_risk_control, missed_curve, missed_share


def simulated(generator: np.random.Generator, cases: int, voxels: int = 60) -> np.ndarray:
    """Probabilities (cases, voxels) that a poor model gives to true voxels; cases are alike in how easy they are."""
    easy = generator.normal(1.0, 1.5, (cases, 1))
    return 1 / (1 + np.exp(-easy - generator.normal(0, 1, (cases, voxels))))


def curves_of(probabilities: np.ndarray) -> list[np.ndarray]:
    """Cumulative shares of all cases at once, as `missed_curve` has them."""
    return [missed_curve(p, [np.ones(p.shape, int)], 1) for p in probabilities]


def test_a_curve_is_the_share_of_true_voxels_below_each_level() -> None:
    generator = np.random.default_rng(0)
    p = generator.random((9, 8)).astype(np.float32) ** 4
    p[0, 0], p[1, 1] = 0, LEVELS[700]  # exactly at a level: not below it
    labels = [generator.integers(0, 3, (9, 8)) for _ in range(2)]
    curve = missed_curve(p, [*labels, np.zeros((9, 8), int)], 2)
    expected = [np.mean([(p[label == 2] < level).mean() for label in labels]) for level in LEVELS]
    assert curve == pytest.approx(expected, abs=1e-12) and curve[0] == 0
    for index in (0, 300, 700, 1401):
        assert missed_share(p >= LEVELS[index], labels, 2) == pytest.approx(curve[index], abs=1e-12)
    assert missed_curve(p, labels, 3) is None and math.isnan(missed_share(p > 0, labels, 3))


def test_the_threshold_is_the_largest_that_the_bound_allows() -> None:
    p = simulated(np.random.default_rng(1), 30)
    fitted = fit_risk_control({"organ": curves_of(p)}, samples=8, steps=4, alpha=0.2)
    risk = np.array([(p < level).mean(1).mean() for level in LEVELS])
    allowed = LEVELS[30 / 31 * risk + 1 / 31 <= 0.2 + 1e-12]
    assert fitted.thresholds == (allowed.max(),) and 0.02 < allowed.max() < 0.9
    assert (fitted.cases, fitted.samples, fitted.steps, fitted.alpha) == ((30,), 8, 4, 0.2)


def test_too_few_cases_take_every_voxel() -> None:
    """Nothing was missed at all, and yet: 1 / (n + 1) <= 0.1 takes 9 cases."""
    sure = [np.where(LEVELS > 0.9, 1.0, 0.0)] * 9
    for n, expected in ((9, LEVELS[LEVELS <= 0.9].max()), (8, 0.0), (0, 0.0)):
        fitted = fit_risk_control({"organ": sure[:n]}, samples=1, steps=1, alpha=0.1)
        assert fitted.thresholds == (expected,)
    everything = fitted.cautious(np.zeros((1, 3, 3)), 1, 1)
    assert everything is not None and everything.all()


@pytest.mark.parametrize(("n", "alpha"), [(19, 0.1), (40, 0.2)])
def test_in_the_mean_no_more_is_missed_than_promised_and_not_much_less(n: int, alpha: float) -> None:
    """250 calibration sets, each with 100 new cases: the mean missed share lies below alpha but for four standard
    errors, and above alpha - 2 / (n + 1) (Angelopoulos et al. 2022, theorem 2). The plain threshold 0.5 misses more."""
    generator, missed, plain = np.random.default_rng(n), [], []
    for _ in range(250):
        p = simulated(generator, n + 100)
        fitted = fit_risk_control({"organ": curves_of(p[:n])}, samples=1, steps=1, alpha=alpha)
        missed.append((p[n:] < fitted.thresholds[0]).mean())
        plain.append((p[n:] < 0.5).mean())
    error = np.std(missed) / math.sqrt(len(missed))
    assert alpha - 2 / (n + 1) - 4 * error <= np.mean(missed) <= alpha + 4 * error and error < 0.006
    assert np.mean(plain) > 0.25 > alpha + 4 * error


def test_each_structure_has_its_own_threshold_and_other_drawings_have_none() -> None:
    fitted = RiskControl(0.1, ("organ", "nodule"), (0.25, 0.5), (20, 9), 8, 4)
    p = np.array([[0.2, 0.25, 0.3], [0.6, 0.5, 0.4]], dtype=np.float32)
    assert fitted.cautious(p, 8, 4).tolist() == [[False, True, True], [True, True, False]]
    assert fitted.cautious(p, 8, 5) is None and fitted.cautious(p, 4, 4) is None
    assert RiskControl.from_dict(json.loads(json.dumps(fitted.to_dict()))) == fitted


def test_what_is_no_risk_control_is_refused() -> None:
    for alpha in (0, 1, math.nan):
        with pytest.raises(ValueError, match="share that may be missed"):
            fit_risk_control({"organ": []}, samples=1, steps=1, alpha=alpha)
    with pytest.raises(ValueError, match="one length"):
        RiskControl(0.1, ("organ",), (0.5, 0.5), (9,), 1, 1)
    with pytest.raises(ValueError, match="thresholds must"):
        RiskControl(0.1, ("organ",), (1.5,), (9,), 1, 1)
