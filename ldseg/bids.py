"""Names of result files after BIDS derivatives (Brain Imaging Data Structure 1.10, "Derivatives: imaging").

A case that is called like a BIDS file, such as sub-01_ses-2_T1w, gives sub-01_ses-2_space-T1w_dseg.nii.gz; any other
name is kept as it is, CASE_dseg.nii.gz: a subject can't be made up.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import ldseg
from ldseg.data.volume import write_atomically

DESCRIPTION = "dataset_description.json"
BIDS_VERSION = "1.10.0"
LONGEST = 40  # letters of a label: a file's name has 255 bytes
LATER = {"space", "cohort", "res", "den", "seg", "label", "desc"}  # entities that a name here may end with itself


def prefix(case: str) -> str:
    """What the names of a case's files begin with.

    The suffix of a BIDS name says which image was segmented; it becomes the entity `space`, since a name has one suffix
    and the maps lie in that image's voxels.
    """
    *entities, suffix = case.split("_")
    keys = [entity.split("-")[0] for entity in entities if re.fullmatch(r"[a-z]+-[A-Za-z0-9]+", entity)]
    whole = keys and keys[0] == "sub" and len(keys) == len(entities) and not LATER & set(keys)
    if not whole or not re.fullmatch(r"[A-Za-z0-9]+", suffix):
        return case
    return f"{'_'.join(entities)}_space-{suffix}"


def labels(structures: Sequence[str]) -> dict[str, str]:
    """For each structure the letters and digits that stand for it in file names, no two alike on any file system."""
    found: dict[str, str] = {}
    taken: set[str] = set()
    for number, name in enumerate(structures, start=1):
        plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
        label = wanted = re.sub(r"[^A-Za-z0-9]", "", plain)[:LONGEST] or f"structure{number}"
        again = 2
        while label.lower() in taken:
            label, again = f"{wanted}x{again}", again + 1
        taken.add(label.lower())
        found[name] = label
    return found


def lookup(structures: Sequence[str], label_values: Sequence[int]) -> bytes:
    """The table of a label map: index and name of the background and of each structure, and its label in file names."""
    short = labels(structures)
    rows = [("index", "name", "label"), (str(label_values[0]), "background", "n/a")]
    rows += [
        (str(value), re.sub(r"[\t\r\n]", " ", name), short[name])
        for value, name in zip(label_values[1:], structures, strict=True)
    ]
    return "".join("\t".join(row) + "\n" for row in rows).encode()


def write_description(folder: Path, name: str = "Segmentations with their uncertainty") -> Path:
    """What makes a folder a BIDS derivative, `dataset_description.json`; one that is there stays."""
    path = folder / DESCRIPTION
    if not path.exists():
        content = {
            "Name": name,
            "BIDSVersion": BIDS_VERSION,
            "DatasetType": "derivative",
            "GeneratedBy": [{"Name": "LDSeg", "Version": ldseg.__version__}],
        }
        write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())
    return path
