"""Phantom cohorts whose posterior is known: images with three structures, labelled by several raters.

A case is a set of parameters. Its image is made from the parameters and noise, its labels are drawn from the parameters
alone, so `draw_posterior` is the exact distribution of the raters' labels, and each parameter can be read off the image:

1. organ: an ellipsoid. Its radius is normal; the image shows the probability of each voxel, that is an edge whose middle
   is the mean radius and whose width is the standard deviation.
2. nodule: a ball in the organ, present with a probability that is its contrast. Its presence is correlated with the
   organ's radius (a Gaussian copula): larger organs more often have it.
3. lobe: a ball on one of two sides of the organ; the contrast on either side is that side's probability.
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
from scipy.ndimage import gaussian_filter, zoom
from scipy.special import expit, ndtr, ndtri

from ldseg.data.volume import write_atomically

STRUCTURES = ("organ", "nodule", "lobe")  # labels 1, 2, 3
DEFAULT_SHAPES = {2: (64, 64), 3: (32, 32, 24)}
DEFAULT_SPACINGS_MM = {2: (1.0, 1.0), 3: (1.0, 1.0, 1.5)}
CORRELATION = 0.6  # of the normal variables behind the organ's radius and the nodule's presence
# intensities that add up, at probability 1; the nodule is dark: a small bright one would be lost where the brightest
# half percent of the voxels is clipped
TISSUE, ORGAN, NODULE, LOBE = 1.0, 0.8, -0.7, 0.7
NOISE = 0.06
EXAMPLE = "example: python -m ldseg.data.phantom --out phantoms --dims 3 --cases 40 --raters 4 --shape 32 32 24 --seed 0"


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
        parameters[name] = draw_parameters(config, np.random.default_rng(streams[0]))
        image = render_image(parameters[name], np.random.default_rng(streams[1]))
        labels = draw_posterior(parameters[name], config.raters, np.random.default_rng(streams[2]))
        rows.append(_write_case(root, name, parameters[name], image, labels))
        if progress is not None:
            progress(number + 1, config.cases)
    for row, split in zip(rows, _splits(config), strict=True):
        row["split"] = split
    labels_by_name = {"background": 0, **{name: value for value, name in enumerate(STRUCTURES, start=1)}}
    about = {"name": f"phantom{config.dims}d", "labels": labels_by_name, "channel_names": {"0": "MR"}, "file_ending": ".nii.gz"}
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


def draw_parameters(config: PhantomConfig, generator: np.random.Generator) -> dict[str, Any]:
    """Parameters of one case as plain JSON values; lengths in mm, positions from the centre of the field of view."""
    dims, shape = config.dims, np.asarray(config.grid)
    spacing = np.asarray(config.voxel_mm) * generator.uniform(0.95, 1.05, dims)
    extent = float((shape * spacing).min())
    centre = generator.uniform(-0.03, 0.03, dims) * extent
    radius = generator.uniform(0.19, 0.25) * extent
    stretch = np.exp(generator.uniform(-0.12, 0.12, dims))
    direction = np.eye(dims)[0] + generator.uniform(-0.35, 0.35, dims) * (np.arange(dims) > 0)
    direction /= np.linalg.norm(direction)
    towards = generator.normal(size=dims)
    order = generator.permutation(3) if dims == 3 else np.arange(2)  # 2D images are read as they are stored
    flips = generator.random(dims) < 0.5 if dims == 3 else np.zeros(2, bool)
    axes = (stretch / stretch.prod() ** (1 / dims)).tolist()
    parameters = {
        "shape": shape.tolist(),
        "spacing_mm": spacing.tolist(),
        "order": order.tolist(),
        "flips": flips.tolist(),
        "centre_mm": centre.tolist(),
        "rotation": _random_rotation(generator, dims, 0.5).tolist(),
        "axis_ratios": axes,
        "radius_mean_mm": radius,
        "radius_sd_mm": generator.uniform(0.06, 0.16) * radius,
        "nodule_centre_mm": (centre + towards / np.linalg.norm(towards) * generator.uniform(0.1, 0.35) * radius).tolist(),
        "nodule_radius_mm": generator.uniform(0.08, 0.1) * extent,
        "nodule_probability": generator.uniform(0.1, 0.9),
        "correlation": CORRELATION,
        "lobe_offset_mm": (direction * (radius + 0.06 * extent)).tolist(),
        "lobe_radius_mm": generator.uniform(0.11, 0.13) * extent,
        "lobe_positive_side_probability": generator.uniform(0.1, 0.9),
    }
    return {**parameters, "affine": _affine(parameters, generator).tolist()}


def render_image(parameters: dict[str, Any], generator: np.random.Generator) -> np.ndarray:
    """A scan of the case, (*native) float32: its structures by their probabilities, a bias field, texture and noise."""
    shape = tuple(parameters["shape"])
    organ_level, nodule, sides = _levels(parameters)
    organ = ndtr((parameters["radius_mean_mm"] - organ_level) / parameters["radius_sd_mm"])
    edge = 0.25 * min(parameters["spacing_mm"])  # sharp edges, but no staircase
    positive = parameters["lobe_positive_side_probability"]
    lobes = positive * expit(sides[0] / edge) + (1 - positive) * expit(sides[1] / edge)
    image = TISSUE + ORGAN * organ + NODULE * parameters["nodule_probability"] * expit(nodule / edge)
    image = image + LOBE * np.minimum(lobes, 1) * (1 - organ)
    coarse = generator.normal(size=(4,) * len(shape))
    bias = zoom(coarse, [n / 4 for n in shape], order=3, mode="nearest", grid_mode=True)
    texture = gaussian_filter(generator.normal(size=shape), 1.0)
    image = image * (1 + 0.03 * bias) + NOISE * (0.5 * texture / texture.std() + generator.normal(size=shape))
    gain = 10 ** generator.uniform(1.5, 3.5)
    return _to_native(np.maximum(image, 0) * gain, parameters).astype(np.float32)


def draw_posterior(parameters: dict[str, Any], n: int, generator: np.random.Generator) -> np.ndarray:
    """Fresh, exact draws of a rater's label given the case.

    Args:
        parameters: of the case (see `read_parameters`).
        n: number of draws.
        generator: the source of randomness.

    Returns:
        (n, *native) uint8 in the file's axes (2D: without the axis of length one): 0 background, 1 organ, 2 nodule, 3 lobe.
    """
    organ_level, nodule, sides = _levels(parameters)
    radius_draw, other = generator.normal(size=(2, n))
    nodule_draw = parameters["correlation"] * radius_draw + np.sqrt(1 - parameters["correlation"] ** 2) * other
    radii = parameters["radius_mean_mm"] + parameters["radius_sd_mm"] * radius_draw
    present = nodule_draw > ndtri(1 - parameters["nodule_probability"])
    positive = generator.random(n) < parameters["lobe_positive_side_probability"]
    labels = np.zeros((n, *parameters["shape"]), dtype=np.uint8)
    for label, radius, has_nodule, side in zip(labels, radii, present, positive, strict=True):
        label[(sides[0] if side else sides[1]) >= 0] = 3
        label[organ_level <= radius] = 1
        if has_nodule:
            label[nodule >= 0] = 2
    return np.stack([_to_native(label, parameters) for label in labels]) if n else labels


def _levels(parameters: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Canonical-grid maps in mm: the organ's elliptic radius; depth inside the nodule and inside the lobe per side."""
    shape, spacing = parameters["shape"], parameters["spacing_mm"]
    lines = [(np.arange(n) - (n - 1) / 2) * step for n, step in zip(shape, spacing, strict=True)]
    points = np.stack(np.meshgrid(*lines, indexing="ij"), axis=-1)
    centre, offset = np.asarray(parameters["centre_mm"]), np.asarray(parameters["lobe_offset_mm"])
    # rows are turned into the organ's own axes
    local = (points - centre) @ np.asarray(parameters["rotation"]) / np.asarray(parameters["axis_ratios"])
    nodule = parameters["nodule_radius_mm"] - np.linalg.norm(points - parameters["nodule_centre_mm"], axis=-1)
    sides = [parameters["lobe_radius_mm"] - np.linalg.norm(points - centre - sign * offset, axis=-1) for sign in (1, -1)]
    return np.linalg.norm(local, axis=-1), nodule, (sides[0], sides[1])


def _to_native(canonical: np.ndarray, parameters: dict[str, Any]) -> np.ndarray:
    """From the canonical grid to the axes in which the case is stored."""
    flipped = np.flip(canonical, [axis for axis, flip in enumerate(parameters["flips"]) if flip])
    return np.ascontiguousarray(flipped.transpose(parameters["order"]))


def _affine(parameters: dict[str, Any], generator: np.random.Generator) -> np.ndarray:
    """Voxel to world of the stored axes: oblique, with the parameters' spacing, order and flips."""
    dims, shape = len(parameters["shape"]), parameters["shape"]
    canonical = np.eye(4)
    spacing = [*parameters["spacing_mm"], 1.0][:3]
    canonical[:3, :3] = _random_rotation(generator, 3, 0.4) * np.asarray(spacing)
    canonical[:3, 3] = generator.uniform(-80, 80, 3)
    to_canonical = np.zeros((4, 4))
    to_canonical[3, 3] = 1
    for native, axis in enumerate([*parameters["order"], 2][:3]):
        flip = axis < dims and parameters["flips"][axis]
        to_canonical[axis, native] = -1 if flip else 1
        to_canonical[axis, 3] = shape[axis] - 1 if flip else 0
    return np.asarray(canonical @ to_canonical)


def _random_rotation(generator: np.random.Generator, dims: int, most: float) -> np.ndarray:
    """A rotation by up to `most` radians in the plane, or about a random axis (Rodrigues' formula)."""
    angle = generator.uniform(-most, most)
    if dims == 2:
        return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    x, y, z = (axis := generator.normal(size=3)) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.asarray(np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross)


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
    shapes, spacings = ("; ".join(" ".join(map(str, v[d])) for d in (3, 2)) for v in (DEFAULT_SHAPES, DEFAULT_SPACINGS_MM))
    parser.add_argument("--shape", type=int, nargs="+", help=f"voxels per axis (default: {shapes} for 2 dims)")
    parser.add_argument("--spacing", type=float, nargs="+", help=f"mean voxel size in mm (default: {spacings} for 2 dims)")
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
    print(f"\n{manifest}")
    return 0


def _print_progress(done: int, total: int) -> None:
    print(f"\r{done} of {total} cases", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
