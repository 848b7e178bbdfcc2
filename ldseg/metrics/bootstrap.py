"""Two models over the same cases: differences with bootstrap intervals."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Statistic = Callable[[np.ndarray], np.ndarray]
"""(..., n) values of n cases -> (...) one number for each set of cases."""

CHUNK_VALUES = 2**22  # resampled values held at once


@dataclass(frozen=True)
class Comparison:
    """A statistic of two models over the same n cases.

    Attributes:
        own, other: the statistic of each.
        difference: own - other, or own / other for a ratio.
        low, high: ends of its percentile bootstrap interval.
        cases: n.
    """

    own: float
    other: float
    difference: float
    low: float
    high: float
    cases: int


def mean(values: np.ndarray) -> np.ndarray:
    """Mean over the cases, (..., n) -> (...)."""
    return np.asarray(values.mean(-1))


def worst_decile(values: np.ndarray) -> np.ndarray:
    """Mean of the lowest tenth of the cases (at least one; 11 cases: two), (..., n) -> (...)."""
    count = max(1, math.ceil(values.shape[-1] / 10))
    return np.asarray(np.partition(values, count - 1, axis=-1)[..., :count].mean(-1))


def compare(
    own: np.ndarray,
    other: np.ndarray,
    statistic: Statistic = mean,
    *,
    ratio: bool = False,
    resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Comparison:
    """A statistic of paired values, with the percentile interval of the paired bootstrap (Efron 1979; Efron and
    Tibshirani 1993, section 13.3): cases are drawn with replacement, both models' values of a case together.

    Args:
        own, other: (n,) float64, one value for each case, in the same order.
        statistic: mean or worst_decile.
        ratio: compare own / other and not own - other.
        resamples: sets of n cases drawn.
        seed: of the draws.
        confidence: of the interval, in (0, 1).

    Raises:
        ValueError: the values are no two equally long rows of at least one finite number.
    """
    if own.ndim != 1 or own.shape != other.shape or not own.size or not np.isfinite([own, other]).all():
        raise ValueError(f"two equally long rows of finite numbers are needed, got shapes {own.shape}, {other.shape}")
    generator, drawn = np.random.default_rng(seed), []
    rows = max(1, CHUNK_VALUES // own.size)
    for start in range(0, resamples, rows):
        chosen = generator.integers(own.size, size=(min(rows, resamples - start), own.size))
        drawn.append(_contrast(statistic(own[chosen]), statistic(other[chosen]), ratio))
    low, high = np.quantile(np.concatenate(drawn), [(1 - confidence) / 2, (1 + confidence) / 2], method="inverted_cdf")
    values = statistic(own), statistic(other)
    contrast = float(_contrast(*values, ratio))
    return Comparison(float(values[0]), float(values[1]), contrast, float(low), float(high), int(own.size))


def _contrast(own: np.ndarray, other: np.ndarray, ratio: bool) -> np.ndarray:
    if not ratio:
        return own - other
    return np.divide(own, other, out=np.full(np.shape(own), np.inf), where=other > 0)
