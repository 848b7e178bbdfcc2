"""DICOM series are read at their place, with their values, or refused by a sentence that names no patient."""

import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from dicoms import PATIENT_ID, affine_lps, edit, turned, write_enhanced, write_series
from PIL import Image

from ldseg.data.cohort import CohortError, read_cohort
from ldseg.data.errors import CaseError
from ldseg.data.volume import read_volume

pydicom = pytest.importorskip("pydicom")
TO_RAS = np.diag([-1.0, -1, 1, 1])
OBLIQUE = affine_lps(turned(37, (1, -2, 0.5)), (0.7, 0.9, 2.5), (-31.5, 20.25, 7.75))
VALUES = np.random.default_rng(0).integers(-500, 3000, (6, 5, 4)).astype(np.int16)


def read(path, **how):
    return read_volume(path, case="a", spatial_dims=3, **how)


def refusal(path, **how):
    with pytest.raises(CaseError) as caught:
        read(path, **how)
    return str(caught.value)


@pytest.mark.parametrize("named_by", [0, 3])
def test_an_oblique_series_has_the_affine_and_the_order_of_its_places(tmp_path, named_by):
    paths = write_series(tmp_path, VALUES, OBLIQUE)
    volume = read(paths[named_by])
    np.testing.assert_array_equal(volume.array[0], VALUES)
    np.testing.assert_allclose(volume.affine, TO_RAS @ OBLIQUE, atol=1e-5)  # positions have six decimals
    np.testing.assert_allclose(volume.header.get_best_affine(), volume.affine, atol=1e-4)  # float32


def test_planes_stacked_against_their_normal_lie_where_they_did(tmp_path):
    down = OBLIQUE @ np.diag([1.0, 1, -1, 1])
    volume = read(write_series(tmp_path, VALUES, down)[0])
    np.testing.assert_array_equal(volume.array[0], VALUES[:, :, ::-1])
    np.testing.assert_allclose(volume.affine @ [0, 0, 3, 1], TO_RAS @ down @ [0, 0, 0, 1], atol=1e-5)


def test_itk_reads_the_same_values_at_the_same_places(tmp_path):
    itk = pytest.importorskip("SimpleITK")
    paths = write_series(tmp_path, VALUES, OBLIQUE, RescaleSlope=0.5, RescaleIntercept=-3)
    itk_reader = itk.ImageSeriesReader()
    itk_reader.SetFileNames(itk_reader.GetGDCMSeriesFileNames(str(tmp_path)))
    image, volume = itk_reader.Execute(), read(paths[0])
    np.testing.assert_allclose(itk.GetArrayFromImage(image).T, volume.array[0])
    corner = (5, 4, 3)
    place = np.array([*image.TransformIndexToPhysicalPoint(corner), 1])
    np.testing.assert_allclose(volume.affine @ [*corner, 1], TO_RAS @ place, atol=1e-4)


def test_each_image_has_its_own_slope_and_low_may_be_white(tmp_path):
    unsigned = (VALUES + 500).astype(np.uint16)
    paths = write_series(tmp_path / "a", unsigned, OBLIQUE, BitsStored=12, HighBit=11)
    for k, path in enumerate(paths):
        edit(path, RescaleSlope=k + 1, RescaleIntercept=10 * k)
    slopes, intercepts = np.arange(1, 5), 10 * np.arange(4)
    np.testing.assert_array_equal(read(paths[0]).array[0], unsigned * slopes + intercepts)
    for path in paths:
        edit(path, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(read(paths[0]).array[0], (4095.0 - unsigned) * slopes + intercepts)
    signed = write_series(tmp_path / "b", VALUES, OBLIQUE, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(read(signed[0]).array[0], -1.0 - VALUES)


def test_a_multi_frame_object_is_put_in_order_frame_by_frame(tmp_path):
    volume = read(write_enhanced(tmp_path / "IM_0001", VALUES, OBLIQUE, [1, 2, 3, 4]))
    np.testing.assert_array_equal(volume.array[0], VALUES * np.array([1.0, 2, 3, 4]) - 1)
    np.testing.assert_allclose(volume.affine, TO_RAS @ OBLIQUE, atol=1e-5)


LARGE = np.kron(VALUES, np.ones((8, 8, 1), np.int16))


def compress_by_gdcm(path, syntax):
    gdcm = pytest.importorskip("gdcm")
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(path))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()


SYNTAXES = ["RLELossless", "JPEGLSLossless", "JPEG2000Lossless", "JPEGLosslessProcess14_1"]


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_compressed_pixels_are_decoded(tmp_path, syntax):
    paths = write_series(tmp_path, LARGE, OBLIQUE)
    for path in paths:
        compress_by_gdcm(path, syntax)
    assert pydicom.dcmread(paths[0]).file_meta.TransferSyntaxUID.is_compressed
    np.testing.assert_array_equal(read(paths[0]).array[0], LARGE)


@pytest.mark.parametrize("syntax", SYNTAXES[1:])
def test_a_compressed_frame_that_claims_another_size_is_refused_before_it_is_decoded(tmp_path, syntax):
    paths = write_series(tmp_path, LARGE, OBLIQUE)
    for path in paths:
        compress_by_gdcm(path, syntax)
    content = paths[1].read_bytes()
    start = content.index(b"\xff\x4f\xff\x51" if syntax == "JPEG2000Lossless" else b"\xff\xd8")
    head, stream = content[:start], content[start:]
    if syntax == "JPEG2000Lossless":
        claim, false = (48).to_bytes(4, "big") + (40).to_bytes(4, "big"), (2**30).to_bytes(4, "big") * 2
    else:
        claim, false = (40).to_bytes(2, "big") + (48).to_bytes(2, "big"), b"\xff\xf0" * 2
    assert claim in stream
    paths[1].write_bytes(head + stream.replace(claim, false))
    assert "another size than its header says" in refusal(paths[1])


def test_what_is_no_volume_is_refused_by_a_sentence(tmp_path):
    def series(name, planes=4, **tags):
        array = np.repeat(VALUES[:, :, :1], planes, axis=2)
        return write_series(tmp_path / name, array, OBLIQUE, **tags)

    gap = series("gap", 6)
    gap[3].unlink()
    assert "between its images 3 and 4 by place lie 5 mm, usually 2.5 mm" in refusal(gap[0])

    copies = series("copies")
    shutil.copy(copies[1], copies[1].with_name("again.dcm"))
    assert "are the same image; remove the copies" in refusal(copies[0])

    echoes = series("echoes", EchoTime=2.4)
    for path in write_series(tmp_path / "more", VALUES, OBLIQUE, EchoTime=9.8):
        path.rename(tmp_path / "echoes" / f"second-{path.name}")
    assert "8 images lie at 4 places, which differ by EchoTime" in refusal(echoes[0])

    mixed = series("mixed")
    edit(mixed[2], ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    assert "2 orientations (3, 1 images)" in refusal(mixed[0])

    sheared = OBLIQUE.copy()
    sheared[:3, 2] += 0.3 * OBLIQUE[:3, 0]
    assert "tilted gantry" in refusal(write_series(tmp_path / "tilt", VALUES, sheared)[0])

    spacings = series("spacings")
    edit(spacings[1], PixelSpacing=[0.9, 0.8])
    assert "several pixel spacings" in refusal(spacings[0])
    nowhere = series("nowhere")
    edit(nowhere[1], ImagePositionPatient=None)
    assert "gives no position" in refusal(nowhere[0])
    palette = series("palette", PhotometricInterpretation="PALETTE COLOR")
    assert "PALETTE COLOR" in refusal(palette[0])


def test_what_a_header_claims_is_bounded_before_it_is_made(tmp_path):
    paths = write_series(tmp_path / "large", VALUES, OBLIQUE)
    assert "claims more than 100 voxels" in refusal(paths[0], max_voxels=100)
    for path in paths:
        edit(path, Rows=60000, Columns=60000)
    assert "claims" in refusal(paths[0], max_voxels=10**6)
    assert "truncated" in refusal(paths[0], max_voxels=2**40)


def test_damage_never_escapes_as_another_error_nor_quotes_the_patient(tmp_path, caplog):
    whole = write_enhanced(tmp_path / "a.dcm", VALUES, OBLIQUE, [1] * 4).read_bytes()
    generator = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        content = bytearray(whole)
        for position in generator.integers(132, len(content) - VALUES.nbytes, 6):
            content[position] = generator.integers(256)
        (tmp_path / "a.dcm").write_bytes(content[: generator.integers(200, len(content))])
        try:
            read(tmp_path / "a.dcm", max_voxels=10**6)
        except CaseError as error:
            refused += 1
            assert PATIENT_ID not in str(error) and "Doe" not in str(error)
    assert refused > 100
    assert PATIENT_ID not in caplog.text


@pytest.fixture
def studies(tmp_path):
    """Two studies of two series, and one of one."""
    for number, patient in enumerate(("p1", "p2")):
        folder = tmp_path / "studies" / patient
        study = f"1.2.{number}.1"
        write_series(folder / "flair", VALUES, OBLIQUE, uid=f"1.2.{number}.4", StudyInstanceUID=study)
        other = {"SeriesDescription": "T1 MPRAGE", "SeriesNumber": 7, "StudyInstanceUID": study}
        write_series(folder / "t1", VALUES, OBLIQUE, uid=f"1.2.{number}.5", **other)
    return tmp_path / "studies"


def test_series_are_chosen_by_pattern_number_uid_and_folder(studies):
    for pattern in ("*flair*", "4", "FLAIR", "p?/flair"):
        cohort = read_cohort(studies, series=pattern)
        assert [case.name for case in cohort.cases] == ["p1_flair", "p2_flair"]
        assert cohort.spatial_dims == 3
    one = read_cohort(studies, series="1.2.0.5.2")
    assert [case.name for case in one.cases] == ["p1_t1"]
    assert len(one.problems) == 1 and "p2_flair" in str(one.problems[0])
    with pytest.raises(CohortError, match="(?s)has 2 series, and none is named; choose by --series.*T1 MPRAGE"):
        read_cohort(studies)
    with pytest.raises(CohortError, match="no series in .* is called 'nothing'"):
        read_cohort(studies, series="nothing")


def test_images_and_series_are_cases_side_by_side_and_nothing_is_skipped_in_silence(studies, tmp_path):
    root = tmp_path / "mixed"
    shutil.copytree(studies / "p1" / "flair", root)
    shutil.copytree(studies / "p2" / "t1", root / "below")
    (root / "scan.dat").write_bytes(b"0")
    Image.fromarray(VALUES[:, :, 0].astype(np.uint8)).save(root / "a.png")
    both = read_cohort(root)
    assert [case.name for case in both.cases] == ["a", "mixed"]
    assert [problem.case for problem in both.problems] == ["scan.dat"]
    assert len(both.notes) == 1 and f"{root / 'below'} was not searched" in both.notes[0]
    named = read_cohort(root, series="*T1*")
    assert [case.name for case in named.cases] == ["below"] and "1 images in" in named.notes[0]
    (root / "a.png").rename(root / "below" / "a.png")
    assert [case.name for case in read_cohort(root).cases] == ["below", "below_a", "mixed"]


def test_series_beside_pairs_of_images_and_labels_have_a_row(studies):
    for name in ("Image", "Label"):
        (studies / name).mkdir()
        Image.fromarray(VALUES[:, :, 0].astype(np.uint8)).save(studies / name / "a.png")
    for path in (studies / "p1" / "t1").iterdir():
        shutil.copy(path, studies / "Image" / path.stem)
    (problem,) = read_cohort(studies).problems
    assert problem.case == "Image.dcm" and "4 files of DICOM" in problem.problem


def test_names_of_cases_hold_no_identifier_of_the_patient(tmp_path):
    write_series(tmp_path / "Doe_Jane" / "scan", VALUES, OBLIQUE)
    (case,) = read_cohort(tmp_path).cases
    assert case.name.startswith("series-") and len(case.name) == 15


def test_a_series_in_two_folders_is_refused_and_what_is_no_image_is_named(tmp_path):
    paths = write_series(tmp_path / "a", VALUES, OBLIQUE)
    (tmp_path / "b").mkdir()
    paths[0].rename(tmp_path / "b" / "x.dcm")
    with pytest.raises(CohortError, match="its 4 images lie in 2 folders"):
        read_cohort(tmp_path)
    (tmp_path / "b" / "x.dcm").rename(paths[0])
    report = pydicom.dcmread(paths[0])
    for tag in ("Rows", "Columns", "PixelData"):
        delattr(report, tag)
    report.Modality = "SR"
    report.save_as(tmp_path / "report.dcm")
    cohort = read_cohort(tmp_path)
    assert cohort.problems == () and cohort.notes == (f"1 objects of the kind SR in {tmp_path} are no images",)


def test_a_zip_is_unpacked_once_and_never_beyond_its_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LDSEG_CACHE", str(tmp_path / "cache"))
    paths = write_series(tmp_path / "study" / "flair", VALUES, OBLIQUE)
    with zipfile.ZipFile(tmp_path / "study.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in paths:
            archive.write(path, f"flair/{path.name}")
    (case,) = read_cohort(tmp_path / "study.zip").cases
    assert case.name == "flair"
    np.testing.assert_array_equal(read(case.image).array[0], VALUES)
    assert read_cohort(tmp_path / "study.zip").cases == (case,)
    assert case.image.parents[2].stat().st_mode & 0o077 == 0
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("../../evil.dcm", paths[0].read_bytes())
    with pytest.raises(CohortError, match="would lie outside of it"):
        read_cohort(tmp_path / "evil.zip")
    (tmp_path / "broken.zip").write_bytes((tmp_path / "study.zip").read_bytes()[:300])
    with pytest.raises(CohortError, match="can't be unpacked"):
        read_cohort(tmp_path / "broken.zip")
    assert not list((tmp_path / "cache").rglob("part"))


def test_a_manifest_may_name_a_folder_with_one_series(studies):
    (studies / "m.csv").write_text("case,image,series\none,p1,*flair*\ntwo,p2/t1,\nthree,p2,\n")
    cohort = read_cohort(studies / "m.csv")
    (problem,) = cohort.problems
    assert problem.case == "three" and str(problem).endswith("none is named; name one in the column series")
    assert [case.image.parent.name for case in cohort.cases] == ["flair", "t1"]


def test_without_the_extra_one_sentence_names_it(tmp_path):
    write_series(tmp_path, VALUES, OBLIQUE)
    code = "import sys; sys.modules['pydicom'] = None\nfrom ldseg.data.cohort import read_cohort\n"
    code += f"try: read_cohort({str(tmp_path)!r})\nexcept ValueError as error: print(error)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "needs pydicom, which is not installed; pip install 'ldseg[dicom]'" in done.stdout


def test_nothing_loads_the_libraries_before_a_file_asks_for_them():
    code = "import sys, ldseg.data.cohort; print({'highdicom', 'SimpleITK'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
