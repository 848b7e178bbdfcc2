"""Random changes of a training item: one affine for image and label, and MONAI's intensity transforms.

The affine (rotation, scale, translation, mirroring and the crop to the training shape) is one sampling by torch of
image and label together: MONAI's RandAffined takes 29 ms for a 48x64x48 item on one core, this 9 ms.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from monai.transforms import (
    Compose,
    RandAdjustContrast,
    RandBiasField,
    RandGaussianNoise,
    RandGaussianSmooth,
    RandScaleIntensity,
    RandShiftIntensity,
)
from torch import Tensor

from ldseg.config import DataConfig

MAX_TRANSLATION = 0.06  # of the training shape
AFFINE_PROBABILITY = 0.9


@dataclass(frozen=True)
class Augmenter:
    """Draws one augmented item of `data.shape` from a whole case.

    Attributes:
        data: shape, flip_axes, max_rotation, max_scale.
        intensities: MONAI transforms of a z-scored (C, *spatial) image.
    """

    data: DataConfig
    intensities: Compose

    @classmethod
    def create(cls, data: DataConfig) -> Augmenter:
        """The defaults: noise up to 0.8 of the image's deviation, the rest mild: no structure leaves the picture.

        A network that sees single voxels may lose its way in noise that it never met (`docs/results/history.md`).
        """
        blur = (0.4, 1.0)
        steps = [
            RandBiasField(prob=0.3, degree=2, coeff_range=(-0.3, 0.3)),
            RandGaussianSmooth(prob=0.2, sigma_x=blur, sigma_y=blur, sigma_z=blur),
            RandScaleIntensity(factors=0.2, prob=0.5),
            RandShiftIntensity(offsets=0.2, prob=0.5),
            RandAdjustContrast(prob=0.3, gamma=(0.7, 1.5), retain_stats=True),
            RandGaussianNoise(prob=0.4, std=0.8),
        ]
        return cls(data, Compose(steps if data.augment_intensity else []))

    def draw(
        self, image: Tensor, label: Tensor, *, start: tuple[int, ...], spacing: tuple[float, ...], seed: int
    ) -> tuple[Tensor, Tensor]:
        """One item.

        Args:
            image: (C, *grid) float32, z-scored.
            label: (*grid) class indices.
            start: first voxel of the crop of `data.shape`, per axis.
            spacing: of the grid's voxels, so that rotations are rigid where they are anisotropic.
            seed: the same seed gives the same item.

        Returns:
            image (C, *shape) float32 and label (*shape) int64.
        """
        generator = np.random.default_rng(seed)
        matrix = _random_matrix(generator, self.data, spacing)
        shift = generator.uniform(-MAX_TRANSLATION, MAX_TRANSLATION, len(start)) * self.data.shape
        if generator.random() > AFFINE_PROBABILITY:
            matrix, shift = np.diag(np.sign(np.diag(matrix))), np.zeros(len(start))
        image, label = sample_affine(image, label, matrix=matrix, shift=shift, start=start, shape=self.data.shape)
        self.intensities.set_random_state(seed=int(generator.integers(2**31)))
        changed = self.intensities(image)
        return torch.as_tensor(changed, dtype=torch.float32).as_subclass(Tensor), label


def sample_affine(
    image: Tensor,
    label: Tensor,
    *,
    matrix: np.ndarray,
    shift: np.ndarray,
    start: tuple[int, ...],
    shape: tuple[int, ...],
) -> tuple[Tensor, Tensor]:
    """Image (linear) and label (nearest) at centre + matrix (x - centre) + shift for each voxel x of a crop.

    Args:
        image: (C, *grid). label: (*grid).
        matrix: (n, n) and shift: (n,) in voxels, axes in array order.
        start: first voxel of the crop. shape: its size.

    Returns:
        (C, *shape) and (*shape) int64; 0 outside the grid.
    """
    dims = len(shape)
    size = np.asarray(label.shape, dtype=np.float64)
    centre = np.asarray(start) + (np.asarray(shape) - 1) / 2
    # torch's normalised coordinates run from -1 to 1 over the voxels' outer faces, x (the last axis) first
    origin = (2 * (centre + shift) + 1) / size - 1
    grid = torch.from_numpy(origin[::-1].copy()).float()
    for axis in range(dims):  # the sum of one line per axis: a third of the time of F.affine_grid
        steps = np.arange(shape[axis]) - (shape[axis] - 1) / 2
        line = steps[:, None] * (2 * matrix[:, axis] / size)[None, ::-1]
        grid = grid + torch.from_numpy(line).float().view(*(-1 if a == axis else 1 for a in range(dims)), dims)
    grid = grid[None]
    moved = F.grid_sample(image[None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)[0]
    labels = F.grid_sample(label[None, None].float(), grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return moved, labels[0, 0].round().long()


def _random_matrix(generator: np.random.Generator, data: DataConfig, spacing: tuple[float, ...]) -> np.ndarray:
    """Rotation times scale, rigid in millimetres, times the mirrors; (n, n) in voxels."""
    dims = data.spatial_dims
    rotation = np.eye(dims)
    planes = list(itertools.combinations(range(dims), 2))
    for (first, second), most in zip(planes, np.broadcast_to(data.max_rotation, len(planes)), strict=True):
        angle = math.radians(generator.uniform(-most, most))
        plane = np.eye(dims)
        plane[[first, first, second, second], [first, second, first, second]] = (
            math.cos(angle), -math.sin(angle), math.sin(angle), math.cos(angle),
        )  # fmt: skip
        rotation = rotation @ plane
    scale = math.exp(generator.uniform(-1, 1) * math.log(data.max_scale))
    mirrors = np.ones(dims)
    for axis in data.flip_axes:
        mirrors[axis] = generator.choice((-1.0, 1.0))
    millimetres = np.asarray(spacing)
    return np.asarray(rotation * scale * millimetres[None, :] / millimetres[:, None] * mirrors[None, :])
