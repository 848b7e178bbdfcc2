"""The way from native voxels to the working grid and back, in all 48 axis orders and directions."""

import itertools
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import map_coordinates

from ldseg.config import DataConfig
from ldseg.data.errors import CaseError
from ldseg.data.grid import find_geometry, label_to_grid, prepare
from ldseg.data.volume import Volume, read_label, read_volume, write_map

ORIENTATIONS = [
    (order, flips) for order in itertools.permutations(range(3)) for flips in itertools.product((1, -1), repeat=3)
]
SPACING = (0.8, 1.1, 2.5)  # mm per canonical axis
SHAPE = (14, 11, 9)  # per canonical axis


def tilt(angles_deg: tuple[float, float, float]) -> np.ndarray:
    rotation = np.eye(3)
    for (first, second), degrees in zip(((0, 1), (1, 2), (0, 2)), angles_deg, strict=True):
        plane, angle = np.eye(3), np.deg2rad(degrees)
        plane[first, first] = plane[second, second] = np.cos(angle)
        plane[first, second], plane[second, first] = -np.sin(angle), np.sin(angle)
        rotation = rotation @ plane
    return rotation


def oriented_affine(order: tuple[int, ...], flips: tuple[int, ...], spacing: tuple[float, ...] = SPACING) -> np.ndarray:
    """Oblique; native axis i runs along the canonical axis order[i], forwards or backwards."""
    affine = np.eye(4)
    columns = tilt((14, -9, 11)) * np.asarray(spacing)
    for native, (axis, sign) in enumerate(zip(order, flips, strict=True)):
        affine[:3, native] = sign * columns[:, axis]
    affine[:3, 3] = (31.0, -57.0, 12.0)
    return affine


def make_volume(array: np.ndarray, affine: np.ndarray, folder: Path) -> Volume:
    image = nib.Nifti1Image(array.astype(np.float32), affine)
    nib.save(image, folder / "case.nii.gz")
    return read_volume(folder / "case.nii.gz", case="case", spatial_dims=3)


def blob_at(world: np.ndarray, shape: tuple[int, ...], affine: np.ndarray, radius_mm: float) -> np.ndarray:
    indices = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    positions = indices @ affine[:3, :3].T + affine[:3, 3]
    return (np.linalg.norm(positions - world, axis=-1) <= radius_mm).astype(np.uint8)


def centre_of_mass_mm(label: np.ndarray, affine: np.ndarray) -> np.ndarray:
    return np.argwhere(label).mean(0) @ affine[:3, :3].T + affine[:3, 3]


@pytest.mark.parametrize(("order", "flips"), ORIENTATIONS)
@pytest.mark.parametrize("spacing_mm", [None, SPACING])
def test_native_to_grid_and_back_is_exact_where_the_spacing_is_kept(tmp_path, order, flips, spacing_mm):
    shape = tuple(SHAPE[axis] for axis in order)
    affine = oriented_affine(order, flips)
    generator = np.random.default_rng(3)
    volume = make_volume(generator.normal(size=shape), affine, tmp_path)
    label = generator.integers(0, 3, shape).astype(np.uint8)
    data = DataConfig(shape=(16, 16, 16), spacing_mm=spacing_mm, label_values=(0, 1, 2), structures=("a", "b"))
    grid = prepare(volume, data, (8, 8, 8))
    on_grid = label_to_grid(label, grid)
    maps = torch.stack([(on_grid == value).float() for value in range(3)])
    assert grid.image.shape == (1, 16, 16, 16)
    assert np.array_equal(grid.to_native(maps).argmax(0), label)
    assert np.array_equal(grid.to_native(on_grid[None])[0], label)
    # the image is moved the same way: z-scored and clipped, but in the same order of size
    back = grid.to_native(grid.image)[0]
    assert np.corrcoef(back.ravel(), volume.array.ravel())[0, 1] > 0.98
    assert int(grid.inside.sum()) == np.prod(shape)


@pytest.mark.parametrize(("order", "flips"), ORIENTATIONS)
def test_blob_at_known_world_coordinates_comes_back_there_through_files(tmp_path, order, flips):
    shape = tuple((40, 36, 20)[axis] for axis in order)
    affine = oriented_affine(order, flips)
    middle = affine[:3, :3] @ ((np.asarray(shape) - 1) / 2) + affine[:3, 3]
    world = middle + tilt((14, -9, 11)) @ (5.0, -6.0, 7.0)
    volume = make_volume(np.random.default_rng(0).normal(size=shape), affine, tmp_path)
    label = blob_at(world, shape, volume.affine, 6.0)
    nib.save(nib.Nifti1Image(label, volume.affine), tmp_path / "label.nii.gz")
    data = DataConfig(shape=(24, 24, 24), spacing_mm=(1.3, 1.3, 1.3))
    grid = prepare(volume, data, (8, 8, 8))
    on_grid = label_to_grid(read_label(tmp_path / "label.nii.gz", volume, data), grid)
    # on the grid it lies right, behind and above of the middle by the same millimetres, whatever the storage order
    offset = (np.argwhere(on_grid.numpy()).mean(0) - np.argwhere(grid.inside.numpy()).mean(0)) * 1.3
    assert np.abs(offset - (5.0, -6.0, 7.0)).max() < 0.35
    back = grid.to_native(F.one_hot(on_grid, 2).movedim(-1, 0).float()).argmax(0).astype(np.uint8)
    saved = nib.load(write_map(tmp_path / "out.nii.gz", back, volume))
    result = np.asarray(saved.dataobj)
    dice = 2 * (result & label).sum() / (result.sum() + label.sum())
    assert dice > 0.93
    assert np.linalg.norm(centre_of_mass_mm(result, saved.affine) - centre_of_mass_mm(label, volume.affine)) < 0.2


def test_finer_grid_holds_the_linearly_interpolated_image(tmp_path):
    shape, affine = (12, 10, 8), np.diag((2.0, 2.0, 3.0, 1.0))
    volume = make_volume(np.random.default_rng(1).normal(size=shape), affine, tmp_path)
    grid = prepare(volume, DataConfig(shape=(8, 8, 8), spacing_mm=(1.5, 1.0, 3.0)), (1, 1, 1))
    # reference: both fields of view share their centre
    sizes = grid.geometry.content
    assert sizes == (16, 20, 8) == tuple(grid.image.shape[1:])
    lines = [
        (n - 1) / 2 + ratio * (np.arange(m) - (m - 1) / 2)
        for n, m, ratio in zip(shape, sizes, (0.75, 0.5, 1.0), strict=True)
    ]
    values = np.clip(volume.array[0], *np.percentile(volume.array, (0.5, 99.5)))
    values = (values - values.mean()) / values.std()
    expected = map_coordinates(values, np.meshgrid(*lines, indexing="ij"), order=1, mode="nearest")
    assert np.allclose(grid.image[0].numpy(), expected, atol=1e-4)


def test_coarser_grid_is_antialiased_like_torch(tmp_path):
    rows = np.random.default_rng(2).normal(size=(48, 40, 1))
    nib.save(nib.Nifti1Image(rows.astype(np.float32), np.eye(4)), tmp_path / "a.nii.gz")
    volume = read_volume(tmp_path / "a.nii.gz", case="a", spatial_dims=2)
    grid = prepare(volume, DataConfig(spatial_dims=2, shape=(16, 8), fit="stretch"), (8, 8))
    values = np.clip(volume.array, *np.percentile(volume.array, (0.5, 99.5)))
    values = torch.from_numpy((values - values.mean()) / values.std()).float()
    expected = F.interpolate(values[None], (16, 8), mode="bilinear", antialias=True)[0]
    # at the rim torch drops what lies outside while the nearest voxel is repeated here
    assert torch.allclose(grid.image[:, 1:-1, 1:-1], expected[:, 1:-1, 1:-1], atol=1e-5)
    assert grid.to_native(grid.image).shape == (1, 48, 40)


@pytest.mark.parametrize("shape", [(5, 7, 9), (16, 16, 16), (17, 3, 33), (1, 1, 1)])
def test_grid_is_padded_to_the_shape_or_the_next_multiple(tmp_path, shape):
    volume = make_volume(np.random.default_rng(0).normal(size=shape), np.eye(4), tmp_path)
    grid = prepare(volume, DataConfig(shape=(16, 16, 16)), (8, 8, 4))
    assert tuple(grid.image.shape[1:]) == tuple(
        max(16, -(-size // multiple) * multiple) for size, multiple in zip(shape, (8, 8, 4), strict=True)
    )
    assert int(grid.inside.sum()) == np.prod(shape)
    assert float(grid.image[0][~grid.inside].abs().sum()) == 0
    kept = grid.image[0][grid.inside]
    assert abs(float(kept.mean())) < 1e-5
    assert kept.numel() == 1 or abs(float(kept.std(correction=0)) - 1) < 1e-4


def test_voxel_size_is_the_volume_of_a_sheared_voxel(tmp_path):
    affine = np.eye(4)
    affine[:3, :3] = np.array([[2, 0.5, 0], [0, 1, 0], [0, 0, 3]])
    volume = make_volume(np.random.default_rng(0).normal(size=(8, 8, 8)), affine, tmp_path)
    grid = prepare(volume, DataConfig(shape=(8, 8, 8)), (1, 1, 1))
    assert grid.unit == "ml" and grid.voxel_size == pytest.approx(6 / 1000)
    fine = prepare(volume, DataConfig(shape=(8, 8, 8), fit="stretch"), (1, 1, 1))
    assert fine.voxel_size == pytest.approx(6 / 1000)
    coarse = prepare(volume, DataConfig(shape=(4, 4, 4), fit="stretch"), (1, 1, 1))
    assert coarse.voxel_size * 64 == pytest.approx(6 / 1000 * 512)


def test_units_of_2d_are_square_millimetres_or_pixels_and_of_2d_time_mean_area(tmp_path):
    flat = nib.Nifti1Image(np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32), np.diag((2, 3, 1, 1)))
    nib.save(flat, tmp_path / "flat.nii")
    volume = read_volume(tmp_path / "flat.nii", case="flat", spatial_dims=2)
    grid = prepare(volume, DataConfig(spatial_dims=2, shape=(8, 8)), (8, 8))
    assert (grid.unit, grid.voxel_size) == ("mm2", pytest.approx(6.0))
    cine = nib.Nifti1Image(np.random.default_rng(0).normal(size=(8, 6, 1, 5)).astype(np.float32), np.diag((2, 3, 8, 1)))
    cine.header["pixdim"][4] = 0.04
    nib.save(cine, tmp_path / "cine.nii")
    volume = read_volume(tmp_path / "cine.nii", case="cine", spatial_dims=3)
    assert volume.shape == (8, 6, 5) and volume.spacing_mm == pytest.approx((2, 3, 0.04))
    grid = prepare(volume, DataConfig(shape=(8, 8, 8)), (8, 8, 8))
    assert grid.unit == "mm2" and grid.voxel_size * int(grid.inside.sum()) == pytest.approx(8 * 6 * 6)


def test_intensities_are_clipped_and_z_scored_per_channel_whatever_their_scale(tmp_path):
    values = np.random.default_rng(0).normal(size=(12, 12, 12))
    small, large = (make_volume(values * gain + gain, np.eye(4), tmp_path) for gain in (1e-3, 1e4))
    data = DataConfig(shape=(16, 16, 16))
    first, second = prepare(small, data, (1, 1, 1)).image, prepare(large, data, (1, 1, 1)).image
    assert torch.allclose(first, second, atol=2e-3)
    constant = make_volume(np.full((4, 4, 4), 1e6), np.eye(4), tmp_path)
    assert float(prepare(constant, data, (1, 1, 1)).image.abs().max()) == 0


def test_spacing_that_asks_for_an_endless_grid_is_refused(tmp_path):
    volume = make_volume(np.zeros((4, 4, 4)), np.diag((1e5, 1e5, 1e5, 1)), tmp_path)
    with pytest.raises(CaseError, match=r"case: the spacing .* correct the header's spacing"):
        prepare(volume, DataConfig(shape=(8, 8, 8), spacing_mm=(1, 1, 1)), (8, 8, 8))


def test_a_rod_that_would_be_padded_to_an_endless_grid_is_refused_in_2d_and_3d(tmp_path):
    for shape, padded in (((30000, 2, 2), (30000, 56, 40)), ((300000, 2), (300000, 256))):
        dims = len(shape)
        volume = Volume("rod", np.zeros((1, *shape), np.float32), np.eye(4), tmp_path / "rod", None, dims, "sha256:1")
        data, multiple = DataConfig(spatial_dims=dims, shape=(56, *padded[1:])), (8,) * dims
        with pytest.raises(CaseError, match="ask for a working grid of " + re.escape(str(padded)) + " voxels; .*crop"):
            find_geometry(volume, data, multiple)
        slab = Volume("slab", np.zeros((1, *(512,) * (dims - 1), 1), np.float32), np.eye(4), tmp_path, None, dims, "")
        assert find_geometry(slab, data, multiple).grid[0] == 512


def test_a_model_of_a_large_grid_takes_images_that_are_smaller_than_it(tmp_path):
    volume = Volume("a", np.zeros((1, 4, 4, 4), np.float32), np.eye(4), tmp_path, None, 3, "sha256:1")
    assert find_geometry(volume, DataConfig(shape=(250, 250, 250)), (16, 16, 16)).grid == (256, 256, 256)


def test_maps_of_another_shape_are_refused(tmp_path):
    grid = prepare(make_volume(np.zeros((4, 4, 4)), np.eye(4), tmp_path), DataConfig(shape=(8, 8, 8)), (8, 8, 8))
    with pytest.raises(ValueError, match="must have shape"):
        grid.to_native(torch.zeros(1, 8, 8, 4))
