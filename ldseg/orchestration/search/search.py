"""A search: Ray Tune runs what Optuna asks for, everything is told to MLflow."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import ray.train
from optuna.trial import FrozenTrial, TrialState
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from ldseg.config import ConfigError, flatten
from ldseg.files import DiskFullError, write_atomically
from ldseg.orchestration.cluster import connection
from ldseg.orchestration.search.pareto import Point, front, points
from ldseg.orchestration.search.progress import SearchProgress, short
from ldseg.orchestration.search.searcher import OptunaPruner, StudySearcher
from ldseg.orchestration.search.spaces import Space, load_space
from ldseg.orchestration.search.study import METRICS, REASON, STEPS, Study, open_study, study_cohort, trained, trial_run
from ldseg.orchestration.tracking import mlflow_client, provenance
from ldseg.orchestration.tracking.run_log import RunLog, read_info
from ldseg.orchestration.training import rerun
from ldseg.orchestration.training.export import load_state
from ldseg.orchestration.training.failures import reason_of
from ldseg.orchestration.training.run import TrainRun
from ldseg.orchestration.training.single_worker import fit_alone
from ldseg.orchestration.training.trainer import fit
from ldseg.training.checkpoint import checkpoints
from ldseg.training.fit import TrainingState

SLOT = "trial_slot"  # a logical resource that caps the trials at once and leaves the CPUs to their workers
EXPERIMENT = "search"
STATES = {
    TrialState.FAIL: "FAILED",
    TrialState.PRUNED: "KILLED",
    TrialState.COMPLETE: "FINISHED",
    TrialState.WAITING: "FAILED",  # put back: its log goes on when the study does
}


@dataclass(frozen=True)
class Trial:
    """How one trial ended.

    Attributes:
        number: its place in the study.
        metrics: the last of each number.
        steps: sampling steps it is best used with; 0 for a trial that was stopped early or failed.
        checkpoint: path of the last one, "" if it was deleted or there is none.
        reason: why it failed, empty if it did not.
        stopped: by early stopping.
    """

    number: int
    name: str
    values: dict[str, Any]
    metrics: dict[str, float]
    run: TrainRun
    steps: int
    checkpoint: str
    reason: str
    stopped: bool

    def score(self, metric: str) -> float:
        """Its value of a metric with its sampling steps, else the last one, NaN if it has none."""
        scored = self.metrics.get(f"{metric}_steps{self.steps}")
        return float(self.metrics.get(metric, math.nan) if scored is None else scored)


def run_trial(given: dict[str, Any], study: dict[str, Any]) -> None:
    """What Ray Tune runs for a trial: a training named by the trial, so that a restarted trial goes on.

    Several workers are a Ray Train run; one trains in a process that the trials after it use again.

    Its log stays open: a trial that is stopped at an epoch sees its workers die, and only the driver knows whether that
    was a failure.
    """
    this = Study(**study)
    run = trial_run(this, load_space(this.space), given["values"], this.run_name(given["number"]))
    tags = {"study": this.name, "data": this.data, "trial": str(given["number"])}
    tags |= rerun.tags(run, provenance.read_digests(this.folder))
    log = RunLog.create(
        run_log(this, run.name), EXPERIMENT, run.name, parameters=flatten(run.config), tags=tags, parent=this.name
    )
    log.reopen()
    failure = this.failure(given["number"])
    failure.unlink(missing_ok=True)
    try:
        run = dataclasses.replace(run, log=str(log.folder))
        if run.workers == 1:
            fit_alone(run, tune.report)
        else:
            fit(run, [TuneReportCallback()])
    except Exception as error:
        write_atomically(failure, json.dumps({"reason": reason_of(error)}).encode())
        raise


def search(study: Study, *, resume: bool = False, say: Callable[[str], None] | None = print) -> list[Trial]:
    """Run or resume a study.

    Args:
        study: what to search.
        resume: go on with the study of that name.
        say: takes a line of progress; None says nothing.

    Returns:
        All trials, the best first, failed ones last.

    Raises:
        ConfigError: the study exists and `resume` is not set, or the other way round, or the space does not fit.
        DiskFullError: under the checkpoints; the trial waits for the study to be resumed.
    """
    space = load_space(study.space)
    first = trial_run(study, space, {}, study.name)  # a misspelt key fails here and not in every trial
    cohort = study_cohort(study)
    for split in ("train", "validation", "test"):
        cohort.split(split)
    stored = open_study(study, space, resume=resume)
    provenance.write_digests(study.folder, rerun.digests(first))
    tags = {"study": study.name, "kind": "study", **provenance.surroundings()}
    parent = RunLog.create(
        run_log(study, study.name), EXPERIMENT, study.name, parameters=_parameters(study, space), tags=tags
    )
    parent.reopen()
    for trial in stored.get_trials(states=tuple(STATES)):
        _end_log(study, trial)  # what a search that was killed had no time for
    searcher = StudySearcher(study, space, stored, ended=lambda trial: _end_log(study, trial))
    if searcher.unfinished or len(trained(stored)) < study.trials:
        failed = sum(trial.state == TrialState.FAIL for trial in trained(stored))
        ended = [t for t in trained(stored) if t.state.is_finished()]
        numbers = [t.user_attrs.get(METRICS, {}) for t in ended]
        goes_on = searcher.unfinished.__contains__
        _tuner(study, searcher, SearchProgress(study, say, ended=numbers, failed=failed, goes_on=goes_on)).fit()
    if searcher.halted:
        parent.end("FAILED", searcher.halted)
        raise DiskFullError(searcher.halted)
    found = read_trials(study, space, stored)
    if searcher.exhausted and not found:
        raise ConfigError(f"{searcher.exhausted}; change the space")
    if searcher.exhausted:
        (say or print)(f"the search ended early: {searcher.exhausted}")
    if found and math.isfinite(best := found[0].score(space.metric)):
        parent.log({f"best_{space.metric}": best}, step=len(found))
    parent.end()
    return found


def run_log(study: Study, name: str) -> Path:
    """Folder of what MLflow is told of a run of the study."""
    return mlflow_client.logs(Path(study.home)) / EXPERIMENT / name


def read_trials(study: Study, space: Space, stored: optuna.Study) -> list[Trial]:
    """The trials of a study, the best by the space's metric first, those that were stopped and failed last."""
    found = [_trial(study, space, trial) for trial in trained(stored)]
    sign = -1.0 if space.mode == "max" else 1.0

    def place(trial: Trial) -> tuple[bool, bool, float]:
        score = sign * trial.score(space.metric)
        return bool(trial.reason), trial.stopped, math.inf if math.isnan(score) else score

    return sorted(found, key=place)


def study_front(trials: list[Trial]) -> list[Point]:
    """The front of all trials that were trained to their end, each with every number of steps it was scored at."""
    return front([point for trial in trials if not trial.reason for point in points(trial.number, trial.metrics)])


def _trial(study: Study, space: Space, stored: FrozenTrial) -> Trial:
    name = study.run_name(stored.number)
    values = space.suggest(optuna.trial.FixedTrial(stored.params))
    run = trial_run(study, space, values, name)
    checkpoint = str(stored.user_attrs.get("checkpoint", ""))
    if not Path(checkpoint).is_dir():
        kept = checkpoints(run.folder)
        checkpoint = str(kept[0]) if kept else ""
    return Trial(
        number=stored.number,
        name=name,
        values=values,
        metrics=stored.user_attrs.get(METRICS, {}),
        run=run,
        steps=int(stored.user_attrs.get(STEPS, 0)),
        checkpoint=checkpoint,
        reason=str(stored.user_attrs.get(REASON, "")) or ("not finished" if not stored.state.is_finished() else ""),
        stopped=stored.state == TrialState.PRUNED,
    )


def _parameters(study: Study, space: Space) -> dict[str, Any]:
    chosen = {k: v for k, v in dataclasses.asdict(study).items() if k != "fixed"}
    return chosen | {"metric": space.metric, "domains": json.dumps(space.domains)}


def _tuner(study: Study, searcher: StudySearcher, progress: SearchProgress) -> tune.Tuner:
    """Ray Tune for what is left of the study; it keeps nothing that a resumed search needs."""
    bundles = [connection.slot(SLOT)]  # Ray Train asks for its workers' share itself
    if study.workers == 1:
        bundles += [{"CPU": study.cpus_per_worker} | ({"GPU": study.gpus_per_worker} if study.gpus_per_worker else {})]
    trainable = tune.with_resources(
        tune.with_parameters(run_trial, study=dataclasses.asdict(study)), tune.PlacementGroupFactory(bundles)
    )
    attempt = 1 + len(list(study.folder.glob("tune-*")))
    return tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            num_samples=-1,  # until the searcher says that it is finished
            max_concurrent_trials=study.trials_at_once,
            search_alg=searcher,
            scheduler=OptunaPruner(searcher),
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=f"tune-{attempt}",
            storage_path=str(study.folder),
            verbose=0,
            callbacks=[progress],
        ),
    )


def _end_log(study: Study, trial: FrozenTrial) -> None:
    """End the log of a trial the way the study says it ended."""
    folder = run_log(study, study.run_name(trial.number))
    if read_info(folder) is not None:
        RunLog(folder).end(STATES[trial.state], str(trial.user_attrs.get(REASON, "")))


def table(trials: list[Trial], metric: str) -> str:
    """The trials as text, best first."""
    keys = list(dict.fromkeys(k for t in trials for k in t.values))
    header = ["trial", metric, "epochs", *keys, "state"]
    rows = [
        [
            trial.name, f"{trial.score(metric):.4f}", f"{trial.metrics.get('epoch', 0):.0f}",
            *[short(trial.values.get(k, "")) for k in keys],
            trial.reason[:60] or ("stopped early" if trial.stopped else "done"),
        ]
        for trial in trials
    ]  # fmt: skip
    widths = [max(len(r[i]) for r in [header, *rows]) for i in range(len(header))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in [header, *rows])


def best_state(trial: Trial) -> TrainingState:
    """A trial's averaged networks, with the number of sampling steps that its scores call for."""
    state = load_state(trial.run, ray.train.Checkpoint(trial.checkpoint))
    steps = trial.steps or state.config.sampler.num_sample_steps
    state.config = state.config.with_overrides({"sampler.num_sample_steps": steps})
    return state
