"""Which slice of a case a picture shows, and how it lies on the page."""

from __future__ import annotations

import math
from dataclasses import dataclass

import nibabel as nib
import numpy as np

from ldseg.data.volume import Volume
from ldseg.posterior.summary import PosteriorSummary

THROUGH_PLANE = 1.5
"""An axis whose voxels are this much longer than the other ones is the one that slices are stacked along."""

ZOOM_BELOW = 0.6
"""The panels zoom in on the structures where they and some margin take less than this share of the slice's sides."""

PLANES = (("sagittal", "A", "S"), ("coronal", "R", "S"), ("axial", "R", "A"))
"""Name of the slice across each canonical axis, and what is on its left and on top."""


@dataclass(frozen=True)
class Slice:
    """One slice on the page, rows downwards and columns to the right.

    Attributes:
        image: (h, w) or (h, w, 3) in [0, 1].
        probability: (S, h, w) mean probability of each structure.
        entropy: (h, w), nats.
        label: (h, w) class indices of the segmentation.
        truth: (h, w) class indices, if there are any.
        pixel: height and width of a pixel in one unit.
        window: rows and columns to zoom in on.
        title: which slice of how many.
        left, top: the patient's side on the left and on top, one letter; empty where unknown.
    """

    image: np.ndarray
    probability: np.ndarray
    entropy: np.ndarray
    label: np.ndarray
    truth: np.ndarray | None
    pixel: tuple[float, float]
    window: tuple[slice, slice]
    title: str
    left: str = ""
    top: str = ""

    @property
    def ratio(self) -> float:
        """Width over height on the page."""
        height, width = self.label.shape
        return float(width * self.pixel[1] / (height * self.pixel[0]))


def cut(volume: Volume, summary: PosteriorSummary, truth: np.ndarray | None = None) -> Slice:
    """The slice that shows most of all structures: by the share that it has of each one's largest cross-section.

    Without foreground it is the slice with the largest entropy. Volumes are cut across the axis with much coarser
    voxels if there is one.
    The patient's right is on the left, anterior and superior are up.

    Raises:
        ValueError: the truth has another shape than the case.
    """
    if truth is not None and truth.shape != volume.shape:
        raise ValueError(f"the truth of {volume.case} must have shape {volume.shape}, got {truth.shape}")
    stack = [volume.array, summary.mean_probability, summary.predictive_entropy[None]]
    stack += [] if truth is None else [truth[None]]
    spacing, names = volume.spacing_mm, PLANES
    anatomical = volume.header is not None and volume.spatial_axes == (0, 1, 2)
    if anatomical:
        stack, spacing = _canonical(stack, volume)
    axis, index = _largest(stack[1], stack[2][0], spacing) if volume.spatial_dims == 3 else (2, None)
    title, left, top = "", "", ""
    if index is not None:
        count = stack[0].shape[1 + axis]
        stack = [np.take(array, index, axis=1 + axis) for array in stack]
        spacing = tuple(s for k, s in enumerate(spacing) if k != axis)
        title = f"slice {index + 1} of {count}"
        if anatomical:
            title, left, top = f"{names[axis][0]} {title}", *names[axis][1:]
    if volume.header is not None:  # (x, y) to rows from the top and columns
        stack = [np.flip(array.swapaxes(1, 2), (1, 2) if anatomical else 1) for array in stack]
        spacing = (spacing[1], spacing[0])
    return _slice(stack, spacing, title, left, top)


def _canonical(stack: list[np.ndarray], volume: Volume) -> tuple[list[np.ndarray], tuple[float, ...]]:
    """All arrays (C, *native) with their axes towards right, anterior, superior, and the spacing along these."""
    orientation = nib.io_orientation(volume.affine)
    moved = [  # views: nothing is copied
        np.moveaxis(nib.apply_orientation(np.moveaxis(array, 0, -1), orientation), -1, 0) for array in stack
    ]
    spacing = tuple(volume.spacing_mm[int(axis)] for axis in np.argsort(orientation[:, 0]))
    return moved, spacing


def _largest(probability: np.ndarray, entropy: np.ndarray, spacing: tuple[float, ...]) -> tuple[int, int]:
    """Axis to cut across, and where."""
    masks = [mask for mask in probability >= 0.5 if mask.any()] or [entropy]
    coarsest = int(np.argmax(spacing))
    others = [s for axis, s in enumerate(spacing) if axis != coarsest]
    axes = [coarsest] if spacing[coarsest] >= THROUGH_PLANE * max(others) else [2, 1, 0]
    best = (axes[0], entropy.shape[axes[0]] // 2, 0.0)
    areas = {axis: np.stack([_areas(mask, axis, spacing) for mask in masks]) for axis in axes}
    largest = np.max([area.max(axis=1) for area in areas.values()], axis=0).clip(min=1e-12)
    for axis, area in areas.items():
        shares = np.sqrt(area / largest[:, None]).sum(axis=0)  # the root prefers to show all structures
        if shares.max() > best[2]:
            best = (axis, int(shares.argmax()), float(shares.max()))
    return best[:2]


def _areas(mask: np.ndarray, axis: int, spacing: tuple[float, ...]) -> np.ndarray:
    """Cross-sections of a mask, one for each position along `axis`."""
    others = tuple(k for k in range(3) if k != axis)
    return np.asarray(mask.sum(axis=others, dtype=np.float64) * math.prod(spacing[k] for k in others))


def _slice(stack: list[np.ndarray], spacing: tuple[float, ...], title: str, left: str, top: str) -> Slice:
    image, probability, entropy = stack[0], stack[1], stack[2][0]
    truth = stack[3][0] if len(stack) > 3 else None
    background = 1 - probability.sum(axis=0, keepdims=True)
    label = np.concatenate([background, probability]).argmax(axis=0)
    interesting = (label > 0) | (entropy > 0.2) | (False if truth is None else truth > 0)
    return Slice(
        image=_grey_or_colour(image),
        probability=probability,
        entropy=entropy,
        label=label,
        truth=truth,
        pixel=(spacing[0], spacing[1]),
        window=_window(interesting),
        title=title,
        left=left,
        top=top,
    )


def _grey_or_colour(image: np.ndarray) -> np.ndarray:
    """(C, h, w) to (h, w, 3) for three channels, else the first as (h, w); 0.5..99.5 percentile to [0, 1]."""
    shown = np.moveaxis(image, 0, -1) if len(image) == 3 else image[0]
    low, high = np.percentile(shown, (0.5, 99.5))
    return np.asarray(np.clip((shown - low) / max(high - low, 1e-6), 0, 1))


def _window(interesting: np.ndarray) -> tuple[slice, slice]:
    """A window around what is interesting, of the slice's own proportions; the whole slice if it saves little."""
    whole = (slice(0, interesting.shape[0]), slice(0, interesting.shape[1]))
    if not interesting.any():
        return whole
    bounds = [np.flatnonzero(interesting.any(axis=1 - axis))[[0, -1]] for axis in (0, 1)]
    share = max((1.6 * (last - first + 1) + 4) / n for (first, last), n in zip(bounds, interesting.shape, strict=True))
    if share > ZOOM_BELOW:
        return whole
    window = []
    for (first, last), n in zip(bounds, interesting.shape, strict=True):
        size = round(share * n)
        start = int(np.clip((first + last + 1 - size) // 2, 0, n - size))
        window.append(slice(start, start + size))
    return window[0], window[1]
