"""Phantom cohorts whose posterior is known, labelled by several raters.

What a case is, and the exact distribution of its labels: `ldseg.data.phantom.case` ("organ": 2D and 3D, three
structures) and `ldseg.data.phantom.echo` ("echo": 2D+t, a beating chamber).
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from ldseg.data.phantom import case, echo
from ldseg.data.phantom.config import PhantomConfig
from ldseg.files import write_atomically

STRUCTURES = case.STRUCTURES
KINDS = {"organ": case, "echo": echo}
__all__ = ["STRUCTURES", "PhantomConfig", "draw_posterior", "read_parameters", "write_phantoms"]


def write_phantoms(root: Path, config: PhantomConfig, progress: Callable[[int, int], None] | None = None) -> Path:
    """Write imagesTr/, labelsTr/, dataset.json, phantom.json and, last, manifest.csv.

    A case depends on (seed, its number) alone: more cases leave the first ones as they are.

    Args:
        root: a folder; it is made.
        config: what to write.
        progress: called with the cases done and their number.

    Returns:
        The manifest.
    """
    rows, parameters, kind = [], {}, KINDS[config.kind]
    for number in range(config.cases):
        name = f"{config.name}_{number:04d}"
        streams = np.random.SeedSequence((config.seed, config.dims, number)).spawn(3)
        parameters[name] = kind.draw_parameters(config.grid, config.voxel_mm, np.random.default_rng(streams[0]))
        image = kind.render_image(parameters[name], np.random.default_rng(streams[1]))
        labels = draw_posterior(parameters[name], config.raters, np.random.default_rng(streams[2]))
        rows.append(_write_case(root, name, parameters[name], image, labels))
        if progress is not None:
            progress(number + 1, config.cases)
    for row, split in zip(rows, _splits(config), strict=True):
        row["split"] = split
    labels_by_name = {"background": 0, **{name: value for value, name in enumerate(kind.STRUCTURES, start=1)}}
    channel = "US" if config.kind == "echo" else "MR"
    about = {"name": config.name, "labels": labels_by_name, "channel_names": {"0": channel}}
    write_atomically(root / "dataset.json", json.dumps(about, indent=1).encode())
    write_atomically(root / "phantom.json", json.dumps(parameters).encode())
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(root / "manifest.csv", text.getvalue().encode())
    return root / "manifest.csv"


def read_parameters(root: Path) -> dict[str, dict[str, Any]]:
    """The parameters of each case of a folder that `write_phantoms` wrote, by the case's name.

    Raises:
        ValueError: there is none.
    """
    path = Path(root) / "phantom.json"
    if not path.is_file():
        raise ValueError(f"{root} is no phantom cohort: there is no {path}")
    content: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return content


def draw_posterior(parameters: dict[str, Any], n: int, generator: np.random.Generator) -> np.ndarray:
    """Fresh, exact draws of a rater's label given the case, (n, *native) uint8 class indices."""
    return KINDS[parameters.get("kind", "organ")].draw_posterior(parameters, n, generator)


def _write_case(
    root: Path, name: str, parameters: dict[str, Any], image: np.ndarray, labels: np.ndarray
) -> dict[str, str]:
    row = {"case": name, "image": f"imagesTr/{name}.nii.gz"}
    row |= {"label" if i == 1 else f"label_{i}": f"labelsTr/{name}_rater{i}.nii.gz" for i in range(1, len(labels) + 1)}
    files = [file for column, file in row.items() if column != "case"]
    for file, array in zip(files, [image, *labels], strict=True):
        frames = parameters.get("frame_s")
        array = array[:, :, None] if frames or array.ndim == 2 else array  # NIfTI's axes are x, y, z, time
        volume = nib.Nifti1Image(array, np.asarray(parameters["affine"]))
        volume.header.set_xyzt_units("mm", "sec")
        if frames:
            volume.header.set_zooms((*volume.header.get_zooms()[:3], frames))
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        nib.save(volume, root / file)
    return row


def _splits(config: PhantomConfig) -> list[str]:
    """Exact counts in a random order; at least one case each from three cases on."""
    least = 1 if config.cases >= 3 else 0
    validation, test = (max(least, round(f * config.cases)) if f > 0 else 0 for f in config.fractions[1:])
    names = ["test"] * test + ["validation"] * validation
    names = (names + ["train"] * config.cases)[: config.cases]
    order = np.random.default_rng((config.seed, config.dims)).permutation(config.cases)
    return [names[rank] for rank in order]
