"""Each kind of damage does what its name says, no more, and the same again."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from ldseg.data.volume import Volume
from ldseg.evaluation.corruptions import BIAS, CORRUPTIONS, CROP, NOISE, bias, corrupt, crop, empty, flip, motion, noise

RANKS = pytest.mark.parametrize("dims", [2, 3])
NAMES = pytest.mark.parametrize("name", CORRUPTIONS)


def volume_of(dims: int, channels: int = 1, digest: str = "sha256:0a1b2c3d", size: int = 24) -> Volume:
    """A smooth blob on noise, values from -3 to 100 or so, another one in each channel."""
    shape = (size, size + 5, size - 3)[:dims]
    places = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    blobs = [80 * np.exp(-4 * ((places - 0.2 * k) ** 2).sum(0)) for k in range(channels)]
    array = np.stack(blobs) + np.random.default_rng(0).normal(size=(channels, *shape))
    return Volume("case", array.astype(np.float32), np.eye(4), Path("case.nii"), None, dims, digest)


@RANKS
@NAMES
def test_severity_zero_is_the_volume_itself_and_one_changes_voxels_alone(dims: int, name: str) -> None:
    volume = volume_of(dims, channels=2)
    before = volume.array.copy()
    assert np.array_equal(corrupt(volume, name, 0.0).array, before)
    damaged = corrupt(volume, name, 1.0)
    assert not np.array_equal(damaged.array, before) and np.array_equal(volume.array, before), "a copy is damaged"
    assert damaged.array.dtype == np.float32 and damaged.array.shape == before.shape
    assert np.isfinite(damaged.array).all()
    for field in dataclasses.fields(Volume):
        assert field.name == "array" or getattr(damaged, field.name) is getattr(volume, field.name)


@RANKS
@NAMES
def test_case_and_seed_name_the_damage(dims: int, name: str) -> None:
    first = corrupt(volume_of(dims), name, 0.7, seed=3).array
    assert np.array_equal(first, corrupt(volume_of(dims), name, 0.7, seed=3).array)
    others = [corrupt(volume_of(dims), name, 0.7, seed=s).array for s in range(4, 16)]
    cases = [corrupt(volume_of(dims, digest=f"sha256:case00{k:02d}"), name, 0.7, seed=3).array for k in range(12)]
    for different in (others, cases):
        assert name == "empty" or not all(np.array_equal(first, other) for other in different)


@pytest.mark.parametrize("severity", [0.25, 1.0])
def test_noise_has_the_asked_standard_deviation(severity: float) -> None:
    volume = volume_of(3, size=48)
    added = noise(volume, severity).array - volume.array
    assert added.std() == pytest.approx(NOISE * severity * np.ptp(volume.array), rel=0.02)  # 3 / sqrt(2 * 10^5)
    assert abs(added.mean()) < 0.02 * added.std()


@RANKS
def test_bias_is_a_smooth_factor_of_the_asked_size(dims: int) -> None:
    volume = volume_of(dims, channels=2)
    low = volume.array.min(axis=tuple(range(1, dims + 1)), keepdims=True)
    for severity in (0.5, 1.0):
        ratio = (bias(volume, severity).array - low + 1e-9) / (volume.array - low + 1e-9)
        known = volume.array - low > 0.5
        logs = np.log(ratio) / np.log(BIAS)
        assert np.abs(logs[known]).max() == pytest.approx(severity, abs=0.02)
        assert np.allclose(logs[0][known.all(0)], logs[1][known.all(0)], atol=1e-3), "one coil for all channels"
        steps = np.abs(np.diff(np.where(known, logs, np.nan), axis=1))
        assert np.nanmax(steps) < 0.25 * severity * 24 / volume.shape[0], "no jump from voxel to voxel"


@RANKS
def test_motion_makes_ghosts_along_one_axis_and_keeps_the_mean(dims: int) -> None:
    """The middle line stays: so do the means along the axis of the ghosts, but for the magnitude's sign."""
    volume = volume_of(dims)
    damaged = motion(volume, 1.0).array
    kept = [np.abs(damaged.mean(axis) - volume.array.mean(axis)).max() for axis in range(1, dims + 1)]
    assert min(kept) < 0.4 * max(kept)
    rms = [float(np.sqrt(np.mean((motion(volume, s).array - volume.array) ** 2))) for s in (0.2, 0.5, 1.0)]
    assert rms == sorted(rms) and rms[-1] > 2, "above the noise of 1"


@RANKS
def test_crop_cuts_one_end_of_one_axis_and_leaves_the_rest_untouched(dims: int) -> None:
    volume = volume_of(dims, channels=2)
    places = set()
    for seed in range(24):
        damaged = crop(volume, 0.8, seed).array
        changed = (damaged != volume.array).any(0)
        assert all(np.ptp(damaged[c][changed]) == 0 and damaged[c][changed][0] == volume.array[c].min() for c in (0, 1))
        spans = [np.flatnonzero(changed.any(axis=tuple(a for a in range(dims) if a != axis))) for axis in range(dims)]
        (axis,) = (a for a in range(dims) if len(spans[a]) < volume.shape[a])
        assert len(spans[axis]) == round(CROP * 0.8 * volume.shape[axis])
        assert np.array_equal(np.diff(spans[axis]), np.ones(len(spans[axis]) - 1)), "one piece"
        places.add((axis, bool(spans[axis][0] == 0)))
    assert len(places) == 2 * dims, "every end of every axis has its turn"


@RANKS
def test_flip_reverses_one_axis_and_twice_is_nothing(dims: int) -> None:
    volume = volume_of(dims)
    damaged = flip(volume, 0.1)
    assert sum(np.array_equal(np.flip(damaged.array, axis), volume.array) for axis in range(1, dims + 1)) == 1
    assert np.array_equal(flip(damaged, 1.0).array, volume.array)


def test_empty_is_constant_in_each_channel() -> None:
    volume = volume_of(2, channels=2)
    assert [np.ptp(channel) for channel in empty(volume, 1.0).array] == [0, 0]


def test_a_volume_of_one_voxel_or_of_one_value_stays_finite() -> None:
    for shape in ((1, 1, 1), (1, 5, 4)):
        volume = dataclasses.replace(volume_of(len(shape) - 1), array=np.full(shape, 7, np.float32))
        for name in CORRUPTIONS:
            assert np.allclose(corrupt(volume, name).array, 7, atol=1e-4), name


def test_an_unknown_name_or_severity_is_refused() -> None:
    with pytest.raises(ValueError, match="no corruption 'blur'; choose from noise, bias, motion, crop, flip, empty"):
        corrupt(volume_of(2), "blur")
    for severity in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="severity must lie in"):
            corrupt(volume_of(2), "noise", severity)
