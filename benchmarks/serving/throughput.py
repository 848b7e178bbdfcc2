"""Cases a second of the service over HTTP, beside the bare loop of the posterior on the same cores."""

from __future__ import annotations

import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, ball, segment_file, table
from benchmarks.serving.process import Service

MODEL = ROOT / "models" / "hippocampus"
_posterior: Any = None


def throughput(data: Path | None, cases: int, samples: list[int], rounds: int) -> str:
    """The table: a row for each number of samples."""
    workers = os.cpu_count() or 1
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        images = images_of(data, cases, Path(folder) / "phantoms")
        for k in samples:
            alone = bare_seconds(images, k, workers, rounds)
            served, cpu = served_seconds(images, k, workers, rounds)
            alone += bare_seconds(images, k, workers, rounds)
            bare, service = statistics.median(alone), statistics.median(served)
            row: dict[str, Any] = {"cases": cases, "samples": k, "workers x threads": f"{workers} x 1"}
            row |= {"bare loop, s": bare, "service, s": service, "service / bare": bare / service}
            row |= {"cases/s": cases / service} | {f"{name}, CPU s a case": value for name, value in cpu.items()}
            rows.append(row)
            print(f"K = {k}: bare {alone}, service {served}", file=sys.stderr)
    return table(rows)


def images_of(data: Path | None, count: int, folder: Path) -> list[Path]:
    """Volumes, or phantoms of a hippocampus' size."""
    if data:
        if len(found := sorted(data.glob("*.nii.gz"))[:count]) < count:
            raise SystemExit(f"service: {data} has {len(found)} of {count} volumes; give fewer --cases")
        return found
    import nibabel as nib
    import numpy as np

    folder.mkdir(parents=True)
    for number in range(count):
        nib.save(nib.Nifti1Image(ball((35, 51, 35), number), np.eye(4)), folder / f"phantom_{number:03d}.nii.gz")
    return sorted(folder.glob("*.nii.gz"))


def start_bare() -> None:
    """In a worker: the model, ready."""
    global _posterior
    import torch

    from ldseg.bundle import load_bundle
    from ldseg.posterior.sampling import Posterior

    torch.set_num_threads(1)
    _posterior = Posterior(load_bundle(MODEL))


def bare(job: tuple[Path, Path, int]) -> None:
    """In a worker: a case from its file to its maps."""
    from ldseg.posterior.draws import Draws
    from ldseg.posterior.summary import KEPT_SAMPLES

    image, out, samples = job
    segment_file(_posterior, image, Draws(samples), out / image.name, keep_samples=KEPT_SAMPLES)


def bare_seconds(images: list[Path], samples: int, workers: int, rounds: int) -> list[float]:
    """Wall time of each round over all cases, in so many processes."""
    with multiprocessing.get_context("spawn").Pool(workers, start_bare) as pool:
        seconds = []
        for number in range(rounds + 1):
            with tempfile.TemporaryDirectory() as out:
                taken = images if number else images[: 2 * workers]  # the first calls choose kernels
                start = time.perf_counter()
                pool.map(bare, [(image, Path(out), samples) for image in taken], chunksize=1)
                seconds.append(time.perf_counter() - start)
    return seconds[1:]


def served_seconds(images: list[Path], samples: int, workers: int, rounds: int) -> tuple[list[float], dict[str, float]]:
    """Wall time from the post of all cases to the end of the last, and CPU seconds a case by process."""
    cases = [{"name": image.name.partition(".")[0], "image": str(image)} for image in images]
    with tempfile.TemporaryDirectory() as folder:
        with Service(MODEL, images[0].parent, Path(folder) / "runs", replicas=workers, threads=1) as service:
            _until_done(service, cases[: 2 * workers], samples)
            before = service.cpu_seconds()
            seconds = [_until_done(service, cases, samples) for _ in range(rounds)]
            after = service.cpu_seconds()
    return seconds, {name: (after[name] - value) / rounds / len(cases) for name, value in before.items()}


def _until_done(service: Service, cases: list[dict[str, str]], samples: int) -> float:
    start = time.perf_counter()
    cohort, _ = service.post(cases, samples=samples)
    while service.ended(cohort) < len(cases):
        time.sleep(0.5)  # asking costs the service 10 ms on the same cores
    return time.perf_counter() - start
