"""The trade between accuracy, uncertainty and speed: one training is a point for each number of sampling steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ldseg.orchestration.training.run import STEP_COUNTS

FRONT = (("val_dice", "max"), ("val_nll", "min"), ("val_seconds", "min"))
"""The objectives of a front: Dice of the mean, negative log-likelihood in nats a voxel, seconds a sample."""


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


def choose_steps(metrics: Mapping[str, float], metric: str, mode: str, default: int) -> int:
    """The cheapest number of sampling steps that keeps the score and the diversity of the samples.

    A count keeps the diversity when 1 - agreement is at least 0.8 of that with the most steps, and the score when it is
    within half a Dice point (a fiftieth of the value where less is better) of the best that keeps the diversity.
    A count whose score is missing or no number isn't considered; `default` where none is left.
    """
    counts = [n for n in STEP_COUNTS if math.isfinite(metrics.get(f"{metric}_steps{n}", math.nan))]
    if not counts:
        return default
    scores = {n: metrics[f"{metric}_steps{n}"] for n in counts}
    spread = {n: 1 - metrics.get(f"val_agreement_steps{n}", 0.0) for n in counts}
    diverse = [n for n in counts if spread[n] >= 0.8 * spread[counts[-1]] and spread[n] > 0] or [counts[-1]]
    best = (max if mode == "max" else min)(scores[n] for n in diverse)
    return min(n for n in diverse if (scores[n] >= best - 0.005 if mode == "max" else scores[n] <= 1.02 * best))
