"""Reading and writing: geometry survives, and bad files get one sentence, before they cost memory."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from ldseg.config import DataConfig
from ldseg.data.errors import CaseError
from ldseg.data.volume import read_label, read_volume, write_map

AFFINE = np.array([[0.0, -0.9, 0.1, 12.0], [0.8, 0.0, 0.0, -7.0], [0.0, 0.1, 2.5, 3.0], [0, 0, 0, 1]])


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def noise(shape: tuple[int, ...] = (6, 5, 4)) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def message(call, *arguments, **keywords) -> str:
    with pytest.raises(CaseError) as caught:
        call(*arguments, **keywords)
    text = str(caught.value)
    assert text == f"{caught.value.case}: {caught.value.problem}; {caught.value.cure}" and "\n" not in text
    return text


def test_nifti_is_read_with_its_affine_spacing_and_scaling(tmp_path):
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_slope_inter(0.5, -3)
    image = nib.Nifti1Image(np.arange(24, dtype=np.float32).reshape(2, 3, 4) * 0.5 - 3, AFFINE, header)
    nib.save(image, tmp_path / "a.nii.gz")
    volume = read_volume(tmp_path / "a.nii.gz", case="a", spatial_dims=3)
    assert volume.array.dtype == np.float32 and volume.array.flags.c_contiguous
    assert np.allclose(volume.array[0], np.asarray(nib.load(tmp_path / "a.nii.gz").dataobj))
    assert np.allclose(volume.affine, AFFINE) and volume.spacing_mm == pytest.approx(
        np.linalg.norm(AFFINE[:3, :3], axis=0)
    )


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "f4", "f8"])
def test_every_common_voxel_type_is_read_like_nibabel_does(tmp_path, kind, order, dtype):
    array = np.random.default_rng(0).integers(0, 99, (5, 4, 3)).astype(order + dtype)
    header = kind.header_class(endianness=order)
    header.set_data_dtype(array.dtype)
    nib.save(kind(array, AFFINE, header), tmp_path / "a.nii")
    volume = read_volume(tmp_path / "a.nii", case="a", spatial_dims=3)
    assert np.array_equal(volume.array[0], nib.load(tmp_path / "a.nii").get_fdata())


@pytest.mark.parametrize(
    ("stored", "dims", "channels", "wanted"),
    [
        ((6, 5), 2, 1, (1, 6, 5)),
        ((6, 5, 1), 2, 1, (1, 6, 5)),
        ((6, 1, 5), 2, 1, (1, 6, 5)),
        ((6, 5, 4), 3, 1, (1, 6, 5, 4)),
        ((6, 5, 4, 1), 3, 1, (1, 6, 5, 4)),
        ((6, 5, 1, 7), 3, 1, (1, 6, 5, 7)),
        ((6, 5, 1), 3, 1, (1, 6, 5, 1)),
        ((6, 5, 4, 2), 3, 2, (2, 6, 5, 4)),
        ((6, 5, 1, 3), 2, 3, (3, 6, 5)),
        ((6, 5, 4, 1, 2), 3, 2, (2, 6, 5, 4)),
    ],
)
def test_axes_of_length_one_are_dropped_and_written_back(tmp_path, stored, dims, channels, wanted):
    volume = read_volume(save(tmp_path / "a.nii.gz", noise(stored)), case="a", spatial_dims=dims, in_channels=channels)
    assert volume.array.shape == wanted
    written = nib.load(write_map(tmp_path / "out.nii.gz", volume.array[0], volume))
    lead = stored[:-1] if channels > 1 else stored
    assert written.shape == lead or np.squeeze(written.dataobj).shape == tuple(n for n in lead if n > 1)
    if channels == 1:
        assert written.shape == stored and np.array_equal(np.asarray(written.dataobj), noise(stored))


def test_written_map_keeps_affine_codes_units_and_spacing(tmp_path):
    image = nib.Nifti1Image(noise(), AFFINE)
    image.set_sform(AFFINE, code=4)
    image.set_qform(AFFINE, code=1, strip_shears=True)
    image.header.set_xyzt_units("mm", "msec")
    image.header["cal_max"] = 900
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"patient name"))
    nib.save(image, tmp_path / "a.nii.gz")
    volume = read_volume(tmp_path / "a.nii.gz", case="a", spatial_dims=3)
    label = np.random.default_rng(0).integers(0, 3, (6, 5, 4))
    path = write_map(tmp_path / "deep" / "label.nii.gz", label, volume, intent="label")
    written, source = nib.load(path), nib.load(tmp_path / "a.nii.gz")
    assert written.get_data_dtype() == np.uint8 and np.array_equal(np.asarray(written.dataobj), label)
    for field in ("qform_code", "sform_code", "srow_x", "srow_z", "quatern_b", "qoffset_x", "pixdim", "xyzt_units"):
        assert np.array_equal(written.header[field], source.header[field]), field
    assert (
        written.header.get_intent()[0] == "label" and not written.header.extensions and written.header["cal_max"] == 0
    )
    assert [file.name for file in path.parent.iterdir()] == ["label.nii.gz"]
    probability = write_map(tmp_path / "p.nii.gz", volume.array[0], volume)
    assert nib.load(probability).get_data_dtype() == np.float32
    with pytest.raises(ValueError, match="must have shape"):
        write_map(tmp_path / "x.nii.gz", label[:-1], volume)


def test_same_content_has_the_same_digest_under_another_name(tmp_path):
    first = read_volume(save(tmp_path / "a.nii.gz", noise()), case="a", spatial_dims=3)
    second = read_volume(save(tmp_path / "b.nii", noise()), case="b", spatial_dims=3)
    moved = read_volume(save(tmp_path / "c.nii", noise(), AFFINE + np.eye(4, k=3)), case="c", spatial_dims=3)
    other = noise()
    other[0, 0, 0] += 1
    changed = read_volume(save(tmp_path / "d.nii", other), case="d", spatial_dims=3)
    assert first.content_digest == second.content_digest
    assert len({first.content_digest, moved.content_digest, changed.content_digest}) == 3


@pytest.mark.parametrize("ending", ["png", "bmp", "tif"])
def test_colour_images_and_their_grey_labels(tmp_path, ending):
    colours = np.random.default_rng(0).integers(0, 255, (7, 9, 3), dtype=np.uint8)
    Image.fromarray(colours).save(tmp_path / f"i.{ending}")
    instances = np.random.default_rng(1).integers(0, 12, (7, 9), dtype=np.uint8)
    Image.fromarray(instances).save(tmp_path / f"l.{ending}")
    data = DataConfig(spatial_dims=2, shape=(8, 16), in_channels=3, foreground_only=True)
    volume = read_volume(tmp_path / f"i.{ending}", case="i", spatial_dims=2, in_channels=3)
    assert np.array_equal(volume.array, np.moveaxis(colours, -1, 0)) and volume.header is None
    label = read_label(tmp_path / f"l.{ending}", volume, data)
    assert np.array_equal(label, instances > 0)
    written = write_map(tmp_path / "map.nii.gz", label, volume)
    assert written.name == "map.png" and np.array_equal(np.asarray(Image.open(written)), label)
    soft = write_map(tmp_path / "soft.nii.gz", label * 0.25, volume)
    assert soft.name == "soft.tif" and np.array_equal(np.asarray(Image.open(soft)), np.float32(label * 0.25))
    assert "3 channel(s), the model takes 1" in message(read_volume, tmp_path / f"i.{ending}", case="i", spatial_dims=2)


def test_transparency_is_dropped_and_palettes_are_looked_up_in_images_but_not_in_labels(tmp_path):
    colours = np.random.default_rng(0).integers(0, 255, (7, 9, 4), dtype=np.uint8)
    Image.fromarray(colours).save(tmp_path / "a.png")
    assert read_volume(tmp_path / "a.png", case="a", spatial_dims=2, in_channels=3).array.shape == (3, 7, 9)
    indices = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), mode="L").convert("P")
    indices.putpalette([0, 0, 0, 250, 10, 10, 10, 250, 10])
    indices.save(tmp_path / "l.png")
    volume = read_volume(tmp_path / "l.png", case="a", spatial_dims=2, in_channels=3)
    assert volume.array[0, 0, 1] == 250
    data = DataConfig(spatial_dims=2, shape=(8, 8), label_values=(0, 1, 2), structures=("a", "b"))
    assert read_label(tmp_path / "l.png", volume, data).tolist() == [[0, 1], [2, 1]]


def test_label_values_become_class_indices(tmp_path):
    volume = read_volume(save(tmp_path / "a.nii.gz", noise()), case="a", spatial_dims=3)
    data = DataConfig(label_values=(0, 820, 205), structures=("b", "a"))
    values = np.random.default_rng(0).choice([0, 205, 820], (6, 5, 4))
    for dtype in (np.int16, np.float64):
        label = read_label(save(tmp_path / "l.nii.gz", values.astype(dtype)), volume, data)
        assert label.dtype == np.uint8
        assert np.array_equal(label, np.select([values == 820, values == 205], [1, 2], 0))


def test_each_fault_of_a_label_gets_its_sentence(tmp_path):
    volume = read_volume(save(tmp_path / "a.nii.gz", noise()), case="case 7", spatial_dims=3)
    zeros, data = np.zeros((6, 5, 4), np.uint8), DataConfig()

    def fault(array: np.ndarray, affine: np.ndarray = AFFINE) -> str:
        return message(read_label, save(tmp_path / "l.nii.gz", array, affine), volume, data)

    assert message(read_label, tmp_path / "none.nii.gz", volume, data).startswith("case 7: its label ")
    assert "shape (6, 5, 3), the image (6, 5, 4)" in fault(zeros[..., :3])
    assert "unknown value(s) 3, 9; known are [0, 1]" in fault(
        np.where(np.arange(4) == 2, 9, zeros + 3).astype(np.uint8)
    )
    assert "no integers" in fault(zeros + np.float32(0.5))
    assert "no integers" in fault(np.full((6, 5, 4), np.nan, np.float32))
    assert "unknown value(s) -1" in fault(zeros.astype(np.int16) - 1)
    moved = AFFINE.copy()
    moved[0, 3] += 0.1
    assert "the affine of the label" in fault(zeros, moved)
    moved[0, 3] = AFFINE[0, 3] + 1e-4  # what another program's rounding does
    assert read_label(save(tmp_path / "l.nii.gz", zeros, moved), volume, data).sum() == 0
    assert "the affine of the label" in fault(zeros, AFFINE @ np.diag((-1, 1, 1, 1)))


def test_each_fault_of_an_image_gets_its_sentence(tmp_path):
    def fault(path: Path, dims: int = 3, channels: int = 1) -> str:
        return message(read_volume, path, case="case 7", spatial_dims=dims, in_channels=channels)

    holes = noise()
    holes[1, 2, 3], holes[0, 0, 0] = np.nan, np.inf
    assert fault(tmp_path / "none.nii.gz").startswith("case 7: there is no file")
    assert "2 voxels of" in fault(save(tmp_path / "nan.nii.gz", holes))
    assert "NaN or infinite" in fault(save(tmp_path / "huge.nii.gz", noise().astype(np.float64) * 1e200))
    assert "not 3 spatial axes" in fault(save(tmp_path / "flat.nii.gz", noise((6, 5))))
    assert "not 3 spatial axes" in fault(save(tmp_path / "time.nii.gz", noise((6, 5, 4, 3))))
    assert "not 2 spatial axes" in fault(tmp_path / "nan.nii.gz", dims=2)
    assert "1 channel(s), the model takes 2" in fault(save(tmp_path / "one.nii.gz", noise()), channels=2)
    flat = AFFINE.copy()
    flat[:3, 2] = flat[:3, 1] * 2
    image = nib.Nifti1Image(noise(), None)
    image.header.set_sform(flat, code=1)
    nib.save(image, tmp_path / "singular.nii.gz")
    assert "singular" in fault(tmp_path / "singular.nii.gz")
    (tmp_path / "text.nii.gz").write_text("not an image")
    assert "can't be read" in fault(tmp_path / "text.nii.gz")
    (tmp_path / "empty.nii").write_bytes(b"")
    assert "can't be read" in fault(tmp_path / "empty.nii")
    (tmp_path / "a.dcm").write_bytes(b"DICM")
    assert "unknown kind" in fault(tmp_path / "a.dcm")
    complex_image = nib.Nifti1Image(noise().astype(np.complex64), AFFINE)
    nib.save(complex_image, tmp_path / "complex.nii")
    assert "complex64" in fault(tmp_path / "complex.nii")
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(
        tmp_path / "p.tif", save_all=True, append_images=[Image.new("L", (4, 4))]
    )
    assert "2 pages" in fault(tmp_path / "p.tif", dims=2)
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    assert "can't be read" in fault(tmp_path / "bad.png", dims=2)
