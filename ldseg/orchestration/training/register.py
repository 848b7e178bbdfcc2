"""From a bundle to a registered version with its evidence on the held-out cases."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ldseg import columns
from ldseg.bundle import load_bundle
from ldseg.data.cohort import Case
from ldseg.evaluation.cases import known_posterior
from ldseg.evaluation.evaluate import EvaluatedCase, Scoring, evaluate
from ldseg.orchestration.tracking.registry import challenge, register_bundle, versions
from ldseg.orchestration.tracking.run_log import RunLog
from ldseg.orchestration.tracking.shipper import LAST_TRY, Shipper
from ldseg.orchestration.training.run import TrainRun, read_data
from ldseg.pictures.case import draw_case
from ldseg.posterior.draws import Draws

PICTURES = 3  # of the first test cases
EVIDENCE = (
    "dice", "agreement", "soft_dice_confidence", "energy_score", "sample_distance", "sample_diversity", "nll", "ece",
    "ged", "ged_unbiased", "ged_truth", "autoencoder_dice", "seconds",
)  # fmt: skip


def evaluate_trained(run: TrainRun, bundle: Path, *, samples: int = 8) -> Path:
    """Score a training's bundle on its test cases, see `evaluate_held_out`.

    The test cases are only reported on: nothing is chosen by them.
    """
    draws = Draws(samples, device="cuda" if run.gpus_per_worker else "cpu")
    folder = Path(run.home) / "evaluations" / run.name
    return evaluate_held_out(bundle, read_data(run).split("test"), folder, draws, run.data)


def evaluate_held_out(bundle: Path, cases: Sequence[Case], folder: Path, draws: Draws, data: Path | str) -> Path:
    """Score a bundle on cases that it has not seen, those of `data`, print the table, write it with some pictures.

    Returns:
        The folder.
    """
    result = evaluate(
        load_bundle(bundle),
        cases,
        draws,
        progress=lambda done: _say(done, folder / "pictures"),
        scoring=Scoring(known_posterior(data)),
    )
    result.write(folder)
    print(f"\n{result.table()}\n")
    return folder


def register(shipper: Shipper, log: RunLog, bundle: Path, name: str, evaluation: Path) -> int:
    """Bring a bundle and its evidence into the registry as the challenger; what is there already stays as it is.

    Args:
        shipper: MLflow, and what is sent to it.
        log: of the run that made the bundle, which the numbers are added to.
        bundle: the model's folder.
        name: in the registry.
        evaluation: the folder of its scores on held-out cases.

    Returns:
        The version.

    Raises:
        TimeoutError: MLflow can't be reached, and there is no registry without it.
    """
    loaded = load_bundle(bundle)
    means = evidence(json.loads((evaluation / "summary.json").read_text()))
    log.log(means, step=loaded.config.optim.epochs)
    run_id = shipper.run_id(log.info.name, LAST_TRY, experiment=log.info.experiment)
    known = {int(version.version) for version in versions(shipper.tracker, name, run_id)}
    version = register_bundle(shipper.tracker, bundle, name, run_id=run_id, metrics=means, evaluation=evaluation)
    challenge(shipper.tracker, name, version)
    before = "registered before" if version in known else "registered"
    print(f"{before}: models:/{name}/{version} ({loaded.digest[:19]}...), tables: {evaluation}")
    print(f"next: python platform/promote.py --name {name} --version {version} --runs {shipper.tracker.home}")
    return version


def evidence(summary: Mapping[str, Any]) -> dict[str, float]:
    """What MLflow is told of an evaluation's summary: test_{column} of those in EVIDENCE and of the volumes' CRPS."""
    chosen = {
        column: math.nan if entry["mean"] is None else float(entry["mean"])  # JSON has no NaN
        for column, entry in summary["metrics"].items()
        if column in EVIDENCE or (columns.read_volume_column(column) or ("", "", ""))[2] == columns.CRPS
    }
    return {f"test_{column}": mean for column, mean in chosen.items()} | {"test_cases": float(summary["labelled"])}


def _say(done: EvaluatedCase, pictures: Path) -> None:
    if done.number <= PICTURES and done.volume is not None and done.summary is not None:
        draw_case(done.volume, done.summary, pictures / f"{done.row['case']}.png", done.reference)
    if done.number % 10 == 0 or done.number == done.total:
        print(f"evaluated {done.number} of {done.total} test cases", flush=True)
