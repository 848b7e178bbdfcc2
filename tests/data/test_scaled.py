"""Real values as scaled integers: what other programs read back, to half a step."""

import gzip
import math

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from ldseg.data.formats import nifti
from ldseg.data.formats.scaled import Scale
from ldseg.data.volume import read_values, read_volume, write_map

SCALES = [Scale(highest, bits) for highest in (1.0, math.log(3), 2 / 3, math.log(104)) for bits in (8, 16)]


def save(path, shape=(7, 6, 5)):
    image = nib.Nifti1Image(np.zeros(shape, np.float32), np.diag((0.9, 0.8, 2.5, 1)))
    nib.save(image, path)
    return read_volume(path, case="a", spatial_dims=3)


def values(scale, shape=(7, 6, 5)):
    """Evenly over the range, its ends and middle among them."""
    drawn = np.random.default_rng(0).uniform(0, scale.highest, shape).astype(np.float32)
    drawn.flat[:3] = 0, scale.highest, scale.highest / 2
    return drawn


@pytest.mark.parametrize("scale", SCALES, ids=str)
def test_what_is_read_back_is_off_by_half_a_step_and_never_outside(tmp_path, scale):
    volume, array = save(tmp_path / "a.nii.gz"), values(scale)
    path = write_map(tmp_path / "p.nii.gz", array, volume, scale=scale)
    image = nib.load(path)
    assert image.get_data_dtype() == np.dtype(f"uint{scale.bits}")
    half = scale.step / 2 * (1 + 1e-6)  # the slope itself is rounded to a float32
    for found in (image.get_fdata(), read_values(path, case="a")):
        assert np.abs(found - array.astype(np.float64)).max() <= half
        assert found.min() >= 0 and found.max() <= scale.highest
        assert found.max() > scale.highest - half and (found[0, 0, 0], array[0, 0, 0]) == (0, 0)
    in_float32 = np.asarray(image.dataobj.get_unscaled()).astype(np.float32) * np.float32(scale.step)  # as ITK may
    assert np.abs(in_float32 - array).max() <= half + 2e-7


def test_a_step_is_what_the_file_says_and_integers_are_not_scaled(tmp_path):
    volume = save(tmp_path / "a.nii")
    scaled = nib.load(write_map(tmp_path / "p.nii", values(Scale(1.0)), volume, scale=Scale(1.0)))
    assert scaled.dataobj.slope == Scale(1.0).step and scaled.dataobj.inter == 0
    label = nib.load(write_map(tmp_path / "l.nii", np.ones((7, 6, 5), np.int64), volume))
    assert (label.dataobj.slope, label.get_data_dtype()) == (1, np.uint8)


@pytest.mark.parametrize("bad", [-0.01, 1.01, math.nan, math.inf])
def test_values_outside_the_range_are_refused_but_for_rounding(tmp_path, bad):
    array = np.zeros((3, 4), np.float32)
    array[1, 2] = bad
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        Scale(1.0).encode(array)
    array[1, 2], array[0, 0] = 1 + 1e-6, -1e-6
    assert Scale(1.0).encode(array)[[1, 0], [2, 0]].tolist() == [255, 0]
    with pytest.raises(ValueError, match="highest value above 0"):
        Scale(bad if bad < 0 else 0.0)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 4), (6, 5, 1, 3)])
def test_a_file_is_what_nibabel_would_write(tmp_path, kind, order, shape):
    header = kind.header_class(endianness=order)
    affine = np.array([[0, -0.9, 0.1, 12], [0.8, 0, 0, -7], [0, 0.1, 2.5, 3], [0, 0, 0, 1]])
    source = kind(np.zeros(shape, order + "f4"), None, header)
    source.set_sform(affine, 2)
    source.header.set_xyzt_units("mm", "sec")
    array = np.random.default_rng(0).integers(0, 200, shape).astype(np.int16)
    array[0, 0] = 300
    for given, dtype in ((array, "i2"), (array.astype(np.float64) / 7, "f4")):
        ours = b"".join(nifti.encode_nifti(given, source.header, "label"))
        expected = source.header.copy()
        expected.set_data_dtype(order + dtype)
        expected.set_slope_inter(1, 0)
        expected.set_intent("label")
        theirs = kind(given.astype(order + dtype), None, expected, dtype=expected.get_data_dtype()).to_bytes()
        assert ours == theirs


def test_the_same_map_has_the_same_bytes_and_every_gzip_reads_them(tmp_path):
    volume, array = save(tmp_path / "a.nii.gz"), values(Scale(1.0))
    paths = [write_map(tmp_path / f"{k}.nii.gz", array, volume, scale=Scale(1.0)) for k in range(2)]
    first, second = (path.read_bytes() for path in paths)
    assert first == second
    assert first[3] == 0 and first[4:8] == bytes(4), "no name, no time"
    assert gzip.decompress(first) == b"".join(nifti.encode_nifti(array, volume.header, "none", Scale(1.0)))


def test_a_picture_has_no_slope_and_stays_float(tmp_path):
    Image.fromarray(np.zeros((7, 6), np.uint8)).save(tmp_path / "a.png")
    volume = read_volume(tmp_path / "a.png", case="a", spatial_dims=2)
    array = values(Scale(1.0), (7, 6))
    path = write_map(tmp_path / "p.nii.gz", array, volume, scale=Scale(1.0))
    assert path.name == "p.tif" and np.array_equal(np.asarray(Image.open(path)), array)
