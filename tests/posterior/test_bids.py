"""Names of result files."""

import csv
import json

import pytest

from ldseg.posterior import derivatives


@pytest.mark.parametrize(
    ("case", "wanted"),
    [
        ("hippocampus_001", "hippocampus_001"),
        ("Fall 7, früh", "Fall 7, früh"),
        ("sub-01", "sub-01"),
        ("sub-01_ses-2", "sub-01_ses-2"),
        ("sub-01_T1w", "sub-01_space-T1w"),
        ("sub-01_ses-2_run-1_FLAIR", "sub-01_ses-2_run-1_space-FLAIR"),
        ("sub-01_desc-preproc_T1w", "sub-01_desc-preproc_T1w"),  # two entities "desc" would be no name
        ("sub-01_run_T1w", "sub-01_run_T1w"),
        ("ses-1_T1w", "ses-1_T1w"),
    ],
)
def test_a_bids_name_keeps_its_entities_and_any_other_stays_as_it_is(case, wanted):
    assert derivatives.prefix(case) == wanted


def test_two_images_of_a_subject_have_different_names():
    assert len({derivatives.prefix(f"sub-01_{suffix}") for suffix in ("T1w", "T2w", "FLAIR")}) == 3


def test_labels_are_letters_and_digits_and_no_two_alike():
    names = ["left ventricle", "Left-Ventricle", "leftventricle", "Hüft/gelenk", "心", "../..", "a" * 300, "a" * 299]
    found = derivatives.labels(names)
    assert list(found) == names
    assert all(label.isascii() and label.isalnum() and len(label) < 50 for label in found.values())
    assert len({label.lower() for label in found.values()}) == len(names)
    assert (found["left ventricle"], found["Hüft/gelenk"], found["心"]) == ("leftventricle", "Huftgelenk", "structure5")


def test_the_lookup_table_names_every_value(tmp_path):
    (tmp_path / "t.tsv").write_bytes(derivatives.lookup(["left ventricle", "tab\tand\nline"], (0, 820, 205)))
    with (tmp_path / "t.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [(row["index"], row["name"]) for row in rows] == [
        ("0", "background"),
        ("820", "left ventricle"),
        ("205", "tab and line"),
    ]


def test_a_folder_is_described_once(tmp_path):
    path = derivatives.write_description(tmp_path)
    told = json.loads(path.read_text())
    assert told["DatasetType"] == "derivative" and told["BIDSVersion"] and told["Name"]
    assert told["GeneratedBy"][0]["Name"] == "LDSeg"
    path.write_text("mine")
    assert derivatives.write_description(tmp_path).read_text() == "mine"
