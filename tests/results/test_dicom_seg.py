"""DICOM segmentation objects lie where the label map does, and refer to the images they were made of."""

import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from dicoms import affine_lps, turned, write_enhanced, write_series
from publishing import NAMES, summary_of

from ldseg.data.cohort import Case
from ldseg.data.errors import CaseError
from ldseg.data.volume import read_volume
from ldseg.files import write_json
from ldseg.results.dicom_seg import write_objects
from ldseg.results.publication import publish

pydicom = pytest.importorskip("pydicom")
highdicom = pytest.importorskip("highdicom")
VALUES = np.random.default_rng(0).integers(0, 3000, (12, 10, 6)).astype(np.int16)
AFFINE = affine_lps(turned(37, (1, -2, 0.5)), (0.7, 0.9, 2.5), (-31.5, 20.25, 7.75)) @ np.diag([1.0, 1, -1, 1])
TO_RAS = np.diag([-1.0, -1, 1, 1])
TIBIA = {"type": ["12611008", "SCT", "Tibia"], "modifier": ["255549009", "SCT", "Anterior"]}


def objects_of(out, path):
    """A case segmented as nobody would: 3 voxels of the first structure, none of the second."""
    volume = read_volume(path, case="a", spatial_dims=3)
    made = summary_of(volume, "a", 0)
    label = np.zeros(volume.shape, np.uint8)
    label[2, 3, 1] = label[2, 4, 1] = label[11, 0, 5] = 1
    made = replace(made, label=label)
    write_json(out / "cases" / "a.json", publish(made, volume, NAMES, out / "maps" / "a"))
    model = {"structures": NAMES, "spatial_dims": 3, "in_channels": 1, "card": {"codes": {"organ": TIBIA}}}
    return volume, made, write_objects(out, Case(name="a", image=path), model)


@pytest.mark.parametrize("kind", ["series", "multi-frame"])
def test_objects_are_read_back_at_the_same_places_by_highdicom(tmp_path, kind):
    if kind == "series":
        path = write_series(tmp_path / "images", VALUES, AFFINE)[2]
    else:
        up = AFFINE @ np.diag([1.0, 1, -1, 1])  # its frames run against its planes
        path = write_enhanced(tmp_path / "images" / "one.dcm", VALUES, up, [1] * 6)
    volume, made, (seg, prob) = objects_of(tmp_path / "out", path)

    read = highdicom.seg.segread(seg)
    found = read.get_volume(combine_segments=True)  # (planes, rows, columns)
    marked = np.argwhere(found.array == 1)
    places = TO_RAS @ found.affine @ np.c_[marked, np.ones(len(marked))].T
    wanted = volume.affine @ np.c_[np.argwhere(made.label == 1), np.ones(3)].T
    np.testing.assert_allclose(places[:, np.lexsort(places)], wanted[:, np.lexsort(wanted)], atol=1e-4)
    assert set(np.unique(found.array)) == {0, 1}  # of the second structure there is none

    organ, nodule = read.SegmentSequence
    assert organ.SegmentLabel == "organ" and organ.SegmentAlgorithmType == "AUTOMATIC"
    assert organ.SegmentedPropertyTypeCodeSequence[0].CodeValue == "12611008"
    assert nodule.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Tissue"  # which has no code of its own
    source = pydicom.dcmread(path)
    assert read.PatientID == source.PatientID and read.FrameOfReferenceUID == source.FrameOfReferenceUID
    referred = {item.ReferencedSOPInstanceUID for item in read.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    instances = {pydicom.dcmread(file).SOPInstanceUID for file in path.parent.iterdir()}
    assert referred == instances

    share = highdicom.seg.segread(prob).get_volume(segment_numbers=[2])
    shares, place = share.array[..., 0], TO_RAS @ share.affine
    for index in ((0, 0, 0), (5, 9, 11), (1, 3, 2)):
        native = np.linalg.inv(volume.affine) @ place @ [*index, 1]
        assert shares[index] == pytest.approx(
            made.mean_probability[1][tuple(np.rint(native[:3]).astype(int))], abs=1 / 255
        )


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="no dciodvfy here")
def test_objects_conform_to_the_standard_by_dciodvfy(tmp_path):
    for path in objects_of(tmp_path / "out", write_series(tmp_path / "images", VALUES, AFFINE)[0])[2]:
        done = subprocess.run(["dciodvfy", path], capture_output=True, text=True, check=False)
        assert "Error" not in done.stderr + done.stdout and "Segmentation" in done.stderr + done.stdout


def test_the_same_case_model_and_seed_give_the_same_uids(tmp_path):
    path = write_series(tmp_path / "images", VALUES, AFFINE)[0]
    uids = [
        [pydicom.dcmread(file).SOPInstanceUID for file in objects_of(tmp_path / out, path)[2]] for out in ("one", "two")
    ]
    assert uids[0] == uids[1] and len(set(uids[0])) == 2


def test_what_an_object_can_not_refer_to_is_told(tmp_path):
    model = {"structures": NAMES, "spatial_dims": 3, "in_channels": 1, "card": {}}
    (tmp_path / "a.nii.gz").write_bytes(b"")
    with pytest.raises(CaseError, match="is no DICOM"):
        write_objects(tmp_path / "out", Case(name="a", image=tmp_path / "a.nii.gz"), model)
    paths = write_series(tmp_path / "images", VALUES, AFFINE)
    for path in paths:
        dataset = pydicom.dcmread(path)
        del dataset.FrameOfReferenceUID
        dataset.save_as(path)
    with pytest.raises(CaseError, match="names no frame of reference"):
        objects_of(tmp_path / "out", paths[0])
