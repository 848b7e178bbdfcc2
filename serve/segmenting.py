"""Segment a cohort by a service or in this process, with the same files in the end; what platform/segment.py does.

OUT/maps/CASE/ holds a case's maps, OUT/cases/CASE.json its numbers, OUT/table.parquet and table.csv all of them.
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from ldseg.bundle import Bundle
from ldseg.data.cohort import Case
from ldseg.data.errors import CaseError
from ldseg.data.volume import Volume, read_values, read_volume, write_atomically
from ldseg.kept_samples import KEPT_SAMPLES
from ldseg.posterior import Posterior, PosteriorSummary
from ldseg.uncertainty import PosteriorAccumulator
from serve.chunks import partition
from serve.client import Client, is_complete
from serve.results import Row, as_csv, as_parquet, publish, table

Progress = Callable[[int, str], None]  # cases that have ended, and a word about them


@dataclass(frozen=True)
class Draws:
    """How a posterior is drawn."""

    samples: int
    steps: int | None
    seed: int

    def request(self, cases: Sequence[Case], images: Sequence[str] = ()) -> dict[str, Any]:
        """The body of POST /v1/cohorts.

        Args:
            images: by what the service knows them; empty for their paths.
        """
        images = images or [str(case.image.resolve()) for case in cases]
        listed = [{"name": case.name, "image": image} for case, image in zip(cases, images, strict=True)]
        return {"cases": listed, "samples": self.samples, "steps": self.steps, "seed": self.seed}


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
    body = draws.request(cases)
    model = client.model()
    key = _key(body, {name: model[name] for name in ("digest", "calibration") if name in model}, cases)
    cohort = _earlier(client, out, key)
    if cohort is None:
        images = [client.upload(case.image) for case in cases] if upload else []
        cohort = client.post(draws.request(cases, images), key=f"{key[:32]}-{uuid.uuid4().hex}")
        _write_json(out / "job.json", {"url": client.url, "cohort": cohort, "key": key})

    def follow(counts: dict[str, int]) -> None:
        ended = counts["done"] + counts["failed"] + counts["cancelled"]
        progress(ended, f"{counts['failed']} failed" if counts["failed"] else "")

    client.follow(cohort, follow)
    for line in client.cases(cohort):
        if line["state"] == "done":
            case = client.case(cohort, line["name"])
            for entry in case["files"].values():
                client.download(entry, out / "maps" / line["name"] / entry["name"])
            _write_json(out / "cases" / f"{line['name']}.json", case)
    content = client.table(cohort)
    write_atomically(out / "table.parquet", content)
    return parquet.read_table(pa.BufferReader(content))


def segment_here(
    bundle: Bundle, cases: Sequence[Case], draws: Draws, out: Path, progress: Progress, *, device: str = "cpu"
) -> pa.Table:
    """Segment in this process; cases whose files are complete are skipped.

    The samples are added up in the same chunks as by the service.
    """
    rows = []
    for number, case in enumerate(cases):
        progress(number, case.name)
        key = _key(draws.request([case]), bundle.identity, [case])
        document = _complete(out, case.name, key)
        if document is None:
            try:
                result = _segment_case(bundle, case, draws, out, device)
            except (CaseError, MemoryError) as error:
                text = str(error) or f"{case.name}: the memory does not suffice; take fewer samples or a smaller image"
                rows.append(Row(case.name, "failed", text))
                continue
            document = {"name": case.name, "state": "done", "error": None, "key": key} | result
            _write_json(out / "cases" / f"{case.name}.json", document)
        rows.append(Row(case.name, "done", None, document))
    progress(len(cases), "")
    made = table(rows)
    write_atomically(out / "table.parquet", as_parquet(made))
    return made


def _segment_case(bundle: Bundle, case: Case, draws: Draws, out: Path, device: str) -> dict[str, Any]:
    data, posterior, start = bundle.config.data, Posterior(bundle, device=device), time.perf_counter()
    volume = read_volume(case.image, case=case.name, spatial_dims=data.spatial_dims, in_channels=data.in_channels)
    posterior.seconds["read"] += time.perf_counter() - start
    grid = posterior.prepare(volume)
    embedding, total = posterior.encode(grid), None
    for indices in partition(draws.samples, posterior.chunk_size):
        part = posterior.accumulate(grid, embedding, seed=draws.seed, indices=indices, num_steps=draws.steps)
        total = part if total is None else PosteriorAccumulator.merge([total, part])
    assert total is not None
    summary = posterior.summarise(
        grid, total, seed=draws.seed, num_steps=draws.steps, embedding=embedding, keep_samples=KEPT_SAMPLES
    )
    return publish(summary, volume, data.structures, out / "maps" / case.name)


def write_csv(rows: pa.Table, path: Path) -> None:
    """The table as CSV."""
    write_atomically(path, as_csv(rows))


def load_summary(out: Path, case: Case, model: dict[str, Any]) -> tuple[Volume, PosteriorSummary]:
    """A case's image, and its summary put together again from the files under `out`.

    Args:
        model: with spatial_dims, in_channels and structures.

    Raises:
        CaseError: the image or a map can't be read.
    """
    dims, channels = model["spatial_dims"], model["in_channels"]
    volume = read_volume(case.image, case=case.name, spatial_dims=dims, in_channels=channels)
    document = json.loads((out / "cases" / f"{case.name}.json").read_text())

    def read(key: str) -> np.ndarray:
        path = out / "maps" / case.name / document["files"][key]["name"]
        return read_values(path, case=case.name).reshape(volume.shape)

    numbers = document["numbers"]
    summary = PosteriorSummary(
        case=case.name,
        label=read("label"),
        mean_probability=np.stack([read(f"prob-{name}") for name in model["structures"]]).astype(np.float32),
        predictive_entropy=read("entropy"),
        sample_variance=read("variance"),
        volumes={name: np.asarray(values) for name, values in document["volumes"].items()},
        unit=document["unit"],
        agreement=document["agreements"],
        seconds=document["seconds"],
        num_samples=numbers["samples"],
        num_steps=numbers["steps"],
        seed=numbers["seed"],
        model_digest=numbers["model_digest"],
        precision=numbers["precision"],
        confidence=document.get("confidences", {}),
    )
    return volume, summary


def _key(body: dict[str, Any], model: dict[str, str], cases: Sequence[Case]) -> str:
    """Names a request: what is asked, of which model in which calibration, on files of which size and time."""
    files = []
    for case in cases:
        found = case.image.stat() if case.image.is_file() else None
        files.append([found.st_size, found.st_mtime_ns] if found else None)
    return hashlib.sha256(json.dumps([body, model, files], sort_keys=True).encode()).hexdigest()


def _earlier(client: Client, out: Path, key: str) -> str | None:
    """The cohort of an earlier call, unless it asked for something else or didn't end well."""
    job = _read_json(out / "job.json")
    if job.get("key") != key or job.get("url") != client.url:
        return None
    known = client.cohort(str(job["cohort"]), cases=False)
    usable = known is not None and not known["counts"]["failed"] and not known["counts"]["cancelled"]
    return str(job["cohort"]) if usable else None


def _complete(out: Path, name: str, key: str) -> dict[str, Any] | None:
    document = _read_json(out / "cases" / f"{name}.json")
    if document.get("key") != key:
        return None
    files = document["files"].values()
    return document if all(is_complete(out / "maps" / name / entry["name"], entry) for entry in files) else None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())
