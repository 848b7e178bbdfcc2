"""Cohorts: which cases there are, where their files lie, what their labels mean, and the split by case."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from ldseg.data.errors import CaseError, CohortError
from ldseg.data.volume import guess_spatial_dims, is_image, read_values, stem

SPLITS = ("train", "validation", "test")
SCANNED_LABELS = 64
_SYNONYMS = {"training": "train", "val": "validation", "valid": "validation", "testing": "test"}


@dataclass(frozen=True, kw_only=True)
class Case:
    """An image and its labels, one per rater; () where it is unlabelled."""

    name: str
    image: Path
    labels: tuple[Path, ...] = ()
    split: str = ""


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """Cases that belong together.

    Attributes:
        name: the folder's or the manifest's name.
        cases: those whose files exist, by name.
        label_values: the labels' values in the files, background first.
        structures: a name for each foreground value.
        spatial_dims: 2 or 3.
        problems: one sentence for each case that was left out.
    """

    name: str
    cases: tuple[Case, ...]
    label_values: tuple[int, ...]
    structures: tuple[str, ...]
    spatial_dims: int
    problems: tuple[CaseError, ...]

    def split(self, name: str) -> tuple[Case, ...]:
        """The cases of "train", "validation", "test" or "all".

        Raises:
            CohortError: the split is unknown or empty.
        """
        if name not in (*SPLITS, "all"):
            raise CohortError(f"there is no split {name!r}; choose one of {', '.join(SPLITS)}, all")
        cases = tuple(case for case in self.cases if name in ("all", case.split))
        if not cases:
            sizes = ", ".join(f"{sum(c.split == s for c in self.cases)} {s}" for s in SPLITS)
            raise CohortError(
                f"the split {name!r} of the cohort {self.name} is empty ({sizes}, {len(self.cases)} in all); "
                "add labelled cases, change the fractions or fill the manifest's split column"
            )
        return cases


@dataclass(frozen=True)
class _Listing:
    """What a layout says, before a file is looked at."""

    cases: list[Case]
    labels: dict[int, str] | None = None
    problems: tuple[CaseError, ...] = ()


def read_cohort(
    path: Path,
    *,
    seed: int = 0,
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2),
    foreground_only: bool = False,
) -> Cohort:
    """List the cases of a folder or manifest.

    Understood are a manifest (.csv or .parquet, or a folder with manifest.csv or manifest.parquet) with the columns case,
    image, label, label_2, label_3 ... (further raters) and split, paths counting from the manifest; a folder with
    dataset.json (Medical Segmentation Decathlon, nnU-Net v2); a folder with Image/ and Label/; a folder of images.

    Args:
        path: the folder or the manifest.
        seed: of the split; the same seed and names give the same split on every machine.
        fractions: train, validation, test; used where the manifest names no split. Unlabelled cases are in no split.
        foreground_only: labels are instance numbers: every value above 0 is one structure.

    Raises:
        CohortError: nothing usable is there.
    """
    path = Path(path)
    listing = _list(path)
    cases, problems = _without_bad_names(listing)
    if not any(case.split for case in cases):
        cases = _assign_splits(cases, seed, fractions)
    cases, missing = _without_missing(cases)
    problems += missing
    if not cases:
        first = f" (first of {len(problems)} problems: {problems[0]})" if problems else ""
        raise CohortError(f"{path} has no usable case{first}; give a dataset.json, Image/ and Label/, a manifest, or images")
    values, structures = _label_values(cases, listing.labels, foreground_only)
    dims = _spatial_dims(cases)
    name = path.resolve().name if path.is_dir() else stem(path)
    return Cohort(
        name=name, cases=tuple(cases), label_values=values, structures=structures, spatial_dims=dims, problems=tuple(problems)
    )


def _list(path: Path) -> _Listing:
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
    return _Listing([Case(name=stem(file), image=file) for file in _images(path)])


def _list_manifest(path: Path) -> _Listing:
    rows = _read_rows(path)
    columns = list(rows[0]) if rows else []
    if not {"case", "image"} <= set(columns):
        raise CohortError(f"{path} needs the columns case and image (label, label_2 ..., split are optional), got {columns}")
    raters = [c for c in columns if re.fullmatch(r"label(_\d+)?", c)]
    raters.sort(key=lambda column: int(column.partition("_")[2] or 1))
    cases, problems = [], []
    for row in rows:
        split = _SYNONYMS.get(row.get("split", "").lower(), row.get("split", "").lower())
        if split not in (*SPLITS, ""):
            problems.append(CaseError(row["case"], f"{path} gives it the split {split!r}", f"use one of {', '.join(SPLITS)}"))
        elif not row["image"]:
            problems.append(CaseError(row["case"], f"{path} gives it no image", "fill the column image"))
        else:
            labels = tuple(path.parent / row[c] for c in raters if row[c])
            cases.append(Case(name=row["case"], image=path.parent / row["image"], labels=labels, split=split))
    labels_json = path.parent / "dataset.json"
    labels = _read_json(labels_json).get("labels") if labels_json.is_file() else None
    return _Listing(cases, _parse_labels(labels, labels_json) if labels else None, tuple(problems))


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


def _list_dataset_json(root: Path) -> _Listing:
    content = _read_json(root / "dataset.json")
    labels = _parse_labels(content.get("labels"), root / "dataset.json")
    if "training" in content:
        try:
            pairs = [(root / entry["image"], root / entry["label"]) for entry in content["training"]]
        except (TypeError, KeyError) as error:
            raise CohortError(f"{root / 'dataset.json'}: each entry of training needs image and label") from error
        return _Listing([Case(name=stem(image), image=image, labels=(label,)) for image, label in pairs], labels)
    ending = content.get("file_ending")
    if not isinstance(ending, str):
        raise CohortError(f"{root / 'dataset.json'} has neither a training list nor a file_ending; it fits no known layout")
    if len(content.get("channel_names", ["one"])) != 1:
        raise CohortError(f"{root} keeps each channel in its own file; merge them into one file per case and list it in a manifest")
    cases = []
    for file in _images(root / "imagesTr"):
        if file.name.endswith(f"_0000{ending}"):
            name = file.name.removesuffix(f"_0000{ending}")
            cases.append(Case(name=name, image=file, labels=(root / "labelsTr" / f"{name}{ending}",)))
    return _Listing(cases, labels)


def _list_pairs(images: Path, labels: Path) -> _Listing:
    by_name = {re.sub(r"_(label|seg|mask)$", "", stem(file)): file for file in _images(labels)}
    fallback = labels / "missing"  # named in the sentence of a case that has none
    return _Listing(
        [Case(name=stem(f), image=f, labels=(by_name.get(stem(f), fallback / f.name),)) for f in _images(images)]
    )


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise CohortError(f"there is no folder {folder}; correct the path")
    return sorted(file for file in folder.iterdir() if file.is_file() and is_image(file) and not file.name.startswith("."))


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


def _without_bad_names(listing: _Listing) -> tuple[list[Case], list[CaseError]]:
    """Names become file names and keys: they must be safe and unique."""
    kept: dict[str, Case] = {}
    problems = list(listing.problems)
    for case in listing.cases:
        if not re.fullmatch(r"(?!\.)[^/\\\x00-\x1f]{1,150}", case.name):
            problems.append(CaseError(repr(case.name), "the name can't be part of a file name", "use letters, digits, - and _"))
        elif case.name in kept:
            problems.append(CaseError(case.name, "the name appears twice", "give each case its own name"))
        else:
            kept[case.name] = case
    return [kept[name] for name in sorted(kept)], problems


def _assign_splits(cases: list[Case], seed: int, fractions: tuple[float, float, float]) -> list[Case]:
    """Exact counts by rank of a hash: test first, then validation, the rest trains; missing files don't move others."""
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise CohortError(f"the fractions of train, validation and test must be three and add up to 1, got {fractions}")
    ranked = sorted(
        (case.name for case in cases if case.labels), key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest()
    )
    least = 1 if len(ranked) >= 3 else 0
    num_validation, num_test = (max(least, round(f * len(ranked))) if f > 0 else 0 for f in fractions[1:])
    names = ["test"] * num_test + ["validation"] * num_validation
    splits = dict(zip(ranked, names + ["train"] * len(ranked), strict=False))
    return [replace(case, split=splits.get(case.name, "")) for case in cases]


def _without_missing(cases: list[Case]) -> tuple[list[Case], list[CaseError]]:
    kept, problems = [], []
    for case in cases:
        absent = next((file for file in (case.image, *case.labels) if not file.is_file()), None)
        if absent is None:
            kept.append(case)
        else:
            kind = "image" if absent == case.image else "label"
            problems.append(CaseError(case.name, f"its {kind} {absent} is missing", "put the file there or drop the case"))
    return kept, problems


def _label_values(
    cases: list[Case], named: dict[int, str] | None, foreground_only: bool
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    if foreground_only:
        return (0, 1), ("foreground",)
    if named is None:
        files = [(case.name, label) for case in cases for label in case.labels]
        stride = max(1, len(files) // SCANNED_LABELS)
        named = {value: f"structure_{value}" for value in _scan(files[::stride])}
    foreground = {value: name for value, name in sorted(named.items()) if value != 0}
    if not foreground:
        return (0, 1), ("foreground",)
    if min(foreground) < 0 or len(foreground) > 255:
        raise CohortError(f"label values must lie between 1 and 255 structures, got {sorted(foreground)[:8]} ...; use foreground_only")
    # names become parts of file names
    names = tuple(re.sub(r"[^\w-]+", "_", name).strip("_") or f"structure_{value}" for value, name in foreground.items())
    if len(set(names)) < len(names):
        raise CohortError(f"two structures have the same name: {names}; rename them in dataset.json")
    return (0, *foreground), names


def _scan(files: Iterable[tuple[str, Path]]) -> list[int]:
    """Values of the labels that can be read; a label that can't be is told when its case is used."""
    values: set[int] = set()
    for case, file in files:
        try:
            values |= {int(value) for value in np.unique(read_values(file, case=case)) if float(value).is_integer()}
        except CaseError:
            continue
    return sorted(values)


def _spatial_dims(cases: list[Case]) -> int:
    for case in cases:
        try:
            return guess_spatial_dims(case.image, case=case.name)
        except CaseError as error:
            first = error
    raise CohortError(f"no image of the cohort can be read; the last: {first}")
