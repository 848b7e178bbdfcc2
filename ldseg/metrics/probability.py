"""Scores of probabilities: streaming in fixed memory, int64 counts and float64 sums.

MONAI counts calibration in float32, where a bin stops growing at 2**24 voxels; a 512x512x300 volume has 78.6 million.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

VOXELS_PER_CHUNK = 2**20
"""Bounds the memory of the streaming sums."""

PROBABILITY_FLOOR = 1e-6
"""What `nll` takes for a probability of zero: one voxel costs at most 13.8 nats."""


def nll(probabilities: np.ndarray, label: np.ndarray) -> float:
    """Negative log likelihood -log p(label) of the mean probability, averaged over voxels, in nats.

    Args:
        probabilities: (S, *spatial), one per structure; the background has what is left to 1.
        label: class indices (*spatial), 0 = background.

    Returns:
        In [0, 13.8]: probabilities are floored at `PROBABILITY_FLOOR`.

    Raises:
        ValueError: the shapes differ.
    """
    total = sum(
        float(-np.log(np.maximum(p[truth, np.arange(len(truth))], PROBABILITY_FLOOR)).sum())
        for p, truth in _voxel_chunks(probabilities, label)
    )
    return total / label.size


def brier(probabilities: np.ndarray, label: np.ndarray) -> float:
    """Multi-class Brier score: sum over all classes of (p - 1[label])**2, averaged over voxels; in [0, 2].

    Arguments and errors as in `nll`.
    """
    total = 0.0
    for p, truth in _voxel_chunks(probabilities, label):
        own = p[truth, np.arange(len(truth))]
        total += float((p**2).sum() + (1 - 2 * own).sum())
    return total / label.size


@dataclass
class CalibrationBins:
    """Streaming reliability diagram in fixed memory: equal-width bins over [0, 1], int64 counts and float64 sums.

    Exact above 2**24 voxels a bin, and independent of order and sharding but for float64 rounding of the sums.

    Attributes:
        num_bins: bin i holds probabilities in [i, i + 1) / num_bins; the last one also holds 1.
        counts: voxels a bin, (num_bins,) int64.
        hits: voxels a bin where the event took place, (num_bins,) int64.
        confidence: sum of the probabilities a bin, (num_bins,) float64.
    """

    num_bins: int = 15
    counts: np.ndarray = field(init=False)
    hits: np.ndarray = field(init=False)
    confidence: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        if self.num_bins < 1:
            raise ValueError(f"{self.num_bins=} must be at least 1")
        self.counts = np.zeros(self.num_bins, dtype=np.int64)
        self.hits = np.zeros(self.num_bins, dtype=np.int64)
        self.confidence = np.zeros(self.num_bins, dtype=np.float64)

    def add(self, probability: np.ndarray, event: np.ndarray) -> None:
        """Count probabilities in [0, 1] and whether what they predict took place (two arrays of one shape)."""
        check_same_shape(probability, event)
        flat, truth = probability.reshape(-1), event.reshape(-1)
        for start in range(0, flat.size, VOXELS_PER_CHUNK):
            p = flat[start : start + VOXELS_PER_CHUNK].astype(np.float64)
            hit = truth[start : start + VOXELS_PER_CHUNK].astype(bool)
            index = np.clip((p * self.num_bins).astype(np.int64), 0, self.num_bins - 1)
            self.counts += np.bincount(index, minlength=self.num_bins)
            self.hits += np.bincount(index[hit], minlength=self.num_bins)
            self.confidence += np.bincount(index, weights=p, minlength=self.num_bins)

    def add_top_label(self, probabilities: np.ndarray, label: np.ndarray) -> None:
        """Count each voxel's largest class probability, and whether that class is the label (arguments as in `nll`)."""
        for p, truth in _voxel_chunks(probabilities, label):
            self.add(p.max(axis=0), p.argmax(axis=0) == truth)

    def merge(self, other: CalibrationBins) -> None:
        """Take in the voxels of another shard with the same number of bins."""
        check_same_shape(self.counts, other.counts)
        self.counts += other.counts
        self.hits += other.hits
        self.confidence += other.confidence

    @property
    def error(self) -> float:
        """Expected calibration error: sum over bins of |hits - confidence| / voxels, in [0, 1]; NaN without voxels."""
        total = int(self.counts.sum())
        return float(np.abs(self.hits - self.confidence).sum() / total) if total else float("nan")


def expected_calibration_error(probabilities: np.ndarray, label: np.ndarray, num_bins: int = 15) -> float:
    """Top-label ECE over all voxels (Guo et al. 2017, eq. 3) with equal-width bins.

    Arguments as in `nll`; in [0, 1]. Background fills most of a volume and is easy: compare models, not volumes.
    """
    bins = CalibrationBins(num_bins)
    bins.add_top_label(probabilities, label)
    return bins.error


def share_error(probabilities: np.ndarray, raters: Sequence[np.ndarray], num_bins: int = 15) -> float:
    """Calibration of the mean probability p against the share q of the raters that drew a structure.

    For each structure sum over equal-width bins of p of |sum(p - q)| / sum over the voxels of max(p, q), then the mean
    over the structures; so background, where both are 0, changes nothing. A structure that neither has is left out.

    Args:
        probabilities: (S, *spatial), one per structure.
        raters: class indices (*spatial), 0 = background.
        num_bins: over [0, 1].

    Returns:
        In [0, 1], 0 = calibrated; NaN where there is no structure.

    Raises:
        ValueError: the shapes differ.
    """
    for rater in raters:
        check_same_shape(probabilities[0], rater)
    labels, errors = [rater.reshape(-1) for rater in raters], []
    for index, flat in enumerate(probabilities.reshape(len(probabilities), -1), start=1):
        gaps, mass = np.zeros(num_bins), 0.0
        for start in range(0, flat.size, VOXELS_PER_CHUNK):
            part = slice(start, start + VOXELS_PER_CHUNK)
            p, q = flat[part].astype(np.float64), np.mean([label[part] == index for label in labels], axis=0)
            bins = np.clip((p * num_bins).astype(np.int64), 0, num_bins - 1)
            gaps += np.bincount(bins, weights=p - q, minlength=num_bins)
            mass += float(np.maximum(p, q).sum())
        if mass > 0:
            errors.append(float(np.abs(gaps).sum()) / mass)
    return float(np.mean(errors)) if errors else float("nan")


def _voxel_chunks(probabilities: np.ndarray, label: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All classes' probabilities (C, n) float64, background first, with the labels (n,), in bounded memory."""
    check_same_shape(probabilities[0], label)
    flat, truth = probabilities.reshape(len(probabilities), -1), label.reshape(-1)
    for start in range(0, truth.size, VOXELS_PER_CHUNK):
        foreground = flat[:, start : start + VOXELS_PER_CHUNK].astype(np.float64)
        background = np.clip(1 - foreground.sum(axis=0, keepdims=True), 0, 1)
        yield np.concatenate([background, foreground]), truth[start : start + VOXELS_PER_CHUNK].astype(np.int64)


def check_same_shape(one: np.ndarray, other: np.ndarray) -> None:
    """ValueError naming both shapes when they differ."""
    if one.shape != other.shape:
        raise ValueError(f"shapes must be equal, got {one.shape} and {other.shape}")
