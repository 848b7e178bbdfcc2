"""One echo-like phantom (2D+t): a beating chamber with a wall, its image, and draws from the known posterior.

The chamber is an ellipse that contracts and relaxes; the wall round it keeps its thickness. Both boundaries follow one
radius, which is normal and the same in all frames: a rater who draws the chamber large does so in every frame. The
image shows the probability of each voxel, under speckle and inside a sector as of an ultrasound probe.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.special import ndtr

from ldseg.data.phantom.case import oblique_affine, random_rotation

STRUCTURES = ("chamber", "wall")  # labels 1, 2
BLOOD, WALL, TISSUE = 0.15, 1.0, 0.5
SPECKLE = 0.25  # standard deviation of the logarithm of the intensity
SECTOR = 0.75  # half the opening of the sector, in radians


def draw_parameters(grid: tuple[int, ...], voxel: tuple[float, ...], generator: np.random.Generator) -> dict[str, Any]:
    """Parameters of one case as plain JSON values; lengths in mm, times in seconds.

    Args:
        grid: (x, y, frames).
        voxel: mean voxel size in mm, mm and seconds; the case's own differs by up to 5 %.
        generator: the source of randomness.
    """
    spacing = np.asarray(voxel) * generator.uniform(0.95, 1.05, 3)
    extent = float((np.asarray(grid[:2]) * spacing[:2]).min())
    radius = generator.uniform(0.14, 0.18) * extent
    parameters = {
        "kind": "echo",
        "shape": list(grid),
        "spacing_mm": spacing[:2].tolist(),
        "frame_s": float(spacing[2]),
        "centre_mm": (generator.uniform(-0.04, 0.04, 2) * extent).tolist(),
        "rotation": random_rotation(generator, 2, 0.4).tolist(),
        "elongation": generator.uniform(1.2, 1.5),
        "radius_mean_mm": radius,
        "radius_sd_mm": generator.uniform(0.06, 0.16) * radius,
        "contraction": generator.uniform(0.2, 0.4),
        "beats": generator.uniform(0.9, 1.6),
        "phase": generator.uniform(0, 1),
        "wall_mm": generator.uniform(0.06, 0.08) * extent,
    }
    affine = oblique_affine([*spacing[:2], 1.0], generator)
    return {**parameters, "affine": affine.tolist()}


def render_image(parameters: dict[str, Any], generator: np.random.Generator) -> np.ndarray:
    """A sequence of the case, (x, y, frames) float32."""
    inner, outer = _levels(parameters)
    mean, deviation = parameters["radius_mean_mm"], parameters["radius_sd_mm"]
    chamber, whole = ndtr((mean - inner) / deviation), ndtr((mean - outer) / deviation)
    image = BLOOD * chamber + WALL * (whole - chamber) + TISSUE * (1 - whole)
    speckle = gaussian_filter(generator.normal(size=image.shape), (0.7, 1.2, 0))
    image = image * np.exp(SPECKLE * speckle / speckle.std()) * _sector(parameters)
    return (image * 10 ** generator.uniform(1.5, 2.5)).astype(np.float32)


def draw_posterior(parameters: dict[str, Any], n: int, generator: np.random.Generator) -> np.ndarray:
    """Fresh, exact draws of a rater's label given the case.

    Returns:
        (n, x, y, frames) uint8: 0 background, 1 chamber, 2 wall.
    """
    inner, outer = _levels(parameters)
    radii = parameters["radius_mean_mm"] + parameters["radius_sd_mm"] * generator.normal(size=n)
    labels = np.zeros((n, *parameters["shape"]), dtype=np.uint8)
    for label, radius in zip(labels, radii, strict=True):
        label[outer <= radius] = 2
        label[inner <= radius] = 1
    return labels


def _points(parameters: dict[str, Any]) -> np.ndarray:
    """Positions in mm from the centre of the field of view, (x, y, 2)."""
    lines = [
        (np.arange(n) - (n - 1) / 2) * s for n, s in zip(parameters["shape"], parameters["spacing_mm"], strict=False)
    ]
    return np.stack(np.meshgrid(*lines, indexing="ij"), axis=-1)


def _levels(parameters: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """The radius at rest from which on a voxel lies in the chamber, and in chamber or wall; (x, y, frames) in mm."""
    frames, stretch = parameters["shape"][2], np.sqrt(parameters["elongation"])
    local = (_points(parameters) - parameters["centre_mm"]) @ np.asarray(parameters["rotation"])
    distance = np.linalg.norm(local * [stretch, 1 / stretch], axis=-1)[..., None]
    turns = parameters["phase"] + parameters["beats"] * np.arange(frames) / frames
    scale = 1 - parameters["contraction"] * (1 - np.cos(2 * np.pi * turns)) / 2
    return distance / scale, (distance - parameters["wall_mm"]) / scale


def _sector(parameters: dict[str, Any]) -> np.ndarray:
    """1 in the sector below the probe, which is at the top of the middle column; (x, y, 1)."""
    points = _points(parameters)
    depth = points[..., 1] - points[..., 1].min() + 1e-9
    return (np.abs(np.arctan2(points[..., 0], depth)) <= SECTOR)[..., None]
