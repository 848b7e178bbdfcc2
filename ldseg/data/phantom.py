"""Phantom cohorts whose posterior is known: images with three structures, labelled by several raters.

What a case is, and the exact distribution of its labels: `ldseg.data.phantom_case`.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from ldseg.data.phantom_case import draw_parameters, draw_posterior, render_image
from ldseg.data.volume import write_atomically

STRUCTURES = ("organ", "nodule", "lobe")  # labels 1, 2, 3
DEFAULT_SHAPES = {2: (64, 64), 3: (32, 32, 24)}
DEFAULT_SPACINGS_MM = {2: (1.0, 1.0), 3: (1.0, 1.0, 1.5)}
EXAMPLE = (
    "example: python -m ldseg.data.phantom --out phantoms --dims 3 --cases 40 --raters 4 --shape 32 32 24 --seed 0"
)

__all__ = ["STRUCTURES", "PhantomConfig", "draw_posterior", "main", "read_parameters", "write_phantoms"]


@dataclass(frozen=True, kw_only=True)
class PhantomConfig:
    """What a phantom cohort consists of; `shape` and `spacing_mm` default by `dims` and are in canonical axis order."""

    dims: int = 3
    cases: int = 40
    raters: int = 4
    shape: tuple[int, ...] | None = None
    spacing_mm: tuple[float, ...] | None = None
    seed: int = 0
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)

    def __post_init__(self) -> None:
        if self.dims not in (2, 3):
            raise ValueError(f"dims must be 2 or 3, got {self.dims}")
        if self.cases < 1 or self.raters < 1:
            raise ValueError(f"cases and raters must be at least 1, got {self.cases} and {self.raters}")
        if len(self.grid) != self.dims or min(self.grid) < 16:
            raise ValueError(f"shape needs {self.dims} entries of at least 16 voxels, got {self.grid}")
        if len(self.voxel_mm) != self.dims or min(self.voxel_mm) <= 0:
            raise ValueError(f"spacing_mm needs {self.dims} positive entries, got {self.voxel_mm}")
        if min(self.fractions) < 0 or abs(sum(self.fractions) - 1) > 1e-6:
            raise ValueError(f"fractions must add up to 1, got {self.fractions}")

    @property
    def grid(self) -> tuple[int, ...]:
        """Voxels per canonical axis."""
        return self.shape or DEFAULT_SHAPES[self.dims]

    @property
    def voxel_mm(self) -> tuple[float, ...]:
        """Mean voxel size per canonical axis; cases differ from it by up to 5 %."""
        return self.spacing_mm or DEFAULT_SPACINGS_MM[self.dims]


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
    rows, parameters = [], {}
    for number in range(config.cases):
        name = f"phantom{config.dims}d_{number:04d}"
        streams = np.random.SeedSequence((config.seed, config.dims, number)).spawn(3)
        parameters[name] = draw_parameters(config.grid, config.voxel_mm, np.random.default_rng(streams[0]))
        image = render_image(parameters[name], np.random.default_rng(streams[1]))
        labels = draw_posterior(parameters[name], config.raters, np.random.default_rng(streams[2]))
        rows.append(_write_case(root, name, parameters[name], image, labels))
        if progress is not None:
            progress(number + 1, config.cases)
    for row, split in zip(rows, _splits(config), strict=True):
        row["split"] = split
    labels_by_name = {"background": 0, **{name: value for value, name in enumerate(STRUCTURES, start=1)}}
    about = {"name": f"phantom{config.dims}d", "labels": labels_by_name, "channel_names": {"0": "MR"}}
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


def _write_case(
    root: Path, name: str, parameters: dict[str, Any], image: np.ndarray, labels: np.ndarray
) -> dict[str, str]:
    row = {"case": name, "image": f"imagesTr/{name}.nii.gz"}
    row |= {"label" if i == 1 else f"label_{i}": f"labelsTr/{name}_rater{i}.nii.gz" for i in range(1, len(labels) + 1)}
    files = [file for column, file in row.items() if column != "case"]
    for file, array in zip(files, [image, *labels], strict=True):
        volume = nib.Nifti1Image(array if array.ndim == 3 else array[..., None], np.asarray(parameters["affine"]))
        volume.header.set_xyzt_units("mm", "sec")
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Write a phantom cohort from the command line."""
    defaults = PhantomConfig()
    parser = argparse.ArgumentParser(
        prog="python -m ldseg.data.phantom", description="Write a cohort whose posterior is known.", epilog=EXAMPLE
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    numbers = {
        "--dims": (defaults.dims, "2 for images, 3 for volumes"),
        "--cases": (defaults.cases, "number of cases"),
        "--raters": (defaults.raters, "labels per case"),
        "--seed": (defaults.seed, "the same seed writes the same cohort"),
    }
    for name, (default, meaning) in numbers.items():
        parser.add_argument(name, type=int, default=default, help=f"{meaning} (default: {default})")
    shapes = "32 32 24, or 64 64 for 2 dims"
    parser.add_argument("--shape", type=int, nargs="+", help=f"voxels per axis (default: {shapes})")
    spacings = "1 1 1.5, or 1 1 for 2 dims"
    parser.add_argument("--spacing", type=float, nargs="+", help=f"mean voxel size in mm (default: {spacings})")
    options = parser.parse_args(arguments)
    try:
        config = PhantomConfig(
            dims=options.dims, cases=options.cases, raters=options.raters, seed=options.seed,
            shape=tuple(options.shape) if options.shape else None,
            spacing_mm=tuple(options.spacing) if options.spacing else None,
        )  # fmt: skip
        manifest = write_phantoms(options.out, config, _print_progress)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(manifest)
    return 0


def _print_progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        end = "\n" if done == total else ""
        print(f"\r{done} of {total} cases", end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
