"""From a bundle to a registered version with its evidence on the held-out cases."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldseg import columns
from ldseg.bundle import load_bundle
from ldseg.data.cohort import Cohort
from ldseg.evaluation.cases import known_posterior
from ldseg.evaluation.evaluate import EvaluatedCase, Scoring, evaluate
from ldseg.orchestration.tracking.registry import register_bundle
from ldseg.orchestration.tracking.run_log import RunLog
from ldseg.orchestration.tracking.shipper import Shipper
from ldseg.orchestration.training.run import TrainRun, read_data
from ldseg.pictures.case import draw_case
from ldseg.posterior.draws import Draws

PICTURES = 3  # of the first test cases
EVIDENCE = (
    "dice", "agreement", "soft_dice_confidence", "energy_score", "sample_distance", "sample_diversity", "nll", "ece",
    "ged", "ged_unbiased", "ged_truth", "autoencoder_dice", "seconds",
)  # fmt: skip


def evaluate_and_register(shipper: Shipper, run: TrainRun, bundle: Path, name: str, *, samples: int = 8) -> int:
    """Score a bundle on its test cases, print the table, register it; returns the version.

    The test cases are only reported on: nothing is chosen by them.

    Args:
        shipper: MLflow, and what is sent to it.
        run: whose log the numbers are added to.
        bundle: the model's folder.
        name: in the registry.
        samples: of each test case.

    Raises:
        TimeoutError: MLflow can't be reached, and there is no registry without it.
    """
    cohort: Cohort = read_data(run)
    loaded = load_bundle(bundle)
    folder = Path(run.home) / "evaluations" / run.name
    result = evaluate(
        loaded,
        cohort.split("test"),
        Draws(samples, device="cuda" if run.gpus_per_worker else "cpu"),
        progress=lambda done: _say(done, folder / "pictures"),
        scoring=Scoring(known_posterior(run.data)),
    )
    result.write(folder)
    print(f"\n{result.table()}\n")
    means = evidence(result.summary)
    log = RunLog(Path(run.log))
    log.log(means, step=loaded.config.optim.epochs)
    run_id = shipper.run_id(log.info.name, experiment=log.info.experiment)
    version = register_bundle(shipper.tracker, bundle, name, run_id=run_id, metrics=means, evaluation=folder)
    print(f"registered: models:/{name}/{version} ({loaded.digest[:19]}...), tables: {folder}")
    print(f"next: python platform/promote.py --name {name} --version {version} --runs {run.home}")
    return version


def evidence(summary: Mapping[str, Any]) -> dict[str, float]:
    """What MLflow is told of an evaluation's summary: test_{column} of those in EVIDENCE and of the volumes' CRPS."""
    chosen = {
        column: float(entry["mean"])
        for column, entry in summary["metrics"].items()
        if column in EVIDENCE or (columns.read_volume_column(column) or ("", "", ""))[2] == columns.CRPS
    }
    return {f"test_{column}": mean for column, mean in chosen.items()} | {"test_cases": float(summary["labelled"])}


def _say(done: EvaluatedCase, pictures: Path) -> None:
    if done.number <= PICTURES and done.volume is not None and done.summary is not None:
        draw_case(done.volume, done.summary, pictures / f"{done.row['case']}.png", done.reference)
    if done.number % 10 == 0 or done.number == done.total:
        print(f"evaluated {done.number} of {done.total} test cases", flush=True)
