"""What is kept and told of a case: its maps as files, its numbers as JSON and as rows of a table."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv

FORMULA = r"^([=+\-@\t\r\n])"  # what a spreadsheet takes for the beginning of a formula, or drops before one


class TableCase(Protocol):
    """What a table holds of a case."""

    @property
    def name(self) -> str: ...
    @property
    def state(self) -> str: ...
    @property
    def error(self) -> str | None: ...
    @property
    def result(self) -> dict[str, Any] | None: ...


@dataclass(frozen=True)
class Row:
    """A case that is in no job store."""

    name: str
    state: str
    error: str | None
    result: dict[str, Any] | None = None


def table(cases: Iterable[TableCase]) -> pa.Table:
    """One row for each case: name, state, error, and the numbers of those that are done."""
    rows = []
    for case in cases:
        numbers = {k: v for k, v in ((case.result or {}).get("numbers") or {}).items() if k != "case"}
        rows.append({"case": case.name, "state": case.state, "error": case.error or ""} | numbers)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return pa.table({column: [row.get(column) for row in rows] for column in columns})


def as_parquet(rows: pa.Table) -> bytes:
    """A table as the bytes of a Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(rows, buffer)
    return buffer.getvalue()


def as_csv(rows: pa.Table) -> bytes:
    """A table as the bytes of a CSV file.

    A text that a spreadsheet would take for a formula gets an apostrophe in front; numbers stay as they are.
    """
    columns = [_without_formulas(column) if pa.types.is_string(column.type) else column for column in rows.columns]
    sink = pa.BufferOutputStream()
    csv.write_csv(pa.table(columns, names=rows.column_names), sink)
    return bytes(sink.getvalue().to_pybytes())


def _without_formulas(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.replace_substring_regex(texts, FORMULA, r"'\1")
