"""NRRD, MetaImage, MGZ and pairs of .hdr and .img have the geometry of the NIfTI that they were made of."""

import gzip
import os
import struct

import nibabel as nib
import numpy as np
import pytest
from dicoms import affine_lps, write_series
from nibabel.spm2analyze import Spm2AnalyzeImage

from ldseg.config import DataConfig
from ldseg.data.cohort import Case, read_cohort
from ldseg.data.dataset import cache_key
from ldseg.data.errors import CaseError
from ldseg.data.reading import read_image
from ldseg.data.volume import read_label, read_volume, stem, write_map
from ldseg.results.segment import request_key

itk = pytest.importorskip("SimpleITK")
VALUES = np.random.default_rng(0).integers(-500, 3000, (6, 5, 4)).astype(np.int16)
TURN = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, -1]])
AFFINE = np.eye(4)
AFFINE[:3, :3], AFFINE[:3, 3] = TURN * [0.7, 0.9, 2.5], (-31.5, 20.25, 7.75)
BY_ITK = ["a.nrrd", "a.nhdr", "a.mha", "a.mhd"]
BY_NIBABEL = ["a.mgz", "a.mgh", "a.hdr"]


def save(path, values=VALUES):
    nifti = nib.Nifti1Image(values, AFFINE)
    if path.name in BY_ITK:
        nib.save(nifti, path.with_suffix(".nii"))
        itk.WriteImage(itk.ReadImage(str(path.with_suffix(".nii"))), str(path), useCompression=path.suffix == ".nrrd")
        path.with_suffix(".nii").unlink()
    elif path.suffix == ".hdr":
        nib.save(nib.Nifti1Pair(values, AFFINE), path.with_suffix(".img"))
    else:
        nib.save(nib.MGHImage(values.astype(np.int16), AFFINE), path)
    return path


def refusal(path, **how):
    with pytest.raises(CaseError) as caught:
        read_volume(path, case="a", spatial_dims=3, **how)
    return str(caught.value)


@pytest.mark.parametrize("name", BY_ITK + BY_NIBABEL)
def test_values_and_places_are_those_that_were_written_and_results_are_nifti_there(tmp_path, name):
    volume = read_volume(save(tmp_path / name), case="a", spatial_dims=3)
    np.testing.assert_array_equal(volume.array[0], VALUES)
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-4)  # some hold float32
    written = write_map(tmp_path / "out.nii.gz", VALUES, volume)
    np.testing.assert_allclose(nib.load(written).affine, AFFINE, atol=1e-4)
    np.testing.assert_array_equal(nib.load(written).get_fdata(), VALUES)
    assert stem(tmp_path / name) == "a"


@pytest.mark.parametrize("name", ["a.nrrd", "a.mgz"])
def test_a_label_of_another_format_lies_on_a_nifti_image_or_is_refused(tmp_path, name):
    nib.save(nib.Nifti1Image(VALUES, AFFINE), tmp_path / "image.nii.gz")
    image = read_volume(tmp_path / "image.nii.gz", case="a", spatial_dims=3)
    data = DataConfig(spatial_dims=3, shape=(8, 8, 8), label_values=(0, 1), structures=("one",))
    label = (VALUES > 0).astype(np.int16)
    np.testing.assert_array_equal(read_label(save(tmp_path / name, label), image, data), label)
    moved = nib.MGHImage(label, AFFINE + np.eye(4)[:, [3, 3, 3, 0]] * 5)
    nib.save(moved, tmp_path / "moved.mgz")
    with pytest.raises(CaseError, match="affine of the label"):
        read_label(tmp_path / "moved.mgz", image, data)


def test_an_analyze_pair_runs_to_the_left_from_its_origin(tmp_path):
    image = Spm2AnalyzeImage(VALUES, np.diag([-0.7, 0.9, 2.5, 1]))
    image.header["origin"][:3] = (2, 3, 1)  # counted from 1
    header = image.header.copy()
    header.set_data_shape(VALUES.shape)
    (tmp_path / "a.hdr").write_bytes(header.binaryblock)
    (tmp_path / "a.img").write_bytes(VALUES.tobytes("F"))
    volume = read_volume(tmp_path / "a.hdr", case="a", spatial_dims=3)
    np.testing.assert_array_equal(volume.array[0], VALUES)
    np.testing.assert_allclose(np.diag(volume.affine), (-0.7, 0.9, 2.5, 1), rtol=1e-6)
    np.testing.assert_allclose(volume.affine @ [1, 2, 0, 1], (0, 0, 0, 1), atol=1e-6)
    (tmp_path / "a.mat").write_bytes(b"")
    assert "a.mat, which is not read" in refusal(tmp_path / "a.hdr")
    (tmp_path / "a.mat").unlink()
    (tmp_path / "a.img").unlink()
    assert "there is no file" in refusal(tmp_path / "a.hdr")


def test_what_a_header_claims_is_bounded_before_it_is_made(tmp_path):
    for name in BY_ITK + BY_NIBABEL:
        save(tmp_path / name)
        assert "more than 100" in refusal(tmp_path / name, max_voxels=100)
        (tmp_path / name).unlink()
    huge = b"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 60000 60000 60000\nspacings: 1 1 1\nencoding: %s\n\n1234"
    for encoding, text in ((b"raw", "truncated"), (b"gzip", "truncated")):
        (tmp_path / "a.nrrd").write_bytes(huge % encoding)
        assert text in refusal(tmp_path / "a.nrrd", max_voxels=2**62)
    mgh = struct.pack(">iiiiiii", 1, 30000, 30000, 30000, 1, 4, 0).ljust(284, b"\0")
    (tmp_path / "a.mgz").write_bytes(gzip.compress(mgh))
    assert "truncated" in refusal(tmp_path / "a.mgz", max_voxels=2**62)


def test_no_header_leads_to_a_file_elsewhere(tmp_path):
    (tmp_path / "secret").write_bytes(b"0" * 1000)
    (tmp_path / "in").mkdir()
    meta = "NDims = 3\nDimSize = 5 5 5\nElementSpacing = 1 1 1\nElementType = MET_UCHAR\nElementDataFile = {}\n"
    nrrd = "NRRD0004\ntype: uint8\ndimension: 3\nsizes: 5 5 5\nspacings: 1 1 1\nencoding: raw\ndata file: {}\n"
    for name, text in (("a.mhd", meta), ("a.mha", meta), ("a.nhdr", nrrd), ("a.nrrd", nrrd)):
        for place in ("../secret", str(tmp_path / "secret"), "LIST", "x%d.raw 1 5 1"):
            (tmp_path / "in" / name).write_text(text.format(place) + ("../secret\n" if place == "LIST" else ""))
            assert "only one file in the same folder is read" in refusal(tmp_path / "in" / name)
        (tmp_path / "in" / name).write_text(text.format("gone.raw"))
        assert "there is no file" in refusal(tmp_path / "in" / name)
        (tmp_path / "in" / name).write_text(text.replace("= 1 1 1", "").replace("spacings: 1 1 1\n", "").format("x"))


def test_damage_never_escapes_as_another_error(tmp_path):
    generator = np.random.default_rng(0)
    refused = 0
    for name in ("a.nrrd", "a.mha", "a.mgh", "a.hdr"):
        whole = save(tmp_path / name).read_bytes()
        for _ in range(60):
            content = bytearray(whole)
            for position in generator.integers(0, min(len(content), 340), 5):
                content[position] = generator.integers(256)
            (tmp_path / name).write_bytes(content[: generator.integers(10, len(content) + 1)])
            try:
                read_volume(tmp_path / name, case="a", spatial_dims=3, max_voxels=10**6)
            except CaseError:
                refused += 1
    assert refused > 150


def test_training_takes_the_file_ending_that_dataset_json_names(tmp_path):
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder).mkdir()
    for k in range(3):
        save(tmp_path / "a.nrrd").rename(tmp_path / "imagesTr" / f"c{k}_0000.nrrd")
        save(tmp_path / "a.nrrd", (VALUES > 0).astype(np.int16)).rename(tmp_path / "labelsTr" / f"c{k}.nrrd")
    content = '{"labels": {"background": 0, "one": 1}, "channel_names": {"0": "T1"}, "file_ending": ".nrrd"}'
    (tmp_path / "dataset.json").write_text(content)
    cohort = read_cohort(tmp_path)
    assert [case.name for case in cohort.cases] == ["c0", "c1", "c2"]
    assert cohort.spatial_dims == 3 and cohort.structures == ("one",)


def test_a_pair_keeps_its_unit_and_codes_and_a_label_without_a_unit_has_its_images(tmp_path):
    pair = nib.Nifti1Pair(VALUES, np.diag([1000.0, 1000, 2000, 1]))
    pair.header.set_xyzt_units("micron")
    pair.header.set_qform(np.diag([1000.0, 1000, 3000, 1]), 1)
    nib.save(pair, tmp_path / "a.img")
    volume = read_volume(tmp_path / "a.hdr", case="a", spatial_dims=3)
    assert volume.spacing_mm == (1, 1, 2) and "voxels apart" in volume.notes[0]
    written = nib.load(write_map(tmp_path / "out.nii.gz", VALUES, volume))
    assert written.header.get_xyzt_units()[0] == "micron" and isinstance(written, nib.Nifti1Image)
    np.testing.assert_array_equal(written.affine, pair.affine)
    label = nib.Nifti1Image((VALUES > 0).astype(np.uint8), pair.affine)
    nib.save(label, tmp_path / "label.nii.gz")
    data = DataConfig(spatial_dims=3, shape=(8, 8, 8), label_values=(0, 1), structures=("one",))
    np.testing.assert_array_equal(read_label(tmp_path / "label.nii.gz", volume, data), VALUES > 0)
    pair.header["pixdim"][1], pair.header["sform_code"] = 0, 0
    (tmp_path / "a.hdr").write_bytes(pair.header.binaryblock)
    assert "gives no voxel size" in refusal(tmp_path / "a.hdr")


@pytest.mark.parametrize("name", BY_ITK + BY_NIBABEL)
def test_an_image_of_one_value_is_refused_in_every_format(tmp_path, name):
    data = DataConfig(spatial_dims=3, shape=(8, 8, 8), label_values=(0, 1), structures=("one",))
    path = save(tmp_path / name, np.full_like(VALUES, 7))
    with pytest.raises(CaseError, match="all its voxels have the value 7"):
        read_image(Case(name="a", image=path), data)


def test_a_change_of_any_file_that_an_image_is_made_of_is_noticed(tmp_path):
    first, *others = write_series(
        tmp_path / "series", np.arange(60).reshape(3, 4, 5), affine_lps(np.eye(3), (1, 1, 1), (0, 0, 0))
    )
    pair = tmp_path / "pair.hdr"
    save(pair)
    for image, changed in ((first, others[-1]), (pair, pair.with_suffix(".img"))):
        case = Case(name="one", image=image, labels=(image,))
        before = request_key({}, {}, [case]), cache_key(case, DataConfig(), (4, 4, 4))
        assert before == (request_key({}, {}, [case]), cache_key(case, DataConfig(), (4, 4, 4)))
        os.utime(changed, ns=(0, 0))
        after = request_key({}, {}, [case]), cache_key(case, DataConfig(), (4, 4, 4))
        assert all(one != other for one, other in zip(before, after, strict=True))
