"""What a finished training leaves: its state from a checkpoint, and the bundle with its card."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ldseg.bundle import load_bundle, save_bundle, save_members
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
    path, config = Path(run.home) / "bundles" / run.name, state.config
    last = {k: v for k, v in state.history[-1].items() if math.isfinite(v)} if state.history else {}
    trained = {"epochs": state.epoch, "updates": state.updates, "validation": last}
    content = _origin(run, config, command) | trained | card
    save_bundle(path, state.ema, config, content, dtype=torch.float16 if half else torch.float32)
    return path


def export_members(run: TrainRun, members: Sequence[Path], command: str, **card: Any) -> Path:
    """Write the bundles of a run's folds as one; returns its folder.

    Its card says of all cases of training and validation that it was trained on them, and under "folds" which member
    was not.
    """
    path, cards = Path(run.home) / "bundles" / run.name, [load_bundle(member).card for member in members]
    content = _origin(run, load_bundle(members[0]).config, command)
    content["split"] = {
        "train": sorted(content["split"]["train"] + content["split"]["validation"]),
        "validation": [],
        "test": content["split"]["test"],
    }
    content["folds"] = [held["split"]["validation"] for held in cards]
    trained = {name: [own[name] for own in cards] for name in ("epochs", "updates", "validation")}
    save_members(path, members, content | trained | card)
    return path


def _origin(run: TrainRun, config: Config, command: str) -> dict[str, Any]:
    """What a card says of where a model comes from."""
    cohort = read_data(run)
    return {
        "name": run.name,
        "data": {"name": cohort.name, "cases": len(cohort.cases), "split_seed": run.split_seed},
        "structures": list(config.data.structures),
        "split": {name: [c.name for c in cohort.cases if c.split == name] for name in ("train", "validation", "test")},
        "content": content_digests((c for c in cohort.cases if c.split), config.data),
        "command": command,
        **({"started_from": load_bundle(Path(run.start_from)).digest} if run.start_from else {}),
        "commit": provenance.commit(),
    }
