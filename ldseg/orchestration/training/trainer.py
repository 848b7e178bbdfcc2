"""One training by Ray Train: any number of workers, resumed by name."""

from __future__ import annotations

import dataclasses
import json
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import ray.train
import ray.train.torch
from ray.exceptions import RayActorError
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME as SNAPSHOT

from ldseg.files import FULL, disk_full
from ldseg.orchestration.tracking.run_log import RunLog
from ldseg.orchestration.training.failures import died, is_memory, reason_of
from ldseg.orchestration.training.rendezvous import LocalTorchConfig
from ldseg.orchestration.training.run import HISTORY, TrainRun, check_same, last_metrics, note, warn_of_notes

if TYPE_CHECKING:
    from ldseg.training.fit import TrainingState

logger = logging.getLogger(__name__)
T = TypeVar("T")

DEATHS = 3  # of workers in the same epoch, after which a training has failed


def start(values: dict[str, Any]) -> None:
    """What every Ray Train worker runs; the science is imported there and not in Ray's own helper processes."""
    from ldseg.orchestration.training.worker import limited_memory, worker

    run = TrainRun(**values)
    with limited_memory(run.memory_gb):
        worker(run)


def trainer(run: TrainRun, callbacks: list[Any] | None = None) -> ray.train.torch.TorchTrainer:
    """The TorchTrainer of a run; `fit()` starts it or goes on with it.

    Raises:
        ConfigError: a run of that name has another configuration.
    """
    check_same(run)
    return ray.train.torch.TorchTrainer(
        start,
        train_loop_config=dataclasses.asdict(run),
        torch_config=LocalTorchConfig(),
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


def train(run: TrainRun, progress: Callable[[dict[str, float]], None] | None = None) -> ray.train.Checkpoint:
    """Train to the end, or go on where the run of this name stopped.

    Args:
        run: what to train; if it fails, its log ends as FAILED with the reason.
        progress: called in the driver for each epoch with its numbers.

    Returns:
        The last checkpoint; `ldseg.orchestration.training.export.load_state` reads it.

    Raises:
        What `fit` raises.
    """
    follower = Follower(run.folder / HISTORY, progress) if progress else None
    try:
        return fit(run).checkpoint
    except (TrainingFailedError, OSError) as error:
        if run.log:
            RunLog(Path(run.log)).end("FAILED", reason_of(error))
        raise
    finally:
        if follower:
            follower.stop()
        warn_of_notes(run)


class Follower:
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
        """When the last line has been read."""
        self.ended.set()
        self.thread.join()


def train_to_end(run: TrainRun, progress: Callable[[dict[str, float]], None] | None = None) -> TrainingState:
    """`train`, and its final state on the CPU."""
    from ldseg.orchestration.training.export import load_state

    return load_state(run, train(run, progress))
