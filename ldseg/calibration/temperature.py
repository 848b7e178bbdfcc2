"""Temperature scaling of a mean probability: one number that makes a model less or more sure, and changes no label."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

LOG_FLOOR = math.log(1e-12)
"""Stands for log 0. Far below the floor of `metrics.probability.nll`: at T = 2 a sure voxel keeps all but 1e-6."""

BOUNDS = (0.05, 20.0)
"""Temperatures that `fit_temperature` looks at."""


@dataclass(frozen=True)
class TemperatureFit:
    """What validation cases say.

    Attributes:
        temperature: T > 0; above 1 the model is too sure of itself. At an end of `BOUNDS` the fit has failed: look at
            the probabilities.
        nll_before: mean negative log likelihood of the drawn voxels, in nats, at T = 1.
        nll_after: the same at `temperature`.
        cases: pairs of probability and label.
        voxels: drawn from all of them.
    """

    temperature: float
    nll_before: float
    nll_after: float
    cases: int
    voxels: int


def scale_probability(probability: Tensor, temperature: float) -> Tensor:
    """softmax(log p / T) over the classes (Guo et al. 2017, section 4.2, with log p in place of the logits).

    Args:
        probability: (C, ...), all classes with the background, in [0, 1], summing to 1 over the first dimension.
        temperature: T > 0; 1 returns the probability as it is.

    Returns:
        Like `probability`. The order of the classes stays, and with it the arg max: rounding can make two classes
        equal but never swap them. Zeros count as 1e-12.

    Raises:
        ValueError: the temperature is not above 0.
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"the temperature must be above 0, got {temperature}")
    if temperature == 1:
        return probability
    return (probability.double().log().clamp(min=LOG_FLOOR) / temperature).softmax(0).to(probability.dtype)


def fit_temperature(
    cases: Iterable[tuple[np.ndarray, np.ndarray]], *, voxels_per_case: int = 20_000, seed: int = 0
) -> TemperatureFit:
    """The temperature of the smallest negative log likelihood on validation cases.

    The likelihood is convex in 1 / T, so a bounded scalar search (Brent) over log T finds its only minimum. The same
    cases in the same order with the same seed give the same number to the last bit, on any number of threads.

    Args:
        cases: for each case (or rater of a case) the mean probability (C, *spatial) of all classes, background first,
            and the label (*spatial) as class indices. They are taken one at a time: memory holds only drawn voxels.
        voxels_per_case: how many are drawn at most, without replacement, so that large cases don't drown small ones.
        seed: of the drawing.

    Raises:
        ValueError: there is no case, shapes differ, a probability or label is out of range, or `voxels_per_case` is
            below 1.
    """
    from scipy.optimize import minimize_scalar  # a third of a second, which a model in use need not wait for
    from scipy.special import logsumexp

    if voxels_per_case < 1:
        raise ValueError(f"{voxels_per_case=} must be at least 1")
    drawn = [_draw(p, label, voxels_per_case, [seed, n]) for n, (p, label) in enumerate(cases)]
    if not drawn:
        raise ValueError("there is no case to fit a temperature on")
    log_p, own = np.concatenate([p for p, _ in drawn], axis=1), np.concatenate([p for _, p in drawn])

    def nll(log_temperature: float) -> float:
        beta = math.exp(-log_temperature)
        return float((logsumexp(beta * log_p, axis=0) - beta * own).mean())

    low, high = BOUNDS
    found = minimize_scalar(
        nll, bounds=(math.log(low), math.log(high)), method="bounded", options={"xatol": 1e-6, "maxiter": 100}
    )
    return TemperatureFit(math.exp(found.x), nll(0.0), float(found.fun), len(drawn), own.size)


def _draw(probability: np.ndarray, label: np.ndarray, count: int, seed: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Floored log probabilities (C, n) of at most `count` voxels, and those of the labels (n,), float64."""
    if probability.shape[1:] != label.shape or not label.size:
        raise ValueError(f"probability (C, *spatial) and label must fit, got {probability.shape} and {label.shape}")
    flat, truth = probability.reshape(len(probability), -1), label.reshape(-1)
    chosen = np.random.default_rng(seed).choice(truth.size, min(count, truth.size), replace=False)
    p, classes = flat[:, chosen].astype(np.float64), truth[chosen].astype(np.int64)
    if not ((p >= 0) & (p <= 1 + 1e-5)).all() or not ((classes >= 0) & (classes < len(p))).all():
        raise ValueError(f"probabilities must lie in [0, 1] and labels in 0..{len(p) - 1}")
    log_p = np.log(np.maximum(p, math.exp(LOG_FLOOR)))
    return log_p, log_p[classes, np.arange(len(classes))]
