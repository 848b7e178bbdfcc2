"""What one training is, and the files in its folder: settings, history, notes."""

from __future__ import annotations

import functools
import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldseg.bundle import MEMBERS
from ldseg.config import Config, ConfigError, flatten
from ldseg.data.cohort import Cohort, read_cohort
from ldseg.files import append_line, write_atomically

logger = logging.getLogger(__name__)

STEP_COUNTS = (1, 2, 4, 8, 16)
HISTORY, SETTINGS, NOTES = "history.jsonl", "run.json", "notes.txt"


@dataclass(frozen=True, kw_only=True)
class TrainRun:
    """What one training is; JSON-ready, so that workers on other nodes get it as it is.

    Attributes:
        name: identifies the run: the same name goes on where it stopped.
        home: absolute path, the same on every node.
        data: the same, or the address of a cohort on object storage.
        config: `Config.to_dict()`.
        workers: data-parallel processes; gloo on CPUs, NCCL on GPUs.
        cpus_per_worker: logical CPUs of a worker, also its threads.
        gpus_per_worker: 0 trains on CPUs; a share below 1 lets workers of several trials have one GPU together.
        minutes: end after the epoch that passes this; 0 trains all epochs.
        memory_gb: main memory that a worker may take beyond what its libraries have, in 2**30 bytes; 0 for no limit.
            Whoever asks for more fails alone, with a reason, before the machine has none left.
        start_from: folder of a bundle whose weights a new run begins with; "" for a fresh start.
        log: folder of the `RunLog` that rank 0 logs to; "" for none.
        test_cases: names of the cases to hold out; () takes the cohort's own split.
        folds: trainings that share the cases of training and validation, each validated on a fold of its own; 0 for
            one training with the cohort's split.
        fold: which of them this is; -1 for all together.
        score_steps: score the finished model at several numbers of sampling steps on the validation cases.
    """

    name: str
    home: str
    data: str
    config: dict[str, Any]
    workers: int = 1
    cpus_per_worker: float = 1.0
    gpus_per_worker: float = 0.0
    minutes: float = 0.0
    memory_gb: float = 0.0
    split_seed: int = 0
    test_cases: tuple[str, ...] = ()
    start_from: str = ""
    log: str = ""
    score_steps: bool = False
    folds: int = 0
    fold: int = -1

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", self.name):
            raise ConfigError(f"the run's name {self.name!r} must consist of letters, digits, dots, - and _")
        if self.workers < 1:
            raise ConfigError(f"workers must be at least 1, got {self.workers}")
        if self.folds < 0 or self.folds == 1 or not -1 <= self.fold < max(self.folds, 0):
            raise ConfigError(f"folds must be 2 or more, or 0 for none, got {self.folds} (fold {self.fold})")
        if self.gpus_per_worker < 0:
            raise ConfigError(f"gpus_per_worker must not be negative, got {self.gpus_per_worker}")

    @property
    def folder(self) -> Path:
        """Where the run keeps its checkpoints and its history."""
        return Path(self.home) / "train" / self.name


def read_data(run: TrainRun) -> Cohort:
    """The run's cohort, split by case name and seed; a process reads it once, however many runs of it there are."""
    foreground_only = Config.from_dict(run.config).data.foreground_only
    cohort = _read_once(run.data, run.split_seed, tuple(run.test_cases), foreground_only)
    return cohort if run.fold < 0 else cohort.fold(run.fold, run.folds, seed=run.split_seed)


@functools.lru_cache(maxsize=4)
def _read_once(data: str, seed: int, test_cases: tuple[str, ...], foreground_only: bool) -> Cohort:
    return read_cohort(data, seed=seed, test_cases=test_cases, foreground_only=foreground_only)


def check_same(run: TrainRun) -> None:
    """Remember a new run's settings; refuse to go on with others under the same name (more epochs are fine).

    Raises:
        ConfigError: they are others, or the run starts from what has no weights of its own.
    """
    if run.start_from and (one := Path(run.start_from) / MEMBERS).is_dir():
        raise ConfigError(f"{run.start_from} has several members; start from one of them, such as {one / '0'}")
    path = run.folder / SETTINGS
    own = flatten(run.config) | {"data": run.data, "split_seed": run.split_seed, "test_cases": run.test_cases}
    own |= {"start_from": run.start_from} if run.start_from else {}
    own |= {"folds": run.folds, "fold": run.fold} if run.folds else {}
    if path.is_file():
        stored = json.loads(path.read_text())
        sections: dict[str, Any] = {}
        for section, name in (key.split(".") for key in stored if "." in key):
            sections.setdefault(section, {})[name] = stored[f"{section}.{name}"]
        stored |= flatten(Config.from_dict(sections).to_dict())  # an earlier version had some keys more, some less
        free = {"optim.epochs", "optim.validate_every", "optim.validation_samples"}
        changed = [k for k in own if k not in free and _plain(own[k]) != _plain(stored.get(k))]
        if changed:
            key = changed[0]
            raise ConfigError(
                f"the run {run.name} exists with another configuration ({key} {stored.get(key)} and not {own[key]}); "
                "choose another name, or give the same options to go on with it"
            )
    write_atomically(path, json.dumps(own, indent=1).encode())


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    return json.loads(json.dumps(value))


def note(run: TrainRun, text: str) -> None:
    """Add a line to the run's notes, which the program that started it says when the run has ended."""
    run.folder.mkdir(parents=True, exist_ok=True)
    append_line(run.folder / NOTES, " ".join(text.split()))


def warn_of_notes(run: TrainRun) -> None:
    """Say the run's notes, once."""
    path = run.folder / NOTES
    for line in path.read_text().splitlines() if path.exists() else []:
        logger.warning("%s: %s", run.name, line)
    path.unlink(missing_ok=True)


def last_metrics(run_folder: Path) -> dict[str, float]:
    """What a training last said of each number; a torn line at the end of its history doesn't count."""
    path = run_folder / HISTORY
    known: dict[str, float] = {}
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            known |= json.loads(line)
        except ValueError:
            continue
    return {name: float(value) for name, value in known.items()}
