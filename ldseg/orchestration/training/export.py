"""What a finished training leaves: its state from a checkpoint, and the bundle with its card."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from ldseg.bundle import load_bundle, save_bundle
from ldseg.config import Config
from ldseg.data.content import content_digests
from ldseg.orchestration.tracking import provenance
from ldseg.orchestration.training.run import TrainRun, read_data
from ldseg.training.fit import TrainingState


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
