"""When enough samples are drawn: the Monte Carlo error of a case's volumes and agreement, and a rule to stop by.

The rule is a function of the samples in their order alone, so whoever draws them, in however many places, stops at the
same one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ldseg.posterior.accumulator import PosteriorAccumulator, ones
from ldseg.posterior.plan import SamplePlan


@dataclass(frozen=True)
class MonteCarloError:
    """What the number of samples leaves open, for each structure; infinite where there are too few to tell.

    Attributes:
        volume: standard error of the mean volume, relative to it.
        agreement: standard error of the mean pairwise Dice.
    """

    volume: tuple[float, ...]
    agreement: tuple[float, ...]

    @property
    def largest(self) -> float:
        """Of all; 0 without structures."""
        return max((*self.volume, *self.agreement), default=0.0)


def volume_error(counts: Sequence[int]) -> float:
    """Standard error of the mean of n counts, s / sqrt(n), over the mean, by exact sums of integers.

    A structure that is absent in every sample has none: 0. A single sample that shows it tells nothing: infinite.
    """
    n, total = len(counts), sum(counts)
    if total == 0:
        return 0.0
    if n < 2:
        return math.inf
    spread = n * sum(count * count for count in counts) - total * total  # n (n - 1) s^2
    return math.sqrt(spread / (n - 1)) / total


def agreement_error(means: Sequence[float]) -> float:
    """Jackknife standard error of the mean over all pairs of n samples.

    Leaving out sample i moves the mean U over the pairs by 2 (U - h_i) / (n - 2), where h_i is the mean of the n - 1
    pairs that i is in; so the jackknife (Efron & Stein 1981) needs the h_i alone.

    Args:
        means: h_i of each sample. Two samples make one pair, and tell nothing: infinite.
    """
    n = len(means)
    if n < 3:
        return math.inf
    centre = math.fsum(means) / n
    squares = math.fsum((mean - centre) ** 2 for mean in means)
    return math.sqrt((n - 1) / n * squares) * 2 / (n - 2)


class Tally:
    """Volumes and pairs of one case's samples, kept up as samples come: each pair is looked at once."""

    def __init__(self) -> None:
        self.counts: list[list[int]] = []  # of each structure, of each sample
        self._sums: list[list[float]] = []  # of each structure: Dice of each sample with all others

    def follow(self, masks: Sequence[np.ndarray]) -> None:
        """Take in the samples beyond those already seen.

        Args:
            masks: of ALL samples in order, (C - 1, bytes) packed bits each, as an accumulator keeps them.
        """
        seen = len(self.counts[0]) if self.counts else 0
        for index in range(seen, len(masks)):
            own = [ones(row) for row in masks[index]]
            if not self.counts:
                self.counts, self._sums = [[] for _ in own], [[] for _ in own]
            for k, count in enumerate(own):
                self._pair(k, count, [ones(masks[index][k] & other[k]) for other in masks[:index]])

    def _pair(self, k: int, count: int, both: list[int]) -> None:
        sums, total = self._sums[k], 0.0
        for other, shared in enumerate(both):
            volume = count + self.counts[k][other]
            dice = 2 * shared / volume if volume else 1.0
            sums[other] += dice
            total += dice
        self.counts[k].append(count)
        sums.append(total)

    def error(self) -> MonteCarloError:
        """Of the samples seen."""
        volumes = tuple(volume_error(counts) for counts in self.counts)
        agreements = tuple(self._agreement(k) for k in range(len(self.counts)))
        return MonteCarloError(volumes, agreements)

    def _agreement(self, k: int) -> float:
        n = len(self.counts[k])
        if not any(self.counts[k]):
            return 0.0
        return agreement_error([total / (n - 1) for total in self._sums[k]] if n > 1 else [1.0])


class Drawing:
    """One case being drawn: chunks are added in their order, one accumulator a model, until the plan has enough.

    With several models each draws the same indices, chunk by chunk in turn, until it is enough for every one of them:
    so all weigh the same.

    Attributes:
        totals: of each model.
    """

    def __init__(self, plan: SamplePlan, chunk_size: int, models: int = 1) -> None:
        if chunk_size < 1 or models < 1:
            raise ValueError(f"chunk_size and models must be at least 1, got {chunk_size} and {models}")
        self.plan, self.models, self._chunk_size = plan, models, chunk_size
        self._totals: list[PosteriorAccumulator] = []
        self._tallies = [Tally() for _ in range(models)]
        self._taken, self._enough = 0, False

    def chunks(self) -> Iterator[tuple[int, list[int]]]:
        """(model, sample indices) of all chunks up to the plan's maximum, in the order in which they are added."""
        for start in range(0, self.plan.max, self._chunk_size):
            for model in range(self.models):
                yield model, list(range(start, min(start + self._chunk_size, self.plan.max)))

    def take(self, part: PosteriorAccumulator) -> bool:
        """Add the next chunk; whether that is enough. What comes after that is refused.

        Args:
            part: its first one becomes the total of its model and is changed.
        """
        if self._enough:
            raise ValueError("the drawing is complete: there is nothing to add")
        model = self._taken % self.models
        if self._taken < self.models:
            self._totals.append(part)
        else:
            self._totals[model].include(part)
        self._taken += 1
        if model == self.models - 1:
            self._enough = self._settled()
        return self._enough

    def _settled(self) -> bool:
        samples = self._totals[0].num_samples
        if samples < self.plan.min:
            return False
        return samples >= self.plan.max or all(error.largest <= self.plan.tolerance for error in self.errors())

    @property
    def totals(self) -> list[PosteriorAccumulator]:
        """Of each model.

        Raises:
            ValueError: the drawing is not complete.
        """
        if not self._enough:
            raise ValueError(f"the drawing is not complete: {self._taken} chunks were taken")
        return self._totals

    def errors(self) -> list[MonteCarloError]:
        """Of each model, from the samples taken so far."""
        for tally, total in zip(self._tallies, self._totals, strict=True):
            tally.follow(total.masks)
        return [tally.error() for tally in self._tallies]


def enough(accumulator: PosteriorAccumulator, plan: SamplePlan) -> bool:
    """Whether these samples are enough: n >= max, or n >= min and every Monte Carlo error within the tolerance."""
    if not plan.min <= accumulator.num_samples < plan.max:
        return accumulator.num_samples >= plan.max
    tally = Tally()
    tally.follow(accumulator.masks)
    return tally.error().largest <= plan.tolerance
