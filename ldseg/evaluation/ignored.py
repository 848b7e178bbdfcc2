"""Voxels that a rater left open, nnU-Net's "ignore": scores are of the other voxels alone, on both sides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ldseg.config import IGNORED, DataConfig
from ldseg.data.grid import GridCase, label_to_grid
from ldseg.posterior.summary import PosteriorSummary

Label = np.ndarray


def open_voxels(raters: Sequence[Label]) -> np.ndarray | None:
    """(*native) bool, the voxels that any of the raters left open; None where none did."""
    found = np.zeros(raters[0].shape, dtype=bool) if raters else np.zeros(0, dtype=bool)
    for rater in raters:
        found |= rater == IGNORED
    return found if found.any() else None


def as_background(label: Label, where: np.ndarray | None) -> Label:
    """A label with background in these voxels."""
    return label if where is None else np.where(where, 0, label).astype(label.dtype)


def on_grid(where: np.ndarray, grid: GridCase) -> np.ndarray:
    """The same voxels on the working grid, (*grid) bool."""
    return label_to_grid(where.astype(np.uint8), grid).numpy() > 0


def sizes_elsewhere(samples: np.ndarray, where: np.ndarray, grid: GridCase, num_classes: int) -> np.ndarray:
    """(K, S) sizes of the structures in each sample (K, *grid), without the voxels `where` (*grid)."""
    known = (~where) & grid.inside.numpy()
    counts = [np.bincount(sample[known], minlength=num_classes)[1:num_classes] for sample in samples]
    return np.stack(counts) * grid.voxel_size


def summary_elsewhere(
    summary: PosteriorSummary, where: np.ndarray, sizes: np.ndarray, data: DataConfig
) -> PosteriorSummary:
    """A summary as if nothing but background were said of these voxels (*native), with the sizes (K, S) that remain."""
    return replace(
        summary,
        label=np.where(where, data.label_values[0], summary.label).astype(summary.label.dtype),
        mean_probability=np.where(where, np.float32(0), summary.mean_probability),
        cautious=None if summary.cautious is None else summary.cautious & ~where,
        volumes={name: sizes[:, k] for k, name in enumerate(data.structures)},
    )
