"""How many samples a case gets; importing it does not import torch, so that a job store can tell of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

KEPT_SAMPLES = 4  # label maps of the first samples, kept to flip through


@dataclass(frozen=True, kw_only=True)
class SamplePlan:
    """How many samples a case gets: `min`, and more until every Monte Carlo error is within `tolerance`, or `max`.

    Attributes:
        tolerance: standard error of a structure's mean volume over that volume, and of its agreement as it is.
    """

    min: int
    max: int
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.max:
            raise ValueError(f"samples: min and max must be 1 <= min <= max, got {self.min} and {self.max}")
        if not (math.isfinite(self.tolerance) and self.tolerance >= 0):
            raise ValueError(f"samples: tolerance must be 0 or above, got {self.tolerance}")

    @property
    def adaptive(self) -> bool:
        """Whether the samples decide how many there are."""
        return self.min < self.max

    @classmethod
    def fixed(cls, samples: int) -> SamplePlan:
        """So many, whatever they say."""
        return cls(min=samples, max=samples)
