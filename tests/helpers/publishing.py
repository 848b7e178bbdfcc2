"""A case to publish, and a program that publishes until it is killed: run by tests/results/test_publication.py."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np

from ldseg.data.volume import Volume, read_volume
from ldseg.posterior.summary import PosteriorSummary
from ldseg.results import publication
from ldseg.results.publication import publish, sweep

NAMES = ("organ", "nodule")
CASES = ("a", "b", "c")


def image(folder: Path, shape: tuple[int, ...] = (24, 20, 16)) -> Volume:
    folder.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    nib.save(nib.Nifti1Image(values, np.diag((1, 1, 2, 1.0))), folder / "image.nii.gz")
    return read_volume(folder / "image.nii.gz", case="a", spatial_dims=3)


def summary_of(volume: Volume, case: str, seed: int) -> PosteriorSummary:
    """Made-up results that differ by the seed."""
    generator = np.random.default_rng(seed)
    draw = generator.random((3, *volume.shape)).astype(np.float32)
    probability = draw / draw.sum(0)
    return PosteriorSummary(
        case=case,
        label=probability.argmax(0).astype(np.uint8),
        mean_probability=probability[1:],
        predictive_entropy=(-probability * np.log(probability)).sum(0).clip(0, np.log(3)),
        sample_variance=probability[0] * np.float32(0.1),
        volumes={name: generator.random(4) for name in NAMES},
        unit="ml",
        agreement={"organ": 0.9, "nodule": 0.8, "mean": 0.85},
        seconds={"read": 0.1},
        num_samples=4,
        num_steps=2,
        seed=seed,
        model_digest="sha256:none",
    )


def fault(folder: Path) -> str:
    """What is wrong with a case's folder; empty if it is whole."""
    try:
        files = json.loads((folder / publication.MANIFEST).read_text())["files"]
    except (OSError, ValueError) as error:
        return f"{folder.name}: {error}"
    names = {path.name for path in folder.iterdir()} - {publication.MANIFEST}
    if names != set(files):
        return f"{folder.name}: holds {names ^ set(files)}"
    for name, entry in files.items():
        content = (folder / name).read_bytes()
        if len(content) != entry["bytes"] or hashlib.sha256(content).hexdigest() != entry["sha256"]:
            return f"{folder.name}: {name} is not what the manifest says"
    return ""


def publish_for_ever(volume: Volume, results: Path, first: int) -> None:
    for seed in range(first, first + 10_000):
        for case in CASES:
            publish(summary_of(volume, case, seed // 2), volume, NAMES, results / "cohort" / case)


def main() -> int:
    """Rounds of a child that publishes and is killed by signal 9 at a random instant; faults and counts as JSON."""
    folder, rounds, exchange = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "exchange"
    if not exchange:
        publication._exchange = lambda one, other: False  # as on a file system that can't
    results, volume, generator = folder / "results", image(folder), random.Random(0)
    publish(summary_of(volume, "a", 0), volume, NAMES, results / "cohort" / "a")  # imports what is imported late
    faults, absent, left, seen = [], 0, 0, set()
    for number in range(rounds):
        child = os.fork()
        if child == 0:
            publish_for_ever(volume, results, 1000 * number)
        time.sleep(generator.uniform(0.01, 0.35))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        left += len([path for path in (results / "cohort").iterdir() if path.name.startswith(".")])
        before = {case for case in CASES if (results / "cohort" / case).exists()}
        if exchange and not seen <= before:
            faults.append(f"gone at once after the kill: {seen - before}")
        sweep(results, older_than_s=0)
        there = {case for case in CASES if (results / "cohort" / case).exists()}
        if not seen <= there:
            faults.append(f"gone after the restart: {seen - there}")
        faults += [text for case in there if (text := fault(results / "cohort" / case))]
        others = {path.name for path in (results / "cohort").iterdir()} - {*CASES, "dataset_description.json"}
        faults += [f"left behind: {others}"] if others else []
        absent, seen = absent + len(CASES) - len(there), there
    print(json.dumps({"faults": faults, "absent": absent, "left": left, "there": sorted(seen)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
