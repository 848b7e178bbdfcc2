#!/usr/bin/env python
"""What one training step costs in 2D and in 3D: seconds and peak memory, each in a process of its own.

Example:
    python benchmarks/speed/training.py --steps 3 --json training.json
    python benchmarks/speed/training.py --only 3d --set model.downsampling=[8,8,8] --set model.patch=[4,4,4]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


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

# This process imports the standard library only: Linux hands a parent's peak on to its children.


def parse() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--only", choices=tuple(SETTINGS), help="one of the two (default: 2D 512x512x3 and 3D 128x128x256)")
    add("--shape", type=int, nargs="+", metavar="N", help="another working grid; with --only")
    add("--steps", type=int, default=3, help="steps that are timed, after one that is not (default: %(default)s)")
    add("--batch", type=int, default=1, help="items a step (default: %(default)s)")
    add("--set", action="append", default=[], metavar="KEY=JSON", help="override a configuration key; repeatable")
    add("--device", help="cpu or cuda (default: cuda if there is one)")
    add("--json", type=Path, help="also write the numbers there")
    add("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    """Measure both settings, print one table."""
    options = parse()
    if options.worker is not None:
        return work(json.loads(options.worker))
    overrides = dict(entry.split("=", 1) for entry in options.set if "=" in entry)
    if (
        len(overrides) < len(options.set)
        or min(options.steps, options.batch) < 1
        or (options.shape and not options.only)
    ):
        print("training: --set wants KEY=JSON, --shape wants --only, steps and batch are at least 1", file=sys.stderr)
        return 2
    rows = []
    for name in [options.only] if options.only else SETTINGS:
        settings = SETTINGS[name] | {key: json.loads(value) for key, value in overrides.items()}
        settings |= {"data.shape": options.shape} if options.shape else {}
        print(f"{name} ...", file=sys.stderr, flush=True)
        job = {"settings": settings, "steps": options.steps, "batch": options.batch, "device": options.device}
        done = subprocess.run([sys.executable, __file__, "--worker", json.dumps(job)], stdout=subprocess.PIPE)
        if done.returncode:
            return done.returncode
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")
    return 0


def work(job: dict[str, Any]) -> int:
    """In the child: two epochs of `fit` on random items, the second of which is timed."""
    import torch

    from ldseg.config import Config, ConfigError
    from ldseg.precision import native_bfloat16
    from ldseg.training.fit import TrainingState, fit

    try:
        settings = {**job["settings"], "optim.epochs": 2, "optim.batch_size": job["batch"]}
        config = Config().with_overrides(settings)
    except ConfigError as error:
        print(f"training: {error}", file=sys.stderr)
        return 2
    device = job["device"] or ("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.startswith("cuda")
    state = TrainingState.create(config, device)
    items = Items(config.data.in_channels, config.data.shape, config.data.num_classes, job["steps"] * job["batch"])
    warm_up, timed = fit(state, items, None, device=device)
    row = {
        "shape": [*config.data.shape, config.data.in_channels],
        "batch": job["batch"],
        "parameters": sum(p.numel() for p in state.model.parameters()),
        "latent": list(state.model.latent_shape(config.data.shape)),
        "seconds_per_step": timed.seconds / job["steps"],
        "first_epoch_seconds_per_step": warm_up.seconds / job["steps"],
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "gpu_peak_mib": torch.cuda.max_memory_allocated() / 2**20 if on_gpu else None,
        "precision": "bfloat16 autocast" if config.optim.amp and native_bfloat16(device) else "float32",
        "device": torch.cuda.get_device_name() if on_gpu else f"cpu, {torch.get_num_threads()} thread(s)",
    }
    print(json.dumps(row))
    return 0


class Items:
    """As many times the same random item, made once: what is timed is the step and not its data."""

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


def table(rows: list[dict[str, Any]]) -> str:
    """One line for each setting."""
    on_gpu = rows[0]["gpu_peak_mib"] is not None
    lines = [
        [
            "item",
            "batch",
            "parameters",
            "latent",
            "s/step",
            "peak MiB",
            *(["GPU peak MiB"] if on_gpu else []),
            "precision",
        ]
    ]
    for row in rows:
        line = [
            "x".join(map(str, row["shape"])),
            str(row["batch"]),
            f"{row['parameters']:,}",
            "x".join(map(str, row["latent"])),
        ]
        line += [f"{row['seconds_per_step']:.2f}", f"{row['peak_mib']:.0f}"]
        line += [f"{row['gpu_peak_mib']:.0f}"] if on_gpu else []
        lines.append([*line, row["precision"]])
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    text = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    return "\n".join([rows[0]["device"], *text])


if __name__ == "__main__":
    sys.exit(main())
