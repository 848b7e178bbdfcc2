"""What lies in a folder: its images, and a sentence for every other file that somebody could have meant as one."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ldseg.data.errors import CaseError, printable
from ldseg.data.formats.dicom.headers import is_dicom
from ldseg.data.formats.readers import KNOWN, parts_of
from ldseg.data.formats.regular import absence, open_regular
from ldseg.data.listing.names import case_name
from ldseg.data.volume import is_image

# files that lie beside images and that nobody means as one
ASIDE = frozenset(
    ".bat .bib .bval .bvec .cfg .cff .csv .db .dll .doc .docx .exe .html .ico .inf .ini .ipynb .jar .json .log .m .md "
    ".md5 .parquet .pdf .py .rst .sh .sha256 .toml .tsv .txt .xls .xlsx .xml .yaml .yml".split()
)
TEXTS = frozenset("changes citation copying license makefile readme".split())
RESULTS = ("dataset_description.json", "maps/dataset_description.json")


@dataclass(frozen=True)
class Found:
    """What lies in one folder, hidden files aside, by name.

    Attributes:
        images: regular files that are called like images.
        dicom: other files whose content begins as DICOM's does.
        folders: the folders in it.
        problems: a sentence for each file that is none of these and could be meant as an image.
    """

    images: tuple[Path, ...]
    dicom: tuple[Path, ...]
    folders: tuple[Path, ...]
    problems: tuple[CaseError, ...]


def look(folder: Path, root: Path | None = None) -> Found:
    """What lies in a folder; `root` as for `case_name`.

    Raises:
        OSError: it can't be read.
    """
    files = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    folders = tuple(file for file in files if file.is_dir())
    images = tuple(file for file in files if is_image(file) and file.is_file())
    known = {*folders, *images, *(part for file in images for part in parts_of(file))}
    dicom, problems = [], []
    for file in files:
        if file in known or _is_aside(file):
            continue
        problem = _why_no_image(file, root)
        if problem is None:
            dicom.append(file)
        else:
            problems.append(problem)
    return Found(images, tuple(dicom), folders, tuple(problems))


def _is_aside(file: Path) -> bool:
    return file.suffix.lower() in ASIDE or file.stem.lower() in TEXTS


def _why_no_image(file: Path, root: Path | None) -> CaseError | None:
    """A sentence for a file that is no image and no folder; None for DICOM, which any name may have."""
    name = case_name(file, root)
    if is_image(file):
        return CaseError(name, *absence(file))
    name += file.suffix  # scan.nii.gz may lie beside scan.dat
    try:
        with open_regular(file, case=name):
            pass
    except CaseError as error:  # a link, a pipe, a pointer
        return error
    except OSError as error:
        return CaseError(name, f"{file} can't be read ({error.strerror})", "correct its permissions")
    if is_dicom(file):
        return None
    if file.suffix.lower() == ".zip":
        return CaseError(name, f"{file} is not unpacked here", "unpack it, or give it as --data")
    return CaseError(name, f"{file} is of a kind that is not read", f"convert it to {KNOWN}")


def below(folder: Path) -> Iterator[Found]:
    """Of a folder and of each folder below it; links are followed once, hidden folders and results left alone.

    Raises:
        OSError: one can't be read.
    """
    waiting, seen = [folder], set()
    while waiting:
        here = waiting.pop(0)
        if here.resolve() in seen or (here != folder and is_results(here)):
            continue
        seen.add(here.resolve())
        found = look(here, folder)
        waiting += found.folders
        yield found


def unsearched(found: Found) -> tuple[str, ...]:
    """A sentence for each folder beside images that holds images or DICOM too: they are in no case."""
    return tuple(
        printable(f"{folder} was not searched, since images lie beside it; give it as --data to use what it holds")
        for folder in found.folders
        if not is_results(folder) and any(one.images or one.dicom for one in below(folder))
    )


def is_results(folder: Path) -> bool:
    """Whether a folder holds a BIDS derivative, as results of a segmentation are."""
    for name in RESULTS:
        try:
            content = json.loads((folder / name).read_bytes())
        except (OSError, ValueError):
            continue
        if isinstance(content, dict) and content.get("DatasetType") == "derivative":
            return True
    return False


def unlisted(images: Iterable[Path], listed: Iterable[Path], place: Path) -> tuple[str, ...]:
    """A sentence for images of a folder that its list does not name."""
    known = {file.resolve() for file in listed}
    left = [file for file in images if file.resolve() not in known]
    if not left:
        return ()
    return (printable(f"{len(left)} images are not used, {place} does not list them, such as {left[0]}"),)


def without_image(labels: Iterable[Path], used: Iterable[Path]) -> tuple[CaseError, ...]:
    """A sentence for each label file that belongs to no image."""
    known = {file.resolve() for file in used}
    cure = "give both the same name or put the image there"
    left = (file for file in labels if file.resolve() not in known)
    return tuple(CaseError(case_name(file), f"the label {file} has no image", cure) for file in left)


def grouped(files: Iterable[tuple[str, Path]]) -> dict[str, list[Path]]:
    """Files by the name of their case."""
    groups: dict[str, list[Path]] = defaultdict(list)
    for name, file in files:
        groups[name].append(file)
    return dict(groups)
