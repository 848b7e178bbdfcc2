"""The trade between accuracy, uncertainty and speed: one training is a point for each number of sampling steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ldseg.orchestration.training.run import STEP_COUNTS

FRONT = (("val_dice", "max"), ("val_energy_score", "min"), ("val_seconds", "min"))
"""The objectives of a front: Dice of the mean, energy score of the samples, seconds a sample."""
MARGIN = 1.02  # of the best energy score: what the cheapest number of steps may have


@dataclass(frozen=True)
class Point:
    """A trial sampled with a number of steps."""

    trial: int
    steps: int
    values: tuple[float, ...]


def points(number: int, metrics: Mapping[str, float]) -> list[Point]:
    """All that one training gives; a number of steps that was not scored is no point."""
    found = []
    for steps in STEP_COUNTS:
        values = tuple(metrics.get(f"{name}_steps{steps}", math.nan) for name, _ in FRONT)
        if all(math.isfinite(value) for value in values):
            found.append(Point(number, steps, values))
    return found


def _gains(given: Sequence[Point]) -> np.ndarray:
    signs = np.array([1.0 if mode == "max" else -1.0 for _, mode in FRONT])
    return np.array([point.values for point in given]).reshape(len(given), len(FRONT)) * signs


def front(given: Sequence[Point]) -> list[Point]:
    """The points that no other beats: none is as good in everything and better in something. Best Dice first."""
    gains = _gains(given)
    kept = [
        point
        for point, own in zip(given, gains, strict=True)
        if not any((other >= own).all() and (other > own).any() for other in gains)
    ]
    return sorted(kept, key=lambda point: (-point.values[0], point.trial, point.steps))


def choose_steps(metrics: Mapping[str, float], default: int) -> int:
    """The cheapest number of sampling steps whose energy score is within a fiftieth of the best.

    The score is proper: samples that are too much alike, or too far from the labels, cost it. A number of steps without
    a score isn't considered; trainings of version 0.1 have none, and are chosen by likelihood; `default` where neither
    is there.
    """
    for name in ("val_energy_score", "val_nll"):
        scores = {n: metrics.get(f"{name}_steps{n}", math.nan) for n in STEP_COUNTS}
        finite = {n: score for n, score in scores.items() if math.isfinite(score)}
        if finite:
            return min(n for n, score in finite.items() if score <= MARGIN * min(finite.values()))
    return default
