"""A DICOM series as a volume: the images of one SeriesInstanceUID in a folder, or one multi-frame object.

A series is named by any of its files; the others are those beside it with the same SeriesInstanceUID.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from ldseg.data.errors import CaseError
from ldseg.data.formats.dicom.codestreams import size_of
from ldseg.data.formats.dicom.headers import CURE, Frame, as_case_error, frames, is_dicom, opened
from ldseg.data.formats.dicom.planes import arrange
from ldseg.data.formats.extras import load
from ldseg.data.formats.nifti import as_header

GREY, COLOUR = ("MONOCHROME1", "MONOCHROME2"), ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
RLE = "1.2.840.10008.1.2.5"  # which says no size of its own


def read_header(path: Path, *, case: str) -> nib.Nifti1Header:
    """A NIfTI header with the shape and the affine of the series that a file belongs to.

    Raises:
        CaseError: see `read`.
    """
    ordered, affine = _planes(path, case, 2**62)
    return as_header(_shape(ordered), affine, np.dtype(np.float32))


def read(path: Path, *, case: str, max_voxels: int) -> tuple[np.ndarray, nib.Nifti1Header, np.ndarray]:
    """The voxels of the series that a file belongs to: (columns, rows, planes) float32, a last axis for colours.

    Values are rescaled plane by plane by RescaleSlope and RescaleIntercept; MONOCHROME1, where low is white, is turned.

    Raises:
        CaseError: a file can't be read or decoded, the planes are no volume, or they are more than `max_voxels`.
    """
    ordered, affine = _planes(path, case, max_voxels)
    shape = _shape(ordered)
    voxels = np.empty(shape, np.float32, order="F")
    places: dict[Path, dict[int, int]] = {}
    for place, frame in enumerate(ordered):
        places.setdefault(frame.file, {})[frame.number] = place
    for file, numbers in places.items():
        for number, pixels in _pixels(file, case, max(numbers) + 1):
            frame = ordered[numbers[number]]
            if pixels.shape[:2] != frame.shape[:2]:
                raise CaseError(case, f"the pixels of {file} are {pixels.shape}, its header says {frame.shape}", CURE)
            voxels[:, :, numbers[number]] = np.moveaxis(pixels * frame.slope + frame.intercept, 0, 1)
    header = as_header(shape, affine, voxels.dtype)
    return voxels, header, np.asarray(header.get_best_affine(), dtype=np.float64)  # as results and labels have it


def planes_of(path: Path, *, case: str) -> list[Frame]:
    """The planes of the series that a file belongs to, in the order of the volume's last axis.

    Raises:
        CaseError: see `read`.
    """
    return _planes(path, case, 2**62)[0]


def files_of(path: Path, *, case: str) -> list[Path]:
    """The files of the series that a file belongs to, which lie beside it, by name.

    Raises:
        CaseError: the file can't be read.
    """
    with opened(path, case=case) as dataset:
        wanted = dataset.SeriesInstanceUID
    found = []
    for file in sorted(path.parent.iterdir()):
        if file.name.startswith(".") or not is_dicom(file):
            continue
        with opened(file, case=case) as dataset:
            if dataset.get("SeriesInstanceUID") == wanted:
                found.append(file)
    return found


def _planes(path: Path, case: str, max_voxels: int) -> tuple[list[Frame], np.ndarray]:
    found: list[Frame] = []
    for file in files_of(path, case=case):
        with opened(file, case=case) as dataset:
            kind = str(dataset.get("PhotometricInterpretation", ""))
            if kind not in GREY + COLOUR:
                raise CaseError(case, f"{file} holds pixels of the kind {kind[:20]!r}", "export it in grey or RGB")
            found += frames(dataset, file, case=case, max_voxels=max_voxels)
        if sum(math.prod(frame.shape) for frame in found) > max_voxels:
            raise CaseError(case, f"the series of {path} claims more than {max_voxels} voxels", "export a part of it")
    with as_case_error(path, case):
        return arrange(found, case=case)


def _shape(ordered: list[Frame]) -> tuple[int, ...]:
    rows, columns, samples = ordered[0].shape
    return (columns, rows, len(ordered), *((samples,) if samples > 1 else ()))


def _pixels(file: Path, case: str, count: int) -> Iterable[tuple[int, np.ndarray]]:
    """The frames of a file: number and (rows, columns) or (rows, columns, 3) float64."""
    iterate = load("pydicom.pixels", case=case, what=str(file)).iter_pixels
    with opened(file, case=case, pixels=True) as dataset:
        syntax = dataset.file_meta.TransferSyntaxUID
        with as_case_error(file, case, f"holds pixels ({syntax.name[:60]}) that can't be decoded"):
            if syntax.is_compressed and syntax != RLE:
                _check_streams(dataset, file, case)
            for number, pixels in zip(range(count), iterate(dataset), strict=False):
                yield number, _turned(np.asarray(pixels, dtype=np.float64), dataset)
            if number + 1 < count:
                raise CaseError(case, f"{file} holds {number + 1} of {count} frames", CURE)


def _check_streams(dataset: Any, file: Path, case: str) -> None:
    """A compressed frame names its own size, which a decoder would believe."""
    generate = load("pydicom.encaps", case=case, what=str(file)).generate_frames
    for stream in generate(dataset.PixelData, number_of_frames=int(dataset.get("NumberOfFrames") or 1)):
        if size_of(stream) != (dataset.Rows, dataset.Columns):
            raise CaseError(case, f"the compressed pixels of {file} have another size than its header says", CURE)


def _turned(pixels: np.ndarray, dataset: Any) -> np.ndarray:
    if dataset.PhotometricInterpretation != "MONOCHROME1":
        return pixels
    ends = -1.0 if dataset.PixelRepresentation else 2.0**dataset.BitsStored - 1  # the lowest and the highest together
    return ends - pixels
