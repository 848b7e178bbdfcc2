"""Inside a training: the loop of a worker, its checkpoints, and the bundle that comes out."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray.train
import ray.train.collective
import ray.train.torch
import torch
from ray.train import CheckpointUploadMode

from ldseg.bundle import load_bundle
from ldseg.config import Config
from ldseg.data.dataset import TrainingSet
from ldseg.files import append_line
from ldseg.orchestration.tracking.run_log import RunLog
from ldseg.orchestration.training.run import HISTORY, STEP_COUNTS, TrainRun, note, read_data
from ldseg.training.checkpoint import add_checkpoint, newest_whole
from ldseg.training.fit import EpochResult, TrainingState, fit, validate
from ldseg.training.losses import TrainingLoss

SCORED = ("val_dice", "val_energy_score", "val_nll", "val_agreement", "val_seconds")
SCORED_SAMPLES = 4


def worker(run: TrainRun) -> None:
    """Train a run's share of the cases as a worker of Ray Train, reporting after each epoch."""
    context = ray.train.get_context()
    where = {"rank": context.get_world_rank(), "world": context.get_world_size()}
    for metrics, checkpoint in epochs(run, device=str(ray.train.torch.get_device()), **where):
        brought = ray.train.Checkpoint(str(checkpoint)) if checkpoint else None
        # the checkpoint lies where it belongs
        ray.train.report(metrics, checkpoint=brought, checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD)


def epochs(
    run: TrainRun, *, device: str, rank: int = 0, world: int = 1
) -> Iterator[tuple[dict[str, float], Path | None]]:
    """Train a run's share of the cases; yields the numbers of each epoch and, on rank 0, its checkpoint."""
    config, cohort = Config.from_dict(run.config), read_data(run)
    torch.set_num_threads(max(1, round(run.cpus_per_worker)))
    cache = Path(run.home) / "cache"
    train = TrainingSet(cohort.split("train"), config.data, config.model.multiple, cache, seed=config.optim.seed)
    validation = TrainingSet(cohort.split("validation"), config.data, config.model.multiple, cache, training=False)
    state = TrainingState.create(config, device)
    last = _go_on(run, state, rank, world)
    if not state.epoch and run.start_from:
        state.start_from(load_bundle(Path(run.start_from)).model.state_dict())
    if state.epoch >= config.optim.epochs and state.history:
        yield state.history[-1], last if rank == 0 else None  # nothing is left: tell the last numbers again
        return
    forward = _data_parallel(state, train.has_ignored) if world > 1 else None
    start = time.monotonic()
    known = {k: v for epoch in state.history for k, v in epoch.items() if k.startswith("val_")}
    options: dict[str, Any] = {"device": device, "forward": forward, "rank": rank, "world_size": world}
    for result in fit(state, train, validation, **options):
        stop = run.minutes > 0 and time.monotonic() - start > 60 * run.minutes
        if world > 1:
            stop = ray.train.collective.broadcast_from_rank_zero(stop)
        finished = stop or state.epoch == config.optim.epochs
        if finished and rank == 0 and "val_dice" not in result.metrics:
            result.metrics.update(
                validate(state.ema, validation, device=device, samples=config.optim.validation_samples)
            )
        if finished and run.score_steps and rank == 0:
            result.metrics.update(_score_steps(state, validation, device))
        state.history[-1] |= result.metrics
        _note(run, result, rank)
        known |= {k: v for k, v in result.metrics.items() if k.startswith("val_")}
        # a scheduler wants its metric in every report: between validations it is told the last one
        kept = add_checkpoint(run.folder, state.save) if rank == 0 else None
        yield {"epoch": result.epoch, **known, **result.metrics}, kept
        if stop:
            return


def _data_parallel(state: TrainingState, has_ignored: bool) -> torch.nn.Module:
    """The loss as PyTorch's DistributedDataParallel, which exchanges gradients while others are still computed."""
    options = {
        "gradient_as_bucket_view": True,  # no second copy of the gradients
        # the control trains two of the four networks, an update of the image alone one
        "find_unused_parameters": state.config.loss.deterministic or state.config.loss.image_alone > 0,
    }
    loss = TrainingLoss(state.model, has_ignored=has_ignored)
    return ray.train.torch.prepare_model(loss, move_to_device=False, parallel_strategy_kwargs=options)


def _go_on(run: TrainRun, state: TrainingState, rank: int, world: int) -> Path | None:
    """Load the newest checkpoint that is whole, the same on every rank; Ray's own choice may lie epochs behind it."""
    found = newest_whole(run.folder, state.load, lambda text: note(run, text)) if rank == 0 else None
    name = found.name if found else ""
    if world > 1:
        name = ray.train.collective.broadcast_from_rank_zero(name)
        if rank > 0 and name:
            state.load(run.folder / name)
    return run.folder / name if name else None


def _score_steps(state: TrainingState, validation: TrainingSet, device: str) -> dict[str, float]:
    """One training, scored at several numbers of denoiser calls; seconds are those of a sample, scoring included."""
    scores: dict[str, float] = {}
    for steps in STEP_COUNTS:
        if steps <= state.config.diffusion.num_train_steps:
            start = time.perf_counter()
            found = validate(state.ema, validation, device=device, samples=SCORED_SAMPLES, num_steps=steps)
            found["val_seconds"] = (time.perf_counter() - start) / (SCORED_SAMPLES * len(validation))
            scores |= {f"{name}_steps{steps}": found[name] for name in SCORED}
    return scores


def _note(run: TrainRun, result: EpochResult, rank: int) -> None:
    if rank != 0:
        return
    run.folder.mkdir(parents=True, exist_ok=True)
    line = {"epoch": result.epoch, "seconds": result.seconds, **result.metrics}
    append_line(run.folder / HISTORY, json.dumps(line))
    if run.log:
        RunLog(Path(run.log)).log(result.metrics | {"epoch_seconds": result.seconds}, result.epoch)


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
