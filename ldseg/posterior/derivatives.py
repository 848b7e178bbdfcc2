"""A case's results as files: maps in the geometry of the input, a table of its labels, a sidecar with its numbers."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import ldseg
from ldseg.data.formats import nifti
from ldseg.data.formats.scaled import Scale
from ldseg.data.volume import Volume, write_map
from ldseg.files import write_atomically, write_json

DESCRIPTION = "dataset_description.json"
BIDS_VERSION = "1.10.0"
LONGEST = 40  # letters of a label: a file's name has 255 bytes
LATER = {"space", "cohort", "res", "den", "seg", "label", "desc"}  # entities that a name here may end with itself


# files at a time: compression and the disk's flushes run beside each other
WRITERS = max(2, min(8, len(os.sched_getaffinity(0))))


@dataclass(frozen=True)
class Map:
    """One map to write.

    Attributes:
        key: what the service calls it, such as "prob-organ".
        ending: of its file's name after the case, such as "label-organ_probseg".
        array: (*native); integers stay integers.
        about: what it holds, for the sidecar.
        scale: how real values are stored in a NIfTI; None as 32-bit floats.
    """

    key: str
    ending: str
    array: np.ndarray
    about: str
    scale: Scale | None = None


def probability_maps(mean_probability: np.ndarray, structures: Sequence[str]) -> Iterator[Map]:
    """(S, *native) in [0, 1], a map for each structure, in steps of 1/255."""
    for array, (name, label) in zip(mean_probability, labels(structures).items(), strict=True):
        yield Map(f"prob-{name}", f"label-{label}_probseg", array, f"probability of {name}", Scale(1.0))


def sample_maps(samples: np.ndarray | None) -> Iterator[Map]:
    """(N, *native) label values, a map for each kept sample; none for None."""
    for index, array in enumerate(() if samples is None else samples):
        yield Map(f"sample-{index}", f"desc-sample{index}_dseg", array, f"label map of sample {index}")


def write_case(
    case: str,
    maps: Sequence[Map],
    folder: Path,
    like: Volume,
    *,
    structures: Sequence[str],
    label_values: Sequence[int],
    about: Mapping[str, Any],
) -> dict[str, Path]:
    """Write maps, lookup table and sidecar of a case; the same content gives the same bytes.

    Beside a picture the label maps are PNG and the real ones TIFF in 32-bit floats.

    Args:
        case: its name.
        maps: what to write; keys and endings differ.
        folder: gets the files; it is made.
        like: the image.
        structures: their names, in the order of the classes.
        label_values: of the background and of each structure.
        about: the sidecar's further content: nothing that differs from one drawing to the next, such as a time.

    Returns:
        Paths by the maps' keys, "lookup" (.tsv) and "sidecar" (.json).
    """
    start = Path(folder) / prefix(case)
    start.parent.mkdir(parents=True, exist_ok=True)
    end = ".nii.gz" if like.header is not None else ".tif"

    def write(one: Map) -> Path:
        return write_map(start.with_name(f"{start.name}_{one.ending}{end}"), one.array, like, scale=one.scale)

    with ThreadPoolExecutor(WRITERS) as pool:
        paths = dict(zip((one.key for one in maps), pool.map(write, maps), strict=True))
    table, sidecar = (start.with_name(f"{start.name}_dseg.{kind}") for kind in ("tsv", "json"))
    write_atomically(table, lookup(structures, label_values))
    content = {"Case": case, "Image": like.content_digest, "Manual": False, **about}
    if like.header is not None:
        content["UnitOfLength"] = nifti.unit_words(like.header)
    content |= {"Notes": list(like.notes)} if like.notes else {}
    content["Maps"] = {paths[one.key].name: _map_entry(one, is_scaled=like.header is not None) for one in maps}
    write_atomically(sidecar, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
    return paths | {"lookup": table, "sidecar": sidecar}


def structure_entries(
    structures: Sequence[str],
    label_values: Sequence[int],
    volumes: Mapping[str, np.ndarray],
    unit: str,
    agreement: Mapping[str, float],
) -> list[dict[str, Any]]:
    """The sidecar's entry of each structure: its name, its index in the label map, its size in every sample."""
    short = labels(structures)
    return [
        {
            "Name": name,
            "Label": short[name],
            "Index": int(value),
            "Unit": unit,
            "SamplePercentiles": {f"{p:02d}": float(np.percentile(volumes[name], p)) for p in (5, 50, 95)},
            "SampleVolumes": [float(size) for size in volumes[name]],
            "Agreement": float(agreement[name]),
        }
        for name, value in zip(structures, label_values[1:], strict=True)
    ]


def _map_entry(one: Map, *, is_scaled: bool) -> dict[str, Any]:
    entry: dict[str, Any] = {"Key": one.key, "Description": one.about}
    if one.scale is not None and is_scaled:
        entry |= {"Highest": one.scale.highest, "Step": one.scale.step}
    return entry


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
        write_json(path, content)
    return path
