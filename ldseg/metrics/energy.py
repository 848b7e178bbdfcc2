"""Does a set of samples follow the readers' distribution? Energy distances and their floor.

d = 1 - IoU in the mean over the structures, two empty masks have distance 0 (`ldseg.metrics.overlap.iou_distances`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ldseg.metrics.overlap import ged, iou_distances


@dataclass(frozen=True)
class SetDistances:
    """Mean distances between the samples S and the readers' labels Y of one case.

    A true posterior has E d(S, S') = E d(S, Y) = E d(Y, Y').

    Attributes:
        cross: E d(S, Y), over all pairs.
        within: E d(S, S') over the distinct pairs; NaN for one sample.
        between: E d(Y, Y') over the distinct pairs; NaN for one reader.
        samples, readers: how many.
    """

    cross: float
    within: float
    between: float
    samples: int
    readers: int

    @property
    def energy_score(self) -> float:
        """E d(S, Y) - E d(S, S') / 2 (Gneiting & Raftery 2007, eq. 22, on sets); lower is better.

        Proper with one reader as well; the distinct pairs make its expectation independent of the number of samples.
        One sample is one answer: its distance from the readers.
        """
        return self.cross - (self.within / 2 if self.samples > 1 else 0.0)

    @property
    def ged(self) -> float:
        """Squared generalised energy distance with self-pairs, as in published tables (Kohl et al. 2018, eq. 5)."""
        return 2 * self.cross - _with_self(self.within, self.samples) - _with_self(self.between, self.readers)

    @property
    def ged_unbiased(self) -> float:
        """The same over distinct pairs: 0 is expected of a perfect posterior. NaN for one sample or one reader."""
        return 2 * self.cross - self.within - self.between

    @property
    def ged_floor(self) -> float:
        """What `ged` is expected to be for a perfect posterior with these numbers: (1/n + 1/m) E d(Y, Y')."""
        return (1 / self.samples + 1 / self.readers) * self.between


def _with_self(distinct: float, count: int) -> float:
    return distinct * (count - 1) / count if count > 1 else 0.0


def set_distances(samples: np.ndarray, readers: np.ndarray, num_classes: int) -> SetDistances:
    """The mean distances of one case.

    Args:
        samples, readers: class indices (K, *spatial) and (R, *spatial).
        num_classes: background and structures.

    Raises:
        ValueError: a set is empty or the spatial shapes differ.
    """
    if not len(samples) or not len(readers):
        raise ValueError(f"distances need at least one sample and one reader, got {len(samples)} and {len(readers)}")
    within, between = (_distinct(iou_distances(a, a, num_classes)) for a in (samples, readers))
    cross = float(iou_distances(samples, readers, num_classes).mean())
    return SetDistances(cross, within, between, len(samples), len(readers))


def _distinct(matrix: np.ndarray) -> float:
    count = len(matrix)
    return float(matrix.sum() / (count * (count - 1))) if count > 1 else float("nan")  # the diagonal is 0


def reader_figures(readers: np.ndarray, num_classes: int) -> dict[str, float]:
    """What simple answers would score against these readers, as `ged` with self-pairs.

    Args:
        readers: class indices (R, *spatial), at least two.
        num_classes: background and structures.

    Returns:
        ged_reader: one reader against the others, in the mean over the readers; ged_majority: the voxelwise majority
        (of equals the lowest class) against all; ged_empty: an empty mask against all.
    """
    votes = np.stack([(readers == c).sum(0) for c in range(num_classes)])
    majority = votes.argmax(0).astype(readers.dtype)
    each = [ged(readers[[i]], np.delete(readers, i, axis=0), num_classes) for i in range(len(readers))]
    return {
        "ged_reader": float(np.mean(each)),
        "ged_majority": ged(majority[None], readers, num_classes),
        "ged_empty": ged(np.zeros_like(majority)[None], readers, num_classes),
    }
