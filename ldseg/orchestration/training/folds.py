"""One model of several members: a training for each fold, side by side, and what each says of the cases it lacks."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from ldseg.bundle import load_bundle
from ldseg.calibration.file import save_calibration
from ldseg.config import Config, flatten
from ldseg.evaluation.calibrate import calibration_table
from ldseg.evaluation.cases import known_posterior, reference_cases
from ldseg.evaluation.evaluate import EvaluatedCase, Scoring
from ldseg.evaluation.out_of_fold import Fold, calibrate_folds, evaluate_folds
from ldseg.files import write_atomically
from ldseg.orchestration.tracking.run_log import RunLog, read_json
from ldseg.orchestration.training import rerun
from ldseg.orchestration.training.export import export, export_members
from ldseg.orchestration.training.failures import reason_of
from ldseg.orchestration.training.register import evidence
from ldseg.orchestration.training.run import HISTORY, TrainRun, check_same, note, read_data, warn_of_notes
from ldseg.orchestration.training.single_worker import fit_alone
from ldseg.orchestration.training.trainer import Follower, fit
from ldseg.posterior.draws import Draws
from ldseg.posterior.summary import write_summary
from ldseg.training.checkpoint import newest_whole
from ldseg.training.fit import TrainingState

ENDED, OUT_OF_FOLD = "ended.json", "out-of-fold"
PATIENCE = ("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "1e9")  # a fold waits for its workers as long as others train


class FoldError(ChildProcessError):
    """A fold's training failed."""


def fold_runs(run: TrainRun) -> list[TrainRun]:
    """The trainings of a run's folds, NAME-fold-0 and so on, each with a log of its own below the run's.

    Raises:
        ConfigError: a run of that name has another configuration, or another number of folds.
    """
    check_same(run)
    parent, runs = RunLog(Path(run.log)), list[TrainRun]()
    for fold in range(run.folds):
        one = dataclasses.replace(run, name=f"{run.name}-fold-{fold}", fold=fold)
        one = dataclasses.replace(one, log=str(parent.folder.with_name(one.name)))
        about = {"data": run.data, "workers": str(run.workers), "fold": str(fold)}
        about |= rerun.tags(one, rerun.digests(one))
        settings = flatten(one.config)
        RunLog.create(Path(one.log), parent.info.experiment, one.name, parameters=settings, tags=about, parent=run.name)
        runs.append(one)
    return runs


def train_folds(
    runs: Sequence[TrainRun], progress: Callable[[int, dict[str, float]], None], slot: Mapping[str, float]
) -> None:
    """Train all folds, as many at a time as there is room for; each goes on where it stopped.

    Args:
        runs: of `fold_runs`.
        progress: called in the driver with the fold and an epoch's numbers.
        slot: resources for the process that waits for a fold and computes nothing.

    Raises:
        FoldError: one failed; the others' epochs are kept.
    """
    with ExitStack() as stack:
        for run in runs:
            stack.callback(warn_of_notes, run)
            follower = Follower(run.folder / HISTORY, partial(progress, run.fold))
            stack.callback(follower.stop)
        # with the process that waits for a fold ends the one that it trained in, and its place is free
        train = ray.remote(num_cpus=0, max_calls=1, resources=dict(slot))(_train)
        waiting = {train.remote(dataclasses.asdict(run)): run for run in runs}
        while waiting:
            ((done,), _) = ray.wait(list(waiting), num_returns=1)
            run = waiting.pop(done)
            try:
                problem = ray.get(done)
            except RayError as error:
                problem = reason_of(error)
            if problem:
                cure = "mend it and give the same command again: all folds go on from their last epoch"
                raise FoldError(f"the training {run.name} failed ({problem}); {cure}")


def _train(values: dict[str, Any]) -> str:
    """Train a fold to its end; what stopped it, in a sentence."""
    run = TrainRun(**values)
    log, ended, limits = RunLog(Path(run.log)), run.folder / ENDED, _limits(run)
    if read_json(ended) == limits:  # a --minutes that is over does not begin again
        return ""
    log.reopen()
    try:
        if run.workers == 1:
            fit_alone(run, lambda epoch: None)
        else:
            os.environ.setdefault(*PATIENCE)
            fit(run)
    except Exception as error:
        log.end("FAILED", reason_of(error))
        return reason_of(error)
    log.end()
    write_atomically(ended, json.dumps(limits).encode())
    return ""


def _limits(run: TrainRun) -> dict[str, Any]:
    return {"epochs": run.config["optim"]["epochs"], "minutes": run.minutes}


def finish(run: TrainRun, runs: Sequence[TrainRun], command: str, *, samples: int, half: bool, minutes: float) -> Path:
    """Make one bundle of the folds, score each member on its own fold and calibrate the whole by that.

    The rows, and the maps of each case by the member that has not seen it, lie under the run's `OUT_OF_FOLD`.

    Args:
        run, runs: the whole, and those of `fold_runs` when they have ended.
        command: for the cards.
        samples: that each member draws of a case.
        half: store weights as float16.
        minutes: that it all took so far.

    Returns:
        The bundle's folder.
    """
    members = [_export(one, command, half) for one in runs]
    bundle = load_bundle(export_members(run, members, command, minutes=minutes))
    draws = Draws(samples * run.folds, device="cuda" if run.gpus_per_worker else "cpu")
    cohorts = [read_data(one) for one in runs]
    folds = [
        Fold([case for case in cohort.split("validation") if case.labels], reference_cases(cohort, member.card))
        for cohort, member in zip(cohorts, bundle.members, strict=True)
    ]
    folder = run.folder / OUT_OF_FOLD
    result = evaluate_folds(
        bundle,
        folds,
        draws,
        scoring=Scoring(known_posterior(run.data)),
        progress=lambda done: _keep(done, folder, bundle.config.data.structures),
    )
    result.write(folder)
    print(f"\nout of fold, each case by the member that has not seen it:\n{result.table()}\n")
    found = evidence(result.summary)
    means = {key.replace("test", "out_of_fold", 1): value for key, value in found.items()}
    RunLog(Path(run.log)).log(means, step=bundle.config.optim.epochs)
    calibration, rows = calibrate_folds(bundle, folds, draws)
    print(f"{calibration_table(calibration, rows)}\n")
    save_calibration(bundle.path, calibration)
    return bundle.path


def _export(run: TrainRun, command: str, half: bool) -> Path:
    state = TrainingState.create(Config.from_dict(run.config))
    newest_whole(run.folder, state.load, lambda text: note(run, text))
    return export(run, state, command, half=half)


def _keep(done: EvaluatedCase, folder: Path, structures: Sequence[str]) -> None:
    if done.volume is not None and done.summary is not None:
        write_summary(done.summary, folder / "maps" / done.summary.case, done.volume, structures)
    if done.number % 10 == 0 or done.number == done.total:
        print(f"predicted {done.number} of {done.total} cases out of fold", flush=True)
