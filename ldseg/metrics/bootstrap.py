"""Bootstrap intervals over cases: of a mean, and of the difference of two models over the same cases."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

Statistic = Callable[[np.ndarray], np.ndarray]
"""(..., n) values of n cases -> (...) one number for each set of cases."""

CHUNK_VALUES = 2**22  # resampled values held at once


@dataclass(frozen=True, kw_only=True)
class Resampling:
    """How a comparison draws sets of cases, and how sure its interval is.

    Attributes:
        resamples: sets drawn.
        seed: of the draws.
        confidence: of the interval, in (0, 1).
        groups: what each case belongs to, such as its patient, as in `interval`; None draws the cases themselves.
    """

    resamples: int = 2000
    seed: int = 0
    confidence: float = 0.95
    groups: Sequence[str] | None = None

    def sets(self, count: int) -> Iterator[np.ndarray]:
        """Indices (some sets, cases of a set) among `count` cases; none where there are fewer than two groups.

        Raises:
            ValueError: there is not one group for each case.
        """
        if self.groups is not None and len(self.groups) != count:
            raise ValueError(f"a group for each of {count} cases is needed, got {len(self.groups)}")
        if self.groups is None or len(set(self.groups)) == count:
            return _resamples(count, self.resamples, self.seed)
        return _whole_groups(self.groups, self.resamples, self.seed)


RESAMPLING = Resampling()


@dataclass(frozen=True)
class Comparison:
    """A statistic of two models over the same n cases.

    Attributes:
        own, other: the statistic of each.
        difference: own - other, or own / other for a ratio.
        low, high: ends of its percentile bootstrap interval; NaN where one group has all the cases.
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


def interval(
    values: np.ndarray,
    groups: Sequence[str] | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """The percentile bootstrap interval of a mean over cases.

    Args:
        values: (n,) finite numbers, one for each case.
        groups: what each case belongs to, such as its patient: whole groups are drawn, for the cases of a group are no
            independent draws (Davison & Hinkley 1997, section 3.8). None draws the cases themselves.
        resamples, seed, confidence: as in `Resampling`.

    Returns:
        Its ends; NaN for fewer than two groups, which say nothing of others.

    Raises:
        ValueError: a value is not finite, or there is not one group for each.
    """
    if values.ndim != 1 or not np.isfinite(values).all() or (groups is not None and len(groups) != len(values)):
        raise ValueError(f"a row of finite numbers and a group for each are needed, got shape {values.shape}")
    _, member = np.unique(np.arange(len(values)) if groups is None else list(groups), return_inverse=True)
    sums, counts = np.bincount(member, weights=values), np.bincount(member)
    if len(sums) < 2:
        return math.nan, math.nan
    drawn = [sums[chosen].sum(-1) / counts[chosen].sum(-1) for chosen in _resamples(len(sums), resamples, seed)]
    return _ends(np.concatenate(drawn), confidence)


def compare(
    own: np.ndarray,
    other: np.ndarray,
    statistic: Statistic = mean,
    *,
    ratio: bool = False,
    resampling: Resampling = RESAMPLING,
) -> Comparison:
    """A statistic of paired values, with the percentile interval of the paired bootstrap (Efron 1979; Efron and
    Tibshirani 1993, section 13.3): cases are drawn with replacement, both models' values of a case together.

    Args:
        own, other: (n,) float64, one value for each case, in the same order.
        statistic: mean or worst_decile.
        ratio: compare own / other and not own - other.
        resampling: how the cases are drawn.

    Raises:
        ValueError: the values are no two equally long rows of at least one finite number, or there is not one group
            for each.
    """
    if own.ndim != 1 or own.shape != other.shape or not own.size or not np.isfinite([own, other]).all():
        raise ValueError(f"two equally long rows of finite numbers are needed, got shapes {own.shape}, {other.shape}")
    drawn = [_contrast(statistic(own[chosen]), statistic(other[chosen]), ratio) for chosen in resampling.sets(own.size)]
    low, high = _ends(np.concatenate(drawn), resampling.confidence) if drawn else (math.nan, math.nan)
    values = statistic(own), statistic(other)
    contrast = float(_contrast(*values, ratio))
    return Comparison(float(values[0]), float(values[1]), contrast, low, high, int(own.size))


def _resamples(count: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Indices (some resamples, count) drawn with replacement, in parts that fit into memory."""
    generator, rows = np.random.default_rng(seed), max(1, CHUNK_VALUES // count)
    for start in range(0, resamples, rows):
        yield generator.integers(count, size=(min(rows, resamples - start), count))


def _whole_groups(groups: Sequence[str], resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Indices (1, cases of all groups that were drawn), one resample after another; none of fewer than two groups."""
    names = np.array(groups)
    members = [np.flatnonzero(names == name) for name in np.unique(names)]
    if len(members) > 1:
        for part in _resamples(len(members), resamples, seed):
            yield from (np.concatenate([members[group] for group in chosen])[None] for chosen in part)


def _ends(drawn: np.ndarray, confidence: float) -> tuple[float, float]:
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2], method="inverted_cdf")
    return float(low), float(high)


def _contrast(own: np.ndarray, other: np.ndarray, ratio: bool) -> np.ndarray:
    if not ratio:
        return own - other
    return np.divide(own, other, out=np.full(np.shape(own), np.inf), where=other > 0)
