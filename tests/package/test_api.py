"""The library's face: what a researcher types."""

import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from tiny import random_bundle, some_calibration, tiny_config

import ldseg
from ldseg import ROOT
from ldseg.calibration.file import save_calibration
from ldseg.commands.main import main
from ldseg.data.errors import CaseError
from ldseg.data.phantom.cohort import PhantomConfig, write_phantoms

SHIPPED = ROOT / "models/hippocampus"
IMAGES = ROOT.parent / "shared/data/hippocampus/imagesTr"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A tiny calibrated model and phantoms."""
    folder = tmp_path_factory.mktemp("face")
    bundle = random_bundle(folder / "model", tiny_config(3, ("organ", "lobe", "nodule")))
    save_calibration(folder / "model", some_calibration(bundle))
    write_phantoms(folder / "data", PhantomConfig(cases=4, raters=1, shape=(16, 20, 17)))
    return folder


@pytest.fixture(scope="module")
def model(place):
    return ldseg.load(place / "model")


@pytest.fixture(scope="module")
def image(place) -> Path:
    return place / "data/imagesTr/phantom3d_0001.nii.gz"


@pytest.fixture(scope="module")
def result(model, image):
    return model.segment(image, samples=3, seed=5)


def same(one, other) -> bool:
    """Bit by bit, but for the time it took."""
    rows = [r.table().drop(columns=["case", "seconds"]) for r in (one, other)]
    maps = [(r.label, r.entropy, r.variance, *r.probability.values()) for r in (one, other)]
    return rows[0].equals(rows[1]) and all(np.array_equal(a, b) for a, b in zip(*maps, strict=True))


def test_importing_the_package_loads_nothing_but_the_standard_library():
    code = "import sys, ldseg; print({'numpy', 'torch', 'nibabel', 'pandas', 'ray'} & set(sys.modules), dir(ldseg))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert said.startswith("set()") and "'load'" in said
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = ldseg.lode


def test_arrays_have_the_geometry_of_the_image(result, image):
    shape = nib.load(image).shape
    assert {a.shape for a in (result.label, result.entropy, result.variance, *result.probability.values())} == {shape}
    assert list(result.probability) == ["organ", "lobe", "nodule"] and result.case == "phantom3d_0001"
    assert np.allclose(result.image.affine, nib.load(image).affine) and 0 <= result.agreement <= 1
    assert result.unfamiliar is None


def test_volumes_tell_the_interval_with_a_promise_first_where_it_holds(result, model, image):
    row, volume = result.table().iloc[0], result.volumes["organ"]
    assert volume.interval == (row["organ_volume_ml_low"], row["organ_volume_ml_high"]) and volume.promise == 0.9
    assert volume.median == np.median(volume.samples) == volume.percentiles[50] and volume.unit == "ml"
    assert "(90% interval" in repr(volume)
    other = model.segment(image, samples=2).volumes["organ"]  # the calibration is of three samples
    assert other.interval is other.promise is None and "5th to 95th percentile" in repr(other)


def test_reprs_are_short(result, model, place):
    cohort = ldseg.read_cohort(place / "data")
    told = [repr(thing) for thing in (model, result, cohort, result.volumes["organ"])]
    assert all(len(text) < 400 and "\n" not in text and "array" not in text for text in told), told
    assert told[0] == "<Model model: 3D, organ, lobe, nodule, calibrated, on cpu>"
    assert told[2].startswith("<Cohort data: 4 cases (")


def test_a_path_a_nibabel_image_and_an_array_give_the_same(result, model, image):
    loaded = nib.load(image)
    for given in (str(image), loaded, (np.asarray(loaded.dataobj), loaded.affine)):
        assert same(model.segment(given, samples=3, seed=5), result)
    memory = nib.Nifti1Image(np.asarray(loaded.dataobj), loaded.affine)
    assert model.segment(memory, samples=1).case == "image" and model.segment(memory, samples=1, name="me").case == "me"


def test_the_program_writes_the_same_bytes(result, place, image, tmp_path):
    given = ["--model", str(place / "model"), "--data", str(image), "--samples", "3", "--seed", "5"]
    assert main(["segment", *given, "--out", str(tmp_path / "program")]) == 0
    saved = result.save(tmp_path / "face")
    assert saved == tmp_path / "face/maps/phantom3d_0001"
    ours, theirs = (
        {path.name: path.read_bytes() for path in (tmp_path / who / "maps" / result.case).iterdir()}
        for who in ("face", "program")
    )
    assert ours == theirs and len(ours) > 8


def test_pictures_and_tables(result, tmp_path):
    assert result.plot(tmp_path / "case.png").read_bytes().startswith(b"\x89PNG")
    table = result.table()
    assert len(table) == 1 and table["case"][0] == "phantom3d_0001" and table["samples"][0] == 3


def test_many_are_segmented_one_by_one_and_a_broken_one_raises_or_is_skipped(model, place, image, result, tmp_path):
    cohort = ldseg.read_cohort(place / "data")
    names = [r.case for r in model.segment_many(cohort, samples=1)]
    assert names == [case.name for case in cohort.cases]
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"no image")
    given = [broken, image]
    with pytest.raises(CaseError, match="^broken: "):
        list(model.segment_many(given, samples=3, seed=5))
    (left,) = model.segment_many(given, samples=3, seed=5, on_error="skip")
    assert same(left, result)
    with pytest.raises(ValueError, match='"raise" or "skip"'):
        list(model.segment_many(given, on_error="ignore"))


@pytest.mark.parametrize(
    "wrong, sentence",
    [
        ({"samples": 0}, "samples must be at least 1"),
        ({"steps": 0}, "num_sample_steps"),
        ({"image": np.zeros((16, 16, 16))}, "an affine"),
        ({"image": "nowhere.nii.gz"}, "nowhere"),
    ],
)
def test_mistakes_are_told(model, image, wrong, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence):
        model.segment(**{"image": image} | wrong)


def test_what_a_folder_holds_and_cannot_be_used_is_not_skipped_in_silence(model, image, tmp_path):
    shutil.copy(image, tmp_path / "good.nii.gz")
    (tmp_path / "lost.nii.gz").symlink_to("gone")
    assert [r.case for r in model.segment_many(tmp_path, samples=1, on_error="skip")] == ["good"]
    with pytest.raises(CaseError, match="lost: there is no file where the link"):
        list(model.segment_many(tmp_path, samples=1))
    rows = ldseg.evaluate(model, tmp_path, samples=1, split="all").rows
    assert [row["case"] for row in rows] == ["good", "lost"] and "no file where the link" in rows[1]["error"]


def test_evaluate_scores_a_model_on_a_cohort(model, place):
    found = ldseg.evaluate(place / "model", place / "data", samples=2, split="all")
    assert found.summary["cases"] == 4 and "dice" in found.rows[0] and "Dice" in found.table()
    assert repr(found).startswith("<EvaluationResult: 4 cases, 0 failed")
    with pytest.raises(ValueError, match="there is no split 'tset'"):
        ldseg.evaluate(model, ldseg.read_cohort(place / "data"), split="tset")


@pytest.mark.skipif(not IMAGES.is_dir(), reason="no hippocampi here")
def test_the_shipped_model_tells_of_a_hippocampus_what_its_card_promises():
    result = ldseg.load(SHIPPED).segment(min(IMAGES.glob("*.nii.gz")), samples=8)
    assert result.unfamiliar is False and 0.8 < result.agreement < 0.95
    for volume in result.volumes.values():
        assert volume.interval[0] < volume.median < volume.interval[1] and 0.5 < volume.median < 4
