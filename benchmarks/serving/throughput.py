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

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.serving.process import Process, table  # noqa: E402

MODEL = ROOT / "models" / "hippocampus"
KEPT = 4  # samples that the service keeps of a case
_posterior: Any = None


def images_of(data: Path, count: int, folder: Path) -> list[Path]:
    """Real volumes, or phantoms of their size where there are none."""
    found = sorted(data.glob("*.nii.gz"))[:count]
    if len(found) == count:
        return found
    import nibabel as nib
    import numpy as np

    print(f"{data} has not {count} volumes, so they are phantoms", file=sys.stderr)
    folder.mkdir(parents=True)
    radii = np.meshgrid(*[np.linspace(-1.5, 1.5, n) for n in (35, 51, 35)], indexing="ij", sparse=True)
    for number in range(count):
        noise = np.random.default_rng(number).normal(size=(35, 51, 35))
        image = noise + 3 * (sum(r**2 for r in radii) < 1)
        nib.save(nib.Nifti1Image(image.astype(np.float32), np.eye(4)), folder / f"phantom_{number:03d}.nii.gz")
    return sorted(folder.glob("*.nii.gz"))


def start_bare(model: str, threads: int) -> None:
    """In a worker: the model, ready."""
    global _posterior
    import torch

    from ldseg.bundle import load_bundle
    from ldseg.posterior.sampling import Posterior

    torch.set_num_threads(threads)
    _posterior = Posterior(load_bundle(Path(model)))


def bare(job: tuple[str, str, int]) -> None:
    """In a worker: a case from its file to its maps."""
    from ldseg.data.cohort import Case
    from ldseg.data.reading import read_image
    from ldseg.posterior.draws import Draws
    from ldseg.posterior.summary import write_summary

    image, out, samples = job
    data = _posterior.config.data
    volume = read_image(Case(name=Path(image).name, image=Path(image)), data)
    summary = _posterior.summarise(_posterior.draw(volume, Draws(samples)), keep_samples=KEPT)
    write_summary(summary, Path(out) / Path(image).name, volume, data.structures)


def bare_seconds(model: Path, images: list[Path], samples: int, workers: int, threads: int, rounds: int) -> list[float]:
    """Wall time of each round over all cases, in so many processes."""
    with multiprocessing.get_context("spawn").Pool(workers, start_bare, (str(model), threads)) as pool:
        seconds = []
        for number in range(rounds + 1):
            with tempfile.TemporaryDirectory() as out:
                taken = images if number else images[: 2 * workers]  # the first calls choose kernels
                start = time.perf_counter()
                pool.map(bare, [(str(image), out, samples) for image in taken], chunksize=1)
                seconds.append(time.perf_counter() - start)
    return seconds[1:]


def served_seconds(
    model: Path, images: list[Path], samples: int, workers: int, threads: int, rounds: int
) -> tuple[list[float], dict[str, float]]:
    """Wall time from the post of all cases to the end of the last, and CPU seconds a case by process."""
    cases = [{"name": image.name.partition(".")[0], "image": str(image)} for image in images]
    with tempfile.TemporaryDirectory() as folder:
        data = images[0].parent
        with Process(model, data, Path(folder) / "runs", replicas=workers, threads=threads) as service:
            _until_done(service, cases[: 2 * workers], samples)
            before = service.cpu_seconds()
            seconds = [_until_done(service, cases, samples) for _ in range(rounds)]
            after = service.cpu_seconds()
    return seconds, {name: (after[name] - value) / rounds / len(cases) for name, value in before.items()}


def _until_done(service: Process, cases: list[dict[str, str]], samples: int) -> float:
    start = time.perf_counter()
    cohort, _ = service.post(cases, samples=samples)
    while service.ended(cohort) < len(cases):
        time.sleep(0.5)  # asking costs the service 10 ms on the same cores
    return time.perf_counter() - start


def run(data: Path, count: int, samples: list[int], rounds: int, model: Path = MODEL) -> str:
    """The table."""
    workers, threads = os.cpu_count() or 1, 1
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        images = images_of(data, count, Path(folder) / "phantoms")
        for k in samples:
            alone = bare_seconds(model, images, k, workers, threads, rounds)
            served, cpu = served_seconds(model, images, k, workers, threads, rounds)
            alone += bare_seconds(model, images, k, workers, threads, rounds)
            fastest = statistics.median(alone), statistics.median(served)
            row = {"cases": count, "samples": k, "workers x threads": f"{workers} x {threads}"}
            row |= {"bare loop, s": fastest[0], "service, s": fastest[1], "service / bare": fastest[0] / fastest[1]}
            row["cases/s"] = count / fastest[1]
            row |= {f"{name}, CPU s a case": value for name, value in cpu.items()}
            rows.append(row)
            print(f"K = {k}: bare {alone}, service {served}", file=sys.stderr)
    return table(rows)
