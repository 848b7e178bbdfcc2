"""Cohorts: which cases there are, where their files lie, what their labels mean, and the split by case."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ldseg.config import IGNORED, DataConfig
from ldseg.data.errors import CaseError, CohortError
from ldseg.data.formats.regular import absence
from ldseg.data.layouts import SPLITS, Case, Listing, list_cases
from ldseg.data.remote import local_path
from ldseg.data.volume import WHOLE, guess_spatial_dims, read_values, stem

SCANNED_LABELS = 64

__all__ = ["Case", "Cohort", "CohortError", "by_number", "for_model", "read_cohort", "values_of"]


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """Cases that belong together.

    Attributes:
        name: the folder's or the manifest's name.
        cases: those whose files exist, by name.
        label_values: the labels' values in the files, background first.
        structures: a name for each foreground value.
        named: these names are the cohort's own, from its dataset.json.
        spatial_dims: 2 or 3.
        problems: one sentence for each case that was left out.
        notes: sentences on files and folders that were not used and that are no cases.
        splits: the split of each case that is listed, also of those that were left out.
    """

    name: str
    cases: tuple[Case, ...]
    label_values: tuple[int, ...]
    structures: tuple[str, ...]
    spatial_dims: int
    problems: tuple[CaseError, ...]
    named: bool = False
    notes: tuple[str, ...] = ()
    splits: Mapping[str, str] = field(default_factory=dict)

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

    def fold(self, number: int, folds: int, *, seed: int = 0) -> Cohort:
        """The cohort with its training and validation cases cut anew: those of one fold validate, the others train.

        Folds are even to one patient (a case that names none is its own), by rank of a hash: the same seed and names
        give the same folds on every machine. Test cases stay what they are.

        Raises:
            CohortError: there are fewer patients than folds.
        """
        owner = {case.name: case.patient or case.name for case in self.cases if case.split in ("train", "validation")}
        ranked = sorted(set(owner.values()), key=lambda name: hashlib.sha256(f"fold:{seed}:{name}".encode()).digest())
        if len(ranked) < folds:
            raise CohortError(
                f"{self.name} has {len(ranked)} patients or cases to train with, too few for {folds} folds; take fewer"
            )
        held = set(ranked[number::folds])
        cut = {name: "validation" if patient in held else "train" for name, patient in owner.items()}
        return replace(self, cases=tuple(replace(case, split=cut.get(case.name, case.split)) for case in self.cases))


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

    Understood are a manifest (.csv, .tsv or .parquet, or a folder with one that is called manifest) with the columns
    case, image, label, label_2, label_3 ... (further raters), split and patient, paths counting from the manifest; a
    folder with dataset.json (Medical Segmentation Decathlon, nnU-Net v2; beside a manifest it names the labels); a
    folder with Image/ and Label/; a folder of images; a folder without images whose folders below have some, which
    then name the cases too; folders (or a .zip) of DICOM, of which a case is one series of each study. The image of a
    manifest may be a folder with one DICOM series.

    What dataset.json calls "ignore" (nnU-Net) is no structure but voxels that nobody judged (`Case.ignore`).

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
    names, ignore = _without_ignored(listing.labels)
    cases, problems = _without_bad_names(listing)
    cases = [replace(case, ignore=ignore) for case in cases]
    if test_cases or not any(case.split for case in cases):
        cases = _assign_splits(cases, seed, fractions, test_cases)
    splits = {case.name: case.split for case in cases}
    cases, missing = _without_missing(cases)
    problems += missing
    if not cases:
        looked = "looked for a manifest, a dataset.json, Image/ and Label/, and images, also in the folders below"
        first = f" (first of {len(problems)} problems: {problems[0]})" if problems else f"; {looked}"
        raise CohortError(f"{path} has no usable case{first}")
    values, structures = _label_values(cases, names, foreground_only)
    return Cohort(
        name=path.resolve().name if path.is_dir() else stem(path),
        cases=tuple(cases),
        label_values=values,
        structures=structures,
        spatial_dims=_spatial_dims(cases),
        problems=tuple(problems),
        named=listing.labels is not None and not foreground_only,
        notes=listing.notes,
        splits=splits,
    )


def values_of(cohort: Cohort, structures: Sequence[str], label_values: Sequence[int]) -> tuple[int, ...]:
    """The values in a cohort's labels of a model's classes, background first: by name where both have names.

    Args:
        structures, label_values: the model's.

    Raises:
        CohortError: both have names, and they are not the same.
    """
    if by_number(cohort, structures) or not any(case.labels for case in cohort.cases):
        return tuple(label_values)
    found = dict(zip(map(str.casefold, cohort.structures), cohort.label_values[1:], strict=True))
    wanted = [name.casefold() for name in structures]
    if set(found) != set(wanted):
        names = f"{', '.join(cohort.structures)}, the model's {', '.join(structures)}"
        cure = "give them the same names in dataset.json, or none (a manifest alone) to have them taken by number"
        raise CohortError(f"the structures of {cohort.name} are {names}: {cure}")
    return (cohort.label_values[0], *(found[name] for name in wanted))


def by_number(cohort: Cohort, structures: Sequence[str]) -> str:
    """A sentence that says why a cohort's labels are taken by number for a model's structures; "" where by name."""
    nameless = all(re.fullmatch(r"structure_\d+|foreground", name) for name in structures)
    if (cohort.named and not nameless) or not any(case.labels for case in cohort.cases):
        return ""
    who = "the model's structures have no names" if cohort.named else f"{cohort.name} names no structures"
    return f"labels are taken by number, not by name: {who}"


def for_model(cohort: Cohort, data: DataConfig) -> tuple[Cohort, str]:
    """A cohort whose labels are read as a model's classes, and a sentence where they are not taken by name.

    Args:
        data: of the model.

    Raises:
        CohortError: both have names, and they are not the same.
    """
    if data.foreground_only:
        return cohort, ""
    values = values_of(cohort, data.structures, data.label_values)
    if values != tuple(data.label_values):
        cohort = replace(cohort, cases=tuple(replace(case, label_values=values) for case in cohort.cases))
    return cohort, by_number(cohort, data.structures)


def _without_ignored(labels: dict[int, str] | None) -> tuple[dict[int, str] | None, int | None]:
    """The labels that are structures, and the value of nnU-Net's "ignore"."""
    ignored = [value for value, name in (labels or {}).items() if name.casefold() == "ignore"]
    kept = labels and {value: name for value, name in labels.items() if value not in ignored}
    return kept, ignored[0] if ignored else None


def _without_bad_names(listing: Listing) -> tuple[list[Case], list[CaseError]]:
    """Names become file names and keys: they must be safe and unique."""
    kept: dict[str, Case] = {}
    problems = list(listing.problems)
    groups: dict[str, list[Case]] = {}
    for case in listing.cases:
        groups.setdefault(case.name, []).append(case)
    for name, cases in sorted(groups.items()):
        if not re.fullmatch(r"(?!\.)[^/\\\x00-\x1f]{1,150}", name):
            cure = "use letters, digits, - and _"
            problems.append(CaseError(repr(name), "the name can't be part of a file name", cure))
        elif len(cases) > 1:
            files = " and ".join(str(case.image) for case in cases)
            problem = f"the name appears twice, for {files}, and none of them is used"
            problems.append(CaseError(name, problem, "give each case its own name, or drop all but one"))
        else:
            kept[name] = cases[0]
    return list(kept.values()), problems


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
            why = absence(absent) if absent.is_symlink() else (problem, "put the file there or drop the case")
            problems.append(CaseError(case.name, *why))
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
    if len(foreground) >= IGNORED or min(foreground) < 0 or max(foreground) > 65535:
        found = f"{len(foreground)} from {min(foreground)} to {max(foreground)}"
        limits = f"at most {IGNORED - 1} structures of values 1 to 65535 are possible"
        raise CohortError(f"{limits}, got {found}; use foreground_only")
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
            found = np.unique(read_values(file, case=case))
            whole = np.rint(found)
            values |= {int(value) for value in whole[np.abs(found - whole) <= WHOLE]}
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
