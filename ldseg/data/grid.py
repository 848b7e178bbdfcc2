"""The way from native voxels to a model's working grid and exactly back.

Per axis the way is a permutation, a flip, a step and an offset, so every resampling is separable: linear interpolation
with two taps where the grid is as fine or finer, and a triangle filter as wide as the step where it is coarser
(anti-aliasing; plain linear interpolation would skip voxels).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ldseg.config import DataConfig
from ldseg.data.errors import CaseError
from ldseg.data.volume import Volume

# a header may claim voxels of 1 m, or a rod of 30000x2x2 of them; resampled or padded they would fill any memory. What
# is bounded is how many voxels the working grid has: at all, and where it is not small anyway, for each native voxel
MAX_GRID_VOXELS = 2**28
SMALL_GRID_VOXELS = 2**22
MAX_GROWTH = 64
SAME_SPACING = 1e-3  # relative; nearer spacings are not interpolated


@dataclass(frozen=True)
class Geometry:
    """Where the working grid lies in the native voxels.

    Attributes:
        order: native spatial axis of each grid axis.
        flips: grid axes that run against their native axis.
        native: voxels per grid axis before resampling.
        content: voxels per grid axis that the native field of view fills.
        before: padding in front of it.
        grid: voxels of the working grid per axis.
        steps: native voxels per grid voxel.
    """

    order: tuple[int, ...]
    flips: tuple[int, ...]
    native: tuple[int, ...]
    content: tuple[int, ...]
    before: tuple[int, ...]
    grid: tuple[int, ...]
    steps: tuple[float, ...]

    @property
    def is_exact(self) -> bool:
        """Nothing is interpolated: axes are permuted, flipped and padded."""
        return all(step == 1.0 for step in self.steps)

    @property
    def starts(self) -> tuple[float, ...]:
        """Native coordinate of the first voxel of the content; the centres of both fields of view coincide."""
        return tuple(
            (n - 1) / 2 - step * (m - 1) / 2 for n, m, step in zip(self.native, self.content, self.steps, strict=True)
        )

    def to_canonical(self, array: Tensor) -> Tensor:
        """(*, *native) to the grid's axis order and directions."""
        lead = array.ndim - len(self.order)
        permuted = array.permute(*range(lead), *(lead + axis for axis in self.order))
        return permuted.flip([lead + axis for axis in self.flips])

    def from_canonical(self, array: Tensor) -> Tensor:
        """The inverse of `to_canonical`."""
        lead = array.ndim - len(self.order)
        flipped = array.flip([lead + axis for axis in self.flips])
        return flipped.permute(*range(lead), *(lead + self.order.index(axis) for axis in range(len(self.order))))

    def pad(self, content: Tensor) -> Tensor:
        """(*, *content) to (*, *grid), filled with zeros."""
        pads = [
            (before, size - filled - before)
            for before, size, filled in zip(self.before, self.grid, self.content, strict=True)
        ]
        return F.pad(content, [n for pair in reversed(pads) for n in pair])

    def resample(self, native: Tensor) -> Tensor:
        """(C, *native in canonical order) to (C, *content)."""
        for axis, (start, step, size) in enumerate(zip(self.starts, self.steps, self.content, strict=True)):
            native = _resample_axis(native, 1 + axis, start, step, size)
        return native

    def resample_back(self, maps: Tensor) -> Tensor:
        """(M, *grid) to (M, *native in canonical order)."""
        for axis, (start, step, size) in enumerate(zip(self.starts, self.steps, self.native, strict=True)):
            maps = _resample_axis(maps, 1 + axis, self.before[axis] - start / step, 1 / step, size)
        return maps


@dataclass(frozen=True, eq=False)
class GridCase:
    """A case on the working grid.

    Attributes:
        case: the case's name.
        image: (C, *grid) float32, clipped and z-scored per channel; 0 in the padding.
        inside: (*grid) bool, the voxel's centre lies in the native field of view.
        voxel_size: of one grid voxel in `unit`.
        unit: "ml" in 3D, "mm2" in 2D (2D+t: a voxel counts its area divided by the number of frames, so that sums are
            mean areas), "px" (native pixels) for images without a spacing.
        volume: the native case.
        geometry: how the two grids relate.
    """

    case: str
    image: Tensor
    inside: Tensor
    voxel_size: float
    unit: str
    volume: Volume
    geometry: Geometry

    @property
    def spacing(self) -> tuple[float, ...]:
        """Distance of the grid's voxel centres per axis, in mm (pixels of the file for images without a spacing)."""
        own = (self.volume.spacing_mm[axis] for axis in self.geometry.order)
        return tuple(spacing * step for spacing, step in zip(own, self.geometry.steps, strict=True))

    def native(self, maps: Tensor) -> Tensor:
        """Bring maps back onto the native voxels, on the device where they are.

        Args:
            maps: (M, *grid), floating, or of any type where `geometry.is_exact`.

        Returns:
            (M, *native), linearly interpolated; unchanged values where the geometry is exact.

        Raises:
            ValueError: the maps have another shape than the grid.
        """
        if maps.shape[1:] != self.inside.shape:
            wanted = ("M", *self.inside.shape)
            raise ValueError(f"maps of {self.case} must have shape {wanted}, got {tuple(maps.shape)}")
        return self.geometry.from_canonical(self.geometry.resample_back(maps.detach())).contiguous()

    def to_native(self, maps: Tensor) -> np.ndarray:
        """`native` as an array."""
        return self.native(maps).cpu().numpy()


def prepare(volume: Volume, data: DataConfig, multiple: tuple[int, ...], device: str = "cpu") -> GridCase:
    """Bring a case onto the working grid of a model; nothing is ever cropped.

    Axes take their canonical order and direction (nearest to right, anterior, superior; images and 2D+t are kept),
    voxels the size `data.spacing_mm`, intensities are clipped to their 0.5 and 99.5 percentiles and z-scored per
    channel, and the grid is padded around its centre to `data.shape` or more, in multiples of `multiple`. With
    `data.fit` "stretch" the whole field of view fills exactly `data.shape`. `data.axes` and `data.intensity` may say
    otherwise. `device` computes it, and with float32's rounding decides its last bits.

    Raises:
        CaseError: the header's spacing or shape asks for a grid beyond any memory.
    """
    geometry = find_geometry(volume, data, multiple)
    native = _normalise(torch.from_numpy(volume.array).to(device), data.intensity)
    image = geometry.pad(geometry.resample(geometry.to_canonical(native))).cpu()
    voxel_size, unit = _voxel_size(volume, geometry)
    return GridCase(volume.case, image.contiguous(), _inside(geometry), voxel_size, unit, volume, geometry)


def label_to_grid(label: np.ndarray, grid: GridCase) -> Tensor:
    """Bring class indices onto the working grid; 0 in the padding.

    Args:
        label: (*native) class indices.
        grid: the prepared case.

    Returns:
        (*grid) int64: moved without interpolation where the geometry is exact, else the class with the largest
        linearly resampled indicator (the lower index at a tie).
    """
    geometry = grid.geometry
    native = geometry.to_canonical(torch.from_numpy(np.ascontiguousarray(label)))
    if geometry.is_exact:
        return geometry.pad(native.long())
    best = torch.zeros(geometry.content)
    winner = torch.zeros(geometry.content, dtype=torch.int64)
    for value in torch.unique(native).tolist():
        share = geometry.resample((native == value).float()[None])[0]
        winner[share > best] = value
        best = torch.maximum(best, share)
    return geometry.pad(winner)


def find_geometry(volume: Volume, data: DataConfig, multiple: tuple[int, ...]) -> Geometry:
    """Where `prepare` will put a case; its errors. Nothing of the size of an image is made."""
    order, flips = _orientation(volume, data)
    native = tuple(volume.shape[axis] for axis in order)
    if data.fit == "stretch":
        content: tuple[int, ...] = data.shape
        steps = tuple(n / m for n, m in zip(native, content, strict=True))
        before, grid = (0,) * len(content), content
    else:
        steps = _steps(tuple(volume.spacing_mm[axis] for axis in order), data.spacing_mm)
        # the small term keeps 12.000001 at 12
        content = tuple(max(1, math.ceil(n / step - 1e-4)) for n, step in zip(native, steps, strict=True))
        grid = tuple(math.ceil(max(size, m) / k) * k for size, m, k in zip(content, data.shape, multiple, strict=True))
        before = tuple((size - m) // 2 for size, m in zip(grid, content, strict=True))
    too_small = any(n > 1 and step > n for n, step in zip(native, steps, strict=True))
    limit = min(MAX_GRID_VOXELS, max(SMALL_GRID_VOXELS, MAX_GROWTH * math.prod(native)))
    least = math.prod(n + m for n, m in zip(data.shape, multiple, strict=True))  # which every case of the model has
    if data.fit == "pad" and (too_small or math.prod(grid) > max(limit, least)):
        asked = f"the spacing {volume.spacing_mm} mm and the shape {volume.shape} of {volume.source}"
        cure = "correct the header's spacing or crop the image"
        raise CaseError(volume.case, f"{asked} ask for a working grid of {grid} voxels", cure)
    return Geometry(order, flips, native, content, before, grid, steps)


def _steps(spacing: tuple[float, ...], wanted: tuple[float, ...] | None) -> tuple[float, ...]:
    if wanted is None:
        return (1.0,) * len(spacing)
    ratios = [target / own for own, target in zip(spacing, wanted, strict=True)]
    return tuple(1.0 if abs(ratio - 1) < SAME_SPACING else ratio for ratio in ratios)


def _orientation(volume: Volume, data: DataConfig) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Native axis of each of the grid's axes, and the grid's axes to flip."""
    if data.axes == "itk" and volume.spatial_dims == 3:
        return (2, 1, 0), ()
    if volume.spatial_axes != (0, 1, 2) or volume.header is None:
        return tuple(range(volume.spatial_dims)), ()
    orientation = nib.io_orientation(volume.affine)
    order = tuple(int(axis) for axis in np.argsort(orientation[:, 0]))
    return order, tuple(axis for axis in range(3) if orientation[order[axis], 1] < 0)


def _normalise(array: Tensor, intensity: str) -> Tensor:
    """Clip to the 0.5..99.5 percentile and z-score, per channel; or all channels to [0, 1]; a constant becomes 0."""
    if intensity == "minmax":
        low, high = (float(value) for value in array.aminmax())
        return (array - low) / (high - low or math.inf)
    result = torch.empty_like(array)
    for source, target in zip(array, result, strict=True):
        torch.clamp(source, *_percentiles(source), out=target)
        deviation, mean = (float(value) for value in torch.std_mean(target.double(), correction=0))
        target -= mean
        target /= deviation if deviation > 1e-7 * max(abs(mean), 1e-30) else math.inf
    return result


def _percentiles(values: Tensor) -> tuple[float, float]:
    """The 0.5 and 99.5 percentiles, linearly between neighbours."""
    if not values.is_cuda:
        low, high = np.percentile(values.numpy(), (0.5, 99.5))
        return float(low), float(high)
    ordered = values.flatten().sort().values  # torch.quantile refuses more than 2**24
    found = []
    for share in (0.005, 0.995):
        place = share * (len(ordered) - 1)
        below, above = (float(ordered[int(k)]) for k in (math.floor(place), math.ceil(place)))
        found.append(below + (above - below) * (place - math.floor(place)))
    return found[0], found[1]


def _inside(geometry: Geometry) -> Tensor:
    inside = torch.ones(1, dtype=torch.bool)
    for axis, (n, step, start) in enumerate(zip(geometry.native, geometry.steps, geometry.starts, strict=True)):
        native = start + step * (torch.arange(geometry.grid[axis], dtype=torch.float64) - geometry.before[axis])
        within = (native > -0.5 - 1e-6) & (native < n - 0.5 + 1e-6)
        inside = inside[..., None] & within
    return inside[0]


def _voxel_size(volume: Volume, geometry: Geometry) -> tuple[float, str]:
    scale = math.prod(geometry.steps)
    if volume.header is None:
        return scale, "px"
    spatial = [axis for axis in volume.spatial_axes if axis < 3]
    # square root of the Gram determinant: the volume (area) that the columns span, also when they are sheared
    columns = volume.affine[:3, spatial]
    extent = float(np.sqrt(np.linalg.det(columns.T @ columns)))
    if len(spatial) == 3:
        return extent * scale / 1000, "ml"
    frames = math.prod(n for axis, n in zip(volume.spatial_axes, volume.shape, strict=True) if axis >= 3)
    return extent * scale / frames, "mm2"


def _resample_axis(array: Tensor, axis: int, start: float, step: float, size: int) -> Tensor:
    """Values at start + step * i for i < size along an axis; beyond the ends the nearest value."""
    length = array.shape[axis]
    if step == 1.0 and start == int(start) and start >= 0 and start + size <= length:
        return array.narrow(axis, int(start), size)
    width = min(max(1.0, step), float(length))
    centres = start + step * torch.arange(size, dtype=torch.float64)
    first = torch.ceil(centres - width)
    result = array.new_zeros((*array.shape[:axis], size, *array.shape[axis + 1 :]))
    taps = range(math.floor(2 * width) + 1)
    weights = [torch.clamp(1 - (first + tap - centres).abs() / width, min=0) for tap in taps]
    total = torch.stack(weights).sum(0)
    shape = [1] * axis + [size] + [1] * (array.ndim - axis - 1)
    for tap, weight in enumerate(weights):
        if weight.any():
            index = (first + tap).clamp(0, length - 1).long().to(array.device)
            result += array.index_select(axis, index) * (weight / total).to(array).view(shape)
    return result
