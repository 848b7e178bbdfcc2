"""DICOM headers: what a file's tags say of its images, and nothing of the patient.

pydicom parses. It sees a memory map of the file, so that no length that a header claims can ask for more than is there.
Its own warnings and errors quote values; none of them is passed on.
"""

from __future__ import annotations

import math
import mmap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ldseg.data.errors import CaseError
from ldseg.data.formats.extras import load
from ldseg.data.formats.regular import open_regular

MAGIC, MAGIC_AT = b"DICM", 128
DEFLATED = "1.2.840.10008.1.2.1.99"
DIRECTORY = "1.2.840.10008.1.3.10"  # a DICOMDIR
MAX_RATIO = 4096  # pixels that a decoder makes of a byte; more is no image of anything
CURE = "export or copy the series again"
TAGS = (
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription",
    "Modality", "PatientName", "PatientID", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel",
    "PhotometricInterpretation", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing",
    "ImagerPixelSpacing", "SliceThickness", "RescaleSlope", "RescaleIntercept", "EchoTime",
    "TemporalPositionIdentifier", "AcquisitionNumber", "ImageType", "SharedFunctionalGroupsSequence", "BitsAllocated",
    "PerFrameFunctionalGroupsSequence",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Frame:
    """One plane of an image.

    Attributes:
        file, number: where it lies: the file, and from 0 which of its frames.
        instance: its SOPInstanceUID.
        shape: (rows, columns, samples).
        position: (3,) of its first pixel, in mm along the patient's left, posterior and superior.
        directions: (2, 3) cosines along which its columns and its rows count up.
        spacing: (2,) mm from row to row and from column to column.
        thickness: mm, 0 where it is not given.
        slope, intercept: from a stored value to the image's.
        sort: what sets it apart from another at the same place: tag and value.
    """

    file: Path
    number: int
    instance: str
    shape: tuple[int, int, int]
    position: np.ndarray
    directions: np.ndarray
    spacing: np.ndarray
    thickness: float
    slope: float
    intercept: float
    sort: tuple[tuple[str, str], ...]


def is_dicom(path: Path) -> bool:
    """Whether a regular file's content begins as DICOM's does, whatever it is called."""
    try:
        with open_regular(path, case=path.name) as file:
            file.seek(MAGIC_AT)
            return file.read(4) == MAGIC
    except (CaseError, OSError):
        return False


@contextmanager
def opened(path: Path, *, case: str, pixels: bool = False, all_tags: bool = False) -> Iterator[Any]:
    """A file's dataset: the tags above alone, all of them but for the pixels, or, with `pixels`, all of it.

    Raises:
        CaseError: the file is missing, is no DICOM or can't be parsed; also whatever happens within the block.
    """
    pydicom = load("pydicom", case=case, what=f"{path} is DICOM, which")
    config = load("pydicom.config", case=case, what=str(path))
    reader = load("pydicom.filereader", case=case, what=str(path))
    with as_case_error(path, case), config.disable_value_validation(), open_regular(path, case=case) as file:
        if reader.read_file_meta_info(path).get("TransferSyntaxUID") == DEFLATED:
            raise CaseError(case, f"{path} is deflated as a whole", "export it uncompressed or as JPEG 2000")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            tags = None if pixels or all_tags else list(TAGS)
            yield pydicom.dcmread(content, stop_before_pixels=not pixels, specific_tags=tags)


@contextmanager
def as_case_error(path: Path, case: str, problem: str = "can't be read as DICOM") -> Iterator[None]:
    """Turn whatever a broken file provokes in pydicom into one sentence that quotes nothing of it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (CaseError, MemoryError):
        raise
    except Exception as error:  # of any kind: attributes that are missing, numbers that are none, nesting without end
        raise CaseError(case, f"{path} {problem} ({type(error).__name__})", CURE) from None


def frames(dataset: Any, path: Path, *, case: str, max_voxels: int) -> list[Frame]:
    """The planes of a file, of which there are several in a multi-frame object.

    Raises:
        CaseError: it has no pixels, or more than `max_voxels`, or says not where they lie.
    """
    if "Rows" not in dataset or "Columns" not in dataset:
        raise CaseError(case, f"{path} holds no image", "give the series of images")
    shape = int(dataset.Rows), int(dataset.Columns), int(dataset.get("SamplesPerPixel") or 1)
    shared = _group(dataset.get("SharedFunctionalGroupsSequence"), 0)
    each = dataset.get("PerFrameFunctionalGroupsSequence")
    count = int(dataset.get("NumberOfFrames") or 1)
    if min(shape) < 1 or count < 1 or count * shape[0] * shape[1] * shape[2] > max_voxels:
        problem = f"{path} claims {count} frames of {shape[0]} x {shape[1]} x {shape[2]}, more than {max_voxels} voxels"
        raise CaseError(case, problem, "export a part of it, or correct its header")
    claimed, there = count * math.prod(shape) * int(dataset.get("BitsAllocated") or 8) // 8, path.stat().st_size
    if claimed > there * (MAX_RATIO if dataset.file_meta.TransferSyntaxUID.is_compressed else 1):
        raise CaseError(case, f"{path} is truncated ({there} bytes for {claimed} of pixels)", CURE)
    if count > 1 and (each is None or len(each) != count):
        raise CaseError(case, f"{path} says not where each of its {count} frames lies", "export one file a slice")
    return [_frame(dataset, path, case, shape, (number, shared, _group(each, number))) for number in range(count)]


def _frame(dataset: Any, path: Path, case: str, shape: tuple[int, int, int], place: tuple[int, Any, Any]) -> Frame:
    number, *groups = place

    def found(name: str, sequence: str) -> Any:
        """A value of the frame's own group, of the one for all frames, or of the file."""
        for group in reversed(groups):
            inner = _group(group.get(sequence), 0) if group is not None else None
            if inner is not None and inner.get(name) is not None:
                return inner.get(name)
        return dataset.get(name)

    position = found("ImagePositionPatient", "PlanePositionSequence")
    directions = found("ImageOrientationPatient", "PlaneOrientationSequence")
    spacing = found("PixelSpacing", "PixelMeasuresSequence")
    given = {"position": position, "orientation": directions, "pixel spacing": spacing}
    if missing := [name for name, value in given.items() if value is None]:
        cure = "export it with its geometry, or convert it to PNG or NIfTI"
        raise CaseError(case, f"{path} gives no {' and no '.join(missing)} of its pixels", cure)
    slope = found("RescaleSlope", "PixelValueTransformationSequence")
    return Frame(
        file=path,
        number=number,
        instance=str(dataset.get("SOPInstanceUID", "")),
        shape=shape,
        position=np.array(position, dtype=np.float64).reshape(3),
        directions=np.array(directions, dtype=np.float64).reshape(2, 3),
        spacing=np.array(spacing, dtype=np.float64).reshape(2),
        thickness=float(found("SliceThickness", "PixelMeasuresSequence") or 0.0),
        slope=1.0 if slope is None else float(slope),
        intercept=float(found("RescaleIntercept", "PixelValueTransformationSequence") or 0.0),
        sort=tuple(
            (tag, str(dataset.get(tag, "")))
            for tag in ("EchoTime", "TemporalPositionIdentifier", "AcquisitionNumber", "ImageType")
        ),
    )


def _group(sequence: Any, number: int) -> Any:
    return sequence[number] if sequence is not None and len(sequence) > number else None
