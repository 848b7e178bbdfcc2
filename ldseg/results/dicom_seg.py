"""A case's label map and mean probabilities as DICOM segmentation objects that refer to the images they lie on.

They belong to the patient and the study of the images, and name both, as DICOM asks: they are written only on request.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import ldseg
from ldseg.data.cohort import Case
from ldseg.data.errors import CaseError
from ldseg.data.formats.dicom.headers import as_case_error, is_dicom, opened
from ldseg.data.formats.dicom.series import planes_of
from ldseg.data.formats.extras import load
from ldseg.files import write_atomically
from ldseg.posterior.summary import PosteriorSummary
from ldseg.results.segment import load_summary

NO_CODE = {"category": ("85756007", "SCT", "Tissue"), "type": ("85756007", "SCT", "Tissue")}
CATEGORY = ("91723000", "SCT", "Anatomical Structure")
# what an object takes over from its images, and whoever removes identifiers often removes as a whole
MAY_BE_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
    "StudyTime", "ReferringPhysicianName",
)  # fmt: skip
KINDS = {"seg": "BINARY", "prob": "FRACTIONAL"}
SERIES_NUMBERS = {"seg": 9001, "prob": 9002}


def write_objects(out: Path, case: Case, model: dict[str, Any]) -> list[Path]:
    """Write OUT/dicom/CASE_seg.dcm, the label map, and CASE_prob.dcm, the structures' mean probabilities in 255 steps.

    Args:
        out: where `segment_here` left the case's maps.
        model: with structures, spatial_dims, in_channels and card, whose `codes` give each structure a DICOM code:
            {"head": {"category": [value, scheme, meaning], "type": [...], "modifier": [...]}}; all but type may lack.

    Raises:
        CaseError: the case's image is no DICOM, or grey; highdicom is not installed.
    """
    if not is_dicom(case.image):
        cure = "leave --dicom-seg away for it"
        raise CaseError(case.name, f"its image {case.image} is no DICOM, which an object could refer to", cure)
    config = load("pydicom.config", case=case.name, what="a DICOM object")
    summary = load_summary(out, case, model)[1]
    structures = tuple(model["structures"])
    planes = planes_of(case.image, case=case.name)
    if planes[0].shape[2] > 1:
        raise CaseError(case.name, f"its image {case.image} is in colour", "a DICOM object is made of grey images")
    written = []
    with (
        as_case_error(case.image, case.name, "can't be referred to by a DICOM object"),
        config.disable_value_validation(),
    ):
        sources, order = _sources(planes, case.name)
        values = _label_values(out, case.name, structures)
        masks = np.stack([summary.label == value for value in values], axis=-1)
        stacks = {"seg": masks.astype(np.uint8), "prob": np.moveaxis(summary.mean_probability, 0, -1)}
        for key, stack in stacks.items():
            frames = _frames(stack, len(planes))[order]
            made = _segmentation(key, sources, frames, summary, (structures, model.get("card", {}).get("codes", {})))
            path = out / "dicom" / f"{case.name}_{key}.dcm"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, _encoded(made))
            written.append(path)
    return written


def _sources(planes: list[Any], case: str) -> tuple[list[Any], list[int]]:
    """The images' datasets without their pixels, and the planes in the order of their frames."""
    if len({plane.file for plane in planes}) == len(planes):
        files, order = [plane.file for plane in planes], list(range(len(planes)))
    else:
        files = [planes[0].file]
        order = sorted(range(len(planes)), key=lambda place: planes[place].number)
        if any(plane.file != files[0] for plane in planes):
            raise CaseError(case, "its images lie in several multi-frame files", "export the series as one object")
    sources = []
    for file in files:
        with opened(file, case=case, all_tags=True) as dataset:
            if "FrameOfReferenceUID" not in dataset:
                raise CaseError(case, f"{file} names no frame of reference", "export the series again")
            for tag in MAY_BE_EMPTY:
                if tag not in dataset:
                    setattr(dataset, tag, "")
            sources.append(dataset)
    return sources, order


def _frames(stack: np.ndarray, count: int) -> np.ndarray:
    """(columns, rows[, planes], S) to (planes, rows, columns, S)."""
    whole = stack.reshape(*stack.shape[:2], count, stack.shape[-1])
    return np.ascontiguousarray(whole.transpose(2, 1, 0, 3))


def _segmentation(
    key: str, sources: list[Any], frames: np.ndarray, summary: PosteriorSummary, named: tuple[tuple[str, ...], Any]
) -> Any:
    """highdicom's object; the same case, model and seed give the same UIDs."""
    seg = load("highdicom.seg", case=summary.case, what="a DICOM object")
    identity = [sources[0].SeriesInstanceUID, summary.model_digest, str(summary.seed), str(summary.num_samples), key]
    return seg.Segmentation(
        source_images=sources,
        pixel_array=frames.astype(np.float32) if key == "prob" else frames,
        segmentation_type=KINDS[key],
        segment_descriptions=list(_descriptions(summary, *named)),
        series_instance_uid=_uid([*identity, "series"]),
        series_number=SERIES_NUMBERS[key],
        sop_instance_uid=_uid([*identity, f"{summary.num_steps}"]),
        instance_number=1,
        manufacturer="LDSeg",
        manufacturer_model_name="LDSeg",
        software_versions=ldseg.__version__,
        device_serial_number=summary.model_digest.removeprefix("sha256:")[:16],
        content_label="PROBABILITY" if key == "prob" else "LABELS",
        content_description="Mean probability of samples" if key == "prob" else "Label map",
        omit_empty_frames=False,  # a structure of which nothing was found has its frames all the same
        series_description=f"LDSeg {'probabilities' if key == 'prob' else 'label map'}",
    )


def _descriptions(summary: PosteriorSummary, structures: tuple[str, ...], codes: Any) -> Iterator[Any]:
    highdicom = load("highdicom", case=summary.case, what="a DICOM object")
    seg = load("highdicom.seg", case=summary.case, what="a DICOM object")
    by = highdicom.AlgorithmIdentificationSequence(
        name="LDSeg",
        family=highdicom.sr.CodedConcept("123110", "DCM", "Artificial Intelligence"),
        version=summary.model_digest.removeprefix("sha256:")[:16],
    )
    for number, name in enumerate(structures, start=1):
        code = codes.get(name, NO_CODE)
        described = seg.SegmentDescription(
            segment_number=number,
            segment_label=name[:64],
            segmented_property_category=highdicom.sr.CodedConcept(*code.get("category", CATEGORY)),
            segmented_property_type=highdicom.sr.CodedConcept(*code["type"]),
            algorithm_type="AUTOMATIC",
            algorithm_identification=by,
        )
        if "modifier" in code:
            modifier = highdicom.sr.CodedConcept(*code["modifier"])
            described.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [modifier]
        yield described


def _label_values(out: Path, case: str, structures: tuple[str, ...]) -> list[int]:
    """The structures' values in the label map, by the table that lies beside it."""
    (table,) = (out / "maps" / case).glob("*_dseg.tsv")
    with table.open(newline="", encoding="utf-8") as file:
        found = {row["name"]: int(row["index"]) for row in csv.DictReader(file, delimiter="\t")}
    return [found[name] for name in structures]


def _uid(parts: list[str]) -> str:
    """A UID from a hash, below the root that is for such numbers (DICOM PS3.5, B.2)."""
    return f"2.25.{int(hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:32], 16)}"


def _encoded(dataset: Any) -> bytes:
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
