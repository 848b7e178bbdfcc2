#!/usr/bin/env python
"""What K samples of one volume cost: seconds by stage and peak memory, each K in a process of its own.

Then how near image encoder and label decoder come to what the machine can do (`ceilings.py`), and the laws by which
seconds grow with samples, voxels and classes (`laws.py`).

Example:
    python benchmarks/speed/posterior.py --shape 96 128 96 --samples 1 2 8 32 --laws --json posterior.json
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


from benchmarks.speed import laws

STAGES = ("read", "encode", "denoise", "decode", "aggregate", "resample", "write")
CARD = {"name": "random weights", "split": {}}
LAW_SAMPLES, LAW_SCALES, LAW_CLASSES = 8, (0.75, 1, 1.25, 1.5), (2, 3, 5, 9)  # of each axis

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
    add("--laws", action="store_true", help="also vary voxels and classes (about a minute); not with --model")
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
    if options.laws and options.model:
        print("posterior: --laws builds models of its own, so it does not go with --model", file=sys.stderr)
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
        child({**job, "make": True, "make_model": options.model is None})
        rows = []
        for count in options.samples:
            print(f"K = {count} ...", file=sys.stderr, flush=True)
            rows.append(child({**job, "samples": count}))
        found = child({**job, "ceilings": True})
        varied = vary(job) if options.laws else {}
    print(
        "\n".join(
            [table(rows, options.shape), "", *reached(found, rows[-1], options.chunk), "", *law_lines(rows, varied)]
        )
    )
    if options.json:
        content = {"shape": options.shape, "rows": rows, "ceilings": found, "laws": varied}
        options.json.write_text(json.dumps(content, indent=2) + "\n")
    return 0


def vary(job: dict[str, Any]) -> dict[str, list[tuple[float, float]]]:
    """Seconds of a case of other voxels and of other classes."""
    shapes = [[max(8, round(n * scale / 8) * 8) for n in job["shape"]] for scale in LAW_SCALES]
    print("voxels and classes ...", file=sys.stderr, flush=True)

    def seconds(**changed: Any) -> float:
        row = child({**job, "samples": LAW_SAMPLES, "make": True, "make_model": True, **changed})
        return sum(row["seconds"].values())

    return {
        "voxels": [(math.prod(shape), seconds(shape=shape)) for shape in shapes],
        "classes": [(count, seconds(classes=count)) for count in LAW_CLASSES],
    }


def law_lines(rows: list[dict[str, Any]], varied: dict[str, list[tuple[float, float]]]) -> list[str]:
    """The laws, in words."""
    text = []
    if len(rows) > 2:
        text.append(laws.line("K", [row["samples"] for row in rows], [sum(row["seconds"].values()) for row in rows]))
    if varied:
        text.append(f"K = {LAW_SAMPLES}:")
        text.append(laws.power("voxels", *zip(*varied["voxels"], strict=True)))
        text.append(laws.line("classes", *zip(*varied["classes"], strict=True)))
    return text


def reached(found: dict[str, Any], row: dict[str, Any], chunk: int) -> list[str]:
    """How near the networks come to the machine's own ceilings, alone and in the run of the most samples."""
    calls = {
        "encode": row["encoder_calls"],
        "denoise": math.ceil(row["samples"] / chunk) * row["steps"],
        "decode": row["samples"],
    }
    text = [f"copying 256 MiB: {found['copy_gb_s']:.1f} GB/s, read and written"]
    for stage, count in calls.items():
        of = found[stage]
        in_run = of["gflop"] * count / row["seconds"][stage]
        alone, running = (
            f"{rate:.0f} GFLOP/s ({rate / of['ceiling_gflop_s']:.0%})" for rate in (of["gflop_s"], in_run)
        )
        text.append(
            f"{stage}, {of['precision']}: {of['gflop']:.1f} GFLOP; {alone} alone, {running} in the run of K = "
            f"{row['samples']}; its convolutions by themselves {of['ceiling_gflop_s']:.0f} GFLOP/s (100%)"
        )
        if of["shares"]:
            text.append("  seconds: " + ", ".join(f"{name} {part:.0%}" for name, part in of["shares"].items()))
    return text


def child(job: dict[str, Any]) -> dict[str, Any]:
    """Run one job in a process of its own, so that peaks don't mix."""
    command = [sys.executable, __file__, "--worker", json.dumps(job)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def work(job: dict[str, Any]) -> int:
    """In the child: make the inputs, measure one K, or measure the ceilings."""
    folder = Path(job["folder"])
    if job.get("make"):
        make_inputs(folder, job)
    if "samples" not in job and "ceilings" not in job:
        print("{}")
        return 0
    import torch

    from ldseg.bundle import load_bundle
    from ldseg.data.cohort import Case
    from ldseg.data.reading import read_image
    from ldseg.posterior.sampling import Posterior
    from ldseg.posterior.summary import write_summary

    device = job["device"] or ("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.startswith("cuda")
    bundle = load_bundle(Path(job["model"]))
    posterior = Posterior(bundle, device=device, chunk_size=job["chunk"])
    data = bundle.config.data
    begin = time.perf_counter()
    volume = read_image(Case(name="volume", image=folder / "volume.nii.gz"), data)
    reading = time.perf_counter() - begin
    if "ceilings" in job:
        from benchmarks.speed import ceilings

        print(json.dumps(ceilings.measure(posterior, posterior.prepare(volume).image[None])))
        return 0
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
        config = default_config(len(shape), job.get("classes", 3))
        torch.manual_seed(0)
        save_bundle(Path(job["model"]), LDSeg(config), config, CARD)
    channels = load_bundle(Path(job["model"])).config.data.in_channels
    generator = np.random.default_rng(0)
    radii = np.meshgrid(*[np.linspace(-1.5, 1.5, n) for n in shape], indexing="ij", sparse=True)
    image = generator.normal(size=shape) + 3 * (sum(r**2 for r in radii) < 1)
    affine = np.array([[0.9, -0.1, 0, 5], [0.1, 0.8, 0, -7], [0, 0, 1.2, 3], [0, 0, 0, 1.0]])
    image = image if channels == 1 else np.stack([image] * channels, axis=-1)
    nib.save(nib.Nifti1Image(image.astype(np.float32), affine), folder / "volume.nii.gz")


def default_config(dims: int, classes: int = 3) -> Any:
    """The default configuration with so many classes, in 2D or 3D."""
    from ldseg.config import Config

    names = [str(k) for k in range(1, classes)]
    settings: dict[str, Any] = {"data": {"label_values": list(range(classes)), "structures": names}}
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
        f"share of write at K = {most}: {many['seconds']['write'] / sum(many['seconds'].values()):.1%}",
    ]


if __name__ == "__main__":
    sys.exit(main())
