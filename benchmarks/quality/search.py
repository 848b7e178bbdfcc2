#!/usr/bin/env python
"""What a search costs besides training, and what it finds against random search.

Overhead: time from the start of one trial to the start of the next, less its training, validation and scoring.
Hypervolume: the area between the front of (Dice, negative log-likelihood) and the worst of both (Dice 0, the likelihood
of an even guess), as a share of all there is; of the search and of random search with as many trials.

Example:
    python benchmarks/quality/search.py --trials 5                # the overhead
    python benchmarks/quality/search.py --trials 12 --seeds 5     # and the fronts; about 10 minutes on two quiet cores
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from ldseg.data.phantom.cohort import PhantomConfig, write_phantoms  # noqa: E402
from ldseg.orchestration.cluster import connection  # noqa: E402
from ldseg.orchestration.search.search import SLOT, Trial, search  # noqa: E402
from ldseg.orchestration.search.study import Study, read_study, trained  # noqa: E402
from ldseg.orchestration.training.run import HISTORY, STEP_COUNTS  # noqa: E402
from ldseg.orchestration.training.worker import SCORED_SAMPLES  # noqa: E402

SPACE = """
BASE = {
    "data": {"spatial_dims": 2, "shape": [32, 32], "flip_axes": [0, 1], "augment_intensity": False},
    "model": {"downsampling": [4, 4], "patch": [2, 2], "embedding_channels": 16, "autoencoder_widths": [16, 16],
              "image_widths": [16, 16, 32], "denoiser_widths": [16, 32], "denoiser_context": True},
    "optim": {"batch_size": 4},
}
SPACE = {
    "model.latent_channels": ("choice", [1, 2, 4, 8]),
    "diffusion.noise_shift": ("choice", [1.0, 2.0, 4.0, 8.0]),
    "loss.denoising": ("loguniform", 0.1, 10.0),
    "loss.dice": ("loguniform", 0.1, 10.0),
    "optim.learning_rate": ("loguniform", 1e-5, 1e-2),
}
METRIC = ("val_nll", "min")
"""
CLASSES = 4


def parse() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--trials", type=int, default=5, help="of each search (default: %(default)s)")
    add("--epochs", type=int, default=6, help="of each trial (default: %(default)s)")
    add("--seeds", type=int, default=0, help="searches to compare with random ones; 0 for none (default: %(default)s)")
    return parser.parse_args()


def main() -> int:
    """Search and print."""
    options = parse()
    connection.connect(num_cpus=2, resources={SLOT: 1}, object_store_mb=100)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        write_phantoms(
            home / "data", PhantomConfig(dims=2, cases=60, raters=2, shape=(32, 32), fractions=(0.6, 0.3, 0.1))
        )
        (home / "space.py").write_text(SPACE)
        try:
            print(overhead(options, home), flush=True)
            if options.seeds:
                print(fronts(options, home))
        finally:
            connection.shutdown()
    return 0


def overhead(options: argparse.Namespace, home: Path) -> str:
    """One line: seconds beside training, of the first trial and the median of the others."""
    study = _study(options, home, "overhead", "tpe", 0)
    search(study, say=None)
    ended = time.time()
    trials = trained(read_study(home, study.name))
    starts = [t.datetime_start.timestamp() for t in trials if t.datetime_start] + [ended]
    beside = []
    for trial, start, following in zip(trials, starts, starts[1:], strict=False):
        lines = (home / "train" / study.run_name(trial.number) / HISTORY).read_text().splitlines()
        history = [json.loads(line) for line in lines]
        scoring = sum(history[-1].get(f"val_seconds_steps{n}", 0.0) for n in STEP_COUNTS) * SCORED_SAMPLES * 18
        beside.append(following - start - sum(epoch["seconds"] for epoch in history) - scoring)
    first, *others = beside
    return f"overhead: first trial {first:.1f} s, median of the others {statistics.median(others):.1f} s"


def fronts(options: argparse.Namespace, home: Path) -> str:
    """A Markdown table of hypervolumes, a line for each seed, and the medians."""
    rows = [
        [
            hypervolume(search(_study(options, home, f"{kind}{seed}", kind, seed), say=None))
            for kind in ("tpe", "random")
        ]
        for seed in range(options.seeds)
    ]
    lines = ["| seed | search | random |", "|---|---|---|"]
    lines += [f"| {seed} | {a:.4f} | {b:.4f} |" for seed, (a, b) in enumerate(rows)]
    medians = [statistics.median(column) for column in zip(*rows, strict=True)]
    return "\n".join([*lines, f"| median | {medians[0]:.4f} | {medians[1]:.4f} |"])


def hypervolume(trials: list[Trial]) -> float:
    """Share of what lies between an even guess with Dice 0 and a sure one with Dice 1 that the front dominates."""
    worst = math.log(CLASSES)
    points = sorted(
        (trial.metrics[f"val_dice_steps{n}"], trial.metrics[f"val_nll_steps{n}"])
        for trial in trials
        for n in STEP_COUNTS
        if f"val_dice_steps{n}" in trial.metrics
    )
    area, reached = 0.0, worst  # from the best Dice down, the likelihood can only be improved on
    for (dice, nll), (lower, _) in zip(reversed(points), [*reversed(points[:-1]), (0.0, worst)], strict=True):
        reached = min(reached, nll)
        area += (dice - lower) * (worst - reached)
    return area / worst


def _study(options: argparse.Namespace, home: Path, name: str, sampler: str, seed: int) -> Study:
    return Study(
        name=name, home=str(home), data=str(home / "data"), space=str(home / "space.py"), trials=options.trials,
        epochs=options.epochs, front=True, seed=seed, sampler=sampler,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
