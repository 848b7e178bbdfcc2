"""Between Ray Tune and Optuna: Tune runs the trials, Optuna's database knows them.

Ray's own OptunaSearch keeps half of what it knows in a pickle that is written now and then. Here nothing is kept
outside the database: a search that was killed at any instant is the same search when it is started again, with the
trials that were running taken up under their own numbers and the rungs of early stopping as they were.
"""

from __future__ import annotations

import json
import math
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from ldseg.config import ConfigError
from ldseg.files import FULL
from ldseg.orchestration.search.pareto import choose_steps, front, points
from ldseg.orchestration.search.spaces import Space
from ldseg.orchestration.search.study import (
    METRICS,
    REASON,
    REFUSED,
    STEPS,
    Study,
    objectives,
    requeue,
    tell_infeasible,
    trained,
    trial_run,
)
from ldseg.orchestration.training.failures import is_memory
from ldseg.orchestration.training.run import TrainRun, last_metrics, note, warn_of_notes
from ldseg.orchestration.training.trainer import DEATHS
from ldseg.training.checkpoint import checkpoints

STARTUP_TRIALS = 6  # drawn at random before the sampler learns
MAX_REFUSED = 200  # configurations in a row that are not possible

Ended = Callable[[FrozenTrial], None]


class StudySearcher(Searcher):
    """Gives Ray Tune the trials of a study and tells the study how they ended.

    Args:
        study: what is searched.
        stored: its trials.
        ended: called after each trial, in the driver.
    """

    def __init__(self, study: Study, space: Space, stored: optuna.Study, ended: Ended = lambda trial: None) -> None:
        super().__init__()
        self.study, self.space, self.stored, self.ended = study, space, stored, ended
        self.started = time.monotonic()
        running = stored.get_trials(states=(TrialState.RUNNING,))
        self.unfinished = [trial.number for trial in running]
        self.numbers: dict[str, int] = {}
        self.deaths: dict[int, list[float]] = {}  # of each trial's processes: the epochs before which they died
        self.halted = ""  # why no further trial is started
        self.exhausted = ""  # why no further configuration was found
        stored.pruner = _pruner(study)

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial: first those that were running when the search was last stopped; None for not yet.

        Whether there is no further one is known when nothing runs: a trial whose process dies is started again.
        """
        no_further = None if self.numbers else Searcher.FINISHED
        if self.halted:
            return no_further
        if self.unfinished:
            trial = self._running(self.unfinished.pop(0))
            values = self.space.suggest(trial)
        else:
            hours = (time.monotonic() - self.started) / 3600
            if len(trained(self.stored)) >= self.study.trials or (self.study.hours and hours >= self.study.hours):
                return no_further
            found = None if self.exhausted else self._possible()
            if found is None:
                return no_further
            trial, values = found
        self.numbers[trial_id] = trial.number
        return {"number": trial.number, "values": values}

    def _possible(self) -> tuple[optuna.Trial, dict[str, Any]] | None:
        """A new trial whose configuration is possible; one that is not is refused before anything starts."""
        for _ in range(MAX_REFUSED):
            number = len(self.stored.get_trials(deepcopy=False))
            # seeded by the trial's number: a search that was interrupted draws what it would have drawn
            self.stored.sampler = _sampler(self.study.sampler, self.study.seed * 100_003 + number)
            trial = self.stored.ask()
            values = self.space.suggest(trial)
            try:
                trial_run(self.study, self.space, values, self.study.run_name(trial.number))
            except ConfigError as error:
                trial.set_user_attr(REFUSED, True)
                trial.set_user_attr(REASON, str(error))
                self.stored.tell(trial, state=TrialState.FAIL)
                self.exhausted = f"{MAX_REFUSED} configurations in a row were not possible, the last because {error}"
                continue
            self.exhausted = ""
            return trial, values
        return None

    def _running(self, number: int) -> optuna.Trial:
        return optuna.Trial(self.stored, self.stored.get_trials(deepcopy=False)[number]._trial_id)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing: `OptunaPruner` tells the study."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell Optuna how it ended: COMPLETE, PRUNED by early stopping, or FAIL with a reason.

        A full disk is no trial's fault, and the next one would meet it too: the trial waits and no other starts.
        """
        number = self.numbers.pop(trial_id, None)
        if number is None:
            return
        trial = self._running(number)
        run = trial_run(self.study, self.space, self.space.suggest(trial), self.study.run_name(number))
        metrics = last_metrics(run.folder)
        trial.set_user_attr(METRICS, {k: v for k, v in metrics.items() if math.isfinite(v)})
        checkpoint = (result or {}).get("checkpoint_path")
        if checkpoint:
            trial.set_user_attr("checkpoint", str(checkpoint))
        warn_of_notes(run)
        if error and self._starts_again(run, number, metrics.get("epoch", 0.0)):
            return
        if error:
            self._fail(trial, failure_reason(self.study, number))
        else:
            self._tell(trial, metrics)
        _prune_checkpoints(self.study, self.stored)
        self.ended(self.stored.get_trials(deepcopy=False)[number])

    def _starts_again(self, run: TrainRun, number: int, epoch: float) -> bool:
        """Whether the process that steered a trial died without a word, and not again and again in the same epoch."""
        if self.study.failure(number).exists():
            return False
        self.deaths.setdefault(number, []).append(epoch)
        if self.deaths[number].count(epoch) >= DEATHS:
            return False
        note(run, f"its process died in epoch {epoch + 1:.0f}; it goes on from the last checkpoint")
        warn_of_notes(run)
        self.unfinished.append(number)  # asked for next, as what a killed search leaves is
        return True

    def _tell(self, trial: optuna.Trial, metrics: dict[str, float]) -> None:
        space, scored = self.space, any(name.startswith(f"{self.space.metric}_steps") for name in metrics)
        if not scored and not self.study.front:
            trial.set_user_attr(REASON, "")
            self.stored.tell(trial, state=TrialState.PRUNED)
            return
        steps = choose_steps(metrics, 0)
        trial.set_user_attr(STEPS, steps)
        trial.set_user_attr(REASON, "")  # of an earlier start
        told = objectives(self.stored) if self.study.front else [space.metric]
        names = [f"{name}_steps{steps}" for name in told]
        values = [metrics.get(name, math.nan) for name in names]
        if all(math.isfinite(value) for value in values):
            self.stored.tell(trial, values)
        else:
            self._fail(trial, f"{names[0].rpartition('_')[0]} of the finished model is no number")

    def _fail(self, trial: optuna.Trial, reason: str) -> None:
        trial.set_user_attr(REASON, reason)
        if FULL in reason:
            self.halted = reason
            requeue(self.stored, trial.number)
            return
        self.stored.tell(trial, state=TrialState.FAIL)
        if is_memory(reason):
            tell_infeasible(self.stored, self.stored.get_trials(deepcopy=False)[trial.number])

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: everything is in the database."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""


class OptunaPruner(FIFOScheduler):
    """Early stopping by the study's pruner (asynchronous successive halving, Li et al. 2020).

    Its rungs are the intermediate values in the database; Ray's own ASHA forgets its rungs when a search is resumed.
    """

    def __init__(self, searcher: StudySearcher) -> None:
        super().__init__()
        self.searcher = searcher

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Stop a trial that falls behind, but never at its last epoch."""
        searcher, metric = self.searcher, self.searcher.space.metric
        number = searcher.numbers.get(trial.trial_id)
        value, epoch = float(result.get(metric, math.nan)), int(result.get("epoch", 0))
        if number is None or searcher.study.front or not math.isfinite(value) or epoch >= searcher.study.epochs:
            return str(TrialScheduler.CONTINUE)
        running = searcher._running(number)
        running.report(value, epoch)
        return str(TrialScheduler.STOP if running.should_prune() else TrialScheduler.CONTINUE)


def _sampler(kind: str, seed: int) -> BaseSampler:
    """For one metric or several, with choices that hang on others (`group`, which Optuna calls experimental)."""
    if kind == "random":
        return RandomSampler(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS, multivariate=True, group=True)


def _pruner(study: Study) -> BasePruner:
    if study.front:
        return NopPruner()
    return SuccessiveHalvingPruner(min_resource=max(1, study.epochs // 4), reduction_factor=4)


def failure_reason(study: Study, number: int) -> str:
    """Why a trial failed, as the trial itself wrote it down."""
    try:
        return str(json.loads(study.failure(number).read_text())["reason"])
    except (OSError, ValueError, KeyError):
        return f"its process died {DEATHS} times in the same epoch (killed, or the machine was short of memory)"


def _prune_checkpoints(study: Study, stored: optuna.Study, count: int = 3) -> None:
    """Delete the checkpoints of finished trials that are neither on the front nor among the best by the metric."""
    finished = [t for t in trained(stored) if t.state != TrialState.RUNNING]
    scored = [point for t in finished for point in points(t.number, t.user_attrs.get(METRICS, {}))]
    kept = {point.trial for point in front(scored)}
    complete = [t for t in finished if t.state == TrialState.COMPLETE]
    maximize = stored.directions[0] == optuna.study.StudyDirection.MAXIMIZE
    kept |= {t.number for t in sorted(complete, key=lambda t: t.values[0], reverse=maximize)[:count]}
    for trial in finished:
        if trial.number not in kept:
            for folder in checkpoints(Path(study.home) / "train" / study.run_name(trial.number)):
                shutil.rmtree(folder, ignore_errors=True)
