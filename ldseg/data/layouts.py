"""The layouts of a cohort on disk: manifests, dataset.json folders, Image/ and Label/ pairs, plain folders."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from ldseg.data.errors import CaseError, CohortError
from ldseg.data.formats.dicom import studies
from ldseg.data.formats.regular import absence
from ldseg.data.listing import folder as listing
from ldseg.data.listing.names import case_name
from ldseg.data.listing.rows import column_name, decoded, read_rows
from ldseg.data.volume import is_image, stem

MANIFESTS = ("manifest.csv", "manifest.tsv", "manifest.parquet")
SPLITS = ("train", "validation", "test")
EXCESS = ""  # no column is called so
_SYNONYMS = {"training": "train", "val": "validation", "valid": "validation", "testing": "test"}


@dataclass(frozen=True, kw_only=True)
class Case:
    """An image and its labels, one per rater; () where it is unlabelled. `patient` is None where nothing names one.

    `label_values` are its labels' values of a model's classes, where they are not the model's own (`for_model`),
    `ignore` is the value of voxels that nobody judged.
    """

    name: str
    image: Path
    labels: tuple[Path, ...] = ()
    split: str = ""
    patient: str | None = None
    label_values: tuple[int, ...] = ()
    ignore: int | None = None


@dataclass(frozen=True)
class Listing:
    """What a layout says, before a file is looked at.

    Attributes:
        problems: a sentence for each case that was left out.
        notes: sentences on what was not searched or not used, which is no case.
    """

    cases: list[Case]
    labels: dict[int, str] | None = None
    problems: tuple[CaseError, ...] = ()
    notes: tuple[str, ...] = ()


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
        why, cure = (
            absence(path) if path.is_symlink() else (f"there is no folder or manifest {path}", "correct the path")
        )
        raise CohortError(f"{why}; {cure}")
    manifests = [path / name for name in MANIFESTS if (path / name).is_file()]
    if manifests:
        found = _list_manifest(manifests[0])
        notes = tuple(f"{other} is not read, {manifests[0]} is used" for other in manifests[1:])
        return replace(found, notes=(*found.notes, *notes))
    if (path / "dataset.json").is_file():
        return _list_dataset_json(path)
    folders = {child.name.lower().rstrip("s"): child for child in sorted(path.iterdir()) if child.is_dir()}
    if {"image", "label"} <= set(folders):
        return _list_pairs(folders["image"], folders["label"])
    if "imagestr" in folders:
        raise CohortError(
            f"{path} has {folders['imagestr'].name}/ but no dataset.json, which names the labels; give one"
        )
    return _list_images(path, series)


def _list_images(path: Path, series: str) -> Listing:
    """The images and the DICOM series of a folder; where it has no image, those of the folders below too.

    Where a series is named, only DICOM is meant, wherever below the folder it lies.
    """
    top = listing.look(path)
    has_images = bool(top.images) or any(is_image(child) for child in path.iterdir())
    parts = [top] if has_images and not series else list(listing.below(path))
    images = [file for part in parts for file in part.images]
    scans = _list_series(path, series, (file for part in parts for file in part.dicom))
    if series:
        aside = f"{len(images)} images in {path} are not used, since a DICOM series is asked for"
        return replace(scans, notes=(*scans.notes, *([aside] if images else [])))
    return Listing(
        [Case(name=case_name(file, path), image=file) for file in images] + scans.cases,
        problems=(*(problem for part in parts for problem in part.problems), *scans.problems),
        notes=(*scans.notes, *(listing.unsearched(top) if parts == [top] else ())),
    )


def _list_manifest(path: Path) -> Listing:
    columns, rows = _read_rows(path)
    if not {"case", "image"} <= set(columns):
        needed = "case and image (label, label_2 ..., split, patient, series are optional)"
        raise CohortError(f"{path} needs the columns {needed}, got {columns}")
    if not rows:
        raise CohortError(f"{path} has its columns and no row; give it a row for each case")
    raters = [c for c in columns if re.fullmatch(r"label(_\d+)?", c)]
    raters.sort(key=lambda column: int(column.partition("_")[2] or 1))
    cases, problems = [], []
    for row in rows:
        name = unicodedata.normalize("NFC", row["case"])
        split = _SYNONYMS.get(row.get("split", "").lower(), row.get("split", "").lower())
        if EXCESS in row:
            problem = f"{path} gives it {row[EXCESS]} cells for {len(columns)} columns"
            problems.append(CaseError(name, problem, "quote what holds a separator"))
        elif split not in (*SPLITS, ""):
            problem = f"{path} gives it the split {split!r}"
            problems.append(CaseError(name, problem, f"use one of {', '.join(SPLITS)}"))
        elif not row["image"]:
            problems.append(CaseError(name, f"{path} gives it no image", "fill the column image"))
        else:
            files = tuple(path.parent / row[c] for c in raters if row[c])
            image, patient = path.parent / row["image"], row.get("patient") or None
            if image.is_dir():
                try:
                    image = _series_in(image, row.get("series", ""), name)
                except CaseError as error:
                    problems.append(error)
                    continue
            cases.append(Case(name=name, image=image, labels=files, split=split, patient=patient))
    labels_json = path.parent / "dataset.json"
    labels = _read_json(labels_json).get("labels") if labels_json.is_file() else None
    return Listing(cases, _parse_labels(labels, labels_json) if labels else None, tuple(problems))


def _read_rows(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """The names of the columns, and of each row its cells by them; under EXCESS their number where it has too many."""
    try:
        if path.suffix.lower() == ".parquet":
            table = pq.read_table(path)
            columns, texts = [column_name(name) for name in table.column_names], table.to_pylist()
            cells = [["" if value is None else str(value).strip() for value in row.values()] for row in texts]
        elif path.suffix.lower() in (".csv", ".tsv"):
            columns, lines = read_rows(path.read_bytes())
            cells = [row for _, row in lines if any(row)]
        else:
            raise CohortError(f"{path} is no manifest; give a .csv, a .tsv, a .parquet or a folder")
    except (OSError, ValueError, csv.Error) as error:
        if isinstance(error, CohortError):
            raise
        raise CohortError(f"the manifest {path} can't be read ({error}); write it again, as UTF-8") from error
    rows = []
    for row in cells:
        rows.append(dict(zip(columns, row + [""] * (len(columns) - len(row)), strict=False)))
        if any(row[len(columns) :]):
            rows[-1][EXCESS] = str(len(row))
    return columns, rows


def _list_dataset_json(root: Path) -> Listing:
    place = root / "dataset.json"
    content = _read_json(place)
    labels = _parse_labels(content.get("labels"), place)
    if "training" in content:
        return _list_decathlon(root, content, labels)
    ending = content.get("file_ending")
    if not isinstance(ending, str):
        raise CohortError(f"{place} has neither training nor file_ending; it fits no known layout")
    if not ending.startswith("."):
        raise CohortError(f"{place} gives the file_ending {ending!r} without its dot; write {'.' + ending!r}")
    if len(content.get("channel_names", ["one"])) != 1:
        cure = "merge them into one file per case and list it in a manifest"
        raise CohortError(f"{root} keeps each channel in its own file; {cure}")
    found, cases, problems = _look(root / "imagesTr"), [], []
    for file in found.images:
        name = case_name(file).removesuffix("_0000")
        if file.name.endswith(f"_0000{ending}"):
            label = file.name.removesuffix(f"_0000{ending}") + ending
            cases.append(Case(name=name, image=file, labels=(root / "labelsTr" / label,)))
        else:
            problem = f"{file} is not called NAME_0000{ending}, as {place} asks of images"
            problems.append(CaseError(name, problem, "rename it, or list it in a manifest"))
    if not cases and found.images:
        looked = f"no image called NAME_0000{ending}, but {len(found.images)} others, such as {found.images[0].name}"
        raise CohortError(f"{root / 'imagesTr'} has {looked}; rename them, or correct file_ending in {place}")
    folder = root / "labelsTr"
    alone = listing.without_image(_look(folder).images, [c.labels[0] for c in cases]) if folder.is_dir() else ()
    return Listing(cases, labels, (*found.problems, *problems, *alone))


def _list_decathlon(root: Path, content: dict[str, Any], labels: dict[int, str]) -> Listing:
    place = root / "dataset.json"
    try:
        pairs = [(root / entry["image"], root / entry["label"]) for entry in content["training"]]
    except (TypeError, KeyError) as error:
        raise CohortError(f"{place}: each entry of training needs image and label") from error
    if not pairs:
        tests = content.get("test") or []
        more = f" but {len(tests)} under test, which have no labels" if tests else ""
        cure = f"give {root / 'imagesTs'} to segment those" if tests else "list the images with their labels there"
        raise CohortError(f"{place} lists no image under training{more}; {cure}")
    folders = sorted({image.parent for image, _ in pairs if image.parent.is_dir()})
    found = [file for folder in folders for file in listing.look(folder).images]
    cases = [Case(name=case_name(image), image=image, labels=(label,)) for image, label in pairs]
    return Listing(cases, labels, notes=listing.unlisted(found, (image for image, _ in pairs), place))


def _list_pairs(images: Path, labels: Path) -> Listing:
    found, drawn = _look(images), _look(labels)
    by_name = listing.grouped((re.sub(r"[_-](label|seg|mask)$", "", case_name(file)), file) for file in drawn.images)
    cases, problems = [], [*found.problems, *drawn.problems]
    for image in found.images:
        name = case_name(image)
        expected = labels / image.name.replace(stem(image), f"{stem(image)}_label", 1)  # named where there is none
        mine = by_name.get(name, [expected])
        if len(mine) == 1:
            cases.append(Case(name=name, image=image, labels=tuple(mine)))
        else:
            both = " and ".join(map(str, mine))
            problems.append(CaseError(name, f"it has the labels {both}", "keep one, or list raters in a manifest"))
    known = {case_name(image) for image in found.images}
    alone = [file for name, files in by_name.items() if name not in known for file in files]
    return Listing(cases, problems=(*problems, *listing.without_image(alone, ())))


def list_series(root: Path, pattern: str) -> Listing:
    """A case for each study below a folder, if there is any.

    Raises:
        CohortError: several series of a study are meant, or none of any; pydicom is not installed.
        OSError: a folder can't be read.
    """
    return _list_series(root, pattern, (file for part in listing.below(root) for file in part.dicom))


def _list_series(root: Path, pattern: str, files: Iterable[Path]) -> Listing:
    try:
        found, problems, notes = studies.find_series(root, files)
    except CaseError as error:  # the library is missing
        raise CohortError(f"{error.problem}; {error.cure}") from error
    if not found:
        return Listing([], problems=problems, notes=notes)
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
    return Listing(cases, problems=(*problems, *without, *scattered), notes=notes)


def _series_in(folder: Path, pattern: str, case: str) -> Path:
    """A file of the one series that a folder of a manifest holds, or that the pattern names."""
    try:
        found = list_series(folder, pattern)
    except CohortError as error:
        what, choice, _ = str(error).partition(studies.CHOICE)
        if not choice:
            raise
        raise CaseError(case, what, "name one in the column series") from error
    if len(found.cases) != 1:
        problem = f"{folder} is a folder with {len(found.cases)} usable series of DICOM"
        raise CaseError(case, problem, "name one file, or a folder with one series")
    return found.cases[0].image


def _look(folder: Path) -> listing.Found:
    if not folder.is_dir():
        raise CohortError(f"there is no folder {folder}; correct the path")
    found = listing.look(folder)
    if not found.dicom:
        return found
    problem = f"{folder} holds {len(found.dicom)} files of DICOM, which no label is matched to by its name"
    scans = CaseError(f"{folder.name}.dcm", problem, "list the folders of the series in a manifest")
    return replace(found, problems=(*found.problems, scans))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(decoded(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise CohortError(f"{path} can't be read ({error}); correct its JSON") from error
    if not isinstance(content, dict):
        raise CohortError(f"{path} must hold a JSON object")
    return content


def _parse_labels(labels: Any, path: Path) -> dict[int, str]:
    """Value to name, from {"0": "background"} (Decathlon) or {"background": 0} (nnU-Net)."""
    regions = [name for name, value in labels.items() if isinstance(value, list)] if isinstance(labels, dict) else []
    if regions:
        problem = f"{path}: {regions[0]} is a region of several values, and a voxel here has one structure"
        raise CohortError(f"{problem}; name each value by itself, a region is then the union of its structures")
    try:
        items = [(int(k), str(v)) if str(k).lstrip("-").isdigit() else (int(v), str(k)) for k, v in labels.items()]
    except (AttributeError, TypeError, ValueError) as error:
        raise CohortError(f'{path}: labels must map each value to one name, as in {{"organ": 1}}') from error
    return dict(sorted(items))
