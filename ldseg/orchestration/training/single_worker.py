"""A training by one process, which is kept for the next one: its libraries are imported once in a search."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from ldseg.orchestration.training.run import TrainRun, check_same
from ldseg.orchestration.training.trainer import persist
from ldseg.orchestration.training.worker import limited_memory

Report = Callable[[dict[str, Any]], None]
_kept: dict[tuple[float, float], Any] = {}


class TrialTrainer:
    """Trains one run after the other, an epoch at a call."""

    def __init__(self) -> None:
        from ldseg.orchestration.training import worker

        self.loop = worker
        self.epochs: Iterator[Any] = iter(())
        self.limit = ExitStack()

    def begin(self, run: TrainRun) -> None:
        """Forget the run before and get ready for this one."""
        self.limit.close()
        self.epochs = iter(())  # what the run before has taken is given back first
        self.limit.enter_context(limited_memory(run.memory_gb))
        self.epochs = self.loop.epochs(run, device="cuda" if run.gpus_per_worker else "cpu")

    def next(self) -> dict[str, Any] | None:
        """The numbers of the next epoch and the path of its checkpoint; None at the end."""
        try:
            metrics, checkpoint = next(self.epochs)
            return {**metrics, "checkpoint_path": str(checkpoint)} if checkpoint else metrics
        except StopIteration:
            self.limit.close()
            return None
        except BaseException:
            self.limit.close()  # to tell of a failure is free
            raise


def fit_alone(run: TrainRun, report: Report) -> None:
    """Train a run of one worker as `fit` does, without Ray Train: starting its processes takes longer than an epoch.

    Args:
        run: what to train.
        report: is given the numbers of each epoch; the next one begins when it returns.

    Raises:
        ConfigError: a run of that name has another configuration.
        What `fit` raises; the training's own error as it is.
    """
    check_same(run)
    persist(run, lambda: _attempt(run, report))


def _attempt(run: TrainRun, report: Report) -> None:
    place = run.cpus_per_worker, run.gpus_per_worker
    if place not in _kept:
        _kept[place] = _start(run)
    trainer = _kept[place]
    try:
        ray.get(trainer.begin.remote(run))
        while (metrics := ray.get(trainer.next.remote())) is not None:
            report(metrics)  # Tune ends a trial here; the process waits for the next one
    except (RayTaskError, RayActorError) as error:
        ray.kill(_kept.pop(place))  # its memory is as the failure left it
        cause = getattr(error, "cause", None)
        raise cause if isinstance(cause, Exception) else error from None


def _start(run: TrainRun) -> Any:
    """In the bundle that the trial's placement group has for it."""
    return ray.remote(num_cpus=run.cpus_per_worker, num_gpus=run.gpus_per_worker)(TrialTrainer).remote()
