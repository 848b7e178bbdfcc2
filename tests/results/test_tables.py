"""Tables that are opened in a spreadsheet."""

from __future__ import annotations

import csv
import io

import pyarrow.parquet as pq

from ldseg.results.tables import Row, as_csv, as_parquet, table

FORMULAS = ("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", '=HYPERLINK("http://x")')


def test_a_text_is_no_formula_in_a_spreadsheet_and_a_number_stays_one() -> None:
    rows = [Row(name, "failed", f"{name}: broken") for name in FORMULAS]
    rows.append(Row("a=-b", "done", None, {"numbers": {"volume_organ": -1.5, "model_digest": "@x", "samples": 2}}))
    made = table(rows)
    found = list(csv.DictReader(io.StringIO(as_csv(made).decode(), newline="")))
    assert [line["case"] for line in found] == [*(f"'{name}" for name in FORMULAS), "a=-b"]
    assert [line["error"] for line in found][:7] == [f"'{name}: broken" for name in FORMULAS]
    assert (found[-1]["volume_organ"], found[-1]["model_digest"], found[-1]["samples"]) == ("-1.5", "'@x", "2")
    assert pq.read_table(io.BytesIO(as_parquet(made))).equals(made), "Parquet is no text that is interpreted"
