"""The layouts of a cohort on disk: manifests, dataset.json folders, Image/ and Label/ pairs, plain folders."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from ldseg.data.errors import CaseError, CohortError
from ldseg.data.formats.dicom import studies
from ldseg.data.volume import is_image, stem

SPLITS = ("train", "validation", "test")
_SYNONYMS = {"training": "train", "val": "validation", "valid": "validation", "testing": "test"}


@dataclass(frozen=True, kw_only=True)
class Case:
    """An image and its labels, one per rater; () where it is unlabelled. `patient` is None where nothing names one."""

    name: str
    image: Path
    labels: tuple[Path, ...] = ()
    split: str = ""
    patient: str | None = None


@dataclass(frozen=True)
class Listing:
    """What a layout says, before a file is looked at."""

    cases: list[Case]
    labels: dict[int, str] | None = None
    problems: tuple[CaseError, ...] = ()


def list_cases(path: Path, series: str = "") -> Listing:
    """What the folder or manifest lists, without looking at the files (see `read_cohort`), but at DICOM's headers.

    Args:
        series: names one series of each DICOM study (`ldseg.data.formats.dicom.studies.choose`).

    Raises:
        CohortError: there is no such folder or manifest, or it can't be understood.
    """
    if path.is_file():
        return _list_manifest(path)
    if not path.is_dir():
        raise CohortError(f"there is no folder or manifest {path}; correct the path")
    for manifest in (path / "manifest.csv", path / "manifest.parquet"):
        if manifest.is_file():
            return _list_manifest(manifest)
    if (path / "dataset.json").is_file():
        return _list_dataset_json(path)
    folders = {child.name.lower().rstrip("s"): child for child in sorted(path.iterdir()) if child.is_dir()}
    if {"image", "label"} <= set(folders):
        return _list_pairs(folders["image"], folders["label"])
    images = [] if series else _images(path)
    return Listing([Case(name=stem(file), image=file) for file in images]) if images else list_series(path, series)


def _list_manifest(path: Path) -> Listing:
    rows = _read_rows(path)
    columns = list(rows[0]) if rows else []
    if not {"case", "image"} <= set(columns):
        needed = "case and image (label, label_2 ..., split, patient, series are optional)"
        raise CohortError(f"{path} needs the columns {needed}, got {columns}")
    raters = [c for c in columns if re.fullmatch(r"label(_\d+)?", c)]
    raters.sort(key=lambda column: int(column.partition("_")[2] or 1))
    cases, problems = [], []
    for row in rows:
        split = _SYNONYMS.get(row.get("split", "").lower(), row.get("split", "").lower())
        if split not in (*SPLITS, ""):
            problem = f"{path} gives it the split {split!r}"
            problems.append(CaseError(row["case"], problem, f"use one of {', '.join(SPLITS)}"))
        elif not row["image"]:
            problems.append(CaseError(row["case"], f"{path} gives it no image", "fill the column image"))
        else:
            files = tuple(path.parent / row[c] for c in raters if row[c])
            image, patient = path.parent / row["image"], row.get("patient") or None
            if image.is_dir():
                try:
                    image = _series_in(image, row.get("series", ""), row["case"])
                except CaseError as error:
                    problems.append(error)
                    continue
            cases.append(Case(name=row["case"], image=image, labels=files, split=split, patient=patient))
    labels_json = path.parent / "dataset.json"
    labels = _read_json(labels_json).get("labels") if labels_json.is_file() else None
    return Listing(cases, _parse_labels(labels, labels_json) if labels else None, tuple(problems))


def _read_rows(path: Path) -> list[dict[str, str]]:
    try:
        if path.suffix.lower() == ".parquet":
            table = pq.read_table(path).to_pylist()
        elif path.suffix.lower() == ".csv":
            with path.open(newline="", encoding="utf-8-sig") as file:
                table = list(csv.DictReader(file))
        else:
            raise CohortError(f"{path} is no manifest; give a .csv, a .parquet or a folder")
    except (OSError, ValueError, csv.Error) as error:
        if isinstance(error, CohortError):
            raise
        raise CohortError(f"the manifest {path} can't be read ({error}); write it again") from error
    return [
        {str(key).strip().lower(): "" if value is None else str(value).strip() for key, value in row.items() if key}
        for row in table
    ]


def _list_dataset_json(root: Path) -> Listing:
    content = _read_json(root / "dataset.json")
    labels = _parse_labels(content.get("labels"), root / "dataset.json")
    if "training" in content:
        try:
            pairs = [(root / entry["image"], root / entry["label"]) for entry in content["training"]]
        except (TypeError, KeyError) as error:
            raise CohortError(f"{root / 'dataset.json'}: each entry of training needs image and label") from error
        return Listing([Case(name=stem(image), image=image, labels=(label,)) for image, label in pairs], labels)
    ending = content.get("file_ending")
    if not isinstance(ending, str):
        raise CohortError(f"{root / 'dataset.json'} has neither training nor file_ending; it fits no known layout")
    if len(content.get("channel_names", ["one"])) != 1:
        cure = "merge them into one file per case and list it in a manifest"
        raise CohortError(f"{root} keeps each channel in its own file; {cure}")
    cases = []
    for file in _images(root / "imagesTr"):
        if file.name.endswith(f"_0000{ending}"):
            name = file.name.removesuffix(f"_0000{ending}")
            cases.append(Case(name=name, image=file, labels=(root / "labelsTr" / f"{name}{ending}",)))
    return Listing(cases, labels)


def _list_pairs(images: Path, labels: Path) -> Listing:
    by_name = {re.sub(r"[_-](label|seg|mask)$", "", stem(file)): file for file in _images(labels)}
    cases = []
    for image in _images(images):
        expected = labels / image.name.replace(stem(image), f"{stem(image)}_label", 1)  # named where there is none
        cases.append(Case(name=stem(image), image=image, labels=(by_name.get(stem(image), expected),)))
    return Listing(cases)


def list_series(root: Path, pattern: str) -> Listing:
    """A case for each study below a folder, if there is any."""
    try:
        found, problems = studies.find_series(root)
    except CaseError as error:  # the library is missing
        raise CohortError(f"{error.problem}; {error.cure}") from error
    if not found:
        return Listing([], problems=problems)
    chosen, without = studies.choose(found, pattern, root)
    names = Counter(one.name for one in chosen)
    cases, scattered = [], []
    for one in chosen:
        name = one.name if names[one.name] == 1 else f"{one.name}_{hashlib.sha256(one.uid.encode()).hexdigest()[:8]}"
        if len(one.folders) > 1:
            problem = f"its {len(one.files)} images lie in {len(one.folders)} folders"
            scattered.append(CaseError(name, problem, "put the images of a series into one folder, each once"))
        else:
            cases.append(Case(name=name, image=one.files[0]))
    return Listing(cases, problems=(*problems, *without, *scattered))


def _series_in(folder: Path, pattern: str, case: str) -> Path:
    """A file of the one series that a folder of a manifest holds, or that the pattern names."""
    listing = list_series(folder, pattern)
    if len(listing.cases) != 1:
        problem = f"{folder} is a folder with {len(listing.cases)} usable series of DICOM"
        raise CaseError(case, problem, "name one file, or a folder with one series")
    return listing.cases[0].image


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise CohortError(f"there is no folder {folder}; correct the path")
    visible = (file for file in folder.iterdir() if not file.name.startswith("."))
    return sorted(file for file in visible if file.is_file() and is_image(file))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CohortError(f"{path} can't be read ({error}); correct its JSON") from error
    if not isinstance(content, dict):
        raise CohortError(f"{path} must hold a JSON object")
    return content


def _parse_labels(labels: Any, path: Path) -> dict[int, str]:
    """Value to name, from {"0": "background"} (Decathlon) or {"background": 0} (nnU-Net)."""
    try:
        items = [(int(k), str(v)) if str(k).lstrip("-").isdigit() else (int(v), str(k)) for k, v in labels.items()]
    except (AttributeError, TypeError, ValueError) as error:
        raise CohortError(f"{path}: labels must map each value to one name (regions are not supported)") from error
    return dict(sorted(items))
