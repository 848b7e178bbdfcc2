#!/usr/bin/env python
"""What one training step costs in 2D and in 3D: seconds and peak memory, each in a process of its own.

With --space an update of that space's base configuration is measured against one of MONAI's U-Net as `baselines.py`
trains it: the same batch of random voxels, one thread, in turns, in seconds of the processor (a GPU's by the clock).

Example:
    python benchmarks/speed/training.py --steps 3
    python benchmarks/speed/training.py --only 3d --set model.downsampling=[8,8,8] --set model.patch=[4,4,4]
    python benchmarks/speed/training.py --space hippocampus --data Task04_Hippocampus --device cpu
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Options, chosen_device, computer, in_a_process, labelled, overrides, table

SETTINGS: dict[str, dict[str, Any]] = {
    "2d": {
        "data.spatial_dims": 2,
        "data.shape": [512, 512],
        "data.in_channels": 3,
        "model.downsampling": [4, 4],
        "model.patch": [2, 2],
    },
    "3d": {"data.spatial_dims": 3, "data.shape": [128, 128, 256]},
}
UPDATES, BEFORE = 12, 2  # updates that are timed, and those before that warm up
KINDS: dict[str, Callable[[list[float]], float]] = {"median": statistics.median, "minimum": min}


def parse() -> argparse.Namespace:
    """The options of the command line."""
    parser = Options(__doc__, "set", "device", "worker")
    add = parser.add_argument
    add("--only", choices=tuple(SETTINGS), help="one of the two (default: 2D 512x512x3 and 3D 128x128x256)")
    add("--steps", type=int, help=f"that are timed, after some that are not (default: 3, with --space {UPDATES})")
    parser.share("space", required=False, help="compare an update of its base configuration with the U-Net's")
    parser.share("data", required=False, help="with --space: a labelled cohort, for its classes (default: one)")
    return parser.parse_args()


def main() -> int:
    """Measure both settings, print one table."""
    options = parse()
    if options.worker is not None:
        return work(json.loads(options.worker))
    options.steps = (UPDATES if options.space else 3) if options.steps is None else options.steps
    if options.steps < 1 or any("=" not in entry for entry in options.set):
        print("training: --set wants KEY=JSON, and steps are at least 1", file=sys.stderr)
        return 2
    if options.space:
        return against_unet(options)
    rows = []
    for name in [options.only] if options.only else SETTINGS:
        print(f"{name} ...", file=sys.stderr, flush=True)
        job = {"settings": SETTINGS[name] | overrides(options.set), "steps": options.steps, "device": options.device}
        rows.append(in_a_process(__file__, job))
    print(report(rows))
    return 0


def against_unet(options: argparse.Namespace) -> int:
    """Print seconds of an update of both, and their ratio."""
    import torch

    from benchmarks.quality.baseline_training import METHODS, Training
    from ldseg.config import Config
    from ldseg.orchestration.search.spaces import load_space

    torch.set_num_threads(1)
    device = chosen_device(options.device)
    try:
        if options.data:
            config = labelled(options.data, options.space)[1]
        else:
            config = Config.from_dict(dict(load_space(options.space).base))
        config = config.with_overrides(overrides(options.set))
    except ValueError as error:
        print(f"training: {error}", file=sys.stderr)
        return 2
    data, batch = config.data, config.optim.batch_size
    images = torch.randn(batch, data.in_channels, *data.shape)
    labels = torch.randint(data.num_classes, (batch, *data.shape))
    trainings = {name: Training(METHODS[name], config, device) for name in ("LDSeg", "U-Net")}
    seconds = in_turns({n: partial(t.update, images, labels, 0.5) for n, t in trainings.items()}, options.steps, device)
    rows = []
    for name, found in seconds.items():
        parameters = sum(p.numel() for p in trainings[name].method.parameters())
        times = {kind: f"{of(found):.4f}" for kind, of in KINDS.items()}
        rows.append({"seconds of an update": name, "parameters": f"{parameters:,}", **times})
    item = f"{batch} x {'x'.join(map(str, data.shape))}, {data.num_classes} classes"
    print(f"{options.space}, {item}; {computer(device)['device']}\n\n{table(rows)}\n")
    ratios = [f"{of(seconds['LDSeg']) / of(seconds['U-Net']):.2f} by {kind}" for kind, of in KINDS.items()]
    print(f"time of an update over the U-Net's, {options.steps} updates: {', '.join(ratios)}")
    return 0


def in_turns(works: dict[str, Callable[[], None]], count: int, device: str) -> dict[str, list[float]]:
    """Seconds of each of `count` calls of each work, which take turns, so that other load meets all of them."""
    import torch

    def clock() -> float:
        if device == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.monotonic()

    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(BEFORE + count):
        for name, work in works.items():
            start = clock()
            work()
            if turn >= BEFORE:
                seconds[name].append(clock() - start)
    return seconds


def work(job: dict[str, Any]) -> int:
    """In the child: two epochs of `fit` on random items, the second of which is timed."""
    from ldseg.config import Config, ConfigError
    from ldseg.precision import native_bfloat16
    from ldseg.training.fit import TrainingState, fit

    try:
        config = Config().with_overrides({"optim.batch_size": 1, **job["settings"], "optim.epochs": 2})
    except ConfigError as error:
        print(f"training: {error}", file=sys.stderr)
        return 2
    device, data = chosen_device(job["device"]), config.data
    state = TrainingState.create(config, device)
    items = Items(data.in_channels, data.shape, data.num_classes, job["steps"] * config.optim.batch_size)
    _, timed = fit(state, items, None, device=device)
    row = {
        "shape": [*data.shape, data.in_channels],
        "batch": config.optim.batch_size,
        "parameters": sum(p.numel() for p in state.model.parameters()),
        "latent": list(state.model.latent_shape(data.shape)),
        "seconds_per_step": timed.seconds / job["steps"],
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "precision": "bfloat16 autocast" if config.optim.amp and native_bfloat16(device) else "float32",
        **computer(device),
    }
    print(json.dumps(row))
    return 0


class Items:
    """As many times the same random item, made once: what is timed is the step and not its data."""

    has_ignored = False

    def __init__(self, channels: int, shape: tuple[int, ...], num_classes: int, length: int) -> None:
        import torch

        self.length = length
        self.item = {
            "image": torch.randn(channels, *shape),
            "label": torch.randint(0, num_classes, shape),
            "case": "random",
        }

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.item

    def set_epoch(self, epoch: int) -> None:
        """All epochs are equal."""


def report(rows: list[dict[str, Any]]) -> str:
    """One line for each setting."""
    lines = []
    for row in rows:
        item, latent = ("x".join(map(str, row[name])) for name in ("shape", "latent"))
        line = {"item": item, "batch": row["batch"], "parameters": f"{row['parameters']:,}", "latent": latent}
        line |= {"s/step": f"{row['seconds_per_step']:.2f}", "peak MiB": f"{row['peak_mib']:.0f}"}
        line |= {"GPU peak MiB": f"{row['gpu_peak_mib']:.0f}"} if row["gpu_peak_mib"] else {}
        lines.append(line | {"precision": row["precision"]})
    return f"{rows[0]['device']}\n\n{table(lines)}"


if __name__ == "__main__":
    sys.exit(main())
