#!/usr/bin/env python
"""What K samples of one volume cost: seconds by stage and peak memory, each K in a process of its own.

Example:
    python benchmarks/posterior.py --shape 96 128 96 --samples 1 2 8 32 --json posterior.json
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

STAGES = ("read", "encode", "denoise", "decode", "aggregate", "resample", "write")
CARD = {"name": "random weights", "split": {}}

# This process imports the standard library only: Linux hands a parent's peak on to its children.


def parse() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--shape",
        type=int,
        nargs="+",
        default=[96, 128, 96],
        metavar="N",
        help="native voxels of the volume, two or three numbers (default: 96 128 96)",
    )
    add("--samples", type=int, nargs="+", default=[1, 2, 8, 32], metavar="K", help="(default: 1 2 8 32)")
    add("--model", type=Path, help="a bundle (default: random weights in the default configuration, two structures)")
    add("--steps", type=int, help="denoiser calls a sample (default: the model's own)")
    add("--chunk", type=int, default=4, help="latents denoised as one batch (default: %(default)s)")
    add("--device", help="cpu or cuda (default: cuda if there is one)")
    add("--json", type=Path, help="also write the numbers there")
    add("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    """Prepare a volume, measure each K, print one table."""
    options = parse()
    if options.worker is not None:
        return work(json.loads(options.worker))
    if len(options.shape) not in (2, 3) or min(*options.shape, *options.samples, options.chunk) < 1:
        print("posterior: --shape needs two or three numbers, all positive, as are samples and chunk", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        job: dict[str, Any] = {
            "folder": folder,
            "shape": options.shape,
            "steps": options.steps,
            "device": options.device,
            "chunk": options.chunk,
        }
        job["model"] = str(options.model or Path(folder) / "model")
        child({**job, "samples": 0, "make_model": options.model is None})
        rows = []
        for count in options.samples:
            print(f"K = {count} ...", file=sys.stderr, flush=True)
            rows.append(child({**job, "samples": count}))
    print(table(rows, options.shape))
    if options.json:
        options.json.write_text(json.dumps({"shape": options.shape, "rows": rows}, indent=2) + "\n")
    return 0


def child(job: dict[str, Any]) -> dict[str, Any]:
    """Run one job in a process of its own, so that peaks don't mix."""
    command = [sys.executable, __file__, "--worker", json.dumps(job)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def work(job: dict[str, Any]) -> int:
    """In the child: make the inputs (K = 0) or measure one K."""
    folder = Path(job["folder"])
    if job["samples"] == 0:
        make_inputs(folder, job)
        print("{}")
        return 0
    import torch

    from ldseg.bundle import load_bundle
    from ldseg.data.volume import read_volume
    from ldseg.posterior import Posterior, write_summary

    device = job["device"] or ("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.startswith("cuda")
    bundle = load_bundle(Path(job["model"]))
    posterior = Posterior(bundle, device=device, chunk_size=job["chunk"])
    data = bundle.config.data
    begin = time.perf_counter()
    volume = read_volume(
        folder / "volume.nii.gz", case="volume", spatial_dims=data.spatial_dims, in_channels=data.in_channels
    )
    reading = time.perf_counter() - begin
    if on_gpu:  # the first call chooses kernels
        posterior.segment(volume, samples=1, num_steps=1)
        torch.cuda.reset_peak_memory_stats()
    start, calls = resident_mib(), posterior.encoder_calls
    summary = posterior.segment(volume, samples=job["samples"], num_steps=job["steps"])
    write_summary(summary, folder / "out", volume, data.structures)
    summary.seconds["read"] += reading
    row = {
        "samples": job["samples"],
        "steps": summary.num_steps,
        "device": torch.cuda.get_device_name() if on_gpu else f"cpu, {torch.get_num_threads()} thread(s)",
        "seconds": {stage: summary.seconds[stage] for stage in STAGES},
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "start_mib": start,
        "gpu_peak_mib": torch.cuda.max_memory_allocated() / 2**20 if on_gpu else None,
        "encoder_calls": posterior.encoder_calls - calls,
    }
    print(json.dumps(row))
    return 0


def make_inputs(folder: Path, job: dict[str, Any]) -> None:
    """A volume of noise with a bright ellipsoid, oblique and anisotropic, and perhaps a model of random weights."""
    import nibabel as nib
    import numpy as np
    import torch

    from ldseg.bundle import load_bundle, save_bundle
    from ldseg.model import LDSeg

    shape = job["shape"]
    if job.get("make_model"):
        config = default_config(len(shape))
        torch.manual_seed(0)
        save_bundle(Path(job["model"]), LDSeg(config), config, CARD)
    channels = load_bundle(Path(job["model"])).config.data.in_channels
    generator = np.random.default_rng(0)
    radii = np.meshgrid(*[np.linspace(-1.5, 1.5, n) for n in shape], indexing="ij", sparse=True)
    image = generator.normal(size=shape) + 3 * (sum(r**2 for r in radii) < 1)
    affine = np.array([[0.9, -0.1, 0, 5], [0.1, 0.8, 0, -7], [0, 0, 1.2, 3], [0, 0, 0, 1.0]])
    image = image if channels == 1 else np.stack([image] * channels, axis=-1)
    nib.save(nib.Nifti1Image(image.astype(np.float32), affine), folder / "volume.nii.gz")


def default_config(dims: int) -> Any:
    """The default configuration with two structures, in 2D or 3D."""
    from ldseg.config import Config

    settings: dict[str, Any] = {"data": {"label_values": [0, 1, 2], "structures": ["one", "two"]}}
    if dims == 2:
        settings["data"] |= {"spatial_dims": 2, "shape": [64, 64]}
        settings["model"] = {"downsampling": [4, 4], "patch": [2, 2]}
    return Config.from_dict(settings)


def resident_mib() -> float:
    """Memory in use now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def table(rows: list[dict[str, Any]], shape: list[int]) -> str:
    """One line for each K, then the ratios."""
    on_gpu = rows[0]["gpu_peak_mib"] is not None
    peaks = ["peak MiB", "above start", *(["GPU peak MiB"] if on_gpu else [])]
    lines = [["K", *STAGES, "seconds", *peaks, "encoder calls"]]
    for row in rows:
        memory = [row["peak_mib"], row["peak_mib"] - row["start_mib"], *([row["gpu_peak_mib"]] if on_gpu else [])]
        seconds = [*row["seconds"].values(), sum(row["seconds"].values())]
        lines.append(
            [
                str(row["samples"]),
                *[f"{s:.2f}" for s in seconds],
                *[f"{m:.0f}" for m in memory],
                str(row["encoder_calls"]),
            ]
        )
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    text = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    head = f"{' x '.join(map(str, shape))} voxels, {rows[0]['steps']} steps, {rows[0]['device']}"
    return "\n".join([head, *text, *ratios({row["samples"]: row for row in rows}, on_gpu)])


def ratios(by_count: dict[int, dict[str, Any]], on_gpu: bool) -> list[str]:
    """How memory and time grow from K = 2 to the largest K."""
    most = max(by_count)
    if 2 not in by_count or most <= 2:
        return []
    few, many = by_count[2], by_count[most]
    memory = {"peak memory": "peak_mib"} | ({"GPU peak memory": "gpu_peak_mib"} if on_gpu else {})
    text = [f"{title} at K = {most} / K = 2: {many[key] / few[key]:.3f}" for title, key in memory.items()]
    above = (many["peak_mib"] - many["start_mib"]) / max(few["peak_mib"] - few["start_mib"], 1e-9)
    time = sum(many["seconds"].values()) / sum(few["seconds"].values())
    return [
        *text,
        f"memory above start at K = {most} / K = 2: {above:.3f}",
        f"seconds at K = {most} / K = 2: {time:.2f}",
    ]


if __name__ == "__main__":
    sys.exit(main())
