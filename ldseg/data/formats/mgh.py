"""MGH and MGZ of FreeSurfer, and pairs of .hdr and .img (NIfTI-1, Analyze 7.5, SPM): headers by nibabel.

An Analyze header knows no orientation: as nibabel and SPM do, its first axis is taken to run to the left, and its
origin, where it has none, to lie in the middle.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.freesurfer.mghformat import MGHHeader
from nibabel.spm2analyze import Spm2AnalyzeHeader

from ldseg.data.errors import CaseError
from ldseg.data.formats.nifti import affine_mm, as_case_error, as_header, check_spacing, opened, read_voxels

SUFFIXES = (".mgz", ".mgh.gz", ".mgh", ".hdr")
MGH_BYTES, PAIR_BYTES = 284, 348
MGH_TYPES = (0, 1, 3, 4)  # uint8, int32, float32, int16


def read_header(path: Path, *, case: str) -> nib.Nifti1Header:
    """A NIfTI header with the file's shape and affine; that of a NIfTI pair is its own, with its unit and codes.

    Raises:
        CaseError: the file is missing or broken.
    """
    with as_case_error(path, case):
        header, _, affine = _parse(path, case)
        return _nifti(header, affine, header.get_data_dtype())


def read(path: Path, *, case: str, max_voxels: int) -> tuple[np.ndarray, nib.Nifti1Header, np.ndarray]:
    """Voxels in the file's own axes, a NIfTI header, and the affine (4, 4) float64, voxel to world in mm.

    Raises:
        CaseError: missing, unreadable, truncated, or more than `max_voxels`.
    """
    with as_case_error(path, case):
        header, holder, affine = _parse(path, case)
        with opened(holder, case) as source:
            array = read_voxels(source, header, holder, case=case, max_voxels=max_voxels)
        return array, _nifti(header, affine, array.dtype), affine


def parts(path: Path) -> list[Path]:
    """The files that belong to a header's: its voxels, and what SPM writes beside them."""
    if not path.name.lower().endswith(".hdr"):
        return []
    return [path.with_name(path.name[:-4] + ending) for ending in (".img", ".IMG", ".img.gz", ".mat")]


def _nifti(header: Any, affine: np.ndarray, dtype: np.dtype) -> nib.Nifti1Header:
    if isinstance(header, nib.Nifti1Header):
        return header
    return as_header(tuple(int(n) for n in header.get_data_shape()), affine, dtype)


def _parse(path: Path, case: str) -> tuple[Any, Path, np.ndarray]:
    """The header, the file that holds its voxels, and the affine."""
    is_pair = path.name.lower().endswith(".hdr")
    with opened(path, case) as source:
        block = source.stream.read(PAIR_BYTES if is_pair else MGH_BYTES)
    if len(block) < (PAIR_BYTES if is_pair else MGH_BYTES):
        raise ValueError(f"its header ends after {len(block)} bytes")
    if not is_pair:
        header = MGHHeader(block, check=False)  # its own check logs what it finds
        if header["version"] != 1 or int(header["type"]) not in MGH_TYPES:
            raise ValueError(f"its header gives the version {header['version']} and the type {header['type']}")
        return header, path, np.asarray(header.get_affine(), dtype=np.float64)
    if block[344:347] == b"ni1":
        check_spacing(nib.nifti1.Nifti1PairHeader(block, check=False))
        header = nib.nifti1.Nifti1PairHeader(block)
        affine = affine_mm(header)
    else:
        if (moved := path.with_suffix(".mat")).exists():
            raise CaseError(
                case, f"where {path} lies is said by {moved.name}, which is not read", "convert it to NIfTI"
            )
        check_spacing(Spm2AnalyzeHeader(block, check=False))
        header = Spm2AnalyzeHeader(block)
        affine = header.get_origin_affine()
    voxels = parts(path)[:-1]
    holder = next((file for file in voxels if file.is_file()), voxels[0])
    return header, holder, np.asarray(affine, dtype=np.float64)
