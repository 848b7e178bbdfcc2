"""Phantom cohorts whose posterior is known, labelled by several raters.

What a case is, and the exact distribution of its labels: `ldseg.data.phantom.case` ("organ": 2D and 3D, three
structures) and `ldseg.data.phantom.echo` ("echo": 2D+t, a beating chamber).
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

from ldseg.data.phantom import case, echo
from ldseg.files import write_atomically

STRUCTURES = case.STRUCTURES
KINDS = {"organ": case, "echo": echo}
DEFAULT_SHAPES: dict[str, dict[int, tuple[int, ...]]] = {
    "organ": {2: (64, 64), 3: (32, 32, 24)},
    "echo": {3: (64, 64, 12)},
}
DEFAULT_SPACINGS: dict[str, dict[int, tuple[float, ...]]] = {  # mm, frames in s
    "organ": {2: (1.0, 1.0), 3: (1.0, 1.0, 1.5)},
    "echo": {3: (1.0, 1.0, 0.04)},
}
EXAMPLE = (
    "example: python -m ldseg.data.phantom --out phantoms --dims 3 --cases 40 --raters 4 --shape 32 32 24 --seed 0"
)

__all__ = ["STRUCTURES", "PhantomConfig", "draw_posterior", "main", "read_parameters", "write_phantoms"]


@dataclass(frozen=True, kw_only=True)
class PhantomConfig:
    """What a phantom cohort consists of; `shape` and `spacing_mm` default by `dims` and are in canonical axis order.

    `kind` "echo" is 2D+t: its last axis is time, in frames and seconds.
    """

    kind: str = "organ"
    dims: int = 3
    cases: int = 40
    raters: int = 4
    shape: tuple[int, ...] | None = None
    spacing_mm: tuple[float, ...] | None = None
    seed: int = 0
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if self.dims not in DEFAULT_SHAPES[self.kind]:
            allowed = " or ".join(map(str, DEFAULT_SHAPES[self.kind]))
            raise ValueError(f"dims must be {allowed} for {self.kind} phantoms, got {self.dims}")
        if self.cases < 1 or self.raters < 1:
            raise ValueError(f"cases and raters must be at least 1, got {self.cases} and {self.raters}")
        if len(self.grid) != self.dims or min(self.grid[:2]) < 16 or min(self.grid) < self.least:
            raise ValueError(f"shape needs {self.dims} entries of at least {self.least} voxels, got {self.grid}")
        if len(self.voxel_mm) != self.dims or min(self.voxel_mm) <= 0:
            raise ValueError(f"spacing_mm needs {self.dims} positive entries, got {self.voxel_mm}")
        if min(self.fractions) < 0 or abs(sum(self.fractions) - 1) > 1e-6:
            raise ValueError(f"fractions must add up to 1, got {self.fractions}")

    @property
    def grid(self) -> tuple[int, ...]:
        """Voxels per canonical axis."""
        return self.shape or DEFAULT_SHAPES[self.kind][self.dims]

    @property
    def least(self) -> int:
        """Voxels that each axis must have, at the least; a sequence may have few frames."""
        return 4 if self.kind == "echo" else 16

    @property
    def name(self) -> str:
        """Of the cohort and, with a number, of its cases."""
        return "echo" if self.kind == "echo" else f"phantom{self.dims}d"

    @property
    def voxel_mm(self) -> tuple[float, ...]:
        """Mean voxel size per canonical axis; cases differ from it by up to 5 %."""
        return self.spacing_mm or DEFAULT_SPACINGS[self.kind][self.dims]


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Write a phantom cohort from the command line."""
    defaults = PhantomConfig()
    parser = argparse.ArgumentParser(
        prog="python -m ldseg.data.phantom", description="Write a cohort whose posterior is known.", epilog=EXAMPLE
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument(
        "--kind", choices=list(KINDS), default=defaults.kind,
        help="organ: three structures in 2D or 3D; echo: a beating chamber in 2D+t (default: %(default)s)",
    )  # fmt: skip
    numbers = {
        "--dims": (defaults.dims, "2 for images, 3 for volumes"),
        "--cases": (defaults.cases, "number of cases"),
        "--raters": (defaults.raters, "labels per case"),
        "--seed": (defaults.seed, "the same seed writes the same cohort"),
    }
    for name, (default, meaning) in numbers.items():
        parser.add_argument(name, type=int, default=default, help=f"{meaning} (default: {default})")
    shapes = "32 32 24, 64 64 for 2 dims, 64 64 12 for echo"
    parser.add_argument("--shape", type=int, nargs="+", help=f"voxels per axis (default: {shapes})")
    spacings = "1 1 1.5, 1 1 for 2 dims, 1 1 0.04 for echo"
    parser.add_argument(
        "--spacing", type=float, nargs="+", help=f"mean voxel size in mm, frames in s (default: {spacings})"
    )
    options = parser.parse_args(arguments)
    try:
        config = PhantomConfig(
            kind=options.kind, dims=options.dims, cases=options.cases, raters=options.raters, seed=options.seed,
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
