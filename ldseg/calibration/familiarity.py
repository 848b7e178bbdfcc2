"""Is a case like those that a model was trained on? Its image embedding among theirs, with a promise on false alarms.

A model's samples can agree on what is wrong: they say what the image leaves open, not that the image is of another
kind. The embedding, which is computed anyway, is compared with those of the training cases: one Mahalanobis distance
(Lee et al. 2018, there by class and layer). The distances of the calibration cases, which the model has not seen, turn
it into a conformal p-value (Vovk et al. 2005; Bates et al. 2023, "Testing for outliers with conformal p-values").
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from torch import Tensor

MOST_FEATURES = 64
"""More are projected onto so many random directions: what is stored grows with the square of their number."""
LEAST_REFERENCE = 10
"""Training cases below which nothing is fitted."""
DIGITS = 7


@dataclass(frozen=True)
class Judgement:
    """What is known of a case's likeness to the training cases.

    Attributes:
        distance: Mahalanobis distance of its embedding, in standard deviations of the training cases; of d features
            it is about sqrt(d) for a case like them.
        p_value: the share of like cases that are at least as far, in [1 / (n + 1), 1].
        unfamiliar: farther than all n calibration cases, or an image of one value.
    """

    distance: float
    p_value: float
    unfamiliar: bool


@dataclass(frozen=True)
class Familiarity:
    """The Gaussian of the training cases' embeddings, and how far the calibration cases are from it.

    Attributes:
        centre: (F,) mean of the training cases' features.
        scale: (F,) their standard deviation, > 0.
        factor: lower triangle, row by row, of the Cholesky factor L of the precision L Lᵀ of the standardised (and,
            from `MOST_FEATURES` on, projected) features.
        distances: (n,) of the calibration cases, ascending.
        reference: number of training cases.
    """

    centre: tuple[float, ...]
    scale: tuple[float, ...]
    factor: tuple[float, ...]
    distances: tuple[float, ...]
    reference: int

    def __post_init__(self) -> None:
        size = min(len(self.centre), MOST_FEATURES)
        if len(self.scale) != len(self.centre) or len(self.factor) != size * (size + 1) // 2 or not self.distances:
            raise ValueError("familiarity: centre, scale, factor and distances don't fit each other")
        numbers = (*self.centre, *self.scale, *self.factor, *self.distances)
        if not all(math.isfinite(value) for value in numbers) or min(self.scale) <= 0:
            raise ValueError("familiarity: all numbers must be finite and the scale above 0")

    @property
    def likely_false_alarms(self) -> float:
        """The share of like cases told as unfamiliar that 95 % of the calibration sets of this size stay below.

        Over calibration sets that share has the distribution Beta(1, n), whose mean is 1 / (n + 1) (Vovk 2012).
        """
        return float(1 - 0.05 ** (1 / len(self.distances)))

    @cached_property
    def _factor(self) -> np.ndarray:
        size = min(len(self.centre), MOST_FEATURES)
        factor = np.zeros((size, size))
        factor[np.tril_indices(size)] = self.factor
        return factor

    def distance(self, features: np.ndarray) -> float:
        """Mahalanobis distance of a case.

        Args:
            features: (F,), see `image_features`.

        Raises:
            ValueError: there are not F of them.
        """
        if features.shape != (len(self.centre),):
            raise ValueError(f"a case must have {len(self.centre)} features, got shape {features.shape}")
        standardised = (features - np.array(self.centre)) / np.array(self.scale)
        return float(np.linalg.norm(_projected(standardised) @ self._factor))

    def judge(self, embedding: Tensor, *, blank: bool = False) -> Judgement:
        """Judge a case.

        If the case comes from where the calibration cases came from, its p-value is at most u with probability at most
        u, for any u; so it is told as unfamiliar with probability at most 1 / (n + 1), over calibration sets and cases
        together, whatever the model is worth. With one calibration set it may be more, see `likely_false_alarms`.

        Args:
            embedding: (M, channels, *latent), see `ldseg.posterior.sampling.Posterior.encode`.
            blank: the image has one value only, which is unfamiliar at any distance.
        """
        distance, count = self.distance(image_features(embedding)), len(self.distances)
        farther = 0 if blank else sum(known >= distance for known in self.distances)
        return Judgement(distance, (1 + farther) / (count + 1), farther == 0)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Familiarity:
        """The inverse of `to_dict`. TypeError for keys that are missing or unknown."""
        changed: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**changed)


@dataclass(frozen=True)
class MembersFamiliarity:
    """What is familiar to each member of a model, by the calibration cases that it was not trained on.

    Attributes:
        members: in the order of the model's, each with the distances of its own fold.
    """

    members: tuple[Familiarity, ...]

    @property
    def distances(self) -> tuple[float, ...]:
        """Of all calibration cases, ascending."""
        return tuple(sorted(distance for member in self.members for distance in member.distances))

    @property
    def reference(self) -> int:
        """Number of training cases of the member that has the fewest."""
        return min(member.reference for member in self.members)

    def judge(self, embedding: Tensor, *, blank: bool = False) -> Judgement:
        """Judge a case by its rank in each member's fold; the distance is the members' mean.

        The p-value is that of a cross-conformal predictor (Vovk 2015): (1 + those of all n calibration cases that are
        at least as far by the member that does not know them) / (n + 1). It is about valid; what is proven of such
        p-values is P(p <= u) <= 2 u and a small term (Barber et al. 2021): twice the false alarms of `Familiarity`.

        Args:
            embedding: (M, channels, *latent), by each member.
            blank: the image has one value only, which is unfamiliar at any distance.
        """
        far = [m.distance(image_features(own[None])) for m, own in zip(self.members, embedding, strict=True)]
        known = [sum(d >= distance for d in m.distances) for m, distance in zip(self.members, far, strict=True)]
        farther = 0 if blank else sum(known)
        return Judgement(float(np.mean(far)), (1 + farther) / (len(self.distances) + 1), farther == 0)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"members": [member.to_dict() for member in self.members]}


def familiarity_from_dict(values: Mapping[str, Any]) -> Familiarity | MembersFamiliarity:
    """The inverse of `to_dict` of either kind."""
    if "members" in values:
        return MembersFamiliarity(tuple(Familiarity.from_dict(member) for member in values["members"]))
    return Familiarity.from_dict(values)


def image_features(embedding: Tensor) -> np.ndarray:
    """Mean and standard deviation of each channel over the latent grid, whatever its size.

    Args:
        embedding: (M, channels, *latent), by each member of a model.

    Returns:
        (2 * M * channels,) float64, all means first.
    """
    flat = embedding.detach().cpu().double().flatten(2).flatten(0, 1).numpy()
    return np.concatenate([flat.mean(1), flat.std(1)])


def fit_familiarity(reference: np.ndarray, calibration: np.ndarray) -> Familiarity:
    """Fit the Gaussian and take the calibration cases' distances.

    Args:
        reference: (N, F) features of cases that the model was trained on, N >= `LEAST_REFERENCE`.
        calibration: (n, F), n >= 1, of cases that it was not trained on.

    Raises:
        ValueError: there are too few cases.
    """
    if len(reference) < LEAST_REFERENCE or not len(calibration):
        raise ValueError(
            f"familiarity takes {LEAST_REFERENCE} training cases and 1 calibration case or more, "
            f"got {len(reference)} and {len(calibration)}"
        )
    centre, scale = reference.mean(0), reference.std(0)
    scale = np.maximum(scale, 1e-6 * np.abs(centre))  # a feature that never varies must not divide by 0
    scale[scale == 0] = float(scale.max()) or 1.0
    covariance = shrunk_covariance(_projected((reference - centre) / scale))
    factor = np.linalg.cholesky(np.linalg.inv(covariance))[np.tril_indices(len(covariance))]
    fitted = Familiarity(_rounded(centre), _rounded(scale), _rounded(factor), (0.0,), len(reference))
    distances = sorted(fitted.distance(features) for features in calibration)
    return Familiarity(fitted.centre, fitted.scale, fitted.factor, tuple(distances), len(reference))


def shrunk_covariance(centred: np.ndarray) -> np.ndarray:
    """Covariance, shrunk towards a multiple of the identity as far as its noise asks (Ledoit & Wolf 2004, eq. 14).

    Args:
        centred: (N, F) of mean 0.

    Returns:
        (F, F), positive definite also for N <= F.
    """
    from sklearn.covariance import ledoit_wolf_shrinkage  # takes a second to import, and only a calibration needs it

    sample = centred.T @ centred / len(centred)
    mean = float(np.trace(sample)) / len(sample)
    if not mean:
        return np.eye(len(sample))
    share = max(float(ledoit_wolf_shrinkage(centred, assume_centered=True)), 1e-3)  # features may repeat each other
    return np.asarray(share * mean * np.eye(len(sample)) + (1 - share) * sample)


def _projected(features: np.ndarray) -> np.ndarray:
    """(..., F) to (..., min(F, MOST_FEATURES)); directions of a generator whose numbers never change."""
    size = features.shape[-1]
    if size <= MOST_FEATURES:
        return features
    return features @ _directions(size)


@lru_cache(maxsize=8)
def _directions(size: int) -> np.ndarray:
    return np.random.RandomState(0).standard_normal((size, MOST_FEATURES)) / math.sqrt(size)


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(f"{value:.{DIGITS}g}") for value in values)
