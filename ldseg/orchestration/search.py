"""A search: Ray Tune asks Optuna, every trial is a Ray Train run, everything is told to MLflow."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ldseg.orchestration import tracking

import optuna  # isort: skip
from optuna.trial import TrialState
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from ldseg.config import ConfigError, flatten
from ldseg.orchestration.spaces import Space, load_space
from ldseg.orchestration.train import STEP_COUNTS, TrainRun, read_data, trainer, with_cohort

SLOT = "trial_slot"  # a logical resource that caps the trials at once and leaves the CPUs to their workers
EXPERIMENT = "search"


@dataclass(frozen=True, kw_only=True)
class Study:
    """What a search is.

    Attributes:
        name: identifies the study, its Optuna database and its parent run.
        space: a name in tune_spaces or a path of a .py file.
        fixed: the operator's own overrides, the same in every trial.
        epochs: of a trial that is not stopped early.
        concurrent: trials at once; each has `workers` workers.
        minutes: of training for each trial; 0 trains all epochs.
    """

    name: str
    home: str
    data: str
    space: str
    trials: int
    epochs: int
    fixed: dict[str, Any] = field(default_factory=dict)
    concurrent: int = 1
    workers: int = 1
    cpus_per_worker: float = 1.0
    gpu: bool = False
    seed: int = 0
    split_seed: int = 0
    minutes: float = 0.0
    tracking_uri: str = ""
    parent_run: str = ""

    @property
    def folder(self) -> Path:
        """Where Ray Tune keeps the search."""
        return Path(self.home) / "studies" / self.name


@dataclass(frozen=True)
class Trial:
    """How one trial ended: `reason` says why it failed, empty if it did not."""

    name: str
    values: dict[str, Any]
    metrics: dict[str, float]
    run: TrainRun
    checkpoint: str
    reason: str

    def score(self, metric: str) -> float:
        """Its value of the study's metric, NaN if it has none."""
        return float(self.metrics.get(metric, math.nan))


def trial_run(study: Study, space: Space, values: dict[str, Any], name: str) -> TrainRun:
    """The training that a trial is."""
    config = with_cohort(_base(study, space, values), _cohort(study))
    return TrainRun(
        name=name,
        home=study.home,
        data=study.data,
        config=config.to_dict(),
        workers=study.workers,
        cpus_per_worker=study.cpus_per_worker,
        gpu=study.gpu,
        minutes=study.minutes,
        split_seed=study.split_seed,
        tracking_uri=study.tracking_uri,
        score_steps=True,
    )


def _base(study: Study, space: Space, values: dict[str, Any]) -> dict[str, Any]:
    fixed = {"optim.epochs": study.epochs, "optim.seed": study.seed, **study.fixed}
    config = space.configuration(values, fixed).to_dict()
    if not {"structures", "label_values"} & set(space.base.get("data", {})):
        del config["data"]["structures"], config["data"]["label_values"]
    return config


def _cohort(study: Study) -> Any:
    return read_data(TrainRun(name="x", home=study.home, data=study.data, config={}, split_seed=study.split_seed))


def run_trial(values: dict[str, Any], study: dict[str, Any]) -> None:
    """What Ray Tune runs for a trial: a Ray Train run named by the trial, so that a restarted trial goes on.

    It leaves its MLflow run open: a trial that the scheduler stops at its last epoch sees its workers die, and only
    the driver knows whether that was a failure.
    """
    this = Study(**study)
    name = f"{this.name}-{tune.get_context().get_trial_id()}"
    tracker = tracking.Tracker(this.tracking_uri, Path(this.home))
    run = trial_run(this, load_space(this.space), values, name)
    identity = tracker.run(
        EXPERIMENT,
        name,
        parameters=flatten(run.config),
        tags={"study": this.name, "data": this.data},
        parent=this.parent_run,
    )
    trainer(dataclasses.replace(run, mlflow_run=identity), [TuneReportCallback()]).fit()


def reason_of(error: BaseException) -> str:
    """The last line of the innermost error: what a person wants to read."""
    failures = getattr(error, "worker_failures", None)
    if failures:
        error = next(iter(failures.values()))
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def search(study: Study, *, resume: bool = False, progress: Callable[[str], None] = print) -> list[Trial]:
    """Run or resume a study.

    Returns:
        All trials, the best first, failed ones last.

    Raises:
        ConfigError: the study exists and `resume` is not set, or the other way round, or the space does not fit.
    """
    space, cohort = load_space(study.space), _cohort(study)
    with_cohort(_base(study, space, {}), cohort)  # a misspelt key fails here and not in every trial
    for split in ("train", "validation", "test"):
        cohort.split(split)
    exists = (study.folder / "tuner.pkl").exists()
    if exists and not resume:
        raise ConfigError(f"the study {study.name} exists; give --resume to go on with it, or another --name")
    if resume and not exists:
        raise ConfigError(f"there is no study {study.name} under {study.folder.parent} to resume; leave --resume out")
    tracker = tracking.connect(Path(study.home))
    parent = tracker.run(
        EXPERIMENT, study.name, parameters=_parameters(study, space), tags={"study": study.name, "kind": "study"}
    )
    study = dataclasses.replace(study, tracking_uri=tracker.uri, parent_run=parent)
    tuner = _tuner(study, space, resume, progress)
    grid = tuner.fit()
    found = [_trial(study, space, result) for result in grid]
    worst = -math.inf if space.mode == "max" else math.inf
    key = {trial.name: (worst if math.isnan(s := trial.score(space.metric)) else s) for trial in found}
    found.sort(key=lambda trial: (bool(trial.reason), -key[trial.name] if space.mode == "max" else key[trial.name]))
    _close_runs(tracker, found)
    best = found[0].score(space.metric) if found else math.nan
    tracker.log(parent, {f"best_{space.metric}": best})
    tracker.finish(parent)
    return found


def _parameters(study: Study, space: Space) -> dict[str, Any]:
    chosen = {k: v for k, v in dataclasses.asdict(study).items() if k not in ("tracking_uri", "parent_run", "fixed")}
    return chosen | {"metric": space.metric, "domains": json.dumps(space.domains)}


def _tuner(study: Study, space: Space, resume: bool, progress: Callable[[str], None]) -> tune.Tuner:
    trainable = tune.with_resources(
        tune.with_parameters(run_trial, study=dataclasses.asdict(study)), {"CPU": 0, SLOT: 1}
    )
    if resume:
        _forget_unfinished(study)
        return tune.Tuner.restore(str(study.folder), trainable=trainable, resume_unfinished=True)
    (study.folder.parent).mkdir(parents=True, exist_ok=True)
    storage = optuna.storages.RDBStorage(_database(study))
    searcher = OptunaSearch(study_name=study.name, storage=storage, seed=study.seed)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return tune.Tuner(
        trainable,
        param_space={key: _domain(domain) for key, domain in space.domains.items()},
        tune_config=tune.TuneConfig(
            metric=space.metric,
            mode=space.mode,
            num_samples=study.trials,
            max_concurrent_trials=study.concurrent,
            search_alg=searcher,
            scheduler=ASHAScheduler(time_attr="epoch", max_t=study.epochs, grace_period=max(1, study.epochs // 4)),
        ),
        run_config=tune.RunConfig(
            name=study.name,
            storage_path=str(study.folder.parent),
            verbose=0,
            callbacks=[_Progress(progress, space.metric, study.trials)],
        ),
    )


def _domain(domain: tuple[Any, ...]) -> Any:
    kind, *rest = domain
    if kind == "choice":
        return tune.choice(list(rest[0]))
    if kind == "options":
        return tune.choice(list(rest[0]))
    if kind in ("uniform", "loguniform"):
        return getattr(tune, kind)(*rest)
    raise ConfigError(f"a domain must be choice, options, uniform or loguniform, got {kind!r}")


def _database(study: Study) -> str:
    return f"sqlite:///{study.folder.parent / (study.name + '.db')}"


def _forget_unfinished(study: Study) -> None:
    """Trials that Optuna still believes to be running died with the driver; Tune restarts them by itself."""
    stored = optuna.load_study(study_name=study.name, storage=_database(study))
    for trial in stored.get_trials(states=(TrialState.RUNNING,)):
        stored.tell(trial.number, state=TrialState.FAIL)


class _Progress(tune.Callback):
    """One line for each report of a trial."""

    def __init__(self, say: Callable[[str], None], metric: str, total: int) -> None:
        self.say, self.metric, self.total = say, metric, total
        self.names: dict[str, int] = {}

    def _number(self, trial: Any) -> str:
        return f"trial {self.names.setdefault(trial.trial_id, len(self.names) + 1)}/{self.total}"

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.say(f"{self._number(trial)}  starts  " + "  ".join(f"{k}={_short(v)}" for k, v in trial.config.items()))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        shown = [f"{n} {result[n]:.4f}" for n in ("loss", "val_dice", "val_nll", "val_agreement") if n in result]
        self.say(f"{self._number(trial)}  epoch {result.get('epoch', 0):.0f}  " + "  ".join(shown))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.say(f"{self._number(trial)}  failed; the search goes on")


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _trial(study: Study, space: Space, result: Any) -> Trial:
    values = result.config or {}
    metrics = {k: float(v) for k, v in (result.metrics or {}).items() if isinstance(v, int | float)}
    name = f"{study.name}-{(result.metrics or {}).get('trial_id', Path(result.path).name)}"
    return Trial(
        name=name,
        values={k: v for k, v in values.items() if k in space.domains},
        metrics=metrics,
        run=trial_run(study, space, values, name),
        checkpoint=str((result.metrics or {}).get("checkpoint_path", "")),
        reason=reason_of(result.error) if result.error else "",
    )


def _close_runs(tracker: tracking.Tracker, trials: list[Trial]) -> None:
    """End the MLflow run of every trial the way Tune says it ended."""
    for trial in trials:
        found = tracker.client.search_runs(
            [tracker.experiment(EXPERIMENT)], filter_string=f"tags.`ldseg.name` = '{trial.name}'", max_results=1
        )
        if found and found[0].info.status == "RUNNING":
            tracker.finish(found[0].info.run_id, "FAILED" if trial.reason else "FINISHED", trial.reason)


def choose_steps(metrics: dict[str, float], metric: str, mode: str, default: int) -> int:
    """The cheapest number of sampling steps that keeps the score and the diversity of the samples.

    A count keeps the score when it is within half a Dice point (a fiftieth of the value where less is better) of the
    best, and the diversity when 1 - agreement is at least 0.8 of that with the most steps.
    """
    counts = [n for n in STEP_COUNTS if f"{metric}_steps{n}" in metrics]
    if not counts:
        return default
    scores = {n: metrics[f"{metric}_steps{n}"] for n in counts}
    spread = {n: 1 - metrics.get(f"val_agreement_steps{n}", 0.0) for n in counts}
    best = max(scores.values()) if mode == "max" else min(scores.values())
    kept = [n for n in counts if (scores[n] >= best - 0.005 if mode == "max" else scores[n] <= 1.02 * best)]
    diverse = [n for n in kept if spread[n] >= 0.8 * spread[counts[-1]] and spread[n] > 0]
    return min(diverse or [counts[-1]])


def table(trials: list[Trial], metric: str) -> str:
    """The trials as text, best first."""
    keys = list(dict.fromkeys(k for t in trials for k in t.values))
    header = ["trial", metric, "epochs", *keys, "state"]
    rows = [
        [
            trial.name, f"{trial.score(metric):.4f}", f"{trial.metrics.get('epoch', 0):.0f}",
            *[_short(trial.values.get(k, "")) for k in keys], trial.reason[:60] or "done",
        ]
        for trial in trials
    ]  # fmt: skip
    widths = [max(len(r[i]) for r in [header, *rows]) for i in range(len(header))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in [header, *rows])
