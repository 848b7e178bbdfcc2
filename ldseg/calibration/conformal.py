"""Volume intervals with a guarantee: split conformal prediction on top of a model's samples.

The percentiles of a model's samples are its opinion. Measured against labelled cases that the model was not trained
on, they become an interval that covers the true volume of a new case with probability 1 - alpha or more, as long as
the new case comes from where those cases came from (exchangeability), whatever the model is worth. The guarantee is
for each structure on its own, over calibration sets and cases together, and not for any one subgroup of cases.

With a `confidence` it is one for this calibration set too: with that probability over calibration sets, at least
1 - alpha of the new cases are covered (Vovk 2012, "Conditional validity of inductive conformal predictors").

Intervals of a model of K members, each of which has not been trained on its share of the cases (its fold), are CV+
(Barber et al. 2021, section 3; Vovk 2015, cross-conformal predictors; for such scores Gupta et al. 2022). What is
proven of them is coverage of 1 - 2 alpha, less min(2 (1 - 1/K) / (n/K + 1), (1 - K/n) / (K + 1)); what is found is
about 1 - alpha. Their rank is that of `confidence` as well, but that it holds for one calibration set is not proven.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

PERCENTILES = (5, 95)
FLOOR = 0.02
"""Of a structure's median volume: what is added to the width of its samples, which may be zero."""


@dataclass(frozen=True)
class VolumeRow:
    """A calibration case: what the model's samples say and what is true, in one unit.

    Attributes:
        case: its name, which goes into the digest.
        volumes: for each structure the volumes of the K samples, (K,).
        truth: for each structure the true volume.
    """

    case: str
    volumes: Mapping[str, np.ndarray]
    truth: Mapping[str, float]


@dataclass(frozen=True)
class VolumeIntervals:
    """Conformal volume intervals of one model, sampled in one way.

    Attributes:
        alpha: the share of new cases whose true volume may lie outside, in (0, 1).
        structures: their names.
        quantiles: for each structure what `interval` widens the samples' percentiles by, in widths; negative narrows
            them; infinity where there were too few cases for any bounded interval.
        floors: for each structure what is added to the width, > 0, in `unit`.
        cases: number of calibration cases.
        samples: draws a case at calibration.
        steps: denoiser calls a sample at calibration.
        calibration_digest: "sha256:..." of the calibration cases' names and true volumes.
        unit: of volumes and floors, such as "ml".
        confidence: probability over calibration sets with which at least 1 - alpha of new cases lie inside; 0 where
            the promise is one in the mean over calibration sets.
        scores: of intervals from folds, for each structure and each of the model's members the scores of the cases
            that it was not trained on, ascending; `quantiles` are then those of all scores together. () for others.
    """

    alpha: float
    structures: tuple[str, ...]
    quantiles: tuple[float, ...]
    floors: tuple[float, ...]
    cases: int
    samples: int
    steps: int
    calibration_digest: str
    unit: str
    confidence: float = 0.0
    scores: tuple[tuple[tuple[float, ...], ...], ...] = ()

    def __post_init__(self) -> None:
        _check_alpha(self.alpha)
        if not 0 <= self.confidence < 1:
            raise ValueError(f"confidence must lie in [0, 1), got {self.confidence}")
        if self.scores and (
            len(self.scores) != len(self.structures)
            or any(sum(map(len, folds)) != self.cases or self.samples % len(folds) for folds in self.scores)
        ):
            raise ValueError("the scores of the folds don't fit the structures, the cases and the samples")
        if not len(self.structures) == len(self.quantiles) == len(self.floors):
            raise ValueError(f"{self.structures=}, {self.quantiles=} and {self.floors=} must be of one length")
        if any(math.isnan(q) for q in self.quantiles) or not all(0 < f < math.inf for f in self.floors):
            raise ValueError(f"quantiles must be numbers and floors above 0, got {self.quantiles=} {self.floors=}")

    @property
    def rank(self) -> int:
        """Which of the ordered scores is the quantile, from 1; `cases` + 1 where there are too few of them."""
        return conformal_rank(self.cases, self.alpha, self.confidence)

    @property
    def proven(self) -> float:
        """The coverage that is proven over calibration sets and new cases, whatever the model is worth.

        From K folds of about n / K cases, with the rank's own alpha = 1 - rank / (n + 1), it is 1 - 2 alpha -
        min(2 (1 - 1/K) / (n/K + 1), (1 - K/n) / (K + 1)) (Barber et al. 2021, theorem 4), else rank / (n + 1).
        """
        if self.rank > self.cases:
            return 1.0
        outside = 1 - self.rank / (self.cases + 1)
        if not self.scores:
            return 1 - outside
        folds, share = len(self.scores[0]), self.cases / len(self.scores[0])
        return max(0.0, 1 - 2 * outside - min(2 * (1 - 1 / folds) / (share + 1), (1 - 1 / share) / (folds + 1)))

    def holds_for(self, samples: int, steps: int) -> bool:
        """Whether cases sampled in this way are exchangeable with the calibration cases: the guarantee is theirs."""
        return (samples, steps) == (self.samples, self.steps)

    def interval(self, structure: str, volumes: np.ndarray) -> tuple[float, float]:
        """The interval of a new case (conformalised quantile regression, Romano et al. 2019, section 4).

        From folds: each calibration case widens the percentiles of that member's samples which was not trained on it,
        by its own score; of the n lower ends the (n + 1 - rank)-th smallest is taken, of the upper ones the rank-th.

        Args:
            structure: one of `structures`.
            volumes: of the case's samples, (K,), in `unit`, drawn like those of the calibration (`holds_for`); of M
                members the sample of index i is member i mod M's.

        Returns:
            (low, high) in `unit`, 0 <= low <= high; (0, inf) if the calibration had too few cases. Where a negative
            quantile would make the ends cross, both are their middle.

        Raises:
            ValueError: `structure` is unknown, or `volumes` is no list of numbers.
        """
        if structure not in self.structures:
            raise ValueError(f"there is no interval for {structure!r}, only for {', '.join(self.structures)}")
        index = self.structures.index(structure)
        quantile = self.quantiles[index]
        folds = self.scores[index] if self.scores else ((quantile,),)
        lows, highs = list[float](), list[float]()
        for member, scores in enumerate(folds):
            low, high, scale = _percentiles(volumes[member :: len(folds)], self.floors[index])
            lows += [low - score * scale for score in scores]
            highs += [high + score * scale for score in scores]
        if math.isinf(quantile):
            return 0.0, math.inf
        rank = self.rank if self.scores else 1
        low, high = sorted(lows)[-rank], sorted(highs)[rank - 1]
        if low > high:
            low = high = (low + high) / 2
        return max(low, 0.0), high

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, which has no infinity: it becomes null."""
        values = asdict(self)
        if not self.confidence:
            del values["confidence"]
        if self.scores:
            values["scores"] = [[list(fold) for fold in folds] for folds in self.scores]
        else:
            del values["scores"]
        return values | {
            "structures": list(self.structures),
            "quantiles": [None if math.isinf(q) else q for q in self.quantiles],
            "floors": list(self.floors),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> VolumeIntervals:
        """The inverse of `to_dict`. TypeError for keys that are missing or unknown."""
        lists = {name: tuple(values[name]) for name in ("structures", "quantiles", "floors") if name in values}
        if "quantiles" in lists:
            lists["quantiles"] = tuple(math.inf if q is None else q for q in lists["quantiles"])
        if "scores" in values:
            lists["scores"] = tuple(tuple(tuple(fold) for fold in folds) for folds in values["scores"])
        return cls(**{**values, **lists})


def fit_intervals(
    rows: Sequence[VolumeRow], *, steps: int, unit: str, alpha: float = 0.1, confidence: float = 0.0
) -> VolumeIntervals:
    """Calibrate the intervals by split conformal prediction (Papadopoulos et al. 2002).

    The score of a case is max(q05 - v, v - q95) / (q95 - q05 + floor), with the 5th and 95th percentile of its
    samples' volumes and its true volume v: how far the truth lies outside (Romano et al. 2019, section 4), in widths
    of the samples (Sesia & Candès 2020, CQR-r), so that the interval adapts to the case. The floor is `FLOOR` of the
    structure's median true volume over the calibration cases that have it (1 `unit` if none has); it is a constant of
    the population but for that estimate.

    Args:
        rows: cases that the model was neither trained nor selected on, all with the same structures and K.
        steps: denoiser calls a sample.
        unit: of the volumes.
        alpha: the share of new cases that may lie outside, in (0, 1).
        confidence: see `VolumeIntervals`.

    Raises:
        ValueError: there is no case, one is there twice, they differ in structures or number of samples, or they are
            fewer than the confidence needs.
    """
    return fit_cross_intervals([rows], steps=steps, unit=unit, alpha=alpha, confidence=confidence)


def fit_cross_intervals(
    folds: Sequence[Sequence[VolumeRow]], *, steps: int, unit: str, alpha: float = 0.1, confidence: float = 0.0
) -> VolumeIntervals:
    """Calibrate the intervals of a model of several members by CV+, each member on the cases it was not trained on.

    Args:
        folds: for each member its cases, all with the same structures and number of samples, which is that of each
            member: the intervals hold for so many times the members.
        steps, unit, alpha, confidence: see `fit_intervals`; one fold is what that does.

    Raises:
        ValueError: as `fit_intervals`.
    """
    _check_alpha(alpha)
    rows = [row for fold in folds for row in fold]
    structures, samples = _checked(rows)
    check_confidence(len(rows), alpha, confidence)
    quantiles, floors, scores = [], [], []
    for name in structures:
        truths = np.array([row.truth[name] for row in rows], dtype=np.float64)
        floors.append(floor := FLOOR * float(np.median(truths[truths > 0])) if (truths > 0).any() else 1.0)
        found = [sorted(conformity_score(row.volumes[name], row.truth[name], floor) for row in fold) for fold in folds]
        quantiles.append(conformal_quantile([score for fold in found for score in fold], alpha, confidence))
        scores.append(tuple(tuple(fold) for fold in found))
    return VolumeIntervals(
        alpha,
        structures,
        tuple(quantiles),
        tuple(floors),
        len(rows),
        samples * len(folds),
        steps,
        _digest(rows, structures),
        unit,
        confidence,
        tuple(scores) if len(folds) > 1 else (),
    )


def conformity_score(volumes: np.ndarray, truth: float, floor: float) -> float:
    """How far `truth` lies outside the samples' percentiles, in widths; negative inside. See `fit_intervals`."""
    low, high, scale = _percentiles(volumes, floor)
    return max(low - truth, truth - high) / scale


def conformal_quantile(scores: Sequence[float], alpha: float, confidence: float = 0.0) -> float:
    """The `conformal_rank`-th smallest of n scores; infinity if there are too few of them."""
    rank = conformal_rank(len(scores), alpha, confidence)
    return float(np.sort(scores)[rank - 1]) if rank <= len(scores) else math.inf


def conformal_rank(cases: int, alpha: float, confidence: float = 0.0) -> int:
    """Which of n ordered scores bounds 1 - alpha of new ones, from 1 to n; n + 1 if there are too few of them.

    In the mean over calibration sets it is the ceil((n + 1)(1 - alpha))-th: n + 1 and not n, for the new case's own
    score is one of the ranks (Vovk et al. 2005). What the k-th of n scores covers has, over calibration sets, the
    distribution Beta(k, n + 1 - k) or lies above it where scores are equal (Vovk 2012); so with a confidence it is
    the smallest such k for which P(Beta(k, n + 1 - k) < 1 - alpha) <= 1 - confidence: a binomial tail, that k or more
    of n independent cases are among the 1 - alpha best of all.
    """
    from scipy.stats import binom  # a quarter of a second, which a model in use need not wait for

    marginal = math.ceil((cases + 1) * (1 - alpha) - 1e-9)
    if not confidence:
        return min(marginal, cases + 1)
    # P(Beta(k, n + 1 - k) < p) = P(Binomial(n, p) >= k)
    exceeded = binom.sf(np.arange(cases + 1), cases, 1 - alpha)  # of k = 1, 2, ..., n + 1
    return max(min(marginal, cases + 1), 1 + int(np.argmax(exceeded <= 1 - confidence + 1e-12)))


def least_cases(alpha: float, confidence: float = 0.0) -> int:
    """Calibration cases that a bounded interval takes: 9 for 90 % in the mean, 29 for 90 % with 95 % confidence.

    The largest of n scores is enough with a confidence of 1 - (1 - alpha)^n.

    Raises:
        ValueError: alpha or the confidence is out of range.
    """
    _check_alpha(alpha)
    if not 0 <= confidence < 1:
        raise ValueError(f"confidence must lie in [0, 1), got {confidence}")
    in_the_mean = math.ceil(1 / alpha - 1 - 1e-9)
    return max(in_the_mean, math.ceil(math.log1p(-confidence) / math.log1p(-alpha) - 1e-9))


def check_confidence(cases: int, alpha: float, confidence: float) -> None:
    """Refuse a confidence that so many cases can't give, with the number that can.

    Raises:
        ValueError: it is out of range, or there are too few cases.
    """
    needed = least_cases(alpha, confidence)
    if confidence and cases < needed:
        wanted = f"at least {1 - alpha:.4g} of new cases with a confidence of {confidence:g}"
        raise ValueError(
            f"intervals that hold {wanted} take {needed} calibration cases and there are {cases}; "
            "give more, or --confidence 0 for a promise in the mean over calibration sets"
        )


def _percentiles(volumes: np.ndarray, floor: float) -> tuple[float, float, float]:
    volumes = np.asarray(volumes, dtype=np.float64)
    if volumes.ndim != 1 or not volumes.size or not np.isfinite(volumes).all():
        raise ValueError(f"volumes must be a list of numbers, one a sample, got {volumes!r}")
    low, high = (float(q) for q in np.percentile(volumes, PERCENTILES))
    return low, high, high - low + floor


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie in (0, 1), got {alpha}")


def _checked(rows: Sequence[VolumeRow]) -> tuple[tuple[str, ...], int]:
    if not rows:
        raise ValueError("there is no case to calibrate on")
    if len({row.case for row in rows}) < len(rows):
        raise ValueError("a calibration case is there twice; each must be one draw from the population")
    structures = tuple(rows[0].truth)
    samples = len(rows[0].volumes[structures[0]]) if structures else 0
    for row in rows:
        if set(row.truth) != set(structures) or set(row.volumes) != set(structures):
            raise ValueError(f"{row.case}: its structures are not {', '.join(structures)}")
        if any(len(row.volumes[name]) != samples for name in structures):
            raise ValueError(f"{row.case}: every structure of every case must have {samples} samples")
        if not all(0 <= row.truth[name] < math.inf for name in structures):
            raise ValueError(f"{row.case}: a true volume is no number from 0 on: {dict(row.truth)}")
    return structures, samples


def _digest(rows: Sequence[VolumeRow], structures: Sequence[str]) -> str:
    """The same for any order of the cases."""
    cases = sorted([row.case, *[float(row.truth[name]) for name in structures]] for row in rows)
    text = json.dumps([list(structures), cases])
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()
