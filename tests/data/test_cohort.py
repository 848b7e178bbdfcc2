"""Listing cohorts in each layout, the split by case, and what happens to faulty cases."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ldseg.data.cohort import CohortError, read_cohort


def write_volume(path: Path, highest: int | None = None, shape: tuple[int, ...] = (5, 4, 3)) -> Path:
    generator = np.random.default_rng(0)
    values = generator.normal(size=shape).astype(np.float32)
    if highest is not None:
        values = generator.integers(0, highest + 1, shape).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, np.eye(4)), path)
    return path


def decathlon(root: Path, cases: int = 10) -> Path:
    names = [f"case_{number:03d}" for number in range(cases)]
    for name in names:
        write_volume(root / "imagesTr" / f"{name}.nii.gz")
        write_volume(root / "labelsTr" / f"{name}.nii.gz", 2)
    content = {
        "labels": {"0": "background", "1": "Anterior", "2": "left posterior"},
        "training": [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in names],
    }
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def test_decathlon_folder(tmp_path):
    cohort = read_cohort(decathlon(tmp_path / "Task"))
    assert (cohort.name, cohort.spatial_dims, cohort.label_values) == ("Task", 3, (0, 1, 2))
    assert cohort.structures == ("Anterior", "left_posterior")
    assert [len(cohort.split(name)) for name in ("train", "validation", "test", "all")] == [7, 1, 2, 10]
    assert cohort.problems == ()


def test_nnunet_folder(tmp_path):
    for name in ("a", "b", "c"):
        write_volume(tmp_path / "imagesTr" / f"{name}_0000.nii.gz")
        write_volume(tmp_path / "labelsTr" / f"{name}.nii.gz", 1)
    content = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}, "file_ending": ".nii.gz"}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    cohort = read_cohort(tmp_path)
    assert [case.name for case in cohort.cases] == ["a", "b", "c"] and cohort.structures == ("liver",)
    (tmp_path / "dataset.json").write_text(json.dumps(content | {"channel_names": {"0": "T1", "1": "T2"}}))
    with pytest.raises(CohortError, match="merge them into one file"):
        read_cohort(tmp_path)


def test_image_and_label_folders_with_instance_numbers(tmp_path):
    generator = np.random.default_rng(0)
    for folder in ("Image", "Label"):
        (tmp_path / folder).mkdir()
    for number in range(4):
        Image.fromarray(generator.integers(0, 255, (8, 9, 3), dtype=np.uint8)).save(
            tmp_path / f"Image/Case{number}.bmp"
        )
        if number < 3:
            instances = generator.integers(0, 6, (8, 9), dtype=np.uint8)
            Image.fromarray(instances).save(tmp_path / f"Label/Case{number}_label.bmp")
    cohort = read_cohort(tmp_path, foreground_only=True)
    assert (cohort.spatial_dims, cohort.label_values, cohort.structures) == (2, (0, 1), ("foreground",))
    assert [str(problem).split(": ")[0] for problem in cohort.problems] == ["Case3"]
    assert "Case3_label.bmp is missing" in str(cohort.problems[0])
    assert read_cohort(tmp_path).label_values == (0, 1, 2, 3, 4, 5)


def test_plain_folder_is_an_unlabelled_cohort_in_no_split(tmp_path):
    write_volume(tmp_path / "b.nii.gz")
    write_volume(tmp_path / "a.nii.gz")
    write_volume(tmp_path / "._a.nii.gz")
    (tmp_path / "notes.txt").write_text("x")
    cohort = read_cohort(tmp_path)
    assert [case.name for case in cohort.split("all")] == ["a", "b"] and cohort.cases[0].labels == ()
    with pytest.raises(CohortError, match="'test' .* is empty .*2 in all.*; add labelled cases"):
        cohort.split("test")
    with pytest.raises(CohortError, match="no split 'tests'; choose one of"):
        cohort.split("tests")


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_manifest_with_raters_and_its_own_split(tmp_path, kind):
    rows = []
    for number in range(12):
        row = {"case": f"c{number:02d}", "image": f"i/{number}.nii.gz", "split": ["train", "val", "test"][number % 3]}
        write_volume(tmp_path / row["image"])
        for rater, column in enumerate(("label", "label_2", "label_10")):
            row[column] = f"l/{number}_{rater}.nii.gz" if rater < 2 or number == 4 else ""
            if row[column]:
                write_volume(tmp_path / row[column], 1)
        rows.append(row)
    path = tmp_path / f"manifest.{kind}"
    if kind == "csv":
        lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
        path.write_text("\ufeff" + "\n".join(lines))  # as a spreadsheet writes it
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    for given in (path, tmp_path):
        cohort = read_cohort(given, seed=5)
        assert [len(cohort.split(name)) for name in ("train", "validation", "test")] == [4, 4, 4]
        assert [len(case.labels) for case in cohort.cases] == [2, 2, 2, 2, 3, *[2] * 7]
        assert [file.name for file in cohort.cases[4].labels] == ["4_0.nii.gz", "4_1.nii.gz", "4_2.nii.gz"]
        assert cohort.label_values == (0, 1) and cohort.structures == ("structure_1",)


def test_split_is_exact_stable_and_moved_by_the_seed_only(tmp_path):
    root = decathlon(tmp_path, 40)
    cohort = read_cohort(root)
    sizes = [len(cohort.split(name)) for name in ("train", "validation", "test")]
    assert sizes == [28, 4, 8]
    assert read_cohort(root).cases == cohort.cases
    by_name = {case.name: case.split for case in cohort.cases}
    assert {case.name: case.split for case in read_cohort(root, seed=1).cases} != by_name
    (root / "imagesTr" / "case_007.nii.gz").unlink()
    remaining = {case.name: case.split for case in read_cohort(root).cases}
    assert remaining == {name: split for name, split in by_name.items() if name != "case_007"}


def of_patients(root: Path, patients: list[str], unlabelled: int = 0) -> Path:
    """A manifest without a split whose n-th case is of the n-th patient; "" names none."""
    for folder in ("i", "l"):
        write_volume(root / folder / "x.nii.gz", 1)
    rows = [f"c{n:02d},i/x.nii.gz,{'' if n < unlabelled else 'l/x.nii.gz'},{name}" for n, name in enumerate(patients)]
    (root / "manifest.csv").write_text("\n".join(["case,image,label,patient", *rows]))
    return root


def parts_of(root: Path, **options) -> dict[str, set[str]]:
    """Patient -> the parts that its labelled cases lie in."""
    parts: dict[str, set[str]] = {}
    for case in read_cohort(root, **options).cases:
        if case.labels:
            parts.setdefault(case.patient or case.name, set()).add(case.split)
    return parts


def test_the_cases_of_a_patient_stay_in_one_part_of_a_random_split(tmp_path):
    root = of_patients(tmp_path, [f"p{n % 10}" for n in range(40)])
    found = [parts_of(root, seed=seed) for seed in range(5)]
    for parts in found:
        assert all(len(part) == 1 for part in parts.values())
        counts = [sum(part == {name} for part in parts.values()) for name in ("train", "validation", "test")]
        assert counts == [7, 1, 2], "as many patients as there would be cases"
    assert any(parts != found[0] for parts in found) and parts_of(root, seed=4) == found[4]


def test_patients_of_one_case_are_split_as_cases_of_their_name_are(tmp_path):
    names = [f"c{n:02d}" for n in range(20)]
    alone = {case.name: case.split for case in read_cohort(of_patients(tmp_path / "a", [""] * 20)).cases}
    assert {case.name: case.split for case in read_cohort(of_patients(tmp_path / "b", names)).cases} == alone
    assert {case.patient for case in read_cohort(tmp_path / "a").cases} == {None}


def test_an_unlabelled_case_of_a_patient_is_in_no_part(tmp_path):
    cohort = read_cohort(of_patients(tmp_path, ["p0", "p1", "p2", "p0", "p1", "p2"], unlabelled=3))
    assert [case.split for case in cohort.cases[:3]] == ["", "", ""]
    assert sorted(case.split for case in cohort.cases[3:]) == ["test", "train", "validation"]


def test_a_case_that_is_held_out_takes_its_patients_other_cases_with_it(tmp_path):
    root = of_patients(tmp_path, [f"p{n % 5}" for n in range(10)])
    cohort = read_cohort(root, test_cases=("c03", "c08"))
    assert [case.name for case in cohort.split("test")] == ["c03", "c08"]
    assert read_cohort(root, test_cases=("c08",)).cases == cohort.cases
    with pytest.raises(CohortError, match="there is no labelled case 'p3' to hold out; the cohort has c00"):
        read_cohort(root, test_cases=("p3",))


def test_a_manifests_own_split_stands_whatever_its_patients(tmp_path):
    write_volume(tmp_path / "i.nii.gz", 1)
    rows = ["a,i.nii.gz,i.nii.gz,train,7", "b,i.nii.gz,i.nii.gz,test,7"]
    (tmp_path / "manifest.csv").write_text("\n".join(["case,image,label,split,Patient", *rows]))
    assert [(c.split, c.patient) for c in read_cohort(tmp_path).cases] == [("train", "7"), ("test", "7")]


def test_small_cohorts_have_a_case_in_every_split(tmp_path):
    for cases, sizes in ((3, [1, 1, 1]), (5, [3, 1, 1])):
        cohort = read_cohort(decathlon(tmp_path / str(cases), cases))
        assert [sum(case.split == name for case in cohort.cases) for name in ("train", "validation", "test")] == sizes


def test_faulty_rows_are_told_and_the_rest_goes_on(tmp_path):
    write_volume(tmp_path / "i.nii.gz")
    write_volume(tmp_path / "l.nii.gz", 1)
    rows = ["good,i.nii.gz,l.nii.gz,train", "../evil,i.nii.gz,l.nii.gz,train", "good,i.nii.gz,l.nii.gz,test"]
    rows += ["fine,i.nii.gz,l.nii.gz,test", "many,i.nii.gz,l.nii.gz,test,1,2"]
    rows += ["nolabel,i.nii.gz,gone.nii.gz,test", "noimage,,l.nii.gz,test", "odd,i.nii.gz,l.nii.gz,tset"]
    (tmp_path / "manifest.csv").write_text("\n".join(["case,image,label,split", *rows]))
    cohort = read_cohort(tmp_path)
    assert [case.name for case in cohort.cases] == ["fine"]
    text = sorted(str(problem) for problem in cohort.problems)
    assert len(text) == 6
    for wanted in (
        "'../evil'",
        "good: the name appears twice",
        "gives it 6 cells for 4 columns",
        "gone.nii.gz is missing",
        "gives it no image",
        "'tset'; use one of train",
    ):
        assert sum(wanted in sentence for sentence in text) == 1, wanted


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("manifest.csv", "name,image\na,b", "needs the columns case and image"),
        ("manifest.csv", "", "needs the columns case and image"),
        ("manifest.csv", "case,image\na,gone.nii.gz", "no usable case .first of 1 problems: a: its image"),
        ("manifest.parquet", "no parquet", "can't be read"),
        ("dataset.json", "{", "can't be read .*correct its JSON"),
        ("dataset.json", "[]", "must hold a JSON object"),
        ("dataset.json", '{"labels": {"a": [1, 2]}}', "a is a region of several values"),
        ("dataset.json", '{"labels": {"0": "b"}}', "neither training nor file_ending"),
        ("dataset.json", '{"labels": {"0": "b"}, "training": [{"image": "x"}]}', "needs image and label"),
        ("notes.txt", "", "has no usable case; looked for a manifest, a dataset.json"),
        ("manifest.csv", "case,image\n", "has its columns and no row"),
    ],
)
def test_unusable_cohorts_name_the_cure(tmp_path, name, content, sentence):
    (tmp_path / name).write_text(content)
    with pytest.raises(CohortError, match=sentence):
        read_cohort(tmp_path)


def test_a_path_that_is_not_there_is_told(tmp_path):
    with pytest.raises(CohortError, match="there is no folder or manifest"):
        read_cohort(tmp_path / "gone")


def test_fractions_must_add_up(tmp_path):
    with pytest.raises(CohortError, match="add up to 1"):
        read_cohort(decathlon(tmp_path), fractions=(0.5, 0.1, 0.1))


def test_structure_names_become_safe_file_names(tmp_path):
    root = decathlon(tmp_path)
    content = json.loads((root / "dataset.json").read_text())
    content["labels"] = {"0": "background", "1": "../../etc/x", "2": "!!"}
    (root / "dataset.json").write_text(json.dumps(content))
    assert read_cohort(root).structures == ("etc_x", "structure_2")


def test_named_cases_are_held_out_and_nothing_else_is(tmp_path):
    root = decathlon(tmp_path / "Task", 5)
    for name in (f"case_{number:03d}" for number in range(5)):
        cohort = read_cohort(root, test_cases=(name,))
        assert [case.name for case in cohort.split("test")] == [name]
        assert [len(cohort.split(part)) for part in ("train", "validation")] == [3, 1]
    with pytest.raises(CohortError, match="there is no labelled case 'case_9' to hold out"):
        read_cohort(root, test_cases=("case_9",))
