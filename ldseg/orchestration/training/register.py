"""From a bundle to a registered version with its evidence on the held-out cases."""

from __future__ import annotations

from pathlib import Path

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
    "dice", "agreement", "soft_dice_confidence", "sample_diversity", "nll", "ece", "ged", "ged_truth",
    "autoencoder_dice", "seconds",
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
    means = {f"test_{k}": v["mean"] for k, v in result.summary["metrics"].items() if k in EVIDENCE}
    means["test_cases"] = float(result.summary["labelled"])
    log = RunLog(Path(run.log))
    log.log(means, step=loaded.config.optim.epochs)
    run_id = shipper.run_id(log.info.name, experiment=log.info.experiment)
    version = register_bundle(shipper.tracker, bundle, name, run_id=run_id, metrics=means, evaluation=folder)
    print(f"registered: models:/{name}/{version} ({loaded.digest[:19]}...), tables: {folder}")
    print(f"next: python platform/promote.py --name {name} --version {version} --runs {run.home}")
    return version


def _say(done: EvaluatedCase, pictures: Path) -> None:
    if done.number <= PICTURES and done.volume is not None and done.summary is not None:
        draw_case(done.volume, done.summary, pictures / f"{done.row['case']}.png", done.reference)
    if done.number % 10 == 0 or done.number == done.total:
        print(f"evaluated {done.number} of {done.total} test cases", flush=True)
