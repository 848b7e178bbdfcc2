"""Segment a cohort by a service or in this process, with the same files in the end; what platform/segment.py does.

OUT/maps/CASE/ holds a case's maps, OUT/cases/CASE.json its numbers, OUT/table.parquet and table.csv all of them.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from ldseg.data.cohort import Case
from ldseg.files import write_atomically, write_json
from ldseg.posterior.draws import Draws
from ldseg.results.segment import Progress, read_json, request_body, request_key
from serve.client.client import Client


def segment_by_service(
    client: Client, cases: Sequence[Case], draws: Draws, out: Path, progress: Progress, *, upload: bool = False
) -> pa.Table:
    """Post the cases, or take up the cohort that an earlier call with the same cases posted; fetch what is missing.

    Args:
        upload: send the images first; else the service reads them by their paths.

    Returns:
        The table of all cases.

    Raises:
        ClientError: the service can't be reached or refused.
    """
    body = request_body(cases, draws)
    model = client.model()
    key = request_key(body, {name: model[name] for name in ("digest", "calibration") if name in model}, cases)
    cohort = _earlier(client, out, key)
    if cohort is None:
        images = [client.upload(case.image) for case in cases] if upload else []
        cohort = client.post(request_body(cases, draws, images), key=f"{key[:32]}-{uuid.uuid4().hex}")
        write_json(out / "job.json", {"url": client.url, "cohort": cohort, "key": key})

    def follow(counts: dict[str, int]) -> None:
        ended = counts["done"] + counts["failed"] + counts["cancelled"]
        progress(ended, f"{counts['failed']} failed" if counts["failed"] else "")

    client.follow(cohort, follow)
    for line in client.cases(cohort):
        if line["state"] == "done":
            case = client.case(cohort, line["name"])
            for entry in case["files"].values():
                client.download(entry, out / "maps" / line["name"] / entry["name"])
            write_json(out / "cases" / f"{line['name']}.json", case)
    content = client.table(cohort)
    write_atomically(out / "table.parquet", content)
    return parquet.read_table(pa.BufferReader(content))


def _earlier(client: Client, out: Path, key: str) -> str | None:
    """The cohort of an earlier call, unless it asked for something else or didn't end well."""
    job = read_json(out / "job.json")
    if job.get("key") != key or job.get("url") != client.url:
        return None
    known = client.cohort(str(job["cohort"]), cases=False)
    usable = known is not None and not known["counts"]["failed"] and not known["counts"]["cancelled"]
    return str(job["cohort"]) if usable else None
