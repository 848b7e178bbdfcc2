"""Segment a cohort by a service or in this process, with the same files in the end; what platform/segment.py does.

OUT/maps/CASE/ holds a case's maps, OUT/cases/CASE.json its numbers, OUT/table.parquet and table.csv those of all cases
that lie there.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from ldseg.data.cohort import Case
from ldseg.data.errors import CaseError, is_text
from ldseg.files import write_json
from ldseg.posterior.draws import Draws
from ldseg.results.gathering import gather, read_json, record, record_failure
from ldseg.results.segment import Progress, request_body, request_key
from ldseg.results.tables import Row, table
from serve.client.client import Client, ClientError

REFUSED = (400, 413, 415, 422)  # an image and not the client


def segment_by_service(
    client: Client, cases: Sequence[Case], draws: Draws, out: Path, progress: Progress, *, upload: bool = False
) -> pa.Table:
    """Post the cases, or take up the cohort that an earlier call with the same cases posted; fetch what is missing.

    Args:
        upload: send the images first; else the service reads them by their paths.

    Returns:
        The rows of these cases. OUT/table.parquet and table.csv are those of all that lies there.

    Raises:
        ClientError: the service can't be reached or refused.
    """
    model = client.model()
    told = [case for case in cases if upload or is_text(case.image)]
    rows = [_untold(out, case) for case in cases if case not in told]
    body = request_body(told, draws)
    key = request_key(body, {name: model[name] for name in ("digest", "calibration") if name in model}, told)
    cohort = _earlier(client, out, key)
    if cohort is None and told:
        images, refused = _upload(client, told, out) if upload else ([], [])
        rows += refused
        told = [case for case in told if case.name not in {row.name for row in refused}]
        if told:
            cohort = client.post(request_body(told, draws, images), key=f"{key[:32]}-{uuid.uuid4().hex}")
            job = {"url": client.url, "cohort": cohort, "key": key, "refused": len(refused)}
            write_json(out / "job.json", job)
    if cohort is not None:
        rows += _fetch(client, cohort, out, progress)
    gather(out)
    return table(rows)


def _untold(out: Path, case: Case) -> Row:
    problem = f"its path {case.image} is no UTF-8, so a service can't be told of it"
    return record_failure(out, case.name, str(CaseError(case.name, problem, "--upload sends the image")))


def _upload(client: Client, cases: Sequence[Case], out: Path) -> tuple[list[str], list[Row]]:
    """What a manifest names the images by, and the rows of those that the service does not take."""
    images, refused = [], []
    for case in cases:
        try:
            images.append(client.upload(case.image))
        except ClientError as error:
            if error.status not in REFUSED:
                raise
            refused.append(record_failure(out, case.name, f"{case.name}: {error}"))
    return images, refused


def _fetch(client: Client, cohort: str, out: Path, progress: Progress) -> list[Row]:
    """Follow a cohort to its end and bring its files home; its rows."""

    def follow(counts: dict[str, int]) -> None:
        ended = counts["done"] + counts["failed"] + counts["cancelled"]
        progress(ended, f"{counts['failed']} failed" if counts["failed"] else "")

    client.follow(cohort, follow)
    rows = []
    for line in client.cases(cohort):
        name = line["name"]
        if line["state"] != "done":
            rows.append(record_failure(out, name, line["error"] or f"{name}: it was {line['state']}", line["state"]))
            continue
        case = client.case(cohort, name)
        for entry in case["files"].values():
            client.download(entry, out / "maps" / name / entry["name"])
        record(out, name, case)
        rows.append(Row(name, "done", None, case))
    return rows


def _earlier(client: Client, out: Path, key: str) -> str | None:
    """The cohort of an earlier call, unless it asked for something else or didn't end well."""
    job = read_json(out / "job.json")
    if job.get("key") != key or job.get("url") != client.url or job.get("refused"):
        return None
    known = client.cohort(str(job["cohort"]), cases=False)
    usable = known is not None and not known["counts"]["failed"] and not known["counts"]["cancelled"]
    return str(job["cohort"]) if usable else None
