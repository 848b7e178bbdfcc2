"""No file that could be meant as a case is skipped in silence, and names of any bytes are cases."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldseg.data.cohort import Cohort, CohortError, read_cohort
from ldseg.data.errors import CaseError, is_text
from ldseg.data.volume import read_volume


def image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(path)
    return path


def names(cohort: Cohort) -> list[str]:
    return [case.name for case in cohort.cases]


def told(cohort: Cohort) -> dict[str, str]:
    return {problem.case: f"{problem.problem}; {problem.cure}" for problem in cohort.problems}


def test_every_file_that_could_be_meant_has_a_sentence(tmp_path: Path) -> None:
    image(tmp_path / "good.png")
    image(tmp_path / "twice.png"), image(tmp_path / "twice.bmp")
    (tmp_path / "annexed.nii.gz").symlink_to("../.git/annex/objects/ab/cd/KEY")
    (tmp_path / "lost.nii").symlink_to("gone.nii")
    for other in ("good.par", "scan.MINC", "series.zip", "IM0001", "alone.img"):
        (tmp_path / other).touch()
    for aside in ("README", "LICENSE", "good.json", "participants.tsv", "notes.txt", "AUTORUN.INF", ".hidden.nrrd"):
        (tmp_path / aside).touch()
    for header in ("pair.hdr", "meta.mhd", "spm.hdr"):
        (tmp_path / header).write_text("ElementDataFile = voxels.raw\n")
    for part in ("pair.img", "voxels.raw", "spm.img.gz", "spm.mat"):
        (tmp_path / part).touch()
    (tmp_path / "IM0002").symlink_to("../.git/annex/objects/ab/cd/KEY")
    (tmp_path / "IM0003").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    os.mkfifo(tmp_path / "pipe.png")
    os.mkfifo(tmp_path / "pipe")
    cohort = read_cohort(tmp_path)
    assert names(cohort) == ["good", "meta", "pair", "spm"] and cohort.notes == ()
    found = told(cohort)
    other = {"good.par", "scan.MINC", "IM0001", "alone.img"}
    assert set(found) == other | {"twice", "annexed", "lost", "pipe", "series.zip", "IM0002", "IM0003"}
    assert str(tmp_path / "twice.png") in found["twice"] and str(tmp_path / "twice.bmp") in found["twice"]
    assert "git-annex" in found["annexed"] and found["annexed"].endswith(f"datalad get {tmp_path / 'annexed.nii.gz'}")
    assert "there is no file where the link" in found["lost"] and "no regular file" in found["pipe"]
    assert all("is of a kind that is not read; convert it" in found[n] for n in other)
    assert "unpack it" in found["series.zip"] and "git-annex" in found["IM0002"] and "Git LFS" in found["IM0003"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull --include=a{}"),
        (b"/annex/objects/MD5E-s9--0.nii.gz\n", "datalad get a{}"),
    ],
)
@pytest.mark.parametrize("ending", [".nii.gz", ".png"])
def test_a_pointer_is_no_broken_image_but_one_that_was_not_fetched(tmp_path, content, sentence, ending) -> None:
    (tmp_path / f"a{ending}").write_bytes(content)
    with pytest.raises(CaseError, match="its content was not fetched") as error:
        read_volume(tmp_path / f"a{ending}", case="a", spatial_dims=2)
    assert error.value.cure == sentence.format(ending)


def test_folders_below_are_searched_where_nothing_else_is_found(tmp_path: Path) -> None:
    image(tmp_path / "p1" / "T1.png"), image(tmp_path / "p1" / "deep" / "T2.png"), image(tmp_path / "p2" / "T1.png")
    image(tmp_path / ".hidden" / "no.png")
    image(tmp_path / "segmented" / "pictures" / "old.png")
    (tmp_path / "segmented" / "maps").mkdir()
    (tmp_path / "segmented" / "maps" / "dataset_description.json").write_text('{"DatasetType": "derivative"}')
    (tmp_path / "p2" / "again").symlink_to(tmp_path)  # a circle ends
    (tmp_path / "p2" / "scan.dat").touch()
    cohort = read_cohort(tmp_path)
    assert names(cohort) == ["p1_T1", "p1_deep_T2", "p2_T1"] and set(told(cohort)) == {"p2_scan.dat"}
    image(tmp_path / "p1_T1.png")
    top = read_cohort(tmp_path)
    assert names(top) == ["p1_T1"]
    assert [note.split(" was not searched")[0] for note in top.notes] == [str(tmp_path / p) for p in ("p1", "p2")]
    (tmp_path / "p1_T1.png").unlink()
    image(tmp_path / "p1" / "deep_T2.png")
    both = told(read_cohort(tmp_path))["p1_deep_T2"]
    assert str(tmp_path / "p1" / "deep" / "T2.png") in both and str(tmp_path / "p1" / "deep_T2.png") in both


def test_a_case_twice_in_a_manifest_is_used_not_at_all(tmp_path: Path) -> None:
    image(tmp_path / "a.png"), image(tmp_path / "b.png")
    (tmp_path / "manifest.csv").write_text("case,image\nx,a.png\nx,b.png\ny,b.png\n")
    (tmp_path / "manifest.tsv").write_text("case\timage\n")
    cohort = read_cohort(tmp_path)
    assert names(cohort) == ["y"] and cohort.notes == (f"{tmp_path / 'manifest.tsv'} is not read, "
                                                      f"{tmp_path / 'manifest.csv'} is used",)  # fmt: skip
    assert str(tmp_path / "a.png") in told(cohort)["x"] and str(tmp_path / "b.png") in told(cohort)["x"]


def test_labels_without_an_image_and_two_labels_of_one_are_told(tmp_path: Path) -> None:
    for name in ("Image/a.png", "Image/b.png", "Label/a_seg.png", "Label/b.png", "Label/b_mask.png", "Label/c.png"):
        image(tmp_path / name)
    (tmp_path / "Image" / "d.dat").touch()
    cohort = read_cohort(tmp_path)
    found = told(cohort)
    assert names(cohort) == ["a"] and set(found) == {"b", "c", "d.dat"}
    assert "b.png and" in found["b"] and "b_mask.png" in found["b"] and "has no image" in found["c"]


def nnunet(root: Path, ending: str, *images: str, **more: object) -> Path:
    for name in images:
        image(root / "imagesTr" / name)
    content = {"labels": {"background": 0, "organ": 1}, "file_ending": ending} | more
    (root / "dataset.json").write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    return root


def test_cures_name_what_was_looked_for_and_not_found(tmp_path: Path) -> None:
    for folder, ending, more, sentence in (
        ("dot", "png", {}, r"gives the file_ending 'png' without its dot; write '\.png'"),
        ("suffix", ".png", {}, r"has no image called NAME_0000\.png, but 1 others, such as a\.png; rename them"),
        ("tests", None, {"training": [], "test": ["x"]}, "no image under training but 1 under test, .*imagesTs"),
        ("none", None, {"training": []}, "lists no image under training; list the images"),
    ):
        with pytest.raises(CohortError, match=sentence):
            read_cohort(nnunet(tmp_path / folder, ending, "a.png", **more))
    with pytest.raises(CohortError, match="has imagesTr/ but no dataset.json"):
        image(tmp_path / "bare" / "imagesTr" / "a.png")
        read_cohort(tmp_path / "bare")
    good = nnunet(tmp_path / "good", ".png", "a_0000.png", "b.png")
    image(good / "labelsTr" / "a.png"), image(good / "labelsTr" / "z.png")
    cohort = read_cohort(good)
    assert names(cohort) == ["a"] and set(told(cohort)) == {"b", "z"}
    assert "is not called NAME_0000.png" in told(cohort)["b"] and "has no image" in told(cohort)["z"]


def test_images_that_a_decathlon_list_leaves_out_are_noted(tmp_path: Path) -> None:
    image(tmp_path / "labelsTr" / "a.png")
    pair = {"image": "./imagesTr/a.png", "label": "./labelsTr/a.png"}
    cohort = read_cohort(nnunet(tmp_path, None, "a.png", "b.png", training=[pair]))
    assert names(cohort) == ["a"] and cohort.problems == ()
    assert len(cohort.notes) == 1 and "1 images are not used" in cohort.notes[0] and "b.png" in cohort.notes[0]


def test_a_name_of_any_bytes_is_a_case(tmp_path: Path) -> None:
    image(tmp_path / "good.png"), image(tmp_path / "u\u0308ber_海馬.png")
    strange = os.fsdecode(b"caf\xe9")
    image(tmp_path / f"{strange}.png")
    (tmp_path / f"{strange}2.png").symlink_to("gone")
    cohort = read_cohort(tmp_path)
    assert names(cohort) == ["caf\ufffd", "good", "\u00fcber_海馬"]
    assert cohort.cases[0].image.is_file() and not is_text(cohort.cases[0].image)
    assert set(told(cohort)) == {"caf\ufffd2"} and all(is_text(problem) for problem in cohort.problems)
