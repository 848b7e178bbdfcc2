"""One plane of a stored volume at a time, with bounded memory, and how planes lie on a page."""

from __future__ import annotations

import gzip
import itertools
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, cast

import nibabel as nib
import numpy as np

from ldseg.data.errors import CaseError
from ldseg.data.formats import nifti, raster
from ldseg.data.volume import kept_axes

MAX_PIXELS = 2**25
"""Of one plane; a file that claims larger ones is refused before anything is allocated."""

PLANES = (("sagittal", "A", "P", "S", "I"), ("coronal", "R", "L", "S", "I"), ("axial", "R", "L", "A", "P"))
"""Name of the plane across each anatomical axis, and what is on its left, right, top and bottom."""

SURVEYED_PLANES, SURVEYED_PIXELS = 64, 2**14  # of a volume, and of each of these planes
LOW, HIGH = 0.5, 99.5  # percentiles that become black and white


@dataclass(frozen=True)
class Geometry:
    """How a volume's voxels lie.

    Attributes:
        shape: planes across each of the page's axes: towards right, anterior, superior where the file tells, else
            the file's own; a 2D image is (rows or x, columns or y, 1).
        spacing: distance of voxel centres along these, in mm where the file tells.
        file_axes: the file's axis of each; -1 for one that the file lacks.
        flipped: whether the file's axis runs against the page's.
        anatomical: whether the page's axes are the body's.
        raster: rows and columns of a PNG or the like.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    file_axes: tuple[int, int, int]
    flipped: tuple[bool, bool, bool] = (False, False, False)
    anatomical: bool = False
    raster: bool = False

    @property
    def axes(self) -> tuple[int, ...]:
        """Those that planes can be cut across."""
        return (0, 1, 2) if self.file_axes[2] >= 0 else (2,)

    def pixel(self, axis: int) -> tuple[float, float]:
        """Height and width of a pixel of the planes across `axis`."""
        first, second = (self.spacing[k] for k in range(3) if k != axis)
        return (first, second) if self.raster else (second, first)


def geometry(path: Path, *, case: str, spatial_dims: int, in_channels: int, max_voxels: int) -> Geometry:
    """From the header alone, by the rules of `ldseg.data.volume.read_volume`.

    Raises:
        CaseError: the file is missing, can't be read, or is larger than allowed.
    """
    if path.name.lower().endswith(raster.SUFFIXES):
        rows, columns = raster.read_raster(path, case=case, max_voxels=min(max_voxels, MAX_PIXELS)).shape[:2]
        return Geometry((rows, columns, 1), (1.0, 1.0, 1.0), (0, 1, -1), raster=True)
    header = _checked_header(path, case, max_voxels)
    full = tuple(int(n) for n in header.get_data_shape())
    has_channels = in_channels > 1 and len(full) > spatial_dims and header.get_data_dtype().names is None
    kept = kept_axes(full[:-1] if has_channels else full, spatial_dims)[:3]
    affine = nifti.affine_mm(header)
    if not np.isfinite(affine).all():
        raise CaseError(case, f"the affine of {path.name} is not finite", "correct its qform, sform and pixdim")
    spacing = [_spacing(header, affine, axis) for axis in kept]
    if kept != (0, 1, 2):
        padded = (*kept, -1)[:3], (*(full[k] for k in kept), 1)[:3], (*spacing, 1.0)[:3]
        return Geometry(padded[1], padded[2], padded[0])  # type: ignore[arg-type]
    orientation = nib.io_orientation(affine)
    if np.isnan(orientation).any():
        raise CaseError(case, f"the affine of {path.name} is singular", "correct its qform, sform and pixdim")
    order = [int(k) for k in np.argsort(orientation[:, 0])]
    return Geometry(
        shape=(full[order[0]], full[order[1]], full[order[2]]),
        spacing=(spacing[order[0]], spacing[order[1]], spacing[order[2]]),
        file_axes=(order[0], order[1], order[2]),
        flipped=(orientation[order[0], 1] < 0, orientation[order[1], 1] < 0, orientation[order[2], 1] < 0),
        anatomical=True,
    )


def read_plane(path: Path, geo: Geometry, axis: int, index: int, *, case: str, label: bool = False) -> np.ndarray:
    """The plane at `index` across the page's `axis`, as it lies on the page.

    Anatomical planes are radiological: the patient's right is on the left, anterior and superior are up, and anterior
    is on the left of a sagittal one.

    Returns:
        (rows, columns) in the values that the file stands for, or (rows, columns, 3) for colours.

    Raises:
        CaseError: the file is missing, cut short or can't be read.
    """
    if path.name.lower().endswith(raster.SUFFIXES):
        return raster.read_raster(path, case=case, max_voxels=MAX_PIXELS, label=label)
    header = _checked_header(path, case, None)
    rank = len(header.get_data_shape())
    kept = [k for k in geo.file_axes if k >= 0]
    fixed = {k: 0 for k in range(rank) if k not in kept}
    if geo.file_axes[axis] >= 0:
        across = geo.file_axes[axis]
        fixed[across] = geo.shape[axis] - 1 - index if geo.flipped[axis] else index
    plane = _scaled(_read(path, header, fixed, case), header)
    first, second = (k for k in range(3) if k != axis)
    if geo.file_axes[first] > geo.file_axes[second]:
        plane = plane.swapaxes(0, 1)
    flips = tuple(k for k, page_axis in enumerate((first, second)) if geo.flipped[page_axis])
    plane = np.flip(plane, flips).swapaxes(0, 1)
    return np.flip(plane, (0, 1) if geo.anatomical else 0)


def window(path: Path, *, case: str) -> tuple[float, float]:
    """The values that become black and white: percentiles over planes from all of the volume.

    Raises:
        CaseError: the file is missing, cut short or can't be read.
    """
    found = path.stat()
    return _window(path, found.st_mtime_ns, found.st_size, case)


def fullest(path: Path, geo: Geometry, *, case: str) -> tuple[int, int, int]:
    """For each of the page's axes the plane with most labelled voxels; the middle one where there are none.

    Raises:
        CaseError: the label map is missing, cut short or can't be read.
    """
    found = path.stat()
    return _fullest(path, found.st_mtime_ns, found.st_size, geo, case)


@lru_cache(maxsize=512)
def _window(path: Path, _time: int, _size: int, case: str) -> tuple[float, float]:
    if path.name.lower().endswith(raster.SUFFIXES):
        values = raster.read_raster(path, case=case, max_voxels=MAX_PIXELS).astype(np.float32)
    else:
        header = _checked_header(path, case, None)
        count = math.prod(header.get_data_shape()[2:])
        chosen = np.unique(np.linspace(0, count - 1, SURVEYED_PLANES).round().astype(int))
        planes = (_scaled(plane, header) for plane in _slabs(path, header, chosen.tolist(), case))
        values = np.concatenate([_thinned(plane) for plane in planes])
    if not values.size:  # not a number anywhere
        return 0.0, 1.0
    low, high = (float(v) for v in np.percentile(values, (LOW, HIGH)))
    return low, max(high, low + 1e-6)


def _thinned(plane: np.ndarray) -> np.ndarray:
    step = max(1, math.ceil(math.sqrt(plane.shape[0] * plane.shape[1] / SURVEYED_PIXELS)))
    values = plane[::step, ::step].ravel()
    return values[np.isfinite(values)]


@lru_cache(maxsize=512)
def _fullest(path: Path, _time: int, _size: int, geo: Geometry, case: str) -> tuple[int, int, int]:
    middle = (geo.shape[0] // 2, geo.shape[1] // 2, geo.shape[2] // 2)
    if not geo.anatomical:
        return middle
    header = _checked_header(path, case, None)
    shape = header.get_data_shape()
    counts = [np.zeros(n, dtype=np.int64) for n in shape[:3]]
    for z, slab in enumerate(_slabs(path, header, range(shape[2]), case)):
        mask = slab != 0
        counts[0] += mask.sum(axis=1)
        counts[1] += mask.sum(axis=0)
        counts[2][z] = mask.sum()
    best = []
    for axis, k in enumerate(geo.file_axes):
        index = int(counts[k].argmax()) if counts[k].any() else middle[axis]
        best.append(geo.shape[axis] - 1 - index if counts[k].any() and geo.flipped[axis] else index)
    return best[0], best[1], best[2]


def _spacing(header: nib.Nifti1Header, affine: np.ndarray, axis: int) -> float:
    step = float(np.linalg.norm(affine[:3, axis]) if axis < 3 else header["pixdim"][axis + 1])
    return step if np.isfinite(step) and step > 0 else 1.0


def _checked_header(path: Path, case: str, max_voxels: int | None) -> nib.Nifti1Header:
    header = nifti.read_header(path, case=case)
    shape = tuple(int(n) for n in header.get_data_shape())
    if len(shape) < 2 or min(shape) < 1 or header.get_data_dtype().kind not in "iufbV":
        raise CaseError(case, f"{path.name} has the shape {shape} and can't be shown", "write it again as a volume")
    largest = math.prod(sorted(shape)[-2:])
    if largest > MAX_PIXELS or (max_voxels is not None and math.prod(shape) > max_voxels):
        raise CaseError(case, f"{path.name} has the shape {shape}, too large to be shown", "crop it")
    return header


def _read(path: Path, header: nib.Nifti1Header, fixed: dict[int, int], case: str) -> np.ndarray:
    """The voxels at the `fixed` places of some axes; what is left are two axes in the file's order."""
    shape = header.get_data_shape()
    upper = [[fixed[k]] if k in fixed else range(shape[k]) for k in range(2, len(shape))]
    strides = [math.prod(shape[2:k]) for k in range(2, len(shape))]
    # the last axis varies slowest, as in the file: a compressed one is read forwards only
    places = [sum(i * s for i, s in zip(reversed(at), strides, strict=True)) for at in itertools.product(*upper[::-1])]
    inside = tuple(fixed.get(k, slice(None)) for k in (0, 1))
    parts = [slab[inside].copy() for slab in _slabs(path, header, places, case)]
    free = [k for k in range(len(shape)) if k not in fixed]
    stacked = np.stack(parts, axis=-1)
    return stacked.reshape([shape[k] for k in free], order="F")


def _slabs(path: Path, header: nib.Nifti1Header, places: range | list[int], case: str) -> Iterator[np.ndarray]:
    """The planes of the file's first two axes at ascending places, one in memory at a time."""
    shape, dtype = header.get_data_shape()[:2], header.get_data_dtype()
    size, offset = math.prod(shape) * dtype.itemsize, header.get_data_offset()
    with _opened(path, case) as stream:
        for place in places:
            stream.seek(offset + place * size)
            content = stream.read(size)
            if len(content) < size:
                raise EOFError("it is truncated")
            yield np.ndarray(shape, dtype, buffer=content, order="F")


def _scaled(values: np.ndarray, header: nib.Nifti1Header) -> np.ndarray:
    if values.dtype.names is not None:
        return np.stack([values[name] for name in values.dtype.names[:3]], axis=-1).astype(np.float32)
    slope, intercept = header.get_slope_inter()
    if slope is None or (slope, intercept) == (1.0, 0.0):
        return values
    return values * np.float64(slope) + np.float64(intercept or 0.0)


@contextmanager
def _opened(path: Path, case: str) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as file:
            is_gzip = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            yield cast(BinaryIO, gzip.GzipFile(fileobj=file)) if is_gzip else file
    except (OSError, EOFError, zlib.error) as error:
        cure = "copy or convert the file again (NIfTI .nii or .nii.gz)"
        raise CaseError(case, f"{path.name} can't be read ({error})", cure) from error
