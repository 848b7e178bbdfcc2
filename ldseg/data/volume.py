"""Images and labels with their geometry: by the table of readers, PNG/BMP/TIFF/JPEG by Pillow."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import nibabel as nib
import numpy as np

from ldseg.config import IGNORED, DataConfig
from ldseg.config.memory import machine_bytes
from ldseg.data.errors import CaseError
from ldseg.data.formats import nifti, raster, readers
from ldseg.data.formats.scaled import Scale
from ldseg.files import write_atomically

AFFINE_TOLERANCE = 1e-3  # of the spacing
WHOLE = 1e-3  # a label's value so near to an integer is that integer: some programs scale or resample labels
MAX_VOXELS = min(2**31, machine_bytes() // 32)  # as they lie in the file, scaled and as float32: up to 20 bytes each


@dataclass(frozen=True, eq=False)
class Volume:
    """An image in its native voxels.

    Attributes:
        case: the case's name.
        array: (C, *spatial) float32 in the order of the file's axes (x, y, z; rows, columns for PNG and the like).
        affine: (4, 4) float64, voxel to world in mm; identity for PNG and the like.
        source: the file.
        header: the NIfTI header, or one with the geometry of another format; None for PNG and the like.
        spatial_dims: 2 or 3.
        content_digest: sha256 of shape, affine and voxels; independent of the file's name and compression.
        axes: the file's axis of each spatial axis; axis 3 is time (2D+t). Empty means the first ones.
        notes: what was decided on reading and whoever uses the case must know, a sentence each.
    """

    case: str
    array: np.ndarray
    affine: np.ndarray
    source: Path
    header: nib.Nifti1Header | None
    spatial_dims: int
    content_digest: str
    axes: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def spatial_axes(self) -> tuple[int, ...]:
        """The file's axis of each spatial axis."""
        return self.axes or tuple(range(self.spatial_dims))

    @property
    def shape(self) -> tuple[int, ...]:
        """(*spatial) in voxels."""
        return self.array.shape[1:]

    @cached_property
    def spacing_mm(self) -> tuple[float, ...]:
        """Distance of voxel centres per spatial axis (the time step in the header's unit for a time axis)."""
        return tuple(self._spacing(axis) for axis in self.spatial_axes)

    def _spacing(self, axis: int) -> float:
        if axis < 3:
            return float(np.linalg.norm(self.affine[:3, axis]))
        step = float(self.header["pixdim"][axis + 1]) if self.header is not None else 1.0
        return step if np.isfinite(step) and step > 0 else 1.0


def is_image(path: Path) -> bool:
    """Whether the name ends like an image that can be read; of a DICOM series the name says nothing."""
    return path.name.lower().endswith(readers.SUFFIXES + raster.SUFFIXES)


def stem(path: Path) -> str:
    """The file's name without .nii.gz, .png and so on."""
    lower = path.name.lower()
    suffix = next((s for s in (*readers.SUFFIXES, *raster.SUFFIXES) if lower.endswith(s)), path.suffix)
    return path.name[: len(path.name) - len(suffix)]


def guess_spatial_dims(path: Path, *, case: str) -> int:
    """2 for PNG and the like and for what has at most two axes longer than one, else 3.

    Raises:
        CaseError: the header can't be read.
    """
    if _is_raster(path):
        return 2
    header = readers.reader_of(path, case=case).read_header(path, case=case)
    return 2 if sum(n > 1 for n in header.get_data_shape()) <= 2 else 3


def read_volume(
    path: Path, *, case: str, spatial_dims: int, in_channels: int = 1, max_voxels: int = MAX_VOXELS
) -> Volume:
    """Read an image; `max_voxels` bounds what its header may claim before anything is allocated.

    NIfTI axes of length one beyond the wanted ones are dropped, the last first: (X, Y, 1) is 2D, (X, Y, 1, T) is 2D+t.
    With several channels, the last remaining axis holds them (or the voxel type, for RGB).

    Raises:
        CaseError: missing, unreadable, truncated, NaN or infinite voxels, wrong axes or channels, singular affine.
    """
    path = Path(path)
    native, header, affine = _read_native(path, case, max_voxels)
    return as_volume(native, affine, header, path, case=case, spatial_dims=spatial_dims, in_channels=in_channels)


def as_volume(
    native: np.ndarray, affine: np.ndarray, header: nib.Nifti1Header | None, path: Path,
    *, case: str, spatial_dims: int, in_channels: int = 1,
) -> Volume:  # fmt: skip
    """As `read_volume`, of voxels in memory and their affine in mm; `path` is what a CaseError calls them."""
    channels, axes = _channels_first(native, header, path, case, spatial_dims, in_channels)
    with np.errstate(over="ignore"):  # what overflows float32 is infinite and named below
        array = np.ascontiguousarray(channels, dtype=np.float32)
    bad = array.size - int(np.count_nonzero(np.isfinite(array))) if channels.dtype.kind == "f" else 0
    if bad:
        raise CaseError(case, f"{bad} voxels of {path} are NaN or infinite", "replace them by numbers, for example 0")
    _check_affine(affine, axes, path, case)
    digest = hashlib.sha256(repr(array.shape).encode())
    digest.update(np.ascontiguousarray(affine, dtype=np.float64).data)
    digest.update(array.data)
    notes = () if header is None else tuple(filter(None, (nifti.form_note(header),)))
    return Volume(case, array, affine, path, header, spatial_dims, f"sha256:{digest.hexdigest()}", axes, notes)


def with_content(volume: Volume) -> Volume:
    """The same volume, which has something in it.

    Raises:
        CaseError: all its voxels have one value.
    """
    lowest = volume.array.min()
    if lowest == volume.array.max():
        problem = f"nothing is in {volume.source}: all its voxels have the value {lowest:g}"
        raise CaseError(volume.case, problem, "give the image that was meant")
    return volume


def read_label(path: Path, volume: Volume, data: DataConfig, ignore: int | None = None) -> np.ndarray:
    """Read the label of `volume` as class indices.

    Returns:
        (*spatial) uint8: positions in `data.label_values`, or 0 and 1 with `data.foreground_only`; IGNORED where the
        file holds the value `ignore`.

    Raises:
        CaseError: missing, unreadable, another shape or affine than the image, a value that is unknown or no integer.
    """
    path, case = Path(path), volume.case
    if not path.is_file():
        raise CaseError(case, f"its label {path} is missing", "put the file there or drop the case from the list")
    if not _is_raster(path):  # the header alone is enough to refuse most
        header, own = readers.reader_of(path, case=case).read_header(path, case=case), volume.header
        _check_label_shape(header.get_data_shape(), path, volume)
        if own is not None and not _same_affine(volume, nifti.label_affine(header, path, case=case, image=own)):
            cure = "resample the label onto the image"
            raise CaseError(case, f"the affine of the label {path} differs from that of the image", cure)
    values = read_values(path, case=case)
    if _is_raster(path) and values.ndim == 3 and (values == values[..., :1]).all():
        values = values[..., 0]  # a grey label saved as RGB
    _check_label_shape(values.shape, path, volume)
    return _class_indices(values.reshape(volume.shape), path, case, data, ignore)


def read_values(path: Path, *, case: str, max_voxels: int = MAX_VOXELS) -> np.ndarray:
    """A label's values as the file holds them, in the file's own axes.

    Raises:
        CaseError: missing, unreadable or truncated.
    """
    return _read_native(Path(path), case, max_voxels, label=True)[0]


def write_map(path: Path, array: np.ndarray, like: Volume, *, intent: str = "", scale: Scale | None = None) -> Path:
    """Write a map of `like` atomically; integers stay integers.

    A NIfTI keeps the affine, codes, units and spacing of the source's header. Beside a PNG (or the like) an integer map
    becomes a PNG and a float map a 32-bit float TIFF, and the name's ending changes accordingly.

    Args:
        path: wanted file; .gz compresses, with the same bytes for the same content.
        array: (*spatial) in the source's axes.
        like: the case it belongs to.
        intent: a NIfTI intent as nibabel names it, such as "label"; empty for none.
        scale: a NIfTI stores real values as integers with a slope, off by at most half of `scale.step`; a TIFF has no
            slope and stays float.

    Returns:
        The file that was written.

    Raises:
        ValueError: the array has another shape than the case, or values outside the scale.
    """
    if array.shape != like.shape:
        raise ValueError(f"a map of {like.case} must have shape {like.shape}, got {array.shape}")
    target = Path(path)
    if like.header is None:
        content, suffix = raster.encode_raster(array)
        target = target.with_name(stem(target) + suffix)
    else:
        parts = nifti.encode_nifti(array.reshape(_stored_shape(like)), like.header, intent or "none", scale)
        content = nifti.compress(parts) if target.name.endswith(".gz") else b"".join(parts)
    write_atomically(target, content)
    return target


def _is_raster(path: Path) -> bool:
    return path.name.lower().endswith(raster.SUFFIXES)


def _read_native(
    path: Path, case: str, max_voxels: int, *, label: bool = False
) -> tuple[np.ndarray, nib.Nifti1Header | None, np.ndarray]:
    if _is_raster(path):
        return raster.read_raster(path, case=case, max_voxels=max_voxels, label=label), None, np.eye(4)
    return readers.reader_of(path, case=case).read(path, case=case, max_voxels=max_voxels)


def _channels_first(
    native: np.ndarray, header: nib.Nifti1Header | None, path: Path, case: str, spatial_dims: int, in_channels: int
) -> tuple[np.ndarray, tuple[int, ...]]:
    """(C, *spatial) and the file's axis of each spatial axis."""
    shape = native.shape
    has_channels = native.ndim == 3 if header is None else in_channels > 1 and native.ndim > spatial_dims
    if native.dtype.names is not None:  # NIfTI's RGB voxel type
        native, has_channels = np.stack([native[name] for name in native.dtype.names[:3]], axis=-1), True
    array = native if has_channels else native[..., None]
    axes = kept_axes(array.shape[:-1], spatial_dims)
    if len(axes) != spatial_dims:
        cure = "give images of the model's dimension, or one frame at a time"
        raise CaseError(case, f"{path} has shape {shape}, not {spatial_dims} spatial axes", cure)
    if array.shape[-1] != in_channels:
        cure = "convert it to that many channels"
        raise CaseError(case, f"{path} has {array.shape[-1]} channel(s), the model takes {in_channels}", cure)
    return np.moveaxis(array.reshape(*(array.shape[axis] for axis in axes), in_channels), -1, 0), axes


def kept_axes(shape: tuple[int, ...], spatial_dims: int) -> tuple[int, ...]:
    """Axes that are left when those of length one are dropped, the last first, until `spatial_dims` are left."""
    kept = list(range(len(shape)))
    for axis in reversed(range(len(shape))):
        if len(kept) > spatial_dims and shape[axis] == 1:
            kept.remove(axis)
    return tuple(kept)


def _check_label_shape(shape: tuple[int, ...], path: Path, volume: Volume) -> None:
    kept = tuple(int(shape[axis]) for axis in kept_axes(shape, volume.spatial_dims))
    if kept != volume.shape:
        problem = f"the label {path} has shape {kept}, the image {volume.shape}"
        raise CaseError(volume.case, problem, "give the label that was drawn on this image")


def _check_affine(affine: np.ndarray, axes: tuple[int, ...], path: Path, case: str) -> None:
    columns = affine[:3, [axis for axis in axes if axis < 3]]
    lengths = np.linalg.norm(columns, axis=0)
    usable = np.isfinite(affine).all() and lengths.min() > 0
    # the volume of the unit parallelepiped: 1 for right angles, 0 for axes in one plane
    if not usable or np.linalg.svd(columns / lengths, compute_uv=False).min() < 1e-3:
        raise CaseError(case, f"the affine of {path} is singular", "correct its qform, sform and pixdim")


def _same_affine(volume: Volume, affine: np.ndarray) -> bool:
    axes = [axis for axis in volume.spatial_axes if axis < 3]
    spacing = np.linalg.norm(volume.affine[:3, axes], axis=0)
    difference = np.abs(affine - volume.affine)[:3]
    return bool(
        np.isfinite(affine).all()
        and (difference[:, axes] <= AFFINE_TOLERANCE * spacing).all()
        and (difference[:, 3] <= AFFINE_TOLERANCE * spacing.min()).all()
    )


def _class_indices(values: np.ndarray, path: Path, case: str, data: DataConfig, ignore: int | None) -> np.ndarray:
    if values.dtype.kind == "f":
        whole = np.rint(values)
        if not (np.abs(values - whole) <= WHOLE).all():  # also where NaN
            cure = "write class numbers, not probabilities"
            raise CaseError(case, f"the label {path} holds values that are no integers", cure)
        values = whole
    elif values.dtype.kind not in "iub":
        raise CaseError(case, f"the label {path} holds colours", "write class numbers")
    ignored = None if ignore is None else values == ignore
    if ignored is not None:
        if ignored.all():
            raise CaseError(case, f"the label {path} leaves every voxel open", "label some, or leave the case out")
        values = np.where(ignored, data.label_values[0], values)
    known = (0, 1) if data.foreground_only else data.label_values
    if data.foreground_only:
        is_unknown, indices = values < 0, (values > 0).astype(np.uint8)
    else:
        low, high = min(known), max(known)
        is_unknown = (values < low) | (values > high)
        table = np.full(high - low + 1, -1, dtype=np.int32)
        table[np.asarray(known) - low] = np.arange(len(known))
        found = table[np.where(is_unknown, max(low, 0), values).astype(np.int64) - low]
        is_unknown |= found < 0
        indices = found.astype(np.uint8)
    if is_unknown.any():
        listed = ", ".join(f"{value:g}" for value in np.unique(values[is_unknown])[:8])
        cure = f"known are {list(known)}: correct the label or name the value in dataset.json"
        raise CaseError(case, f"the label {path} holds the unknown value(s) {listed}", cure)
    if ignored is not None:
        indices[ignored] = IGNORED
    return indices


def _stored_shape(like: Volume) -> tuple[int, ...]:
    """The file's shape: with its axes of length one, without its channels."""
    full = like.header.get_data_shape() if like.header is not None else like.shape
    end = max(like.spatial_axes) + 1
    if any(n > 1 for n in full[end:]):
        full = full[:end]
    return tuple(int(n) for n in full)
