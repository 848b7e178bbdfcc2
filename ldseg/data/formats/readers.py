"""The table of readers: which module reads which file.

Each has `read_header(path, *, case)` and `read(path, *, case, max_voxels)`, which bound what a header claims before
anything of that size is made; both give a NIfTI header, which the results follow.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from ldseg.data.errors import CaseError
from ldseg.data.formats import itk, mgh, nifti
from ldseg.data.formats.dicom import series
from ldseg.data.formats.dicom.headers import is_dicom

READERS: dict[tuple[str, ...], ModuleType] = {nifti.SUFFIXES: nifti, mgh.SUFFIXES: mgh, itk.SUFFIXES: itk}
SUFFIXES = tuple(sorted((s for suffixes in READERS for s in suffixes), key=len, reverse=True))  # .nii.gz before .gz
KNOWN = "NIfTI (.nii.gz), DICOM, NRRD, MetaImage (.mha), MGZ, PNG, BMP or TIFF"


def reader_of(path: Path, *, case: str) -> ModuleType:
    """The module that reads a file with a geometry: by its ending, DICOM by its content.

    Raises:
        CaseError: the file is there and of an unknown kind.
    """
    name = path.name.lower()
    found = next((reader for suffixes, reader in READERS.items() if name.endswith(suffixes)), None)
    if found is not None:
        return found
    if is_dicom(path):
        return series
    if path.is_file():
        raise CaseError(case, f"{path} is of an unknown kind", f"convert it to {KNOWN}")
    return nifti  # which says that it is missing


def parts_of(path: Path) -> list[Path]:
    """The files beside an image that are a part of it."""
    name = path.name.lower()
    reader = next((reader for reader in (mgh, itk) if name.endswith(reader.SUFFIXES)), None)
    return [] if reader is None else reader.parts(path)


def made_of(path: Path) -> list[Path]:
    """The files by which a change of an image is noticed: its own, its parts beside it, a series' folder."""
    if not is_dicom(path):
        return [path, *(part for part in parts_of(path) if part.is_file())]
    beside = (file for file in sorted(path.parent.iterdir()) if file != path and not file.name.startswith("."))
    return [path, *(file for file in beside if file.is_file())]
