"""Real values stored as integers with a slope: NIfTI's scl_slope, which every reader applies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Scale:
    """Values in [0, highest] as the integers 0 to 2**bits - 1.

    What is read back differs from what was written by at most half a `step`.

    Attributes:
        highest: the largest value, above 0.
        bits: 8 or 16.
    """

    highest: float
    bits: int = 8

    def __post_init__(self) -> None:
        if not (0 < self.highest < np.inf and self.bits in (8, 16)):
            raise ValueError(f"a scale needs a highest value above 0 and 8 or 16 bits, got {self}")

    @property
    def levels(self) -> int:
        """The largest code."""
        return 2**self.bits - 1

    @property
    def step(self) -> float:
        """The value of code 1, a float32 as NIfTI stores it; rounded down, so that no code reads as above `highest`."""
        step = np.float32(self.highest / self.levels)
        return float(step if float(step) * self.levels <= self.highest else np.nextafter(step, np.float32(0)))

    def encode(self, values: np.ndarray) -> np.ndarray:
        """The nearest codes, uint8 or uint16, of the same shape.

        Raises:
            ValueError: a value lies outside [0, highest] by more than half a step, or is no number.
        """
        codes = np.empty(values.shape, np.uint8 if self.bits == 8 else np.uint16)
        step = self.step
        if not values.size:
            return codes
        low, high = float(values.min()), float(values.max())
        if not (low >= -step / 2 and high <= self.highest + step / 2):  # also where NaN
            raise ValueError(f"values must lie in [0, {self.highest:g}], got {low:g} to {high:g}")
        for part, target in zip(values, codes, strict=True):  # float64 of one slice at a time
            target[...] = np.clip(np.rint(part.astype(np.float64) / step), 0, self.levels)
        return codes
