"""Volume intervals with a guarantee: split conformal prediction on top of a model's samples.

The percentiles of a model's samples are its opinion. Measured against labelled cases that the model was not trained
on, they become an interval that covers the true volume of a new case with probability 1 - alpha or more, as long as
the new case comes from where those cases came from (exchangeability), whatever the model is worth. The guarantee is
for each structure on its own, over calibration sets and cases together, and not for any one subgroup of cases.
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

    def __post_init__(self) -> None:
        _check_alpha(self.alpha)
        if not len(self.structures) == len(self.quantiles) == len(self.floors):
            raise ValueError(f"{self.structures=}, {self.quantiles=} and {self.floors=} must be of one length")
        if any(math.isnan(q) for q in self.quantiles) or not all(0 < f < math.inf for f in self.floors):
            raise ValueError(f"quantiles must be numbers and floors above 0, got {self.quantiles=} {self.floors=}")

    def holds_for(self, samples: int, steps: int) -> bool:
        """Whether cases sampled in this way are exchangeable with the calibration cases: the guarantee is theirs."""
        return (samples, steps) == (self.samples, self.steps)

    def interval(self, structure: str, volumes: np.ndarray) -> tuple[float, float]:
        """The interval of a new case (conformalised quantile regression, Romano et al. 2019, section 4).

        Args:
            structure: one of `structures`.
            volumes: of the case's samples, (K,), in `unit`, drawn like those of the calibration (`holds_for`).

        Returns:
            (low, high) in `unit`, 0 <= low <= high; (0, inf) if the calibration had too few cases. Where a negative
            quantile would make the ends cross, both are their middle.

        Raises:
            ValueError: `structure` is unknown, or `volumes` is no list of numbers.
        """
        if structure not in self.structures:
            raise ValueError(f"there is no interval for {structure!r}, only for {', '.join(self.structures)}")
        index = self.structures.index(structure)
        low, high, scale = _percentiles(volumes, self.floors[index])
        quantile = self.quantiles[index]
        if math.isinf(quantile):
            return 0.0, math.inf
        low, high = low - quantile * scale, high + quantile * scale
        if low > high:
            low = high = (low + high) / 2
        return max(low, 0.0), high

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, which has no infinity: it becomes null."""
        values = asdict(self)
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
        return cls(**{**values, **lists})


def fit_intervals(rows: Sequence[VolumeRow], *, steps: int, unit: str, alpha: float = 0.1) -> VolumeIntervals:
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

    Raises:
        ValueError: there is no case, one is there twice, or they differ in structures or number of samples.
    """
    _check_alpha(alpha)
    structures, samples = _checked(rows)
    quantiles, floors = [], []
    for name in structures:
        truths = np.array([row.truth[name] for row in rows], dtype=np.float64)
        floors.append(FLOOR * float(np.median(truths[truths > 0])) if (truths > 0).any() else 1.0)
        scores = [conformity_score(row.volumes[name], row.truth[name], floors[-1]) for row in rows]
        quantiles.append(conformal_quantile(scores, alpha))
    return VolumeIntervals(
        alpha, structures, tuple(quantiles), tuple(floors), len(rows), samples, steps, _digest(rows, structures), unit
    )


def conformity_score(volumes: np.ndarray, truth: float, floor: float) -> float:
    """How far `truth` lies outside the samples' percentiles, in widths; negative inside. See `fit_intervals`."""
    low, high, scale = _percentiles(volumes, floor)
    return max(low - truth, truth - high) / scale


def conformal_quantile(scores: Sequence[float], alpha: float) -> float:
    """The ceil((n + 1)(1 - alpha))-th smallest of n scores; infinity if there are too few of them.

    n + 1 and not n: the new case's own score is one of the ranks (Vovk et al. 2005).
    """
    rank = math.ceil((len(scores) + 1) * (1 - alpha) - 1e-9)
    return float(np.sort(scores)[rank - 1]) if rank <= len(scores) else math.inf


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
