"""What is kept and told of a case: its maps as files, its numbers as JSON and as rows of a table."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv

from ldseg import bids
from ldseg.data.errors import CaseError
from ldseg.data.volume import Volume
from ldseg.ensemble_summary import EnsembleSummary, write_ensemble
from ldseg.posterior import PosteriorSummary, write_summary
from serve import publication

Summary = PosteriorSummary | EnsembleSummary
ABANDONED_S = 3600.0  # no publication takes so long


def publish(summary: Summary, like: Volume, structures: Sequence[str], folder: Path) -> dict[str, Any]:
    """Write a case's files such that the folder is whole or absent, also after a crash.

    The folder gets its name when every file is on disk, the manifest as the last one (`serve.publication`). Called
    again with the same results it leaves the folder as it is; with others it exchanges it in one step. The folder above
    becomes a BIDS derivative.

    Returns:
        `describe` of the case.

    Raises:
        CaseError: the case is called like something else that lies beside the cases.
        DiskFull: there is no room; nothing is left behind.
    """
    if folder.name == bids.DESCRIPTION or folder.name.startswith((publication.STAGING, publication.ASIDE)):
        raise CaseError(summary.case, "its name is kept for something else in the results", "call the case otherwise")
    with publication.staged(folder) as staging:
        bids.write_description(folder.parent)
        if isinstance(summary, EnsembleSummary):
            files = write_ensemble(summary, staging, like, structures)
        else:
            files = write_summary(summary, staging, like, structures)
        described = describe(summary, files)
        entries = described["files"]
        manifest = publication.seal(
            staging, {e["name"]: {"bytes": e["bytes"], "sha256": e["sha256"]} for e in entries.values()}
        )
        entries["manifest"] = fingerprint(manifest)
        publication.put_in_place(staging, folder)
    return described


def describe(summary: Summary, files: dict[str, Path]) -> dict[str, Any]:
    """All numbers of a case, and its files with size and checksum, as JSON."""
    return {
        "numbers": summary.numbers(),
        "volumes": {name: values.tolist() for name, values in summary.volumes.items()},
        "unit": summary.unit,
        "agreement": summary.agreement["mean"],
        "agreements": summary.agreement,
        "confidences": summary.confidence,
        "seconds": summary.seconds,
        "files": {key: fingerprint(path) for key, path in files.items()},
    }


def fingerprint(path: Path) -> dict[str, Any]:
    """Name, size and sha256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": digest}


def sweep(results: Path, *, older_than_s: float = ABANDONED_S) -> None:
    """Mend what a crash left half-written in the folders of all cohorts; another service may be at work there."""
    for parent in results.glob("*/"):
        publication.recover(parent, older_than_s=older_than_s)


class Told(Protocol):
    """What a table tells of a case."""

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


def table(cases: Iterable[Told]) -> pa.Table:
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
    """A table as the bytes of a CSV file."""
    sink = pa.BufferOutputStream()
    csv.write_csv(rows, sink)
    return bytes(sink.getvalue().to_pybytes())
