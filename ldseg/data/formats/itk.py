"""NRRD and MetaImage by SimpleITK, which is an extra of the package.

The header is read first, and what it claims is held against the file's size before SimpleITK allocates it. A header may
name another file for its voxels; only one in the same folder is read.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from ldseg.data.errors import CaseError
from ldseg.data.formats.extras import load
from ldseg.data.formats.nifti import MAX_GZIP_RATIO, as_case_error, as_header
from ldseg.data.formats.regular import open_regular

SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
MAX_TEXT_BYTES = 2**16
BESIDE = re.compile(r"[^/\\%\s][^/\\%]*")  # the name of one file in the same folder
TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # ITK's axes run to the left and to the back
LINE = {True: rb"(?im)^\s*%s[ \t]*:=?[ \t]*([^\r\n]*)", False: rb"(?im)^\s*%s[ \t]*=[ \t]*([^\r\n]*)"}  # NRRD's, others
FIELDS = {True: (rb"data ?file", rb"encoding", rb"(?:space directions|spacings)"),
          False: (rb"ElementDataFile", rb"CompressedData", rb"(?:ElementSpacing|ElementSize)")}  # fmt: skip


def read_header(path: Path, *, case: str) -> nib.Nifti1Header:
    """A NIfTI header with the file's shape and affine.

    Raises:
        CaseError: the file is missing or broken, or SimpleITK is not installed.
    """
    with as_case_error(path, case):
        image = _information(path, case)
        return as_header(image.GetSize(), _affine(image), np.dtype(np.float32))


def read(path: Path, *, case: str, max_voxels: int) -> tuple[np.ndarray, nib.Nifti1Header, np.ndarray]:
    """Voxels in the file's own axes (a last axis holds components), a NIfTI header, and the affine in mm.

    Raises:
        CaseError: missing, unreadable, truncated, or more than `max_voxels`; SimpleITK is not installed.
    """
    itk = load("SimpleITK", case=case, what=str(path))
    with as_case_error(path, case):
        information = _information(path, case)
        _check_size(itk, information, path, case, max_voxels)
        try:
            image = information.Execute()
        except RuntimeError as error:
            raise ValueError(_last_line(error)) from error
        array = itk.GetArrayViewFromImage(image)
        if image.GetNumberOfComponentsPerPixel() > 1:
            array = np.moveaxis(array, -1, 0)  # the components' axis is the last one after the transposition
        array = np.array(array.T, order="F")
        affine = _affine(information)
        return array, as_header(array.shape, affine, array.dtype), affine


def parts(path: Path) -> list[Path]:
    """The file beside it that holds the voxels of a header, if there is one."""
    try:
        with open_regular(path, case=path.name) as file:
            voxels = _fields(file.read(MAX_TEXT_BYTES), path)[0]
    except (CaseError, OSError):
        return []
    return [path.parent / voxels] if BESIDE.fullmatch(voxels) and voxels.upper() != "LOCAL" else []


def _information(path: Path, case: str) -> Any:
    """SimpleITK's reader of the file, which has read the header."""
    itk = load("SimpleITK", case=case, what=str(path))
    with open_regular(path, case=case) as file:
        text = file.read(MAX_TEXT_BYTES)
    voxels, _, size = _fields(text, path)
    if voxels and voxels.upper() != "LOCAL" and not BESIDE.fullmatch(voxels):
        raise ValueError(f"its voxels lie in {voxels[:80]!r}; only one file in the same folder is read")
    if voxels.upper() in ("LIST", "LOCAL LIST") or voxels.upper().startswith("LIST "):
        raise ValueError("its voxels lie in a list of files; only one file in the same folder is read")
    if not size:
        raise ValueError("its header gives no voxel size")
    if voxels and voxels.upper() != "LOCAL":
        with open_regular(path.with_name(voxels), case=case):
            pass
    reader = itk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise ValueError(_last_line(error)) from error
    return reader


def _fields(text: bytes, path: Path) -> list[str]:
    """Where the voxels lie, how they are packed and how large they are, as the header says; "" where it doesn't."""
    is_nrrd = path.name.lower().endswith((".nrrd", ".nhdr"))
    if is_nrrd:
        text = re.split(rb"\r?\n\r?\n", text, maxsplit=1)[0]  # a blank line ends the header
    found = [re.search(LINE[is_nrrd] % field, text) for field in FIELDS[is_nrrd]]
    return [match[1].decode(errors="replace").strip() if match else "" for match in found]


def _check_size(itk: Any, reader: Any, path: Path, case: str, max_voxels: int) -> None:
    shape, components = tuple(reader.GetSize()), int(reader.GetNumberOfComponents())
    voxels = math.prod(shape) * components
    if voxels < 1 or voxels > max_voxels:
        cure = "crop it or correct its header"
        raise CaseError(case, f"{path} claims {voxels} voxels {shape}, more than {max_voxels}", cure)
    with open_regular(path, case=case) as file:
        name, packing, _ = _fields(file.read(MAX_TEXT_BYTES), path)
    holder = path if not name or name.upper() == "LOCAL" else path.with_name(name)
    there, item = holder.stat().st_size, _item_bytes(itk, reader)
    plain = packing.lower() in ("", "raw", "false")
    if voxels * item > there * (1 if plain else MAX_GZIP_RATIO):
        raise CaseError(case, f"{holder} is truncated ({there} bytes for the shape {shape})", "copy the file again")


def _item_bytes(itk: Any, reader: Any) -> int:
    one = itk.Image([1] * reader.GetDimension(), reader.GetPixelID(), reader.GetNumberOfComponents())
    return int(one.GetSizeOfPixelComponent())


def _affine(reader: Any) -> np.ndarray:
    dims = min(3, reader.GetDimension())
    directions = np.array(reader.GetDirection()).reshape(reader.GetDimension(), -1)[:dims, :dims]
    affine = np.eye(4)
    affine[:dims, :dims] = directions * np.array(reader.GetSpacing()[:dims])
    affine[:dims, 3] = reader.GetOrigin()[:dims]
    return TO_RAS @ affine


def _last_line(error: RuntimeError) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else "unknown"
