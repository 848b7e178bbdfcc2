"""Scores of label maps and of sets of label maps; each docstring names its variant, units and empty rule.

Label maps are arrays of class indices, 0 = background, of any number of spatial dimensions. MONAI computes Dice and the
surface distances; distances between sets of samples are computed here, scores of probabilities in
`ldseg.metrics.probability`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from monai.metrics.meandice import compute_dice
from monai.metrics.surface_distance import compute_average_surface_distance
from scipy.optimize import linear_sum_assignment

from ldseg.metrics.probability import CalibrationBins, brier, check_same_shape, expected_calibration_error, nll

__all__ = [
    "CalibrationBins", "assd_mm", "brier", "dice_per_class", "diversity", "expected_calibration_error", "ged",
    "hd95_mm", "iou_distances", "nll", "overlap_counts", "pairwise_dice",
]  # fmt: skip

# MONAI 1.6.1 passes its own deprecated argument in every surface distance; nothing that a caller could change.
warnings.filterwarnings("ignore", message=".*always_return_as_numpy", category=FutureWarning)

VOXELS_PER_CHUNK = 2**18
"""Bounds the memory of the streaming sums; below 2**24, so that a float32 matrix product of ones counts exactly."""


def dice_per_class(prediction: np.ndarray, reference: np.ndarray, num_classes: int) -> np.ndarray:
    """Dice 2|A & B| / (|A| + |B|) of each foreground class (MONAI).

    Empty rule: 1 where both are empty, 0 where only one is.

    Args:
        prediction, reference: class indices (*spatial).
        num_classes: background and structures.

    Returns:
        (num_classes - 1,) float64 in [0, 1].

    Raises:
        ValueError: the shapes differ.
    """
    check_same_shape(prediction, reference)
    one, other = (
        torch.from_numpy(np.ascontiguousarray(a, dtype=np.int64))[None, None] for a in (prediction, reference)
    )
    scores = compute_dice(one, other, include_background=False, ignore_empty=False, num_classes=num_classes)
    return np.asarray(scores[0].numpy(), dtype=np.float64)


def hd95_mm(prediction: np.ndarray, reference: np.ndarray, num_classes: int, spacing_mm: Sequence[float]) -> np.ndarray:
    """95th percentile Hausdorff distance of each foreground class in millimetres, as MONAI defines it.

    Variant: the larger of the two directed 95th percentiles (linear interpolation), between the centres of the voxels
    that a 6-neighbour (2D: 4-neighbour) erosion removes. Empty rule: NaN where both are empty (nothing to measure),
    infinity where only one is.

    Args:
        prediction, reference: class indices (*spatial).
        num_classes: background and structures.
        spacing_mm: voxel size along each array axis.

    Returns:
        (num_classes - 1,) float64, millimetres.

    Raises:
        ValueError: the shapes differ, or spacing has not one positive entry per axis.
    """

    def distance(a: torch.Tensor, b: torch.Tensor, spacing: tuple[float, ...]) -> torch.Tensor:
        return compute_hausdorff_distance(a, b, include_background=True, percentile=95, spacing=spacing)

    return _surface_distances(distance, prediction, reference, num_classes, spacing_mm)


def assd_mm(prediction: np.ndarray, reference: np.ndarray, num_classes: int, spacing_mm: Sequence[float]) -> np.ndarray:
    """Average symmetric surface distance of each foreground class in millimetres, as MONAI defines it.

    Variant: one mean over the surface voxels of both masks together (not the mean of two directed means); surfaces,
    empty rule, arguments and errors as in `hd95_mm`.
    """

    def distance(a: torch.Tensor, b: torch.Tensor, spacing: tuple[float, ...]) -> torch.Tensor:
        return compute_average_surface_distance(a, b, include_background=True, symmetric=True, spacing=spacing)

    return _surface_distances(distance, prediction, reference, num_classes, spacing_mm)


def _surface_distances(
    distance: Callable[[torch.Tensor, torch.Tensor, tuple[float, ...]], torch.Tensor],
    prediction: np.ndarray,
    reference: np.ndarray,
    num_classes: int,
    spacing_mm: Sequence[float],
) -> np.ndarray:
    """Apply MONAI's `distance` to each foreground class that both maps hold; the empty rule is decided here."""
    check_same_shape(prediction, reference)
    spacing = tuple(float(s) for s in spacing_mm)
    if len(spacing) != prediction.ndim or min(spacing) <= 0:
        raise ValueError(f"spacing_mm needs {prediction.ndim} positive entries, got {spacing}")
    result = np.full(num_classes - 1, np.nan)
    for c in range(1, num_classes):
        masks = prediction == c, reference == c
        present = [bool(mask.any()) for mask in masks]
        if all(present):
            one, other = (torch.from_numpy(mask)[None, None] for mask in masks)
            result[c - 1] = float(distance(one, other, spacing))
        elif any(present):
            result[c - 1] = np.inf
    return result


def overlap_counts(a: np.ndarray, b: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Voxels shared by, and summed over, each pair of label maps, exact for any number of voxels.

    Args:
        a, b: class indices (N, *spatial) and (M, *spatial).
        num_classes: background and structures.

    Returns:
        |A_i & B_j| and |A_i| + |B_j|, both (num_classes - 1, N, M) int64.

    Raises:
        ValueError: the spatial shapes differ.
    """
    if a.shape[1:] != b.shape[1:]:
        raise ValueError(f"label maps must have one spatial shape, got {a.shape[1:]} and {b.shape[1:]}")
    flat_a, flat_b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    shared = np.zeros((num_classes - 1, len(a), len(b)), dtype=np.int64)
    summed = np.zeros_like(shared)
    for start in range(0, flat_a.shape[1], VOXELS_PER_CHUNK):
        part = slice(start, start + VOXELS_PER_CHUNK)
        for c in range(1, num_classes):
            in_a, in_b = flat_a[:, part] == c, flat_b[:, part] == c
            shared[c - 1] += (in_a.astype(np.float32) @ in_b.astype(np.float32).T).astype(np.int64)
            summed[c - 1] += in_a.sum(1)[:, None] + in_b.sum(1)[None, :]
    return shared, summed


def pairwise_dice(a: np.ndarray, b: np.ndarray, num_classes: int) -> np.ndarray:
    """Dice of each pair (arguments of `overlap_counts`), (num_classes - 1, N, M) float64; both empty 1, one empty 0."""
    shared, summed = overlap_counts(a, b, num_classes)
    scores: np.ndarray = np.where(summed > 0, 2 * shared / np.maximum(summed, 1), 1.0)
    return scores


def iou_distances(a: np.ndarray, b: np.ndarray, num_classes: int) -> np.ndarray:
    """1 - IoU of each pair, averaged over the foreground classes; a class that is empty in both counts as distance 0.

    Arguments as in `overlap_counts`; (N, M) float64 in [0, 1].
    """
    shared, summed = overlap_counts(a, b, num_classes)
    union = summed - shared
    distances: np.ndarray = np.where(union > 0, 1 - shared / np.maximum(union, 1), 0.0)
    return np.asarray(distances.mean(axis=0))


def ged(samples: np.ndarray, raters: np.ndarray, num_classes: int) -> float:
    """Squared generalised energy distance 2 E d(S, Y) - E d(S, S') - E d(Y, Y') (Kohl et al. 2018, eq. 5).

    Variant: d = 1 - IoU averaged over the foreground classes, both-empty distance 0, and self-pairs counted (the means
    run over all K*K and R*R pairs, as in the authors' code). A set against itself therefore has GED 0, and values are
    comparable only at the same numbers of samples and raters.

    Args:
        samples, raters: class indices (K, *spatial) and (R, *spatial).
        num_classes: background and structures.

    Returns:
        GED squared in [0, 2].

    Raises:
        ValueError: the spatial shapes differ or a set is empty.
    """
    if not len(samples) or not len(raters):
        raise ValueError(f"GED needs at least one sample and one rater, got {len(samples)} and {len(raters)}")
    cross, within, between = (
        iou_distances(a, b, num_classes).mean() for a, b in ((samples, raters), (samples, samples), (raters, raters))
    )
    return float(2 * cross - within - between)


def diversity(samples: np.ndarray, num_classes: int) -> float:
    """Mean 1 - IoU over the distinct pairs i < j of a set (foreground classes averaged, both empty 0).

    Args:
        samples: class indices (K, *spatial).
        num_classes: background and structures.

    Returns:
        In [0, 1]; NaN for a single sample, which has no pair.
    """
    return _mean_of_pairs(iou_distances(samples, samples, num_classes))


def matched_iou(samples: np.ndarray, raters: np.ndarray, num_classes: int) -> float:
    """Mean IoU of samples and raters under the best one-to-one matching (Hungarian-matched IoU; Kohl et al. 2019).

    Variant: both sets are repeated to the least common multiple of their sizes, the matching (Kuhn & Munkres) maximises
    the IoU averaged over the foreground classes, and two empty masks have IoU 1.

    Args:
        samples, raters: class indices (K, *spatial) and (R, *spatial).
        num_classes: background and structures.

    Returns:
        In [0, 1]; 1 if both sets hold the same labels in the same shares.
    """
    distance = iou_distances(samples, raters, num_classes)
    size = math.lcm(*distance.shape)
    repeated = np.kron(distance, np.ones((size // distance.shape[0], size // distance.shape[1])))
    rows, columns = linear_sum_assignment(repeated)
    return float(1 - repeated[rows, columns].mean())


def _mean_of_pairs(matrix: np.ndarray) -> float:
    upper = matrix[np.triu_indices(len(matrix), k=1)]
    return float(upper.mean()) if len(upper) else float("nan")
