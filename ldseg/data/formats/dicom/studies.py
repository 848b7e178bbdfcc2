"""The series below a folder: found, named without a patient's identifiers, and chosen by a pattern."""

from __future__ import annotations

import fnmatch
import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldseg.data.errors import CaseError, CohortError, printable
from ldseg.data.formats.dicom.headers import DIRECTORY, opened

SHORTEST_IDENTIFIER = 3  # letters; what is shorter is in names by chance
MAX_LISTED = 40
CHOICE = "; choose by --series"


@dataclass(frozen=True)
class Series:
    """The images of one SeriesInstanceUID.

    Attributes:
        uid, study: the series' and its study's UID.
        number, description, modality: as the scanner calls it; "" where it says nothing.
        files: by path.
        name: from the folders' names, without the patient's; not yet unique.
    """

    uid: str
    study: str
    number: str
    description: str
    modality: str
    files: tuple[Path, ...]
    name: str

    @property
    def folders(self) -> tuple[Path, ...]:
        """Where its files lie."""
        return tuple(sorted({file.parent for file in self.files}))


def find_series(root: Path, files: Iterable[Path]) -> tuple[list[Series], tuple[CaseError, ...], tuple[str, ...]]:
    """The series of images that files of DICOM make up, by their paths.

    Args:
        root: the folder that the files lie in or below.
        files: whose content begins as DICOM's does.

    Returns:
        The series, a sentence for each file that can't be read, and notes on objects that are no images.

    Raises:
        CaseError: pydicom is not installed.
    """
    groups: dict[str, list[tuple[Path, Any]]] = {}
    problems: list[CaseError] = []
    others: dict[str, int] = {}
    for file in files:
        name = str(file.relative_to(root))
        try:
            with opened(file, case=name) as dataset:
                if dataset.get("SOPClassUID", dataset.file_meta.get("MediaStorageSOPClassUID")) == DIRECTORY:
                    continue
                if "Rows" not in dataset or dataset.get("Modality") == "SEG":
                    kind = str(dataset.get("Modality", "unknown"))[:16]
                    others[kind] = others.get(kind, 0) + 1
                    continue
                groups.setdefault(str(dataset.SeriesInstanceUID), []).append((file, _told(dataset)))
        except CaseError as error:
            if "pip install" in error.cure:
                raise
            problems.append(error)
    notes = [f"{count} objects of the kind {kind} in {root} are no images" for kind, count in sorted(others.items())]
    by_folder: dict[Path, set[str]] = {}
    for uid, found in groups.items():
        for file, _ in found:
            by_folder.setdefault(file.parent, set()).add(uid)
    series = []
    for uid, found in groups.items():
        told, files = found[0][1], tuple(sorted(file for file, _ in found))
        shared = len(by_folder[files[0].parent]) > 1
        series.append(
            Series(
                uid=uid,
                study=told["study"],
                number=told["number"],
                description=told["description"],
                modality=told["modality"],
                files=files,
                name=_name(root, files[0].parent, told, uid, shared),
            )
        )
    return sorted(series, key=lambda one: one.files[0]), tuple(problems), tuple(map(printable, notes))


def choose(series: Sequence[Series], pattern: str, root: Path) -> tuple[list[Series], list[CaseError]]:
    """One series of each study: the one that the pattern names, or the only one.

    Args:
        pattern: of the description, number, folder or SeriesInstanceUID, as `*flair*`, in any case; "" for any.

    Returns:
        The series, and a sentence for each study that has none.

    Raises:
        CohortError: several of a study are meant, or none of any; the sentence is followed by the list of the series.
    """
    chosen, problems = [], []
    for study in dict.fromkeys(one.study for one in series):
        within = [one for one in series if one.study == study]
        meant = [one for one in within if not pattern or _matches(one, pattern, root)]
        if len(meant) > 1:
            what = f"of which {len(meant)} are called {pattern!r}" if pattern else "and none is named"
            raise CohortError(f"a study in {root} has {len(within)} series, {what}{_cure(within, root)}")
        if not meant:
            told = f"none of the {len(within)} series of a study ({within[0].name}) is called {pattern!r}"
            problems.append(CaseError(within[0].name, told, "none is needed if it is not meant"))
        chosen += meant
    if not chosen:
        raise CohortError(f"no series in {root} is called {pattern!r}{_cure(series, root)}")
    return chosen, problems


def _cure(series: Sequence[Series], root: Path) -> str:
    rows = [("number", "description", "kind", "files", "folder", "SeriesInstanceUID")]
    for one in series[:MAX_LISTED]:
        folder = one.folders[0].relative_to(root)
        rows.append((one.number, one.description, one.modality, str(len(one.files)), str(folder), one.uid))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    more = [f"... and {len(series) - MAX_LISTED} more"] if len(series) > MAX_LISTED else []
    return "\n".join([f"{CHOICE} (a number, a UID, or a pattern such as '*flair*'):", *lines, *more])


def _matches(one: Series, pattern: str, root: Path) -> bool:
    folder = one.folders[0]
    names = (one.uid, one.number, one.description, folder.name, str(folder.relative_to(root)))
    return any(fnmatch.fnmatchcase(name.casefold(), pattern.casefold()) for name in names if name)


def _told(dataset: Any) -> dict[str, Any]:
    words = [_composed(str(dataset.get(tag) or "")) for tag in ("PatientName", "PatientID")]
    return {
        "study": str(dataset.get("StudyInstanceUID", "")),
        "number": str(dataset.get("SeriesNumber") if dataset.get("SeriesNumber") is not None else ""),
        "description": _plain(str(dataset.get("SeriesDescription", ""))),
        "modality": _plain(str(dataset.get("Modality", ""))),
        "identifiers": [part for word in words for part in re.split(r"[\W_]+", word.casefold())],
    }


def _plain(text: str) -> str:
    return re.sub(r"[^\x20-\x7e\xa0-\U0010ffff]", " ", text).strip()[:64]


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _name(root: Path, folder: Path, told: dict[str, Any], uid: str, shared: bool) -> str:
    """A case's name: its folders below the root, or a number of its own where they hold the patient's name or ID."""
    own = f"series-{hashlib.sha256(uid.encode()).hexdigest()[:8]}"
    parts = folder.relative_to(root).parts or (root.resolve().name,)
    name = re.sub(r"[^\w.-]+", "-", _composed("_".join(parts))).strip(".-") or own
    known = [word for word in told["identifiers"] if len(word) >= SHORTEST_IDENTIFIER]
    if any(word in re.sub(r"[\W_]+", "", name.casefold()) for word in known):
        return own
    if not shared:
        return name
    return f"{name}_series-{told['number']}" if told["number"] else f"{name}_{own}"
