"""Single samples of a case as label maps, out of the packed bits that the accumulator holds anyway."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ldseg.data.grid import GridCase
from ldseg.uncertainty import PosteriorAccumulator

KEPT_SAMPLES = 4
"""So many label maps of samples are kept of a case, to flip through."""


def kept_samples(
    grid: GridCase, accumulator: PosteriorAccumulator, count: int, label_values: Sequence[int]
) -> np.ndarray | None:
    """The first samples on the native voxels.

    They take the way of the label map: what is resampled are the classes' shares, of which the largest wins. In the
    half voxel at the rim of the image, where the working grid's voxels lie outside, it is the background's.

    Args:
        count: how many; fewer if there are fewer.
        label_values: of the classes.

    Returns:
        (N, *native) label values, or None for a count of 0.

    Raises:
        ValueError: the count is below 0.
    """
    if count < 0:
        raise ValueError(f"the number of kept samples must be at least 0, got {count}")
    if count == 0:
        return None
    values = np.asarray(label_values, dtype=label_dtype(label_values))
    drawn = (grid_classes(accumulator, index) for index in range(min(count, accumulator.num_samples)))
    return np.stack([values[_to_native(grid, classes, len(values))] for classes in drawn])


def grid_classes(accumulator: PosteriorAccumulator, index: int) -> Tensor:
    """One sample's class indices on the working grid, (*grid) uint8; 0 outside the field of view."""
    shape = tuple(accumulator.inside.shape)
    masks = np.unpackbits(accumulator.masks[index], axis=1, count=accumulator.inside.numel())
    order = np.arange(1, len(masks) + 1, dtype=np.uint8)
    return torch.from_numpy((masks * order[:, None]).sum(0, dtype=np.uint8).reshape(shape))


def label_dtype(values: Sequence[int]) -> type[np.generic]:
    """The type of a label map with these values."""
    return np.uint8 if 0 <= min(values) and max(values) < 256 else np.int16


def _to_native(grid: GridCase, classes: Tensor, count: int) -> np.ndarray:
    if grid.geometry.is_exact:
        return grid.to_native(classes[None])[0]
    shares = torch.stack([(classes == value).float() for value in range(count)])
    return grid.to_native(shares).argmax(0)
