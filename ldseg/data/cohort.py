"""Cohorts: which cases there are, where their files lie, what their labels mean, and the split by case."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ldseg.data.errors import CaseError, CohortError
from ldseg.data.layouts import SPLITS, Case, Listing, list_cases
from ldseg.data.remote import local_path
from ldseg.data.volume import guess_spatial_dims, read_values, stem

SCANNED_LABELS = 64

__all__ = ["Case", "Cohort", "CohortError", "read_cohort"]


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

    def __repr__(self) -> str:
        sizes = ", ".join(f"{sum(case.split == split for case in self.cases)} {split}" for split in SPLITS)
        return f"<Cohort {self.name}: {len(self.cases)} cases ({sizes}); {', '.join(self.structures)}>"

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


def read_cohort(
    path: Path | str,
    *,
    seed: int = 0,
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2),
    test_cases: Sequence[str] = (),
    foreground_only: bool = False,
    series: str = "",
) -> Cohort:
    """List the cases of a folder or manifest.

    Understood are a manifest (.csv or .parquet, or a folder with manifest.csv or manifest.parquet) with the columns
    case, image, label, label_2, label_3 ... (further raters), split and patient, paths counting from the manifest; a
    folder with dataset.json (Medical Segmentation Decathlon, nnU-Net v2; beside a manifest it names the labels); a
    folder with Image/ and Label/; a folder of images; folders (or a .zip) of DICOM, of which a case is one series of
    each study. The image of a manifest may be a folder with one DICOM series.

    Without a dataset.json the values are those found in the labels (at most 64 files, evenly spread, are looked at).

    Args:
        path: the folder or the manifest, or their address on object storage, from where they are copied first.
        seed: of the split; the same seed and names give the same split on every machine.
        fractions: train, validation, test; used where the manifest names no split. Unlabelled cases are in no split.
            Where the manifest names patients these are shares of the patients, and a patient's cases stay together.
        test_cases: names of the cases that are held out, with all cases of their patients; the others are split into
            train and validation, whatever the manifest says. For leave-one-out on a cohort of few cases.
        foreground_only: labels are instance numbers: every value above 0 is one structure.
        series: names a DICOM series by its number, UID, or a pattern of its description or folder, as "*flair*".

    Raises:
        CohortError: nothing usable is there.
    """
    path = local_path(path)
    listing = list_cases(path, series)
    cases, problems = _without_bad_names(listing)
    if test_cases or not any(case.split for case in cases):
        cases = _assign_splits(cases, seed, fractions, test_cases)
    cases, missing = _without_missing(cases)
    problems += missing
    if not cases:
        first = f" (first of {len(problems)} problems: {problems[0]})" if problems else ""
        layouts = "a dataset.json, Image/ and Label/, a manifest, or images"
        raise CohortError(f"{path} has no usable case{first}; give {layouts}")
    values, structures = _label_values(cases, listing.labels, foreground_only)
    return Cohort(
        name=path.resolve().name if path.is_dir() else stem(path),
        cases=tuple(cases),
        label_values=values,
        structures=structures,
        spatial_dims=_spatial_dims(cases),
        problems=tuple(problems),
    )


def _without_bad_names(listing: Listing) -> tuple[list[Case], list[CaseError]]:
    """Names become file names and keys: they must be safe and unique."""
    kept: dict[str, Case] = {}
    problems = list(listing.problems)
    for case in listing.cases:
        if not re.fullmatch(r"(?!\.)[^/\\\x00-\x1f]{1,150}", case.name):
            cure = "use letters, digits, - and _"
            problems.append(CaseError(repr(case.name), "the name can't be part of a file name", cure))
        elif case.name in kept:
            problems.append(CaseError(case.name, "the name appears twice", "give each case its own name"))
        else:
            kept[case.name] = case
    return [kept[name] for name in sorted(kept)], problems


def _assign_splits(
    cases: list[Case], seed: int, fractions: tuple[float, float, float], test_cases: Sequence[str] = ()
) -> list[Case]:
    """Exact counts by rank of a hash: test first, then validation, the rest trains; missing files don't move others.

    What is ranked and counted are the patients; a case that names none is ranked by its own name.
    """
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise CohortError(f"the fractions of train, validation and test must be three and add up to 1, got {fractions}")
    owner = {case.name: case.patient or case.name for case in cases if case.labels}
    ranked = sorted(set(owner.values()), key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    least = 1 if len(ranked) >= 3 else 0
    num_validation, num_test = (max(least, round(f * len(ranked))) if f > 0 else 0 for f in fractions[1:])
    if test_cases:
        if unknown := sorted(set(test_cases) - set(owner)):
            known = ", ".join(sorted(owner)[:10])
            raise CohortError(f"there is no labelled case {unknown[0]!r} to hold out; the cohort has {known} ...")
        held_out = dict.fromkeys(owner[name] for name in test_cases)
        ranked = [*held_out, *(name for name in ranked if name not in held_out)]
        num_test = len(held_out)
    names = ["test"] * num_test + ["validation"] * num_validation
    splits = dict(zip(ranked, names + ["train"] * len(ranked), strict=False))
    return [replace(case, split=splits[owner[case.name]] if case.name in owner else "") for case in cases]


def _without_missing(cases: list[Case]) -> tuple[list[Case], list[CaseError]]:
    kept, problems = [], []
    for case in cases:
        absent = next((file for file in (case.image, *case.labels) if not file.is_file()), None)
        if absent is None:
            kept.append(case)
        else:
            problem = f"its {'image' if absent == case.image else 'label'} {absent} is missing"
            problems.append(CaseError(case.name, problem, "put the file there or drop the case"))
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
    if len(foreground) > 255 or min(foreground) < 0 or max(foreground) > 65535:
        found = f"{len(foreground)} from {min(foreground)} to {max(foreground)}"
        raise CohortError(f"at most 255 structures of values 1 to 65535 are possible, got {found}; use foreground_only")
    # names become parts of file names
    safe = {value: re.sub(r"[^\w-]+", "_", name).strip("_")[:60] for value, name in foreground.items()}
    names = tuple(name or f"structure_{value}" for value, name in safe.items())
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
