"""Cases segmented in this process, one after the other: maps, rows, and going on where it was broken off."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ldseg.bundle import Bundle
from ldseg.data.cohort import Case
from ldseg.data.errors import CaseError
from ldseg.data.volume import Volume, read_values, read_volume
from ldseg.files import write_atomically
from ldseg.posterior.accumulator import PosteriorAccumulator
from ldseg.posterior.chunks import partition
from ldseg.posterior.draws import Draws
from ldseg.posterior.sampling import Posterior, PosteriorSummary
from ldseg.posterior.summary import KEPT_SAMPLES
from ldseg.results.publication import is_complete, publish
from ldseg.results.tables import Row, as_csv, as_parquet, table

Progress = Callable[[int, str], None]  # cases that have ended, and a word about them


def request_body(cases: Sequence[Case], draws: Draws, images: Sequence[str] = ()) -> dict[str, Any]:
    """What is asked of a service, the body of POST /v1/cohorts.

    Args:
        images: by what the service knows them; empty for their paths.
    """
    images = images or [str(case.image.resolve()) for case in cases]
    listed = [{"name": case.name, "image": image} for case, image in zip(cases, images, strict=True)]
    return {"cases": listed, "samples": draws.samples, "steps": draws.steps, "seed": draws.seed}


def segment_here(bundle: Bundle, cases: Sequence[Case], draws: Draws, out: Path, progress: Progress) -> pa.Table:
    """Segment in this process; cases whose files are complete are skipped.

    The samples are added up in the same chunks as by the service.
    """
    rows = []
    for number, case in enumerate(cases):
        progress(number, case.name)
        key = request_key(request_body([case], draws), bundle.identity, [case])
        document = _complete(out, case.name, key)
        if document is None:
            try:
                result = _segment_case(bundle, case, draws, out)
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


def _segment_case(bundle: Bundle, case: Case, draws: Draws, out: Path) -> dict[str, Any]:
    data, start = bundle.config.data, time.perf_counter()
    posterior = Posterior(bundle, device=draws.device, precision=draws.precision)
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


def request_key(body: dict[str, Any], model: dict[str, str], cases: Sequence[Case]) -> str:
    """Names a request: what is asked, of which model in which calibration, on files of which size and time."""
    files = []
    for case in cases:
        found = case.image.stat() if case.image.is_file() else None
        files.append([found.st_size, found.st_mtime_ns] if found else None)
    return hashlib.sha256(json.dumps([body, model, files], sort_keys=True).encode()).hexdigest()


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
