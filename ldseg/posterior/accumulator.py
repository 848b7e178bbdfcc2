"""What K samples say about a case, accumulated one chunk at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

MEMBER = "member_"  # begins the name of a member's array
LEAST = 0.002  # half a step of the probability maps in 8 bits: what they hold as 0


def entropy(probabilities: Tensor, dim: int) -> Tensor:
    """Shannon entropy in nats along `dim`; 0 log 0 = 0."""
    return -torch.special.xlogy(probabilities, probabilities).sum(dim)


def arg_max(values: Tensor) -> Tensor:
    """Index of the largest of (C, *grid) along the first axis, (*grid) uint8 (int16 beyond 256); the lower at a tie.

    Up to seven times as fast on CPUs as `Tensor.argmax`, which walks along an axis that is far apart in memory.
    """
    best = values[0].clone()
    index = torch.zeros_like(best, dtype=torch.uint8 if len(values) <= 256 else torch.int16)
    for k, value in enumerate(values[1:], start=1):
        index.masked_fill_(value > best, k)
        torch.maximum(best, value, out=best)
    return index


def soft_dice_confidence(probability: Tensor, inside: Tensor) -> list[float]:
    """The Dice to be expected of the arg max m of probabilities p, by these alone: 2 sum(p m) / sum(p + m).

    Borges et al. 2024 (arXiv 2402.10665), soft Dice confidence: close to the expected Dice if voxels were independent
    given the image. It is worth what the probabilities are: of a model that is sure of its errors it is high.
    For a structure that is nowhere the arg max it is 1 less the largest p: the chance that there is none, if its voxels
    come and go together. Probabilities below `LEAST` count as 0, so that a temperature's tails in a large background
    don't add up.

    Args:
        probability: (C, *grid), background first.
        inside: (*grid) bool, the voxels that count.

    Returns:
        One number in [0, 1] for each structure, to six decimals: threads add up in any order.
    """
    label, found = arg_max(probability), list[float]()
    for k, p in enumerate(probability[1:], start=1):
        likely, own = p[inside & (p >= LEAST)], p[inside & (label == k)]
        both, either = (float(values.sum(dtype=torch.float64)) for values in (own, likely))
        found.append(2 * both / (either + len(own)) if len(own) else 1 - float(likely.max()) if len(likely) else 1.0)
    return [round(value, 6) for value in found]


def ones(bits: np.ndarray) -> int:
    """Bits that are set in a contiguous row of bytes, eight bytes at a time."""
    whole = len(bits) // 8 * 8
    found = int(np.bitwise_count(bits[:whole].view(np.uint64)).sum(dtype=np.int64))
    return found + int(np.bitwise_count(bits[whole:]).sum(dtype=np.int64))


def packed(masks: Tensor) -> np.ndarray:
    """(S, voxels) bool -> (S, bytes) as `np.packbits` has them; on a GPU they are packed before they leave it."""
    if masks.device.type == "cpu":
        return np.packbits(masks.numpy(), axis=1)
    weights = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8, device=masks.device)
    eights = F.pad(masks, (0, -masks.shape[1] % 8)).view(len(masks), -1, 8)
    return (eights * weights).sum(2, dtype=torch.uint8).cpu().numpy()


@dataclass
class PosteriorAccumulator:
    """Sums over samples on the working grid.

    Memory does not depend on the number of samples, but for one bit a sample, structure and voxel, which the mean
    pairwise Dice needs. Counts are exact integers; parts are merged in the order given, so a fixed partition of
    the samples gives the same numbers on any number of machines.

    Attributes:
        probability_sum: (C, *grid) float32, sum of p_k.
        square_sum: (C, *grid) float32, sum of p_k squared.
        entropy_sum: (*grid) float32, sum of the samples' own entropies in nats.
        inside: (*grid) bool, voxels that volumes and agreement count.
        masks: one (C - 1, bytes) uint8 array of packed bits for each sample: arg max == structure, inside. They lie
            in blocks of `BLOCK` samples: small arrays that stay, made between large ones that go, would leave the
            heap full of holes.
        by_member: of a model of several members each one's part of `probability_sum`, by its number.
    """

    BLOCK: ClassVar[int] = 64

    probability_sum: Tensor
    square_sum: Tensor
    entropy_sum: Tensor
    inside: Tensor
    masks: list[np.ndarray] = field(default_factory=list)
    by_member: dict[int, Tensor] = field(default_factory=dict)
    _free: list[np.ndarray] = field(default_factory=list)

    @classmethod
    def create(
        cls, num_classes: int, grid: tuple[int, ...], inside: Tensor | None = None, device: str | torch.device = "cpu"
    ) -> PosteriorAccumulator:
        """An empty one; without `inside` every voxel counts."""
        zeros = torch.zeros((num_classes, *grid), device=device)
        inside = torch.ones(grid, dtype=torch.bool) if inside is None else inside
        return cls(zeros, zeros.clone(), zeros[0].clone(), inside.to(device))

    @property
    def num_samples(self) -> int:
        """Samples added so far."""
        return len(self.masks)

    def add(self, probabilities: Tensor, member: int | None = None) -> None:
        """Take in (K, C, *grid) class probabilities, one sample after the other.

        Args:
            member: which drew them, of a model of several.
        """
        for p in probabilities:
            self.probability_sum += p
            if member is not None:
                self._include_member(member, p)
            self.square_sum += p.square()  # each rounded on its own, in whatever parts samples are added up
            self.entropy_sum += entropy(p, dim=0)
            label = arg_max(p)
            masks = [((label == k) & self.inside).flatten() for k in range(1, len(p))]
            self._keep(packed(torch.stack(masks)))

    def _include_member(self, member: int, total: Tensor) -> None:
        if member in self.by_member:
            self.by_member[member] += total
        else:
            self.by_member[member] = total.clone()

    def _keep(self, bits: np.ndarray) -> None:
        if not self._free:
            self._free = list(np.empty((self.BLOCK, *bits.shape), dtype=np.uint8))[::-1]
        self.masks.append(self._free.pop())
        self.masks[-1][:] = bits

    @torch.inference_mode()  # what was drawn in this mode may be changed nowhere else
    def include(self, other: PosteriorAccumulator) -> PosteriorAccumulator:
        """Add up another's samples after one's own; returns this one."""
        self.probability_sum += other.probability_sum
        self.square_sum += other.square_sum
        self.entropy_sum += other.entropy_sum
        self.masks += other.masks
        for member, part in other.by_member.items():
            self._include_member(member, part)
        return self

    @classmethod
    def merge(cls, parts: Sequence[PosteriorAccumulator]) -> PosteriorAccumulator:
        """A new accumulator of all samples, added up in the order given."""
        if not parts:
            raise ValueError("there is nothing to merge: give at least one accumulator")
        classes, *grid = parts[0].probability_sum.shape
        total = cls.create(classes, tuple(grid), parts[0].inside, parts[0].inside.device)
        for part in parts:
            total.include(part)
        return total

    def mean_probability(self) -> Tensor:
        """(C, *grid) float32."""
        return self.probability_sum / self.num_samples

    def predictive_entropy(self) -> Tensor:
        """Entropy of the mean probability in nats, (*grid)."""
        return entropy(self.mean_probability().clamp(0, 1), dim=0).clamp(min=0)

    def sample_variance(self) -> Tensor:
        """Variance of p over the samples, summed over the classes, (*grid); population variance, 0 for one sample."""
        mean = self.mean_probability()
        return (self.square_sum / self.num_samples - mean.square()).clamp(min=0).sum(0)

    def voxel_counts(self) -> np.ndarray:
        """Voxels of each structure in each sample, (K, C - 1) int64, exact."""
        return np.array([[ones(row) for row in masks] for masks in self.masks])

    def pairwise_dice(self) -> list[float]:
        """Mean Dice over all pairs of distinct samples for each structure: the agreement.

        Two empty masks agree fully (1.0); a single sample agrees with itself (1.0).
        """
        counts = self.voxel_counts()

        def scores(pair: tuple[int, int]) -> list[float]:
            k, i = pair
            both = (ones(self.masks[i][k] & self.masks[j][k]) for j in range(i))
            totals = (int(counts[i, k] + counts[j, k]) for j in range(i))
            return [2 * b / total if total else 1.0 for b, total in zip(both, totals, strict=True)]

        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            rows = [list(pool.map(scores, [(k, i) for i in range(self.num_samples)])) for k in range(counts.shape[1])]
        return [float(np.mean(sum(row, []))) if len(row) > 1 else 1.0 for row in rows]

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Plain arrays, to send between processes."""
        arrays = {
            "probability_sum": self.probability_sum.cpu().numpy(),
            "square_sum": self.square_sum.cpu().numpy(),
            "entropy_sum": self.entropy_sum.cpu().numpy(),
            "inside": self.inside.cpu().numpy(),
            "masks": np.stack(self.masks) if self.masks else np.zeros((0, 0, 0), np.uint8),
        }
        return arrays | {f"{MEMBER}{member}": part.cpu().numpy() for member, part in self.by_member.items()}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> PosteriorAccumulator:
        """The inverse of `to_arrays`; read-only input is copied."""
        names = ("probability_sum", "square_sum", "entropy_sum", "inside")
        sums = [torch.from_numpy(arrays[name].copy()) for name in names]
        members = {name: torch.from_numpy(arrays[name].copy()) for name in arrays if name.startswith(MEMBER)}
        parts = {int(name.removeprefix(MEMBER)): part for name, part in members.items()}
        return cls(sums[0], sums[1], sums[2], sums[3], list(arrays["masks"].copy()), parts)


def sample_labels(accumulator: PosteriorAccumulator) -> np.ndarray:
    """The samples that an accumulator has seen, (K, *grid) uint8 class indices; 0 outside the native field of view."""
    shape = tuple(accumulator.inside.shape)
    labels = np.zeros((accumulator.num_samples, math.prod(shape)), dtype=np.uint8)
    for label, masks in zip(labels, accumulator.masks, strict=True):
        for index, bits in enumerate(masks, start=1):
            label[np.unpackbits(bits, count=label.size).view(bool)] = index
    return labels.reshape(-1, *shape)


def grid_classes(accumulator: PosteriorAccumulator, index: int) -> Tensor:
    """One sample's class indices on the working grid, (*grid) uint8; 0 outside the field of view."""
    shape = tuple(accumulator.inside.shape)
    masks = np.unpackbits(accumulator.masks[index], axis=1, count=accumulator.inside.numel())
    order = np.arange(1, len(masks) + 1, dtype=np.uint8)
    return torch.from_numpy((masks * order[:, None]).sum(0, dtype=np.uint8).reshape(shape))
