"""The table of a folder of results: of all cases that lie there, whichever call made them, as a person reviews them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa

from ldseg.data.errors import CaseError
from ldseg.files import locked, write_atomically, write_json
from ldseg.results.tables import Row, as_csv, as_parquet, table

DIGITS = 4  # of a number in table.csv; the samples it comes from carry no more


def record(out: Path, name: str, document: dict[str, Any]) -> None:
    """Write what the last call made of a case: OUT/cases/NAME.json, with "name", "state" and "error"."""
    safe = re.fullmatch(r"(?!\.)[^/\\\x00-\x1f]{1,150}", name) and len(name.encode()) <= 240
    file = name if safe else f"unnamed-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    write_json(out / "cases" / f"{file}.json", document)


def record_failure(out: Path, name: str, sentence: str, state: str = "failed") -> Row:
    """The same of a case that could not be segmented; its row."""
    record(out, name, {"name": name, "state": state, "error": sentence})
    return Row(name, state, sentence)


def record_left_out(out: Path, problems: Iterable[CaseError]) -> list[Row]:
    """The same of cases that are listed and can't be used; their rows."""
    return [record_failure(out, problem.case, str(problem), "left out") for problem in problems]


def gather(out: Path) -> pa.Table:
    """Write OUT/table.parquet and OUT/table.csv of all cases under OUT/cases, those to look at first on top.

    First come unfamiliar cases, then those that failed or were left out, then the others, by the samples' agreement.
    Several processes may work in one folder. Numbers in the CSV have four digits, those of the Parquet file all.

    Returns:
        The table; its column "rank" counts from 1.
    """
    (out / "cases").mkdir(parents=True, exist_ok=True)
    with locked(out / "cases" / ".lock"):
        rows = [_row(document) for path in (out / "cases").glob("*.json") if (document := read_json(path)).get("name")]
        rows = [row for row in rows if row.state != "done" or (out / "maps" / row.name).is_dir()]
        rows.sort(key=lambda row: place(row.state, (row.result or {}).get("numbers", {}), row.name))
        made = table(rows)
        made = made.add_column(0, "rank", [list(range(1, made.num_rows + 1))])
        write_atomically(out / "table.parquet", as_parquet(made))
        write_atomically(out / "table.csv", as_csv(rounded(made)))
    return made


def place(state: str, numbers: dict[str, Any], name: str) -> tuple[int, float, str]:
    """What orders cases for a review: unfamiliar ones, those that are not done, the others by their agreement."""
    group = 1 if state != "done" else 0 if numbers.get("unfamiliar") else 2
    return group, float(numbers.get("agreement") or 0.0), name


def rounded(made: pa.Table) -> pa.Table:
    """The table with its real numbers to four digits."""
    columns = [
        pa.array([None if value is None else float(f"{value:.{DIGITS}g}") for value in column.to_pylist()])
        if pa.types.is_floating(column.type)
        else column
        for column in made.columns
    ]
    return pa.table(columns, names=made.column_names)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; {} for a file that is missing or holds something else."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _row(document: dict[str, Any]) -> Row:
    return Row(document["name"], document.get("state", "done"), document.get("error"), document)
