"""A look at an image before it is segmented: what can't be segmented is told at once."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

from ldseg.config import DataConfig
from ldseg.data.errors import CaseError
from ldseg.data.formats import raster
from ldseg.data.formats.nifti import SUFFIXES, read_header
from ldseg.data.formats.raster import UNREADABLE
from ldseg.data.formats.readers import reader_of
from ldseg.data.volume import Volume, read_volume, with_content

SMALL_BYTES = 2**25  # of voxels: such a file is read as a whole, which takes a fraction of a second
PADDING = 4096  # some writers fill a block at the end
GZIP = b"\x1f\x8b"


def inspect(path: Path, case: str, data: DataConfig, max_voxels: int) -> Volume | None:
    """Read the header of an image, and all of it when it is small.

    Returns:
        What was read, None of a large one.

    Raises:
        CaseError: it can't be segmented; the sentence names the cure.
    """
    if path.name.lower().endswith(SUFFIXES):
        header = read_header(path, case=case)
        shape, item = tuple(int(n) for n in header.get_data_shape()), header.get_data_dtype().itemsize
        claim = math.prod(shape) * item
        if claim // max(item, 1) > max_voxels:
            raise CaseError(
                case, f"its header claims {claim // item} voxels {shape}, more than {max_voxels}", "crop it"
            )
        _check_spacing(_raw_spacing(path, isinstance(header, nib.Nifti2Header), shape), case)
        _check_axes(shape, case, data)
        if claim > SMALL_BYTES:
            return None
        _check_end(path, case, int(header.get_data_offset()) + claim)
    elif not path.name.lower().endswith(raster.SUFFIXES):
        shape = tuple(int(n) for n in reader_of(path, case=case).read_header(path, case=case).get_data_shape())
        if math.prod(shape) > max_voxels:
            raise CaseError(case, f"it claims {math.prod(shape)} voxels {shape}, more than {max_voxels}", "crop it")
        _check_axes(shape, case, data)
        if math.prod(shape) * 4 > SMALL_BYTES:
            return None
    elif not _is_small(path):
        return None
    how = {"spatial_dims": data.spatial_dims, "in_channels": data.in_channels, "max_voxels": max_voxels}
    return with_content(read_volume(path, case=case, **how))


def _raw_spacing(path: Path, second: bool, shape: tuple[int, ...]) -> np.ndarray:
    """What the file says of the axes longer than one; `read_header` puts 1 in the place of a 0."""
    with path.open("rb") as file:
        stream = gzip.GzipFile(fileobj=file) if file.read(2) == GZIP else file
        file.seek(0)
        block = stream.read(540 if second else 348)
    header = (nib.Nifti2Header if second else nib.Nifti1Header)(block, check=False)
    return np.array([header["pixdim"][axis + 1] for axis, n in enumerate(shape[:3]) if n > 1])


def _check_spacing(pixdim: np.ndarray, case: str) -> None:
    if not np.isfinite(pixdim).all() or (np.abs(pixdim) <= 0).any():
        listed = ", ".join(f"{float(value):g}" for value in pixdim)
        raise CaseError(case, f"its header gives the voxel sizes {listed}", "write pixdim in mm, above zero")


def _check_axes(shape: tuple[int, ...], case: str, data: DataConfig) -> None:
    """More long axes than the model has can be told from the header alone; the rest is told by reading."""
    long = sum(n > 1 for n in shape)
    most = data.spatial_dims + (1 if data.in_channels > 1 else 0)
    if long > most:
        cure = "give images of the model's dimension, or one frame at a time"
        raise CaseError(case, f"its shape is {shape}, the model takes {data.spatial_dims} spatial axes", cure)


def _check_end(path: Path, case: str, claim: int) -> None:
    """Nothing may follow the voxels that the header claims, but for padding; no more is unpacked to see it."""
    try:
        with path.open("rb") as file:
            stream = gzip.GzipFile(fileobj=file) if file.read(2) == GZIP else file
            file.seek(0)
            stream.seek(claim)
            rest = stream.read(PADDING + 1)
    except (OSError, EOFError, zlib.error):
        return  # reading it says what is wrong
    if len(rest) > PADDING:
        cure = "write the file again, its header and its voxels don't fit"
        raise CaseError(case, f"it goes on after the {claim} bytes that its header claims", cure)


def _is_small(path: Path) -> bool:
    """Of a PNG or the like, by its header; what is none is told by reading it."""
    try:
        with Image.open(path) as image:
            return image.width * image.height * 8 <= SMALL_BYTES
    except (*UNREADABLE, Image.DecompressionBombWarning):
        return True
