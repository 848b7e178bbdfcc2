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
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Options, table

if TYPE_CHECKING:
    from ldseg.orchestration.search.search import Trial
    from ldseg.orchestration.search.study import Study

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
    parser = Options(__doc__)
    add = parser.add_argument
    add("--trials", type=int, default=5, help="of each search (default: %(default)s)")
    add("--epochs", type=int, default=6, help="of each trial (default: %(default)s)")
    add("--seeds", type=int, default=0, help="searches to compare with random ones; 0 for none (default: %(default)s)")
    return parser.parse_args()


def main() -> int:
    """Search and print."""
    options = parse()
    from ldseg.data.phantom.cohort import PhantomConfig, write_phantoms
    from ldseg.orchestration.cluster import connection
    from ldseg.orchestration.search.search import SLOT

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


def searched(options: argparse.Namespace, home: Path, name: str, sampler: str, seed: int) -> tuple[Study, list[Trial]]:
    """A study and its trials."""
    from ldseg.orchestration.search.search import search
    from ldseg.orchestration.search.study import Study

    study = Study(
        name=name, home=str(home), data=str(home / "data"), space=str(home / "space.py"), trials=options.trials,
        epochs=options.epochs, front=True, seed=seed, sampler=sampler,
    )  # fmt: skip
    return study, search(study, say=None)


def overhead(options: argparse.Namespace, home: Path) -> str:
    """One line: seconds beside training, of the first trial and the median of the others."""
    from ldseg.orchestration.search.study import read_study, trained
    from ldseg.orchestration.training.run import HISTORY, STEP_COUNTS
    from ldseg.orchestration.training.worker import SCORED_SAMPLES

    study, _ = searched(options, home, "overhead", "tpe", 0)
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
    """Hypervolumes, a line for each seed, and the medians."""

    def share(kind: str, seed: int) -> float:
        return hypervolume(searched(options, home, f"{kind}{seed}", kind, seed)[1])

    rows = [(share("tpe", seed), share("random", seed)) for seed in range(options.seeds)]
    medians = [statistics.median(column) for column in zip(*rows, strict=True)]
    named = [*enumerate(rows), ("median", medians)]
    return table([{"seed": str(seed), "search": f"{a:.4f}", "random": f"{b:.4f}"} for seed, (a, b) in named])


def hypervolume(trials: list[Trial]) -> float:
    """Share of what lies between an even guess with Dice 0 and a sure one with Dice 1 that the front dominates."""
    import numpy as np

    from ldseg.orchestration.training.run import STEP_COUNTS

    worst, names = math.log(CLASSES), [(f"val_dice_steps{n}", f"val_nll_steps{n}") for n in STEP_COUNTS]
    points = [(t.metrics[dice], t.metrics[nll]) for t in trials for dice, nll in names if dice in t.metrics]
    dice, nll = np.array(sorted(points, reverse=True)).T
    reached = np.minimum(np.minimum.accumulate(nll), worst)  # from the best Dice down it can only be improved on
    return float((-np.diff(dice, append=0.0) * (worst - reached)).sum() / worst)


if __name__ == "__main__":
    sys.exit(main())
