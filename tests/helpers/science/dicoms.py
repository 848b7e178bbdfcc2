"""DICOM series of a known array and a known place, written by pydicom."""

from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

PATIENT, PATIENT_ID = "Doe^Jane", "HOSP-4711"


def turned(degrees: float, axis: tuple[float, float, float]) -> np.ndarray:
    """(3, 3) a rotation, whose columns are the directions of columns, rows and planes (Rodrigues' formula)."""
    k = np.asarray(axis) / np.linalg.norm(axis)
    cross = np.array([[0, -k[2], k[1]], [k[2], 0, -k[0]], [-k[1], k[0], 0]])
    angle = np.deg2rad(degrees)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def affine_lps(rotation: np.ndarray, spacing: tuple[float, float, float], origin: tuple[float, ...]) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = rotation * np.asarray(spacing), origin
    return affine


def plain(uid: str = "1.2.3") -> Dataset:
    """The tags that all images of a series share."""
    ds = Dataset()
    ds.PatientName, ds.PatientID = PATIENT, PATIENT_ID
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = f"{uid}.1", f"{uid}.2", f"{uid}.3"
    ds.SeriesDescription, ds.SeriesNumber, ds.Modality = "T2 FLAIR", 4, "MR"
    ds.StudyDate, ds.StudyTime, ds.AccessionNumber, ds.StudyID = "20200101", "120000", "A1", "S1"
    ds.PatientBirthDate, ds.PatientSex, ds.ReferringPhysicianName = "19700101", "F", "House^G"
    ds.Manufacturer, ds.StudyDescription = "Test", "Brain"
    return ds


def _pixels(ds: Dataset, array: np.ndarray) -> None:
    """(..., rows, columns) int16 or uint16."""
    ds.Rows, ds.Columns = array.shape[-2:]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit, ds.PixelRepresentation = 15, int(array.dtype.kind == "i")
    ds.PixelData = np.ascontiguousarray(array).tobytes()


def _save(ds: Dataset, path: Path, kind: str) -> Path:
    ds.SOPClassUID, ds.SOPInstanceUID = kind, generate_uid()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return path


def write_series(
    folder: Path, array: np.ndarray, affine: np.ndarray, *, uid: str = "1.2.3", **tags: object
) -> list[Path]:
    """One file a plane of (columns, rows, planes) at `affine` (in LPS); the files' order is not the planes'."""
    paths = []
    columns = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    for k in range(array.shape[2]):
        ds = plain(uid)
        ds.ImagePositionPatient = [f"{v:.6f}" for v in affine[:3] @ [0, 0, k, 1]]
        ds.ImageOrientationPatient = [f"{v:.10f}" for v in columns[:, :2].T.ravel()]
        ds.PixelSpacing, ds.SliceThickness = [spacing[1], spacing[0]], spacing[2]
        ds.InstanceNumber = k + 1
        _pixels(ds, array[:, :, k].T)
        for tag, value in tags.items():
            setattr(ds, tag, value)
        paths.append(_save(ds, folder / f"im{(k * 7) % 101:03d}.dcm", MRImageStorage))
    return paths


def write_enhanced(path: Path, array: np.ndarray, affine: np.ndarray, slopes: list[float]) -> Path:
    """One multi-frame file of (columns, rows, planes), the frames in reverse, each with its slope."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    ds, order = plain(), range(array.shape[2] - 1, -1, -1)
    orientation, measures = Dataset(), Dataset()
    orientation.ImageOrientationPatient = [f"{v:.10f}" for v in (affine[:3, :2] / spacing[:2]).T.ravel()]
    measures.PixelSpacing, measures.SliceThickness = [spacing[1], spacing[0]], spacing[2]
    shared = Dataset()
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    ds.SharedFunctionalGroupsSequence, ds.PerFrameFunctionalGroupsSequence = [shared], []
    for k in order:
        frame, position, values = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [f"{v:.6f}" for v in affine[:3] @ [0, 0, k, 1]]
        values.RescaleSlope, values.RescaleIntercept, values.RescaleType = slopes[k], -1, "US"
        frame.PlanePositionSequence, frame.PixelValueTransformationSequence = [position], [values]
        ds.PerFrameFunctionalGroupsSequence.append(frame)
    _pixels(ds, np.stack([array[:, :, k].T for k in order]))
    ds.NumberOfFrames = array.shape[2]
    return _save(ds, path, EnhancedMRImageStorage)


def edit(path: Path, **tags: object) -> None:
    """Change tags of a file; None removes one."""
    ds = pydicom.dcmread(path)
    for tag, value in tags.items():
        if value is None:
            delattr(ds, tag)
        else:
            setattr(ds, tag, value)
    ds.save_as(path)
