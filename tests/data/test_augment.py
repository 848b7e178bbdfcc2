"""The random affine moves image and label together, rigidly in millimetres."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ldseg.config import DataConfig
from ldseg.data.augment import Augmenter, _random_matrix, sample_affine


def smooth_image(shape: tuple[int, ...]) -> torch.Tensor:
    lines = [torch.linspace(-1, 1, n) for n in shape]
    mesh = torch.meshgrid(*lines, indexing="ij")
    return torch.exp(-4 * sum((axis - 0.2) ** 2 for axis in mesh))[None]


@pytest.mark.parametrize("shape", [(20, 17), (12, 9, 15)])
def test_identity_returns_the_crop(shape):
    dims = len(shape)
    image = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    label = (image[0] > 0).to(torch.uint8)
    start, size = (3, 2, 4)[:dims], (9, 5, 8)[:dims]
    window = tuple(slice(s, s + n) for s, n in zip(start, size, strict=True))
    moved, labels = sample_affine(image, label, matrix=np.eye(dims), shift=np.zeros(dims), start=start, shape=size)
    assert torch.allclose(moved, image[:, *window], atol=1e-5)
    assert torch.equal(labels, label[window].long()) and labels.dtype == torch.int64


@pytest.mark.parametrize("dims", [2, 3])
def test_mirror_and_shift_are_flip_and_roll(dims):
    image = torch.randn(1, *(8, 6, 10)[:dims], generator=torch.Generator().manual_seed(0))
    label, zero = (image[0] > 0).to(torch.uint8), (0,) * dims
    mirror = np.diag([-1.0, 1.0, 1.0][:dims])
    moved, labels = sample_affine(image, label, matrix=mirror, shift=np.zeros(dims), start=zero, shape=label.shape)
    assert torch.allclose(moved, image.flip(1), atol=1e-5) and torch.equal(labels, label.flip(0).long())
    shift = np.array([0.0, 2.0, 0.0][:dims])
    moved, labels = sample_affine(image, label, matrix=np.eye(dims), shift=shift, start=zero, shape=label.shape)
    assert torch.allclose(moved[:, :, :-2], image[:, :, 2:], atol=1e-5)
    assert torch.equal(labels[:, :-2], label[:, 2:].long()) and int(labels[:, -2:].sum()) == 0


def test_general_affine_agrees_with_torch(shape=(12, 9, 15)):
    matrix, shift = np.random.default_rng(0).normal(size=(3, 3)) * 0.3 + np.eye(3), np.array([0.5, -1.0, 2.0])
    image = smooth_image(shape)
    moved, _ = sample_affine(image, image[0] > 0.5, matrix=matrix, shift=shift, start=(0, 0, 0), shape=shape)
    # torch's theta: axes reversed, coordinates from -1 to 1
    half = np.asarray(shape) / 2
    theta = np.concatenate([matrix * half[None] / half[:, None], (shift / half)[:, None]], 1)[::-1][:, [2, 1, 0, 3]]
    grid = F.affine_grid(torch.from_numpy(theta.copy()).float()[None], [1, 1, *shape], align_corners=False)
    assert torch.allclose(moved, F.grid_sample(image[None], grid, align_corners=False)[0], atol=1e-4)


def test_rotation_is_rigid_in_millimetres_where_voxels_are_anisotropic():
    spacing = np.array([1.0, 0.5, 3.0])
    data = DataConfig(shape=(16, 16, 16))
    for seed in range(5):
        matrix = _random_matrix(np.random.default_rng(seed), data, tuple(spacing))
        in_mm = np.diag(spacing) @ matrix @ np.diag(1 / spacing)
        scale = np.cbrt(np.linalg.det(in_mm))
        assert np.allclose(in_mm @ in_mm.T, scale**2 * np.eye(3), atol=1e-9)
        assert abs(np.log(scale)) <= np.log(data.max_scale)


@pytest.mark.parametrize("plane", range(3))
def test_a_rotation_in_one_plane_leaves_the_third_axis_alone(plane):
    """The planes' order: about the third, the second and the first axis."""
    angles, axis = [0.0, 0.0, 0.0], 2 - plane
    angles[plane] = 30.0
    data, spacing = DataConfig(shape=(16, 16, 16), max_rotation=tuple(angles), max_scale=1.0), (1.0, 0.5, 3.0)
    turned = []
    for seed in range(20):
        matrix = _random_matrix(np.random.default_rng(seed), data, spacing)
        assert np.allclose(matrix[axis], np.eye(3)[axis]) and np.allclose(matrix[:, axis], np.eye(3)[axis])
        turned.append(np.degrees(np.arccos(matrix[axis - 1, axis - 1])))
    assert 15 < max(turned) <= 30


@pytest.mark.parametrize("shape", [(32, 24), (16, 24, 16)])
def test_label_follows_the_image(shape):
    dims = len(shape)
    image = smooth_image(shape)
    label = (image[0] > 0.5).to(torch.uint8)
    data = DataConfig(spatial_dims=dims, shape=shape, flip_axes=(0, 1))
    still = Augmenter.create(replace(data, augment_intensity=False))
    augmenter, place = Augmenter.create(data), {"start": (0,) * dims, "spacing": (1.0,) * dims}
    shares, changed = [], 0
    for seed in range(12):
        moved, labels = still.draw(image, label, **place, seed=seed)
        inside, outside = moved[0][labels == 1], moved[0][labels == 0]
        shares.append(float((inside[:, None] > outside[torch.randperm(len(outside))[:200]]).float().mean()))
        seen, same = augmenter.draw(image, label, **place, seed=seed)  # the intensities alone differ
        assert type(seen) is torch.Tensor and seen.shape == image.shape and seen.dtype == torch.float32
        assert torch.equal(labels, same) and torch.isfinite(seen).all()
        changed += not torch.equal(seen, moved)
        assert torch.equal(seen, augmenter.draw(image, label, **place, seed=seed)[0])
    assert min(shares) > 0.95 and changed > 6
