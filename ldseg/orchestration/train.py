"""One training by Ray Train: any number of workers, resumed by name."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import resource
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ldseg.orchestration import home as _home  # noqa: F401  sets the environment before ray is imported

import ray.train  # isort: skip
import ray.train.torch  # isort: skip
from ray.exceptions import RayActorError
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME as SNAPSHOT

from ldseg.checkpoint import FULL, append_line, disk_full
from ldseg.config import Config, ConfigError, flatten
from ldseg.data.cohort import Cohort, read_cohort
from ldseg.data.volume import write_atomically
from ldseg.orchestration.causes import died, is_memory, reason_of
from ldseg.orchestration.runlog import RunLog

logger = logging.getLogger(__name__)
T = TypeVar("T")

STEP_COUNTS = (1, 2, 4, 8, 16)
HISTORY, SETTINGS, NOTES = "history.jsonl", "run.json", "notes.txt"
DEATHS = 3  # of workers in the same epoch, after which a training has failed


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

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", self.name):
            raise ConfigError(f"the run's name {self.name!r} must consist of letters, digits, dots, - and _")
        if self.workers < 1:
            raise ConfigError(f"workers must be at least 1, got {self.workers}")
        if self.gpus_per_worker < 0:
            raise ConfigError(f"gpus_per_worker must not be negative, got {self.gpus_per_worker}")

    @property
    def folder(self) -> Path:
        """Where the run keeps its checkpoints and its history."""
        return Path(self.home) / "train" / self.name


def read_data(run: TrainRun) -> Cohort:
    """The run's cohort, split by case name and seed."""
    foreground_only = Config.from_dict(run.config).data.foreground_only
    return read_cohort(run.data, seed=run.split_seed, test_cases=run.test_cases, foreground_only=foreground_only)


def start(values: dict[str, Any]) -> None:
    """What every Ray Train worker runs; the science is imported there and not in Ray's own helper processes."""
    from ldseg.orchestration.loop import worker

    run = TrainRun(**values)
    with limited_memory(run.memory_gb):
        worker(run)


@contextmanager
def limited_memory(gigabytes: float) -> Iterator[None]:
    """Let this process take only so much more memory, in 2**30 bytes; 0 for no limit. Telling of a failure is free."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    if gigabytes > 0:
        lines = Path("/proc/self/status").read_text().splitlines()
        used = next(int(line.split()[1]) for line in lines if line.startswith("VmData:")) * 1024
        resource.setrlimit(resource.RLIMIT_DATA, (used + round(gigabytes * 2**30), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def trainer(run: TrainRun, callbacks: list[Any] | None = None) -> ray.train.torch.TorchTrainer:
    """The TorchTrainer of a run; `fit()` starts it or goes on with it.

    Raises:
        ConfigError: a run of that name has another configuration.
    """
    check_same(run)
    return ray.train.torch.TorchTrainer(
        start,
        train_loop_config=dataclasses.asdict(run),
        scaling_config=ScalingConfig(
            num_workers=run.workers,
            use_gpu=run.gpus_per_worker > 0,
            resources_per_worker={"CPU": run.cpus_per_worker}
            | ({"GPU": run.gpus_per_worker} if run.gpus_per_worker else {}),
        ),
        run_config=RunConfig(
            name=run.name,
            storage_path=str(Path(run.home) / "train"),
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=2),  # `fit` restarts, and knows why
            callbacks=callbacks or [],
        ),
    )


def check_same(run: TrainRun) -> None:
    """Remember a new run's settings; refuse to go on with others under the same name (more epochs are fine)."""
    path = run.folder / SETTINGS
    own = flatten(run.config) | {"data": run.data, "split_seed": run.split_seed, "test_cases": run.test_cases}
    own |= {"start_from": run.start_from} if run.start_from else {}
    if path.is_file():
        stored = json.loads(path.read_text())
        free = {"optim.epochs", "optim.validate_every", "optim.validation_samples"}
        changed = [k for k in own if k not in free and json.loads(json.dumps(own[k])) != stored.get(k)]
        if changed:
            key = changed[0]
            raise ConfigError(
                f"the run {run.name} exists with another configuration ({key} {stored.get(key)} and not {own[key]}); "
                "choose another name, or give the same options to go on with it"
            )
    write_atomically(path, json.dumps(own, indent=1).encode())


class WorkerDiedError(ChildProcessError):
    """The workers of a training die again and again."""


def fit(run: TrainRun, callbacks: list[Any] | None = None) -> ray.train.Result:
    """Train; where a process dies, go on from the last checkpoint.

    An error of the training itself (it diverges, memory runs out, a mistake) would come again: it is not retried.

    Raises:
        DiskFullError: under the run's folder.
        WorkerDiedError: processes died several times without an epoch between.
        ray.train.TrainingFailedError: the worker's own error.
    """

    def attempt() -> ray.train.Result:
        # the checkpoints themselves are what counts; Ray's list of them lags behind and may be half-written
        (run.folder / SNAPSHOT).unlink(missing_ok=True)
        return trainer(run, callbacks).fit()

    return persist(run, attempt)


def persist(run: TrainRun, attempt: Callable[[], T]) -> T:
    """Attempt a training again where a process of it has died; see `fit` for what is raised."""
    deaths, before = 0, -1.0
    while True:
        try:
            return attempt()
        except (TrainingFailedError, RayActorError, OSError) as error:
            reason = reason_of(error)
            if FULL in reason or "no space left" in reason.lower():
                raise disk_full(run.folder) from error
            if not died(error) or is_memory(reason):
                raise
            epoch = last_metrics(run.folder).get("epoch", 0.0)
            deaths, before = (deaths + 1 if epoch == before else 1), epoch
            where = f"in epoch {epoch + 1:.0f} (killed, crashed, or the machine was short of memory)"
            if deaths == DEATHS:
                raise WorkerDiedError(f"a process of the training died {deaths} times {where}") from error
            note(run, f"a process of the training died {where}; it goes on from the last checkpoint")


def note(run: TrainRun, text: str) -> None:
    """Add a line to the run's notes, which the program that started it says when the run has ended."""
    run.folder.mkdir(parents=True, exist_ok=True)
    append_line(run.folder / NOTES, " ".join(text.split()))


def say_notes(run: TrainRun) -> None:
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


def train(run: TrainRun, progress: Callable[[dict[str, float]], None] | None = None) -> ray.train.Checkpoint:
    """Train to the end, or go on where the run of this name stopped.

    Args:
        run: what to train; if it fails, its log ends as FAILED with the reason.
        progress: called in the driver for each epoch with its numbers.

    Returns:
        The last checkpoint; `ldseg.orchestration.loop.load_state` reads it.

    Raises:
        What `fit` raises.
    """
    follower = _Follower(run.folder / HISTORY, progress) if progress else None
    try:
        return fit(run).checkpoint
    except (TrainingFailedError, OSError) as error:
        if run.log:
            RunLog(Path(run.log)).end("FAILED", reason_of(error))
        raise
    finally:
        if follower:
            follower.stop()
        say_notes(run)


class _Follower:
    """Reads a run's history while it grows."""

    def __init__(self, path: Path, progress: Callable[[dict[str, float]], None]) -> None:
        self.path, self.progress = path, progress
        self.offset = path.stat().st_size if path.exists() else 0
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._follow, daemon=True)
        self.thread.start()

    def _follow(self) -> None:
        while not self.ended.wait(0.5):
            self._read()
        self._read()

    def _read(self) -> None:
        if not self.path.exists():
            return
        with open(self.path) as file:
            file.seek(self.offset)
            while (line := file.readline()).endswith("\n"):
                self.offset += len(line.encode())
                self.progress(json.loads(line))

    def stop(self) -> None:
        self.ended.set()
        self.thread.join()
