"""Does the truth lie among the samples as one of them would? Ranks of its volume and of its boundary.

A truth that could be one of the samples has each rank equally often (Hamill 2001). Ranks that pile up at both ends say
that the samples differ too little; a slope, that they are too large or too small.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from ldseg import columns
from ldseg.metrics.bootstrap import interval

BINS = 5  # of a histogram: few cases fill no more
FAR = 1e9  # between voxels that are no neighbours


@dataclass(frozen=True)
class _Case:
    name: str
    bins: np.ndarray
    outside: float
    flat: float


@dataclass
class Ranks:
    """The ranks of a cohort's cases, by column: {structure}_volume_rank and {structure}_boundary_rank."""

    cases: dict[str, list[_Case]] = field(default_factory=dict)

    def add(
        self, name: str, samples: np.ndarray, reader: np.ndarray, structures: Sequence[str], spacing: Sequence[float]
    ) -> dict[str, float | int | str]:
        """Take in a case.

        Args:
            name: of the case.
            samples, reader: class indices (K, *spatial) and (*spatial).
            structures: the names of the classes from 1.
            spacing: as in `boundary_rank`.

        Returns:
            Each column's mean rank as a share: 0 = less than in all samples, 1 = more. A boundary that is not there has
            no column, and one sample has no ranks.
        """
        found = {}
        for index, structure in enumerate(structures, start=1) if len(samples) > 1 else ():
            masks, truth = samples == index, reader == index
            volumes = rank_of(truth.sum(), masks.reshape(len(masks), -1).sum(1))
            for what, shares in (("volume", volumes), ("boundary", boundary_rank(masks, truth, spacing))):
                if shares is not None:
                    column = columns.quality(structure, f"{what}_rank")
                    outside, flat = float(shares[0] + shares[-1]), 2 / len(shares)
                    self.cases.setdefault(column, []).append(_Case(name, condensed(shares), outside, flat))
                    found[column] = float(shares @ np.linspace(0, 1, len(shares)))
        return {**found}

    def summary(self, groups: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Of each column the histogram over the cases.

        Args:
            groups: case -> what it belongs to, see `ldseg.metrics.bootstrap.interval`.

        Returns:
            Column -> bins: the share of each fifth of the ranks, 0.2 if all is well; outside: the share beyond all
            samples, with the ends `low` and `high` of its bootstrap interval; flat: what it is if all is well; n: how
            many cases.
        """
        found = {}
        for column, cases in self.cases.items():
            outside = np.array([case.outside for case in cases])
            low, high = interval(outside, None if groups is None else [groups.get(c.name, c.name) for c in cases])
            found[column] = {
                "bins": np.mean([case.bins for case in cases], axis=0).tolist(),
                "outside": float(outside.mean()),
                "low": low,
                "high": high,
                "flat": float(np.mean([case.flat for case in cases])),
                "n": len(cases),
            }
        return found


def rank_lines(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One line for each column, for a terminal."""
    return [
        f"{column.replace('_', ' ') + ' in fifths':<36}"
        f"{' '.join(f'{share:.2f}' for share in entry['bins'])} (flat {1 / BINS}); "
        f"beyond all samples {entry['outside']:.1%} [{entry['low']:.1%}, {entry['high']:.1%}] "
        f"(flat {entry['flat']:.1%})"
        for column, entry in found.items()
    ]


def condensed(shares: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Shares of K + 1 ranks in a few bins of equal width, each rank spread evenly over its part: flat stays flat."""
    ends = np.concatenate([[0.0], np.cumsum(shares)])
    return np.diff(np.interp(np.linspace(0, 1, bins + 1), np.linspace(0, 1, len(ends)), ends))


def rank_of(value: float | np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Where a value lies among draws, as the share of each rank; even if they agree.

    Args:
        value: (...) numbers.
        draws: (K, ...) draws of each.

    Returns:
        (K + 1,) float64 with sum 1: the mean over the values of the share of each rank, 0 = below all draws. A value
        that equals draws is spread evenly over the ranks that it could have among them.
    """
    values = np.asarray(value, dtype=np.float64).reshape(-1)
    others = np.asarray(draws, dtype=np.float64).reshape(len(draws), -1)
    lowest, highest = (others < values).sum(0), (others <= values).sum(0)
    ranks = np.arange(len(others) + 1)[:, None]
    shares = ((ranks >= lowest) & (ranks <= highest)) / (highest - lowest + 1)
    return np.asarray(shares.mean(1))


def boundary_rank(samples: np.ndarray, reader: np.ndarray, spacing: Sequence[float]) -> np.ndarray | None:
    """How far out a reader's boundary lies among the samples', as the share of each rank.

    Along the surface of the majority of all masks (the samples' and the reader's, so that none of them chooses the
    places) the reader's signed distance is ranked among the samples'. Exchangeable masks give even ranks.

    Args:
        samples: (K, *spatial) bool.
        reader: (*spatial) bool.
        spacing: distance of neighbouring voxels along each axis, of any unit; infinite where they are no neighbours.

    Returns:
        (K + 1,) float64 with sum 1, the last = the reader's structure reaches farther out than in all samples; None
        where the majority is empty or one mask has no boundary.
    """
    masks = np.concatenate([samples, reader[None]]).astype(bool)
    box = ndimage.find_objects(masks.any(0).astype(np.uint8))
    if not box:
        return None
    masks = np.stack([np.pad(mask[box[0]], 1) for mask in masks])
    majority = masks.sum(0) * 2 > len(masks)
    near = _neighbours(spacing)
    surface = np.argwhere(majority & ~ndimage.binary_erosion(majority, near))
    if not len(surface) or not masks.any(tuple(range(1, masks.ndim))).all():
        return None
    depths = -np.stack([_signed_distance(mask, surface, spacing, near) for mask in masks])
    return rank_of(depths[-1], depths[:-1])


def _neighbours(spacing: Sequence[float]) -> np.ndarray:
    """The structuring element of face neighbours along the axes on which there are any."""
    cross = ndimage.generate_binary_structure(len(spacing), 1)
    for axis, step in enumerate(spacing):
        if not np.isfinite(step):
            cross = cross & np.expand_dims(np.arange(3) == 1, tuple(a for a in range(len(spacing)) if a != axis))
    return np.asarray(cross)


def _signed_distance(mask: np.ndarray, points: np.ndarray, spacing: Sequence[float], near: np.ndarray) -> np.ndarray:
    """Of voxels (N, dims) from the mask's boundary, negative inside; along infinite axes nothing is near.

    The nearest voxel on the other side lies at the boundary; a tree of those is much faster than distances everywhere.
    """
    steps = np.where(np.isfinite(spacing), spacing, FAR)
    inside, found = mask[tuple(points.T)], np.empty(len(points))
    shells = (mask & ~ndimage.binary_erosion(mask, near), ndimage.binary_dilation(mask, near) & ~mask)
    for which, shell, sign in ((~inside, shells[0], 1.0), (inside, shells[1], -1.0)):
        if which.any():
            found[which] = sign * cKDTree(np.argwhere(shell) * steps).query(points[which] * steps)[0]
    return np.round(found, 6)  # equal distances of different directions are equal
