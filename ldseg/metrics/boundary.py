"""How well probabilities are calibrated where it matters: near the boundary, and for each structure on its own.

Nearly all voxels of a volume are background that every model is sure and right about, so that scores over all of them
flatter. Here they are restricted to a band around the reference's boundary, or measured in shares of the structure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.ndimage import distance_transform_edt

from ldseg import columns
from ldseg.metrics.probability import VOXELS_PER_CHUNK, CalibrationBins, brier, check_same_shape, nll, share_error

BAND_MM = 2.0


@dataclass
class StructureCalibration:
    """One-vs-rest calibration of one structure's own probability, streaming in fixed memory.

    Attributes:
        bins: of all voxels, the probability of the structure against whether the label is it.
        mass: sum over the voxels of max(p, y), with the probability p and y = 1 where the label is the structure,
            else 0: the voxels where either says something, each counted by how much it says.
    """

    bins: CalibrationBins = field(default_factory=CalibrationBins)
    mass: float = 0.0

    def add(self, probability: np.ndarray, event: np.ndarray) -> None:
        """Take in probabilities in [0, 1] and where the structure is (two arrays of one shape)."""
        self.bins.add(probability, event)
        flat, truth = probability.reshape(-1), event.reshape(-1).astype(bool)
        for start in range(0, flat.size, VOXELS_PER_CHUNK):
            part = slice(start, start + VOXELS_PER_CHUNK)
            self.mass += float(np.where(truth[part], 1.0, flat[part].astype(np.float64)).sum())

    def merge(self, other: StructureCalibration) -> None:
        """Take in the voxels of another shard."""
        self.bins.merge(other.bins)
        self.mass += other.mass

    @property
    def error(self) -> float:
        """Sum over bins of |hits - confidence| / mass, in [0, 1]; NaN where neither probability nor label is above 0.

        The classwise ECE (Kull et al. 2019, eq. 3) of one class, but in shares of the structure and not of the image:
        no voxel is left out by its label, so that calibrated probabilities have 0, and adding background changes
        nothing. It can't exceed 1, since |y - p| <= max(p, y).
        """
        gap = float(np.abs(self.bins.hits - self.bins.confidence).sum())
        return min(gap / self.mass, 1.0) if self.mass > 0 else math.nan


@dataclass
class Reliability:
    """The calibration of a case or of a cohort, merged from its parts.

    Attributes:
        everywhere: the most likely class of all voxels.
        boundary: the most likely class of the voxels near the boundary.
        structures: one for each structure.
    """

    everywhere: CalibrationBins
    boundary: CalibrationBins
    structures: list[StructureCalibration]

    @classmethod
    def create(cls, num_structures: int) -> Reliability:
        """An empty one."""
        return cls(CalibrationBins(), CalibrationBins(), [StructureCalibration() for _ in range(num_structures)])

    def add(self, probabilities: np.ndarray, label: np.ndarray, band: np.ndarray) -> None:
        """Take in one rater: probabilities (S, *spatial), class indices (*spatial) and the band (*spatial) bool."""
        self.everywhere.add_top_label(probabilities, label)
        self.boundary.add_top_label(probabilities[:, band], label[band])
        for index, structure in enumerate(self.structures):
            structure.add(probabilities[index], label == index + 1)

    def merge(self, other: Reliability) -> None:
        """Take in another case."""
        self.everywhere.merge(other.everywhere)
        self.boundary.merge(other.boundary)
        for own, new in zip(self.structures, other.structures, strict=True):
            own.merge(new)


def boundary_band(
    labels: Sequence[np.ndarray],
    spacing_mm: Sequence[float],
    width_mm: float = BAND_MM,
    *,
    voxels_at_once: int = 2**22,
) -> np.ndarray:
    """Voxels within `width_mm` of a boundary of any of the labels, on either side of it.

    A boundary is the voxels with a face neighbour of another class; the edge of the image is none. Distances are
    those of voxel centres to the centres of these voxels, which are therefore always in the band, whatever the
    spacing. The transform runs over slabs with margins, so that its memory does not grow with the first axis.

    Args:
        labels: one or more arrays of class indices (*spatial), such as those of several raters.
        spacing_mm: voxel size along each axis; 1 for images without one makes `width_mm` a number of voxels. Infinity
            for an axis that is none of space (time): neighbours along it don't count.
        width_mm: at least 0.
        voxels_at_once: bounds the memory.

    Returns:
        (*spatial) bool.

    Raises:
        ValueError: there is no label, shapes differ, or spacing or width is out of range.
    """
    if not labels or len(spacing_mm) != labels[0].ndim or not min(spacing_mm) > 0:
        raise ValueError(f"give labels and a positive spacing for each axis, got {len(labels)} and {spacing_mm}")
    if not width_mm >= 0:
        raise ValueError(f"the band's width must be at least 0 mm, got {width_mm}")
    surface = np.zeros(labels[0].shape, dtype=bool)
    for label in labels:
        check_same_shape(label, surface)
        for axis, size in enumerate(spacing_mm):
            if math.isfinite(size):
                _mark_changes(surface, label, axis)
    far = 2 * width_mm + 1  # an axis that doesn't count: its nearest neighbour is out of reach
    sampling = [size if math.isfinite(size) else far for size in spacing_mm]
    band = np.zeros_like(surface)
    margin = int(width_mm / sampling[0]) + 1
    step = max(1, voxels_at_once // max(1, surface[0].size))
    for start in range(0, len(surface), step):
        low = max(0, start - margin)
        near = surface[low : start + step + margin]
        if near.any():
            distance = distance_transform_edt(~near, sampling=sampling)
            band[start : start + step] = distance[start - low : start - low + step] <= width_mm * (1 + 1e-9)
    return band


def _mark_changes(surface: np.ndarray, label: np.ndarray, axis: int) -> None:
    """Set both voxels of each pair of neighbours along the axis that differ."""
    whole: list[slice] = [slice(None)] * label.ndim
    first, second = (tuple(whole[:axis] + [part] + whole[axis + 1 :]) for part in (slice(None, -1), slice(1, None)))
    change = label[first] != label[second]
    surface[first] |= change
    surface[second] |= change


def probability_scores(
    probabilities: np.ndarray, raters: Sequence[np.ndarray], band: np.ndarray, structures: Sequence[str]
) -> tuple[dict[str, float], Reliability]:
    """Scores of a mean probability against the raters, everywhere and in the band.

    nll, brier and, near the boundary, nll_boundary and brier_boundary are averaged over the raters; ece, ece_boundary
    and ece_{structure} (`StructureCalibration.error`) are of all raters' voxels together, and so is share_error
    (`ldseg.metrics.probability.share_error`), which several raters have. Without a boundary the scores near it are NaN.

    The band is chosen by the reference. A model whose honest doubt about where the boundary lies reaches beyond the
    band is not at ece_boundary 0; compare models on the same cases.

    Args:
        probabilities: (S, *spatial), one per structure.
        raters: class indices (*spatial).
        band: (*spatial) bool, one for all raters, see `boundary_band`.
        structures: their S names.
    """
    found = Reliability.create(len(structures))
    for rater in raters:
        found.add(probabilities, rater, band)
    near, labels = probabilities[:, band], [rater[band] for rater in raters]
    scores = {
        "nll": float(np.mean([nll(probabilities, rater) for rater in raters])),
        "brier": float(np.mean([brier(probabilities, rater) for rater in raters])),
        "ece": found.everywhere.error,
        columns.near_boundary("nll"): float(np.mean([nll(near, label) for label in labels]))
        if band.any()
        else math.nan,
        columns.near_boundary("brier"): float(np.mean([brier(near, label) for label in labels]))
        if band.any()
        else math.nan,
        columns.near_boundary("ece"): found.boundary.error,
    }
    if len(raters) > 1:
        scores["share_error"] = share_error(probabilities, raters)
    errors = [structure.error for structure in found.structures]
    return scores | {columns.score("ece", name): error for name, error in zip(structures, errors, strict=True)}, found
