"""Where an image lies and how large it is: units of length, sform against qform, and images of nothing."""

import json
import warnings
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pyarrow.parquet as pq
import pytest

import ldseg
from ldseg.commands import segment
from ldseg.config import Config, DataConfig
from ldseg.data.errors import CaseError
from ldseg.data.volume import read_label, read_volume
from ldseg.pictures import planes
from tests.helpers.tiny import random_bundle, tiny_config

MILLIMETRES = {"mm": 1.0, "meter": 1000.0, "micron": 0.001, "unknown": 1.0}
AFFINE = np.array([[0.0, -0.9, 0.1, 12.0], [0.8, 0.0, 0.0, -7.0], [0.0, 0.1, 2.5, 3.0], [0, 0, 0, 1]])
PLAIN = np.diag([1.5, 1.0, 2.0, 1.0])


def noise(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(14, 13, 12)).astype(np.float32)


def save(path: Path, unit: str, array: np.ndarray | None = None, affine: np.ndarray = AFFINE) -> Path:
    """A file whose voxels lie at `affine` in mm, in the numbers of `unit`."""
    image = nib.Nifti1Image(noise() if array is None else array, affine)
    placed = _in_unit(affine, unit)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image.set_sform(placed, code=1)
        image.set_qform(placed, code=1, strip_shears=True)
    image.header.set_xyzt_units(unit, "sec")
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


def _in_unit(affine: np.ndarray, unit: str) -> np.ndarray:
    placed = affine.copy()
    placed[:3] /= MILLIMETRES[unit]
    return placed


@pytest.mark.parametrize("unit", MILLIMETRES)
def test_an_image_is_read_in_mm_whatever_its_unit(tmp_path, unit):
    volume = read_volume(save(tmp_path / "a.nii.gz", unit), case="a", spatial_dims=3)
    assert np.allclose(volume.affine, AFFINE, rtol=1e-5)  # a header holds float32
    assert volume.spacing_mm == pytest.approx(np.linalg.norm(AFFINE[:3, :3], axis=0), rel=1e-5)
    pages = planes.geometry(tmp_path / "a.nii.gz", case="a", spatial_dims=3, in_channels=1, max_voxels=10**6)
    assert sorted(pages.spacing) == pytest.approx(sorted(volume.spacing_mm), rel=1e-6)


@pytest.mark.parametrize("own", MILLIMETRES)
def test_a_label_lies_on_its_image_in_another_unit_or_in_none(tmp_path, own):
    array = np.random.default_rng(1).integers(0, 2, (14, 13, 12)).astype(np.uint8)
    data = DataConfig(shape=(16, 16, 16))
    for unit in MILLIMETRES:
        volume = read_volume(save(tmp_path / "a.nii.gz", unit), case="a", spatial_dims=3)
        label = save(tmp_path / "l.nii.gz", own, array)
        if own == "unknown":  # it says nothing, so its numbers are the image's
            label = save(tmp_path / "l.nii.gz", own, array, _in_unit(AFFINE, unit))
        assert np.array_equal(read_label(label, volume, data), array), (unit, own)
    wrong = save(tmp_path / "l.nii.gz", "meter", array, AFFINE * 1.5)
    with pytest.raises(CaseError, match="differs from that of the image"):
        read_label(wrong, volume, data)


def without_noise(config: Config) -> Config:
    """The noise hangs on the image's content, to which the last digit of its affine belongs."""
    return replace(config, loss=replace(config.loss, deterministic=True))


@pytest.mark.parametrize("spacing", [None, [1.0, 1.0, 1.0]])
def test_segment_gives_the_same_millilitres_in_every_unit_and_writes_the_files_own(tmp_path, spacing):
    config = tiny_config()
    config = replace(config, data=replace(config.data, spacing_mm=spacing and tuple(spacing)))
    random_bundle(tmp_path / "model", without_noise(config))
    for unit in MILLIMETRES:
        save(tmp_path / "data" / f"{unit}.nii.gz", unit, affine=PLAIN)
    options = ["--model", str(tmp_path / "model"), "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    assert segment.main([*options, "--samples", "2"]) == 0
    rows = {row["case"]: row for row in pq.read_table(tmp_path / "out" / "table.parquet").to_pylist()}
    volumes = [column for column in rows["mm"] if "_volume_ml_" in column]
    assert volumes and any(rows["mm"][column] > 0 for column in volumes)
    words = {"mm": "mm", "meter": "metre", "micron": "micron", "unknown": "not given, taken as mm"}
    for unit in MILLIMETRES:
        # a header holds float32, whose roundings move a resampled voxel's probability by as little
        assert [rows[unit][c] for c in volumes] == pytest.approx([rows["mm"][c] for c in volumes], rel=1e-3)
        written = nib.load(tmp_path / "out" / "maps" / unit / f"{unit}_dseg.nii.gz")
        source = nib.load(tmp_path / "data" / f"{unit}.nii.gz")
        assert np.array_equal(written.affine, source.affine)
        assert written.header.get_xyzt_units() == source.header.get_xyzt_units()
        sidecar = json.loads((tmp_path / "out" / "maps" / unit / f"{unit}_dseg.json").read_text())
        assert sidecar["UnitOfLength"] == words[unit] and "Notes" not in sidecar


def test_an_image_in_memory_has_the_unit_of_its_header(tmp_path):
    random_bundle(tmp_path / "model", without_noise(tiny_config()))
    model = ldseg.load(tmp_path / "model")
    mm, metres = (nib.load(save(tmp_path / f"{unit}.nii.gz", unit, affine=PLAIN)) for unit in ("mm", "meter"))
    own, other = (model.segment(image, samples=2) for image in (mm, metres))
    assert own.volumes["organ"].median == pytest.approx(other.volumes["organ"].median, rel=1e-5)


def shifted(path: Path, voxels: float, codes: tuple[int, int] = (1, 1)) -> Path:
    """A file whose qform lies so many voxels of 1 mm beside its sform along the second axis."""
    image = nib.Nifti1Image(noise(), PLAIN)
    qform = PLAIN.copy()
    qform[1, 3] += voxels
    image.set_sform(PLAIN, code=codes[0])
    image.set_qform(qform, code=codes[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


@pytest.mark.parametrize(("voxels", "codes", "told"), [(0.4, (1, 1), 0), (0.6, (2, 1), 1), (9, (1, 0), 0)])
def test_sform_and_qform_that_disagree_by_half_a_voxel_are_a_note(tmp_path, voxels, codes, told):
    volume = read_volume(shifted(tmp_path / "a.nii.gz", voxels, codes), case="a", spatial_dims=3)
    assert np.allclose(volume.affine, PLAIN) and len(volume.notes) == told
    assert not told or volume.notes[0] == "its sform and qform put it up to 0.6 voxels apart; the sform is used"


def test_a_turn_is_measured_where_it_moves_the_volume_most(tmp_path):
    image = nib.Nifti1Image(noise(), PLAIN)
    turn = np.array([[np.cos(0.1), -np.sin(0.1), 0, 0], [np.sin(0.1), np.cos(0.1), 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    image.set_sform(turn @ PLAIN, code=1)
    image.set_qform(PLAIN, code=1)
    nib.save(image, tmp_path / "a.nii.gz")
    volume = read_volume(tmp_path / "a.nii.gz", case="a", spatial_dims=3)
    farthest = 2 * np.sin(0.05) * np.hypot(13 * 1.5, 12 * 1.0)  # the chord of the corner's way, in voxels of 1 mm
    assert f"{farthest:.3g} voxels apart" in volume.notes[0]


def test_segment_tells_of_a_note_on_screen_in_the_table_and_in_the_sidecar_and_refuses_an_image_of_nothing(
    tmp_path, capsys
):
    random_bundle(tmp_path / "model", tiny_config())
    shifted(tmp_path / "data" / "moved.nii.gz", 3.0)
    save(tmp_path / "data" / "good.nii.gz", "mm", affine=PLAIN)
    save(tmp_path / "data" / "nothing.nii.gz", "mm", np.full((14, 13, 12), 7, np.float32), PLAIN)
    options = ["--model", str(tmp_path / "model"), "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    segment.main([*options, "--samples", "2"])
    note = "its sform and qform put it up to 3 voxels apart; the sform is used"
    shown = capsys.readouterr().out
    assert f"note: moved: {note}" in shown
    rows = {row["case"]: row for row in pq.read_table(tmp_path / "out" / "table.parquet").to_pylist()}
    assert rows["moved"]["note"] == note and rows["good"]["note"] is None
    assert json.loads((tmp_path / "out/maps/moved/moved_dseg.json").read_text())["Notes"] == [note]
    assert rows["nothing"]["state"] == "failed"
    assert "nothing is in" in rows["nothing"]["error"] and "have the value 7" in rows["nothing"]["error"]
    with pytest.raises(CaseError, match="nothing is in"):
        ldseg.load(tmp_path / "model").segment((np.zeros((14, 13, 12)), PLAIN))
