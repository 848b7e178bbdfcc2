"""What is kept and told of a case: its maps as files, its numbers as JSON and as rows of a table."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv

from ldseg.data.volume import Volume
from ldseg.posterior import PosteriorSummary, write_summary

STAGING = ".staging-"


def publish(summary: PosteriorSummary, like: Volume, structures: Sequence[str], folder: Path) -> dict[str, Any]:
    """Write a case's maps such that the folder is whole or absent, also after a crash.

    Returns:
        `describe` of the case.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = folder.parent / f"{STAGING}{uuid.uuid4().hex}"
    try:
        files = write_summary(summary, staging, like, structures)
        described = describe(summary, files)
        _fsync(staging)
        if folder.exists():  # left by a crash between here and the job store
            shutil.rmtree(folder)
        staging.rename(folder)
        _fsync(folder.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return described


def describe(summary: PosteriorSummary, files: dict[str, Path]) -> dict[str, Any]:
    """All numbers of a case, and its files with size and checksum, as JSON."""
    return {
        "numbers": summary.numbers(),
        "volumes": {name: values.tolist() for name, values in summary.volumes.items()},
        "unit": summary.unit,
        "agreement": summary.agreement,
        "seconds": summary.seconds,
        "files": {key: fingerprint(path) for key, path in files.items()},
    }


def fingerprint(path: Path) -> dict[str, Any]:
    """Name, size and sha256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": digest}


def sweep(results: Path) -> None:
    """Remove what a crash left half-written."""
    for staging in results.glob(f"*/{STAGING}*"):
        shutil.rmtree(staging, ignore_errors=True)


def table(cases: Iterable[dict[str, Any]]) -> pa.Table:
    """One row for each case: name, state, error, and the numbers of those that are done."""
    rows = []
    for case in cases:
        numbers = {k: v for k, v in ((case.get("result") or {}).get("numbers") or {}).items() if k != "case"}
        rows.append({"case": case["name"], "state": case["state"], "error": case.get("error") or ""} | numbers)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return pa.table({column: [row.get(column) for row in rows] for column in columns})


def as_parquet(rows: pa.Table) -> bytes:
    """A table as the bytes of a Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(rows, buffer)
    return buffer.getvalue()


def as_csv(rows: pa.Table) -> bytes:
    """A table as the bytes of a CSV file."""
    sink = pa.BufferOutputStream()
    csv.write_csv(rows, sink)
    return bytes(sink.getvalue().to_pybytes())


def _fsync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
