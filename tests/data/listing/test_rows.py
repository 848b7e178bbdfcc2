"""Tables as people save them are read alike, from the command line and by the service."""

import csv
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ldseg.data.cohort import CohortError, read_cohort
from ldseg.data.listing.rows import decoded, read_rows

PLAIN = 'case,image\na,"a, first.png"\nb,b.png\n'
FORMS = {
    "commas": PLAIN.encode(),
    "semicolons": b" Case ; IMAGE\na;a, first.png\nb; b.png \n",
    "tabs": b"case\timage\na\ta, first.png\nb\tb.png\n",
    "mark": b"\xef\xbb\xbf" + PLAIN.encode(),
    "utf-16": PLAIN.encode("utf-16"),
    "utf-16-be": b"\xfe\xff" + PLAIN.encode("utf-16-be"),
    "utf-16-bare": PLAIN.encode("utf-16-le"),
    "carriage returns": b'\r\ncase,image\r\n\r\na,"a, first.png"\r\nb,b.png\r\n',
}


@pytest.mark.parametrize("form", FORMS)
def test_a_table_is_read_however_it_was_saved(form: str) -> None:
    columns, rows = read_rows(FORMS[form])
    assert columns == ["case", "image"]
    assert [cells for _, cells in rows] == [["a", "a, first.png"], ["b", "b.png"]]


def test_what_is_neither_utf_8_nor_utf_16_or_has_open_quotes_is_an_error() -> None:
    with pytest.raises(UnicodeDecodeError):
        read_rows("case,image\nä,x".encode("latin-1"))
    with pytest.raises(csv.Error):
        list(read_rows(b'case,image\n"a,b\n')[1])
    assert decoded(b"") == "" and read_rows(b"")[0] == []


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["manifest.csv", "manifest.tsv"])
def test_a_cohort_is_that_of_its_manifest_in_every_form(tmp_path, form, name) -> None:
    for image in ("a, first.png", "b.png"):
        Image.fromarray(np.zeros((4, 5), np.uint8)).save(tmp_path / image)
    (tmp_path / name).write_bytes(FORMS[form])
    for place in (tmp_path, tmp_path / name):
        cohort = read_cohort(place)
        assert {case.name: case.image.name for case in cohort.cases} == {"a": "a, first.png", "b": "b.png"}


def test_capitals_and_blanks_in_columns_and_a_mark_in_dataset_json(tmp_path) -> None:
    for image in ("i.png", "l.png", "m.png"):
        Image.fromarray(np.zeros((4, 5), np.uint8)).save(tmp_path / image)
    table = pa.table({"Case": ["a"], " Image": ["i.png"], "LABEL": ["l.png"], "Label 2": ["m.png"], "Split ": ["Test"]})
    pq.write_table(table, tmp_path / "manifest.parquet")
    for encoding in ("utf-8-sig", "utf-16"):
        (tmp_path / "dataset.json").write_bytes(json.dumps({"labels": {"0": "no", "1": "Größe"}}).encode(encoding))
        cohort = read_cohort(tmp_path)
        assert [file.name for file in cohort.cases[0].labels] == ["l.png", "m.png"]
        assert (cohort.cases[0].split, cohort.structures) == ("test", ("Größe",))


def test_a_manifest_in_latin_1_is_told_what_to_do(tmp_path) -> None:
    (tmp_path / "manifest.csv").write_bytes("case,image\nä,x.png".encode("latin-1"))
    with pytest.raises(CohortError, match="write it again, as UTF-8"):
        read_cohort(tmp_path)
