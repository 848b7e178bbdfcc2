"""Inside a training: the loop of a worker, its checkpoints, and the bundle that comes out."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ldseg.orchestration import provenance

import ray.train  # isort: skip
import ray.train.collective  # isort: skip
import ray.train.torch  # isort: skip
import torch
from ray.train import CheckpointUploadMode

from ldseg.bundle import load_bundle, save_bundle
from ldseg.checkpoint import add_checkpoint, append_line, newest_whole
from ldseg.config import Config
from ldseg.data.content import content_digests
from ldseg.data.dataset import TrainingSet
from ldseg.losses import TrainingLoss
from ldseg.orchestration.runlog import RunLog
from ldseg.orchestration.train import HISTORY, STEP_COUNTS, TrainRun, note, read_data, train
from ldseg.training import EpochResult, TrainingState, fit, validate

SCORED = ("val_dice", "val_nll", "val_agreement", "val_seconds")
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
    forward = _data_parallel(state) if world > 1 else None
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


def _data_parallel(state: TrainingState) -> torch.nn.Module:
    """The loss as PyTorch's DistributedDataParallel, which exchanges gradients while others are still computed."""
    options = {
        "gradient_as_bucket_view": True,  # no second copy of the gradients
        "find_unused_parameters": state.config.loss.deterministic,  # which trains two of the four networks
    }
    loss = TrainingLoss(state.model)
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


def train_to_end(run: TrainRun, progress: Callable[[dict[str, float]], None] | None = None) -> TrainingState:
    """`train`, and its final state on the CPU."""
    return load_state(run, train(run, progress))


def load_state(run: TrainRun, checkpoint: Any) -> TrainingState:
    """The training state in a checkpoint, on the CPU."""
    state = TrainingState.create(Config.from_dict(run.config))
    with checkpoint.as_directory() as folder:
        state.load(Path(folder))
    return state


def export(run: TrainRun, state: TrainingState, command: str, *, half: bool = False, **card: Any) -> Path:
    """Write the averaged weights as a bundle with its card; returns the bundle's folder."""
    cohort, config = read_data(run), state.config
    path = Path(run.home) / "bundles" / run.name
    last = {k: v for k, v in state.history[-1].items() if math.isfinite(v)} if state.history else {}
    content = {
        "name": run.name,
        "data": {"name": cohort.name, "cases": len(cohort.cases), "split_seed": run.split_seed},
        "structures": list(config.data.structures),
        "split": {name: [c.name for c in cohort.cases if c.split == name] for name in ("train", "validation", "test")},
        "content": content_digests((c for c in cohort.cases if c.split), config.data),
        "command": command,
        **({"started_from": load_bundle(Path(run.start_from)).digest} if run.start_from else {}),
        "commit": provenance.commit(),
        "epochs": state.epoch,
        "updates": state.updates,
        "validation": last,
        **card,
    }
    save_bundle(path, state.ema, config, content, dtype=torch.float16 if half else torch.float32)
    return path
