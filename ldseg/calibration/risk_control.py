"""A threshold that bounds what is missed: conformal risk control on top of a model's mean probability.

Voxels whose probability of a structure is at least lambda hold all but a share alpha of it, in the mean over new cases
from where the calibration cases came from (exchangeability), whatever the model is worth. Like the intervals of
`ldseg.calibration.conformal` this is a promise for each structure on its own and none for a single case or a subgroup.
What it costs is voxels that are none of the structure: look at both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ldseg import columns

LEVELS = np.concatenate([[0.0], 1 / (1 + np.exp(-np.linspace(-14, 14, 1401)))])
"""Thresholds that `fit_risk_control` chooses from: 0, and equal steps of the log odds, fine at both ends."""


@dataclass(frozen=True)
class RiskControl:
    """Thresholds of one model, sampled in one way.

    Attributes:
        alpha: bound on the expected share of a structure that is missed, in (0, 1).
        structures: their names.
        thresholds: for each structure lambda in [0, 1]; 0 takes every voxel: the cases were too few or the model misses
            too much for any promise that excludes something.
        cases: for each structure the number of calibration cases that have it.
        samples: draws a case at calibration.
        steps: denoiser calls a sample at calibration.
    """

    alpha: float
    structures: tuple[str, ...]
    thresholds: tuple[float, ...]
    cases: tuple[int, ...]
    samples: int
    steps: int

    def __post_init__(self) -> None:
        check_missed(self.alpha)
        if not len(self.structures) == len(self.thresholds) == len(self.cases):
            raise ValueError(f"{self.structures=}, {self.thresholds=} and {self.cases=} must be of one length")
        if not all(0 <= threshold <= 1 for threshold in self.thresholds):
            raise ValueError(f"thresholds must lie in [0, 1], got {self.thresholds}")

    def cautious(self, probability: np.ndarray, samples: int, steps: int) -> np.ndarray | None:
        """The voxels that hold all but a share alpha of each structure.

        Args:
            probability: mean probability (S, *spatial) before any temperature, as it was calibrated on.
            samples, steps: how it was drawn.

        Returns:
            (S, *spatial) bool, structures may overlap; None where the case was drawn in another way than the
            calibration cases: the promise is theirs.
        """
        if (samples, steps) != (self.samples, self.steps):
            return None
        return np.stack([p >= np.float64(threshold) for p, threshold in zip(probability, self.thresholds, strict=True)])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RiskControl:
        """The inverse of `to_dict`. TypeError for keys that are missing or unknown."""
        lists = {name: tuple(values[name]) for name in ("structures", "thresholds", "cases") if name in values}
        return cls(**{**values, **lists})


def missed_curve(probability: np.ndarray, labels: Sequence[np.ndarray], structure: int) -> np.ndarray | None:
    """Share of a structure's voxels with a probability below each of `LEVELS`, averaged over the raters who drew it.

    Args:
        probability: of the structure, (*spatial).
        labels: class indices (*spatial) of each rater.
        structure: class index, from 1.

    Returns:
        (levels,) float64, 0 at the first level and never falling; None if no rater drew the structure.
    """
    curves = []
    for label in labels:
        inside = probability[label == structure].astype(np.float64)
        if inside.size:
            # a voxel is missed by every level above its probability
            bins = np.bincount(np.searchsorted(LEVELS, inside, side="right"), minlength=len(LEVELS) + 1)
            curves.append(np.cumsum(bins)[: len(LEVELS)] / inside.size)
    return np.mean(curves, axis=0) if curves else None


def missed_share(mask: np.ndarray, labels: Sequence[np.ndarray], structure: int) -> float:
    """Share of a structure's voxels outside a mask (*spatial) bool, averaged over the raters who drew it; else NaN.

    `labels` and `structure` as in `missed_curve`.
    """
    inside = [mask[label == structure] for label in labels]
    shares = [1 - np.count_nonzero(found) / found.size for found in inside if found.size]
    return float(np.mean(shares)) if shares else math.nan


def missed_scores(
    predicted: np.ndarray, cautious: np.ndarray | None, labels: Sequence[np.ndarray], structures: Sequence[str]
) -> dict[str, float]:
    """missed_{structure} of a label map and, of cautious masks, missed_{structure}_cautious and what they cost.

    excess_{structure}_cautious is the share of the mask that no rater drew as the structure; NaN for an empty mask.

    Args:
        predicted: class indices (*spatial).
        cautious: masks (S, *spatial) bool, None if there are none.
        labels: class indices (*spatial) of each rater.
        structures: their S names.
    """
    scores = {}
    for k, name in enumerate(structures, start=1):
        scores[missed := columns.score("missed", name)] = missed_share(predicted == k, labels, k)
        if cautious is not None:
            mask, drawn = cautious[k - 1], np.any([label == k for label in labels], axis=0)
            size = np.count_nonzero(mask)
            scores[columns.cautious(missed)] = missed_share(mask, labels, k)
            scores[columns.cautious(columns.score("excess", name))] = (
                np.count_nonzero(mask & ~drawn) / size if size else math.nan
            )
    return scores


def fit_risk_control(
    curves: Mapping[str, Sequence[np.ndarray]], *, samples: int, steps: int, alpha: float = 0.1
) -> RiskControl:
    """The largest threshold with n / (n + 1) R(lambda) + 1 / (n + 1) <= alpha (Angelopoulos et al. 2022, eq. 4).

    R is the mean missed share of the n calibration cases, which never falls with lambda and is at most 1. The expected
    missed share of a new case is then at most alpha. Cases without a structure can't miss it and are not counted: the
    promise is for new cases that have it. It takes 1 / alpha - 1 such cases or more for a threshold above 0.

    Args:
        curves: for each structure the `missed_curve` of each case that has it.
        samples: draws of each case.
        steps: denoiser calls a sample.
        alpha: in (0, 1).

    Raises:
        ValueError: alpha is out of range.
    """
    check_missed(alpha)
    thresholds = tuple(_threshold(of_cases, alpha) for of_cases in curves.values())
    counts = tuple(len(of_cases) for of_cases in curves.values())
    return RiskControl(alpha, tuple(curves), thresholds, counts, samples, steps)


def check_missed(alpha: float) -> None:
    """ValueError unless alpha lies in (0, 1)."""
    if not 0 < alpha < 1:
        raise ValueError(f"the share that may be missed must lie in (0, 1), got {alpha}")


def _threshold(curves: Sequence[np.ndarray], alpha: float) -> float:
    if not curves:
        return 0.0
    bound = (np.sum(curves, axis=0) + 1) / (len(curves) + 1)
    allowed = np.flatnonzero(bound <= alpha + 1e-12)
    return float(LEVELS[allowed[-1]]) if allowed.size else 0.0
