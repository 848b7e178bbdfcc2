"""Does a score know which cases went wrong? Risk-coverage curves and what they come to, for a cohort.

A risk says how wrong a case is (1 - Dice), a score how suspect it looks without a label: the higher, the more suspect.
The cases that look best are kept first. Cases of one score can be kept in any order: every number here is its expected
value over all these orders, so that it depends neither on the order of the rows nor on luck. A score that tells
nothing (all equal) has the mean risk at every coverage.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import spearmanr

SCORES = {"agreement": -1, "soft_dice_confidence": -1, "mean_entropy": 1, "sample_variance": 1, "distance": 1}
"""Columns of an evaluation that rank its cases, and the sign that makes high mean suspect."""

Row = Mapping[str, float | int | str]


def risk_coverage_curve(risk: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean risk of the cases that are kept, for each number of them (Geifman & El-Yaniv 2017, selective risk).

    Args:
        risk: (n,) finite, how wrong each case is.
        score: (n,) finite, how suspect it looks; low scores are kept first, ties in expectation over their orders.

    Returns:
        coverage (n,) = 1/n, 2/n, ..., 1 and the risk (n,) of the kept cases at that coverage.

    Raises:
        ValueError: the arrays are empty, not flat, of two lengths or not finite.
    """
    risk, score = _checked(risk, score)
    kept = np.arange(1, len(risk) + 1)
    return kept / len(risk), np.cumsum(_in_expected_order(risk, score)) / kept


def aurc(risk: np.ndarray, score: np.ndarray) -> float:
    """Area under the risk-coverage curve: its mean over the n coverages (Geifman et al. 2019); low is good.

    Arguments and errors as in `risk_coverage_curve`. In the unit of the risk, between the AURC of the perfect ranking
    and that of its reverse; a score that tells nothing has the mean risk.
    """
    return float(risk_coverage_curve(risk, score)[1].mean())


def e_aurc(risk: np.ndarray, score: np.ndarray) -> float:
    """AURC minus that of the perfect ranking, which is the risk itself (Geifman et al. 2019, excess AURC); >= 0.

    Arguments and errors as in `risk_coverage_curve`. Models of unlike mean risk can be compared by it.
    """
    return max(aurc(risk, score) - aurc(risk, risk), 0.0)


def spearman(risk: np.ndarray, score: np.ndarray) -> float:
    """Rank correlation of risk and score in [-1, 1], ties with their mean rank; 1 is a perfect ranking.

    Arguments and errors as in `risk_coverage_curve`; NaN where risk or score is constant.
    """
    risk, score = _checked(risk, score)
    return float(spearmanr(risk, score).statistic) if np.ptp(risk) and np.ptp(score) else math.nan


def worst_decile_risk(risk: np.ndarray, score: np.ndarray) -> float:
    """Mean risk of the ceil(n / 10) most suspect cases: of those that a reader who has time for a tenth would see.

    Arguments and errors as in `risk_coverage_curve`; with the risk itself as score it is the largest there can be.
    """
    risk, score = _checked(risk, score)
    return float(_in_expected_order(risk, score)[-math.ceil(len(risk) / 10) :].mean())


def failure_detection(rows: Sequence[Row]) -> dict[str, dict[str, float | int]]:
    """How well each of `SCORES` ranks an evaluation's cases by 1 - dice.

    Args:
        rows: of `ldseg.evaluation.evaluate`; those without a finite "dice" or score don't count.

    Returns:
        For each score that two cases or more have: n (those cases), risk (mean 1 - dice), aurc, aurc_perfect, e_aurc,
        spearman, worst_decile_risk and worst_decile_risk_perfect.
    """
    return {name: entry for name, sign in SCORES.items() if (entry := _detection(rows, name, sign))}


def failure_lines(detection: Mapping[str, Mapping[str, float | int]]) -> list[str]:
    """One line for each score, for a terminal."""
    return [
        f"{'failures by ' + name.replace('_', ' '):<36}AURC {entry['aurc']:.4f} (excess {entry['e_aurc']:.4f}), "
        f"Spearman {_number(entry['spearman'])}, worst tenth Dice {1 - entry['worst_decile_risk']:.3f} "
        f"(at worst {1 - entry['worst_decile_risk_perfect']:.3f})"
        for name, entry in detection.items()
    ]


def _detection(rows: Sequence[Row], name: str, sign: int) -> dict[str, float | int]:
    pairs = [(row["dice"], row[name]) for row in rows if _finite(row.get("dice")) and _finite(row.get(name))]
    if len(pairs) < 2:
        return {}
    dice, values = np.array(pairs, dtype=np.float64).T
    risk, score = 1 - dice, sign * values
    return {
        "n": len(pairs),
        "risk": float(risk.mean()),
        "aurc": aurc(risk, score),
        "aurc_perfect": aurc(risk, risk),
        "e_aurc": e_aurc(risk, score),
        "spearman": spearman(risk, score),
        "worst_decile_risk": worst_decile_risk(risk, score),
        "worst_decile_risk_perfect": worst_decile_risk(risk, risk),
    }


def _in_expected_order(risk: np.ndarray, score: np.ndarray) -> np.ndarray:
    """The expected risk at each place from least to most suspect: tied cases have their mean."""
    _, group = np.unique(score, return_inverse=True)
    means = np.bincount(group, weights=risk) / np.bincount(group)
    return means[np.sort(group)]


def _checked(risk: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    risk, score = np.asarray(risk, dtype=np.float64), np.asarray(score, dtype=np.float64)
    if risk.ndim != 1 or not risk.size or risk.shape != score.shape:
        raise ValueError(f"risk and score must be lists of one length, got {risk.shape} and {score.shape}")
    if not (np.isfinite(risk).all() and np.isfinite(score).all()):
        raise ValueError("risk and score must be finite; leave out the cases that have none")
    return risk, score


def _finite(value: float | int | str | None) -> bool:
    return isinstance(value, float | int) and math.isfinite(value)


def _number(value: float | int) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"
