"""Cases segmented in this process, one after the other: maps, rows, and going on where it was broken off."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ldseg import columns
from ldseg.bundle import Bundle
from ldseg.calibration.familiarity import Judgement
from ldseg.data.cohort import Case
from ldseg.data.errors import CaseError
from ldseg.data.formats.readers import made_of
from ldseg.data.reading import read_image
from ldseg.data.volume import Volume, read_values, read_volume
from ldseg.posterior.draws import Draws
from ldseg.posterior.sampling import Posterior
from ldseg.posterior.stopwatch import Stopwatch
from ldseg.posterior.summary import KEPT_SAMPLES, PosteriorSummary
from ldseg.results.gathering import gather, read_json, record, record_failure
from ldseg.results.publication import is_complete, publish
from ldseg.results.tables import Row, table

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

    The samples are added up in the same chunks as by the service. OUT/table.parquet and table.csv are then those of all
    that lies there (`ldseg.results.gathering.gather`).

    Returns:
        The rows of these cases.
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
                rows.append(record_failure(out, case.name, text))
                continue
            document = {"name": case.name, "state": "done", "error": None, "key": key} | result
            record(out, case.name, document)
        rows.append(Row(case.name, "done", None, document))
    progress(len(cases), "")
    gather(out)
    return table(rows)


def _segment_case(bundle: Bundle, case: Case, draws: Draws, out: Path) -> dict[str, Any]:
    data, watch = bundle.config.data, Stopwatch()
    posterior = Posterior(bundle, device=draws.device, precision=draws.precision)
    with watch.stage("read"):
        volume = read_image(case, data)
    summary = posterior.summarise(posterior.draw(volume, draws, watch), keep_samples=KEPT_SAMPLES)
    return publish(summary, volume, data.structures, out / "maps" / case.name)


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
        judgement=_judgement(numbers),
        told=_told(numbers, document["unit"]),
    )
    return volume, summary


def _judgement(numbers: dict[str, Any]) -> Judgement | None:
    if "familiarity" not in numbers:
        return None
    return Judgement(numbers["distance"], numbers["familiarity"], bool(numbers["unfamiliar"]))


def _told(numbers: dict[str, Any], unit: str) -> dict[str, tuple[float, float]]:
    """The intervals among a case's numbers, by structure."""
    parts = [columns.read_volume_column(column) for column in numbers]
    names = [found[0] for found in parts if found is not None and found[2] == columns.LOW]
    low, high = ({n: numbers[columns.volume(n, unit, end)] for n in names} for end in (columns.LOW, columns.HIGH))
    return {name: (low[name], high[name]) for name in names}


def request_key(body: dict[str, Any], model: dict[str, str], cases: Sequence[Case]) -> str:
    """Names a request: what is asked, of which model in which calibration, on files of which size and time."""
    files: list[list[int] | None] = []
    for case in cases:
        found = [file.stat() for file in made_of(case.image)] if case.image.is_file() else []
        files += [[stat.st_size, stat.st_mtime_ns] for stat in found] if found else [None]
    return hashlib.sha256(json.dumps([body, model, files], sort_keys=True).encode()).hexdigest()


def _complete(out: Path, name: str, key: str) -> dict[str, Any] | None:
    document = read_json(out / "cases" / f"{name}.json")
    if document.get("key") != key or document.get("state") != "done":
        return None
    files = document["files"].values()
    return document if all(is_complete(out / "maps" / name / entry["name"], entry) for entry in files) else None
