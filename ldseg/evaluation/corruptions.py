"""Known damage to an image, for experiments: what a model should be robust to, or at least warn of.

Every kind of damage is a function of (volume, severity, seed). Severity lies in [0, 1]; 0 is the volume itself. The
geometry and the label stay. The same case and seed give the same damage, alone or in a cohort, and another kind of
damage its own random numbers.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable

import numpy as np
from scipy import ndimage

from ldseg.data.volume import Volume

NOISE = 0.2
"""Standard deviation of the noise at severity 1, as a share of the range of the image."""
BIAS = 4.0
"""What the bias field multiplies by at most at severity 1, and divides by at most."""
MOTION_LINES, MOTION_SHIFT, MOTION_DEGREES = 0.5, 0.1, 10.0
"""Share of the lines of k-space seen in another pose, its shift in shares of the axis, its turn, at severity 1."""
CROP = 0.5
"""Share of the axis that is cut away at severity 1."""


def add_noise(volume: Volume, sigma: float, seed: int = 0) -> Volume:
    """The same case with Gaussian noise, as the authors' experiment adds it (their misc.addNoise).

    Args:
        volume: a case.
        sigma: standard deviation, as a share of the range between the image's least and greatest value.
        seed: with the case's content it names the noise: the same two give the same noise, alone or in a cohort.
    """
    if sigma == 0:
        return volume
    generator = np.random.default_rng([seed, _content(volume)])
    noise = generator.normal(scale=sigma * float(np.ptp(volume.array)), size=volume.array.shape)
    return _with(volume, volume.array + noise)


def noise(volume: Volume, severity: float, seed: int = 0) -> Volume:
    """Gaussian noise of standard deviation `NOISE` * severity of the image's range."""
    return add_noise(volume, NOISE * severity, seed)


def bias(volume: Volume, severity: float, seed: int = 0) -> Volume:
    """A smooth multiplicative field, as of a receive coil: each channel's values above its least one times
    `BIAS` ** (severity * f), f a random sum of cosines of up to one period an axis, of largest magnitude 1."""
    if severity == 0:
        return volume
    generator, shape = _generator(volume, "bias", seed), volume.shape
    waves = [np.cos(np.pi * np.outer(np.arange(3), (np.arange(n) + 0.5) / n)) for n in shape]
    field = generator.normal(size=(3,) * len(shape))
    field.flat[0] = 0  # a factor for the whole image is no field
    for axis, wave in enumerate(waves):
        field = np.moveaxis(np.tensordot(field, wave, axes=(axis, 0)), -1, axis)
    field *= severity / (float(np.abs(field).max()) or 1.0)
    low = _least(volume)
    return _with(volume, low + (volume.array - low) * BIAS**field)


def motion(volume: Volume, severity: float, seed: int = 0) -> Volume:
    """Ghosts along one random axis: some lines of k-space were read after the patient had moved.

    A random share of `MOTION_LINES` * severity of the lines, never the middle one, comes from a copy that is shifted
    along that axis by up to `MOTION_SHIFT` and turned by up to `MOTION_DEGREES`, each times severity and at least half
    of it. What is seen is the magnitude of the image above its least value.
    """
    if severity == 0:
        return volume
    generator = _generator(volume, "motion", seed)
    axis = _axis(volume, generator)
    length, low = volume.shape[axis], _least(volume)
    shift, degrees = (severity * generator.choice((-1, 1), 2) * generator.uniform(0.5, 1, 2)).tolist()
    lines = 1 + generator.permutation(length - 1)[: round(MOTION_LINES * severity * length)]
    still = volume.array - low
    moved = np.stack(
        [_moved(channel, axis, shift * MOTION_SHIFT * length, degrees * MOTION_DEGREES) for channel in still]
    )
    spectrum = np.fft.fft(still, axis=1 + axis)
    seen = (slice(None),) * (1 + axis) + (lines,)
    spectrum[seen] = np.fft.fft(moved, axis=1 + axis)[seen]
    return _with(volume, low + np.abs(np.fft.ifft(spectrum, axis=1 + axis)))


def crop(volume: Volume, severity: float, seed: int = 0) -> Volume:
    """A wrong crop: `CROP` * severity of one random axis, from one random end, becomes background (each channel's least
    value). Geometry and label stay as they are."""
    generator = _generator(volume, "crop", seed)
    axis, at_end = _axis(volume, generator), bool(generator.integers(2))
    length = volume.shape[axis]
    cut = round(CROP * severity * length)
    if cut == 0:
        return volume
    array = volume.array.copy()
    lost = (slice(None),) * (1 + axis) + (slice(length - cut, None) if at_end else slice(cut),)
    array[lost] = np.broadcast_to(_least(volume), array.shape)[lost]
    return _with(volume, array)


def flip(volume: Volume, severity: float, seed: int = 0) -> Volume:
    """The voxels of one random axis in reverse, unknown to the header; all of them at any severity above 0."""
    axis = _axis(volume, _generator(volume, "flip", seed))
    return volume if severity == 0 else _with(volume, np.flip(volume.array, 1 + axis))


def empty(volume: Volume, severity: float, seed: int = 0) -> Volume:
    """Each channel at its least value everywhere; all of it at any severity above 0."""
    return volume if severity == 0 else _with(volume, np.broadcast_to(_least(volume), volume.array.shape))


CORRUPTIONS: dict[str, Callable[[Volume, float, int], Volume]] = {
    "noise": noise, "bias": bias, "motion": motion, "crop": crop, "flip": flip, "empty": empty,
}  # fmt: skip


def corrupt(volume: Volume, name: str, severity: float = 1.0, seed: int = 0) -> Volume:
    """A case with the damage of that name.

    Raises:
        ValueError: the name is unknown or the severity lies outside [0, 1].
    """
    if name not in CORRUPTIONS:
        raise ValueError(f"there is no corruption {name!r}; choose from {', '.join(CORRUPTIONS)}")
    if not 0 <= severity <= 1:
        raise ValueError(f"the severity must lie in [0, 1], got {severity}")
    return CORRUPTIONS[name](volume, severity, seed)


def _with(volume: Volume, array: np.ndarray) -> Volume:
    """The digest stays that of the undamaged content: the samples then start from the same noise."""
    return dataclasses.replace(volume, array=np.ascontiguousarray(array, dtype=np.float32))


def _content(volume: Volume) -> int:
    return int.from_bytes(volume.content_digest.encode()[-8:], "big")


def _generator(volume: Volume, name: str, seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, _content(volume), zlib.crc32(name.encode())])


def _axis(volume: Volume, generator: np.random.Generator) -> int:
    """A random axis of more than one voxel, if there is one."""
    longer = [axis for axis, n in enumerate(volume.shape) if n > 1]
    return int(generator.choice(longer)) if longer else 0


def _least(volume: Volume) -> np.ndarray:
    """(C, 1, ...) each channel's least value."""
    return np.asarray(volume.array.min(axis=tuple(range(1, volume.array.ndim)), keepdims=True))


def _moved(channel: np.ndarray, axis: int, voxels: float, degrees: float) -> np.ndarray:
    """Turned about the centre, in the plane of the axis and its neighbour, and shifted along the axis."""
    other = (axis + 1) % channel.ndim
    turned = ndimage.rotate(channel, degrees, axes=(axis, other), reshape=False, order=1, mode="nearest")
    return np.asarray(
        ndimage.shift(turned, [voxels if a == axis else 0 for a in range(channel.ndim)], order=1, mode="nearest")
    )
