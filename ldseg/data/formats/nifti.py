"""NIfTI files read with bounded memory: the header first, then exactly the bytes that its shape needs.

nibabel parses the header. The bytes are read here because nibabel trusts the sizes of header extensions, and
allocates what the header's shape claims before it has seen a voxel. gzip is ISA-L's: the same format, much faster.
"""

from __future__ import annotations

import io
import itertools
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import nibabel as nib
import numpy as np
from isal import igzip, isal_zlib
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from ldseg.data.errors import CaseError
from ldseg.data.formats.regular import open_regular
from ldseg.data.formats.scaled import Scale

SUFFIXES = (".nii", ".nii.gz")
MAX_HEADER_BYTES = 2**24
# deflate can't shrink data by more than this (zlib's documentation: 1032:1), so a smaller file is surely truncated
MAX_GZIP_RATIO = 1040
CHUNK_BYTES = 2**24
MAX_TAIL_BYTES = 2**16  # behind the voxels of a compressed file; some programs fill up a block
RIGHT_ANGLES = 1e-4  # what more a volume is sheared by can't be said by a qform
GZIP_LEVEL = 2  # scaled maps take 7 to 15 % more bytes than by zlib at level 4: docs/results/files.md

MILLIMETRES = {1: 1000.0, 2: 1.0, 3: 0.001}  # of the header's unit of length: metre, millimetre, micron
MAX_APART = 0.5  # voxels between what sform and qform say, beyond which a case tells it
UNIT_WORDS = {1: "metre", 2: "mm", 3: "micron"}

ISAL_ERROR = cast(type[Exception], isal_zlib.error)  # its stub calls it an instance
UNREADABLE = (OSError, EOFError, ISAL_ERROR, HeaderDataError, WrapStructError, ValueError, OverflowError)


def read_header(path: Path, *, case: str) -> nib.Nifti1Header:
    """The header alone (NIfTI-1 or -2); at most 16 MiB are read.

    Raises:
        CaseError: the file is missing or is no single-file NIfTI.
    """
    with as_case_error(path, case), opened(path, case) as source:
        return _parse_header(source.stream)


def read(path: Path, *, case: str, max_voxels: int) -> tuple[np.ndarray, nib.Nifti1Header, np.ndarray]:
    """Voxels in the file's own axes, scaled by the header's slope and intercept, the header and the affine.

    Returns:
        The array (float64 where the header scales, else the file's own type, structured for RGB), the header, and the
        affine (4, 4) float64, voxel to world in mm: the sform, else the qform, else the voxel sizes; metres and microns
        are converted, and a header without a unit means mm.

    Raises:
        CaseError: missing, unreadable, truncated, a voxel type without a real value, or more than `max_voxels`.
    """
    with as_case_error(path, case), opened(path, case) as source:
        header = _parse_header(source.stream)
        return read_voxels(source, header, path, case=case, max_voxels=max_voxels), header, affine_mm(header)


def label_affine(header: nib.Nifti1Header, path: Path, *, case: str, image: nib.Nifti1Header) -> np.ndarray:
    """A label's affine (4, 4) float64 in mm; a header without a unit of length has that of the image.

    Raises:
        CaseError: the header gives none.
    """
    with as_case_error(path, case):
        return in_mm(header.get_best_affine(), header if _unit_code(header) in MILLIMETRES else image)


def affine_mm(header: nib.Nifti1Header) -> np.ndarray:
    """A header's affine (4, 4) float64, voxel to world in mm, whatever its unit of length."""
    return in_mm(header.get_best_affine(), header)


def in_mm(affine: np.ndarray, header: nib.Nifti1Header) -> np.ndarray:
    """An affine (4, 4) in a header's unit of length, in mm."""
    factor = MILLIMETRES.get(_unit_code(header), 1.0)
    return np.asarray(affine, dtype=np.float64) * np.array([[factor]] * 3 + [[1.0]])


def unit_words(header: nib.Nifti1Header) -> str:
    """A header's unit of length as words: what its voxel sizes were taken to be."""
    return UNIT_WORDS.get(_unit_code(header), "not given, taken as mm")


def form_note(header: nib.Nifti1Header) -> str:
    """A sentence where sform and qform put a corner of the volume at places half a voxel apart or more, else ""."""
    sform, qform = header.get_sform(coded=True)[0], header.get_qform(coded=True)[0]
    if sform is None or qform is None:
        return ""
    ends = [(0, n - 1) for n in (*header.get_data_shape(), 1, 1)[:3]]
    corners = np.array([*itertools.product(*ends)], dtype=np.float64).T
    apart = (sform - qform)[:3] @ np.vstack([corners, np.ones(corners.shape[1])])
    lengths = np.linalg.norm(sform[:3, :3], axis=0)
    voxels = float(np.linalg.norm(apart, axis=0).max() / lengths.min()) if lengths.min() > 0 else 0.0
    if not voxels > MAX_APART:  # also where a number is missing, which is refused elsewhere
        return ""
    return f"its sform and qform put it up to {voxels:.3g} voxels apart; the sform is used"


def _unit_code(header: nib.Nifti1Header) -> int:
    return int(header["xyzt_units"]) & 0x07  # the further bits are the unit of time


def read_voxels(source: Source, header: Any, path: Path, *, case: str, max_voxels: int) -> np.ndarray:
    """The voxels behind a header that was read from the same file, or lies beside it; scaled as the header says.

    Args:
        header: of nibabel, for any format that it knows.

    Raises:
        CaseError: truncated, a voxel type without a real value, or more than `max_voxels`.
    """
    shape, dtype = tuple(int(n) for n in header.get_data_shape()), header.get_data_dtype()
    _check_size(source, path, case, header, max_voxels)
    if dtype.kind not in "iufbV":
        raise CaseError(case, f"{path} holds voxels of type {dtype}", "convert them to integers or floats")
    source.stream.seek(header.get_data_offset())
    voxels = _read_exactly(source.stream, math.prod(shape) * dtype.itemsize)
    if source.is_gzip:
        _check_tail(source.stream)
    array = np.ndarray(shape, dtype, buffer=voxels, order="F")
    slope, intercept = header.get_slope_inter()
    if slope is not None and (slope, intercept) != (1.0, 0.0) and dtype.names is None:
        array = array * np.float64(slope) + np.float64(intercept or 0.0)
    return array


def as_header(shape: tuple[int, ...], affine: np.ndarray, dtype: np.dtype) -> nib.Nifti1Header:
    """The header of a NIfTI in mm with the geometry of another format, which the results follow."""
    header = nib.Nifti1Header() if max(shape) < 2**15 else nib.Nifti2Header()
    header.set_data_dtype(dtype if dtype.kind in "iuf" and dtype.isnative else np.float32)
    header.set_data_shape(shape)
    columns = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    sheared = np.abs(columns.T @ columns - np.eye(3)).max() > RIGHT_ANGLES
    header.set_qform(affine, code=0 if sheared else 1)
    header.set_sform(affine, code=1)
    header.set_xyzt_units("mm", "sec")
    return header


def encode_nifti(
    array: np.ndarray, source: nib.Nifti1Header, intent: str, scale: Scale | None = None
) -> tuple[bytes, memoryview]:
    """A NIfTI of the same kind with the affine, codes, units and spacing of `source`'s header.

    Args:
        array: in the file's axes; integers take the smallest type that holds them, floats 32 bits.
        source: the header to follow; its extensions are left out, they may name the patient.
        intent: as nibabel names it, "none" for none.
        scale: store the values as integers with this scale; what is read back is off by at most half its step.

    Returns:
        The file's two parts, header and voxels.
    """
    array = _storable(array) if scale is None else scale.encode(array)
    array = array.astype(array.dtype.newbyteorder(source.endianness), copy=False)
    header = source.copy()
    header.extensions.clear()
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape)
    header.set_slope_inter(1.0 if scale is None else scale.step, 0.0)
    header.set_intent(intent)
    header["cal_min"] = header["cal_max"] = 0  # the image's display window
    header["magic"] = header.single_magic
    header["vox_offset"] = header.single_vox_offset
    return header.binaryblock + bytes(4), memoryview(array.tobytes("F"))


def compress(parts: tuple[bytes, memoryview]) -> bytes:
    """One gzip member without time or name: the same bytes for the same content, whoever compresses it.

    That holds for one version of ISA-L on one kind of processor; another may choose other matches.
    """
    return igzip.compress(b"".join(parts), GZIP_LEVEL, mtime=0)


def _storable(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind == "f":
        return array.astype(np.float32)
    low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
    kinds = (np.uint8, np.int16, np.uint16, np.int32)
    return array.astype(next((k for k in kinds if np.iinfo(k).min <= low and high <= np.iinfo(k).max), np.int64))


def _parse_header(stream: BinaryIO) -> nib.Nifti1Header:
    size_field = stream.read(4)
    sizes = {int.from_bytes(size_field, "little"), int.from_bytes(size_field, "big")}
    kind = nib.Nifti2Header if 540 in sizes else nib.Nifti1Header
    if not sizes & {348, 540}:
        raise ValueError("it does not begin with a NIfTI header")
    block = size_field + stream.read((540 if 540 in sizes else 348) - 4)
    header = kind(block)
    if not header.is_single:
        raise ValueError("it is one half of a .hdr/.img pair")
    offset = header.get_data_offset()
    if not len(block) <= offset <= MAX_HEADER_BYTES:
        raise ValueError(f"its header claims that the voxels start at byte {offset}")
    check_spacing(kind(block, check=False))
    # extensions are parsed from bytes that are already here: their claimed sizes can't ask for more
    return cast(nib.Nifti1Header, kind.from_fileobj(io.BytesIO(block + stream.read(offset - len(block)))))


def check_spacing(raw: Any) -> None:
    """nibabel takes a voxel size of 0 for 1 mm, and volumes would be wrong; an axis of one voxel may have none.

    Args:
        raw: a header of NIfTI or Analyze that nibabel has not mended.
    """
    sizes = zip(raw.get_data_shape()[:3], raw["pixdim"][1:4], strict=False)
    placed = "sform_code" in raw and raw["sform_code"] > 0
    if not placed and any(count > 1 and size == 0 for count, size in sizes):
        raise ValueError(f"its header gives no voxel size: {raw['pixdim'][1:4].tolist()}")


def _check_size(source: Source, path: Path, case: str, header: Any, max_voxels: int) -> None:
    shape = tuple(int(n) for n in header.get_data_shape())
    voxels = math.prod(shape)
    if not shape or min(shape) < 1:
        raise CaseError(case, f"{path} has the shape {shape}", "write it again with at least one voxel on each axis")
    if voxels > max_voxels:
        raise CaseError(
            case, f"{path} claims {voxels} voxels {shape}, more than {max_voxels}", "crop it or correct its header"
        )
    needed, there = voxels * header.get_data_dtype().itemsize, source.size
    if needed > there * (MAX_GZIP_RATIO if source.is_gzip else 1):
        raise CaseError(case, f"{path} is truncated ({there} bytes for the shape {shape})", "copy the file again")


def _read_exactly(stream: BinaryIO, size: int) -> bytearray:
    buffer = bytearray(size)
    view, filled = memoryview(buffer), 0
    while filled < size:
        count = cast(io.BufferedIOBase, stream).readinto(view[filled : filled + CHUNK_BYTES])
        if not count:
            raise EOFError(f"it is truncated: {filled} of {size} bytes of voxels are there")
        filled += count
    return buffer


def _check_tail(stream: BinaryIO) -> None:
    """Read on to the end, where gzip compares its checksum; a stream that goes on and on is refused."""
    left = MAX_TAIL_BYTES
    while part := stream.read(left + 1):
        left -= len(part)
        if left < 0:
            raise ValueError("it holds more bytes than the shape in its header says")


@dataclass(frozen=True)
class Source:
    """An open file: `stream` of its content unpacked, `size` in bytes as it lies there."""

    stream: BinaryIO
    size: int
    is_gzip: bool


@contextmanager
def opened(path: Path, case: str) -> Iterator[Source]:
    with open_regular(path, case=case) as file:
        size, is_gzip = os.fstat(file.fileno()).st_size, file.read(2) == b"\x1f\x8b"
        file.seek(0)
        yield Source(cast(BinaryIO, igzip.GzipFile(fileobj=file)) if is_gzip else file, size, is_gzip)


@contextmanager
def as_case_error(path: Path, case: str) -> Iterator[None]:
    """Turn whatever a broken file provokes into one sentence."""
    try:
        yield
    except CaseError:
        raise
    except UNREADABLE as error:
        cure = "copy or convert the file again (NIfTI .nii or .nii.gz)"
        raise CaseError(case, f"{path} can't be read ({error})", cure) from error
