"""A study as it lies on disk: Optuna's database holds every trial, whatever happens to the search that runs them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import OptunaError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.exc import SQLAlchemyError

from ldseg.config import ConfigError
from ldseg.data.cohort import Cohort
from ldseg.orchestration.home import STUDIES_URL, without_password
from ldseg.orchestration.search.pareto import FRONT
from ldseg.orchestration.search.spaces import Space, as_choice, with_cohort
from ldseg.orchestration.training.run import TrainRun, read_data

optuna.logging.set_verbosity(optuna.logging.WARNING)

SETTINGS, METRICS, REASON, STEPS = "settings", "metrics", "reason", "steps"
OBJECTIVES = "objectives"  # of a front, as its study was begun
FIRST_OBJECTIVES = ("val_dice", "val_nll", "val_seconds")  # of version 0.1, whose studies don't name them
STANDS_FOR = "infeasible"  # number of the failed trial that a record tells the sampler about
REFUSED = "refused"
MAY_CHANGE = ("trials", "trials_at_once", "workers", "cpus_per_worker", "gpus_per_worker", "hours", "memory_gb")


@dataclass(frozen=True, kw_only=True)
class Study:
    """What a search is.

    Attributes:
        name: identifies the study in Optuna's database, and its parent run.
        space: a name in tune_spaces or a path of a .py file.
        trials: that are trained; configurations that are refused don't count.
        fixed: the operator's own overrides, the same in every trial.
        epochs: of a trial that is not stopped early.
        front: several objectives at once (`ldseg.orchestration.search.pareto`) and no early stopping, in place of the
            space's one metric with early stopping.
        trials_at_once: each has `workers` workers.
        minutes: of training for each trial; 0 trains all epochs.
        memory_gb: main memory that a worker may take; a trial that asks for more fails as infeasible; 0 for no limit.
        hours: after which no further trial starts; 0 for no limit.
        warm_start: name of an earlier study whose best trials are tried first.
        sampler: "tpe", or "random" to compare it with.
    """

    name: str
    home: str
    data: str
    space: str
    trials: int
    epochs: int
    fixed: dict[str, Any] = field(default_factory=dict)
    front: bool = False
    trials_at_once: int = 1
    workers: int = 1
    cpus_per_worker: float = 1.0
    gpus_per_worker: float = 0.0
    seed: int = 0
    split_seed: int = 0
    minutes: float = 0.0
    memory_gb: float = 0.0
    hours: float = 0.0
    warm_start: str = ""
    sampler: str = "tpe"

    @property
    def folder(self) -> Path:
        """Where the study's report lies, and what Ray Tune writes."""
        return Path(self.home) / "studies" / self.name

    def directions(self, space: Space) -> list[str]:
        """Of what Optuna is told of a trial."""
        modes = [mode for _, mode in FRONT] if self.front else [space.mode]
        return ["maximize" if mode == "max" else "minimize" for mode in modes]

    def failure(self, number: int) -> Path:
        """Where a trial writes why it failed: not beside its checkpoints, whose disk may be full."""
        return self.folder / f"{self.run_name(number)}.failure.json"

    def run_name(self, number: int) -> str:
        """Of a trial's training and of its MLflow run."""
        return f"{self.name}-{number:04d}"


def open_study(study: Study, space: Space, *, resume: bool) -> optuna.Study:
    """The study's trials in Optuna.

    Raises:
        ConfigError: it exists and `resume` is not set, or the other way round, or it was another search.
    """
    home = Path(study.home)
    storage, exists = studies_storage(home, study.name), study.name in study_names(home)
    if exists and not resume:
        raise ConfigError(f"the study {study.name} exists; give --resume to go on with it, or another --name")
    if resume and not exists:
        raise ConfigError(f"there is no study {study.name} in {_studies_place(home)} to resume; leave --resume out")
    study.folder.mkdir(parents=True, exist_ok=True)
    stored = optuna.create_study(
        study_name=study.name,
        storage=storage,
        directions=study.directions(space),
        load_if_exists=exists,
    )
    settings = {k: v for k, v in asdict(study).items() if k not in MAY_CHANGE}
    settings |= {"domains": space.domains, "metric": space.metric}
    settings = json.loads(json.dumps(settings, default=str))
    before = stored.user_attrs.get(SETTINGS)
    if before is None:
        stored.set_user_attr(OBJECTIVES, [name for name, _ in FRONT])
        for values in [*space.start, *_best_of(study)]:
            stored.enqueue_trial({k: as_choice(v) for k, v in values.items()}, skip_if_exists=True)
        stored.set_user_attr(SETTINGS, settings)  # last: whoever is killed before it begins the study again
    else:
        changed = [key for key in settings if settings[key] != before.get(key)]
        if changed:
            raise ConfigError(
                f"the study {study.name} was begun with another {changed[0]} ({before.get(changed[0])}); "
                "give the same options to go on with it, or another --name"
            )
    return stored


def objectives(stored: optuna.Study) -> list[str]:
    """What a front's trials are told by: a study that goes on keeps what it was begun with."""
    return list(stored.user_attrs.get(OBJECTIVES, FIRST_OBJECTIVES))


def read_study(home: Path, name: str) -> optuna.Study:
    """An existing study.

    Raises:
        ConfigError: there is none of that name.
    """
    storage, known = studies_storage(home, name), study_names(home)
    if name not in known:
        raise ConfigError(f"there is no study {name} in {_studies_place(home)}; there is {', '.join(known) or 'none'}")
    return optuna.load_study(study_name=name, storage=storage)


def studies_storage(home: Path, name: str) -> str | RDBStorage:
    """Where a study lies: in LDSEG_STUDIES_URL, one database for all, else in a file of its own in the home.

    Raises:
        ConfigError: the database can't be reached, or the study lies in a file although there is a database.
    """
    address, file = os.environ.get(STUDIES_URL), home / "studies" / f"{name}.db"
    if not address:
        return f"sqlite:///{file}"
    if file.exists():
        raise ConfigError(f"the study {name} lies in {file}; unset {STUDIES_URL} to use it, or take another --name")
    try:
        return RDBStorage(address, engine_kwargs={"pool_pre_ping": True})  # the server may have been started anew
    except (SQLAlchemyError, OptunaError, ImportError) as error:
        reason = without_password(str(error.__cause__ or error).splitlines()[0])
        raise ConfigError(f"{STUDIES_URL} ({_studies_place(home)}) can't be used: {reason}") from error


def study_names(home: Path) -> list[str]:
    """The studies that there are.

    Raises:
        ConfigError: as `studies_storage`.
    """
    if not os.environ.get(STUDIES_URL):
        return sorted(path.stem for path in (home / "studies").glob("*.db"))
    return sorted(optuna.study.get_all_study_names(studies_storage(home, "")))


def _studies_place(home: Path) -> str:
    """Where studies lie, as it may be shown."""
    return without_password(os.environ.get(STUDIES_URL) or str(home / "studies"))


def _best_of(study: Study, count: int = 3) -> list[dict[str, Any]]:
    """Parameters of the best trials of the study to start from."""
    if not study.warm_start:
        return []
    earlier = read_study(Path(study.home), study.warm_start)
    finished = [t for t in earlier.get_trials(states=(TrialState.COMPLETE,)) if STANDS_FOR not in t.user_attrs]
    maximize = earlier.directions[0] == optuna.study.StudyDirection.MAXIMIZE
    return [t.params for t in sorted(finished, key=lambda t: t.values[0], reverse=maximize)[:count]]


def trained(stored: optuna.Study) -> list[FrozenTrial]:
    """The trials that were started: without refused configurations, and those that stand for another."""
    trials = stored.get_trials(states=(TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL))
    return [t for t in trials if STANDS_FOR not in t.user_attrs and REFUSED not in t.user_attrs]


def tell_infeasible(stored: optuna.Study, trial: FrozenTrial) -> None:
    """Let the sampler know of a configuration that does not fit into memory: it never looks at failed trials."""
    distributions: Mapping[str, BaseDistribution] = trial.distributions
    worst = [-math.inf if d == optuna.study.StudyDirection.MAXIMIZE else math.inf for d in stored.directions]
    stored.add_trial(
        create_trial(
            values=[max(min(value, 1e9), -1e9) for value in worst],
            params=trial.params,
            distributions=dict(distributions),
            constraints={"memory": 1.0},
            user_attrs={STANDS_FOR: trial.number},
        )
    )


def requeue(stored: optuna.Study, number: int) -> None:
    """Let a trial wait that could not go on through no fault of its own: the study asks for it first when resumed."""
    trial = stored.get_trials(deepcopy=False)[number]
    stored._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)


def trial_run(study: Study, space: Space, values: dict[str, Any], name: str) -> TrainRun:
    """The training that a trial is.

    Raises:
        ConfigError: the values make no valid configuration.
    """
    fixed = {"optim.epochs": study.epochs, "optim.seed": study.seed, **study.fixed}
    config = space.configuration(values, fixed).to_dict()
    if not {"structures", "label_values"} & set(space.base.get("data", {})):
        del config["data"]["structures"], config["data"]["label_values"]
    return TrainRun(
        name=name,
        home=study.home,
        data=study.data,
        config=with_cohort(config, study_cohort(study)).to_dict(),
        workers=study.workers,
        cpus_per_worker=study.cpus_per_worker,
        gpus_per_worker=study.gpus_per_worker,
        minutes=study.minutes,
        memory_gb=study.memory_gb,
        split_seed=study.split_seed,
        score_steps=True,
    )


def study_cohort(study: Study) -> Cohort:
    """The study's data."""
    return read_data(TrainRun(name="x", home=study.home, data=study.data, config={}, split_seed=study.split_seed))
