"""One phantom: its parameters, its image, and draws from the known posterior of its label.

A case is a set of parameters. Its image is made from the parameters and noise, its labels are drawn from the parameters
alone, so `draw_posterior` is the exact distribution of the labels given the case, and each parameter can be read off
the image:

1. organ: an ellipsoid. Its radius is normal; the image shows the probability of each voxel, that is an edge whose
   middle is the mean radius and whose width is the standard deviation.
2. nodule: a ball in the organ, present with a probability that is its contrast. Its presence is correlated with the
   organ's radius (a Gaussian copula): larger organs more often have it.
3. lobe: a ball on one of two sides of the organ; the contrast on either side is that side's probability.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter, zoom
from scipy.special import expit, ndtr, ndtri

STRUCTURES = ("organ", "nodule", "lobe")  # labels 1, 2, 3
CORRELATION = 0.6  # of the normal variables behind the organ's radius and the nodule's presence
# intensities that add up, at probability 1; the nodule is dark: a small bright one would be lost where the brightest
# half percent of the voxels is clipped
TISSUE, ORGAN, NODULE, LOBE = 1.0, 0.8, -0.7, 0.7
NOISE = 0.06


def draw_parameters(
    grid: tuple[int, ...], voxel_mm: tuple[float, ...], generator: np.random.Generator
) -> dict[str, Any]:
    """Parameters of one case as plain JSON values; lengths in mm, positions from the centre of the field of view.

    Args:
        grid: voxels per canonical axis (2 or 3).
        voxel_mm: mean voxel size per canonical axis; the case's own differs by up to 5 %.
        generator: the source of randomness.
    """
    dims, shape = len(grid), np.asarray(grid)
    spacing = np.asarray(voxel_mm) * generator.uniform(0.95, 1.05, dims)
    extent = float((shape * spacing).min())
    centre = generator.uniform(-0.03, 0.03, dims) * extent
    radius = generator.uniform(0.19, 0.25) * extent
    stretch = np.exp(generator.uniform(-0.12, 0.12, dims))
    direction = np.eye(dims)[0] + generator.uniform(-0.35, 0.35, dims) * (np.arange(dims) > 0)
    direction /= np.linalg.norm(direction)
    towards = generator.normal(size=dims)
    order = generator.permutation(3) if dims == 3 else np.arange(2)  # 2D images are read as they are stored
    flips = generator.random(dims) < 0.5 if dims == 3 else np.zeros(2, bool)
    nodule_distance = generator.uniform(0.1, 0.35) * radius
    parameters = {
        "shape": shape.tolist(),
        "spacing_mm": spacing.tolist(),
        "order": order.tolist(),
        "flips": flips.tolist(),
        "centre_mm": centre.tolist(),
        "rotation": random_rotation(generator, dims, 0.5).tolist(),
        "axis_ratios": (stretch / stretch.prod() ** (1 / dims)).tolist(),
        "radius_mean_mm": radius,
        "radius_sd_mm": generator.uniform(0.06, 0.16) * radius,
        "nodule_centre_mm": (centre + towards / np.linalg.norm(towards) * nodule_distance).tolist(),
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
        (n, *native) uint8 in the file's axes (2D: without the axis of length one): 0 background, 1 organ, 2 nodule,
        3 lobe.
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
    positive, negative = (
        parameters["lobe_radius_mm"] - np.linalg.norm(points - centre - sign * offset, axis=-1) for sign in (1, -1)
    )
    return np.linalg.norm(local, axis=-1), nodule, (positive, negative)


def _to_native(canonical: np.ndarray, parameters: dict[str, Any]) -> np.ndarray:
    """From the canonical grid to the axes in which the case is stored."""
    flipped = np.flip(canonical, tuple(axis for axis, flip in enumerate(parameters["flips"]) if flip))
    return np.ascontiguousarray(flipped.transpose(parameters["order"]))


def _affine(parameters: dict[str, Any], generator: np.random.Generator) -> np.ndarray:
    """Voxel to world of the stored axes: oblique, with the parameters' spacing, order and flips."""
    dims, shape = len(parameters["shape"]), parameters["shape"]
    canonical = oblique_affine([*parameters["spacing_mm"], 1.0][:3], generator)
    to_canonical = np.zeros((4, 4))
    to_canonical[3, 3] = 1
    for native, axis in enumerate([*parameters["order"], 2][:3]):
        flip = axis < dims and parameters["flips"][axis]
        to_canonical[axis, native] = -1 if flip else 1
        to_canonical[axis, 3] = shape[axis] - 1 if flip else 0
    return np.asarray(canonical @ to_canonical)


def oblique_affine(spacing: Sequence[float], generator: np.random.Generator) -> np.ndarray:
    """Voxel to world, 4x4: a rotation by up to 0.4 radians about a random axis, and a random origin."""
    affine = np.eye(4)
    affine[:3, :3] = random_rotation(generator, 3, 0.4) * np.asarray(spacing)
    affine[:3, 3] = generator.uniform(-80, 80, 3)
    return affine


def random_rotation(generator: np.random.Generator, dims: int, most: float) -> np.ndarray:
    """A rotation by up to `most` radians in the plane, or about a random axis (Rodrigues' formula)."""
    angle = generator.uniform(-most, most)
    if dims == 2:
        return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    x, y, z = (axis := generator.normal(size=3)) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.asarray(np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross)
