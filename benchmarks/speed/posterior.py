#!/usr/bin/env python
"""What K samples of one volume cost: seconds by stage and peak memory, each K in a process of its own.

Then how near image encoder and label decoder come to what the machine can do (`ceilings.py`), and the laws by which
seconds grow with samples, voxels and classes (`laws.py`).

Example:
    python benchmarks/speed/posterior.py --shape 96 128 96 --samples 1 2 8 32 --laws
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Options, ball, chosen_device, computer, in_a_process, random_model, table
from benchmarks.speed import laws

LAW_SAMPLES, LAW_SCALES, LAW_CLASSES = 8, (0.75, 1, 1.25, 1.5), (2, 3, 5, 9)  # of each axis


def parse() -> argparse.Namespace:
    """The options of the command line."""
    parser = Options(__doc__, "chunk", "device", "worker")
    add, voxels = parser.add_argument, "native voxels of the volume, two or three numbers (default: 96 128 96)"
    add("--shape", type=int, nargs="+", default=[96, 128, 96], metavar="N", help=voxels)
    add("--samples", type=int, nargs="+", default=[1, 2, 8, 32], metavar="K", help="(default: 1 2 8 32)")
    add("--model", type=Path, help="a bundle (default: random weights in the default configuration, two structures)")
    add("--steps", type=int, help="denoiser calls a sample (default: the model's own)")
    add("--laws", action="store_true", help="also vary voxels and classes (about a minute); not with --model")
    return parser.parse_args()


def main() -> int:
    """Prepare a volume, measure each K, print one table."""
    options = parse()
    if options.worker is not None:
        print(json.dumps(work(json.loads(options.worker))))
        return 0
    if len(options.shape) not in (2, 3) or min(*options.shape, *options.samples, options.chunk) < 1:
        print("posterior: --shape needs two or three numbers, all positive, as are samples and chunk", file=sys.stderr)
        return 2
    if options.laws and options.model:
        print("posterior: --laws builds models of its own, so it does not go with --model", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        job = {name: getattr(options, name) for name in ("shape", "steps", "device", "chunk")} | {"folder": folder}
        job["model"] = str(options.model or Path(folder) / "model")
        in_a_process(__file__, {**job, "make": True, "make_model": options.model is None})
        rows = []
        for count in options.samples:
            print(f"K = {count} ...", file=sys.stderr, flush=True)
            rows.append(in_a_process(__file__, {**job, "samples": count}))
        found = in_a_process(__file__, {**job, "ceilings": True})
        varied = vary(job) if options.laws else {}
    lines = [report(rows, options.shape), "", *reached(found, rows[-1], options.chunk), "", *law_lines(rows, varied)]
    print("\n".join(lines))
    return 0


def vary(job: dict[str, Any]) -> dict[str, list[tuple[float, float]]]:
    """Seconds of a case of other voxels and of other classes."""
    shapes = [[max(8, round(n * scale / 8) * 8) for n in job["shape"]] for scale in LAW_SCALES]
    print("voxels and classes ...", file=sys.stderr, flush=True)

    def seconds(**changed: Any) -> float:
        row = in_a_process(__file__, {**job, "samples": LAW_SAMPLES, "make": True, "make_model": True, **changed})
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


def work(job: dict[str, Any]) -> dict[str, Any]:
    """In the child: make the inputs, measure one K, or measure the ceilings."""
    folder = Path(job["folder"])
    if job.get("make"):
        make_inputs(folder, job)
    if "samples" not in job and "ceilings" not in job:
        return {}
    from ldseg.bundle import load_bundle
    from ldseg.data.cohort import Case
    from ldseg.data.reading import read_image
    from ldseg.posterior.draws import Draws
    from ldseg.posterior.sampling import Posterior
    from ldseg.posterior.stopwatch import STAGES, Stopwatch
    from ldseg.posterior.summary import write_summary

    device, bundle, watch = chosen_device(job["device"]), load_bundle(Path(job["model"])), Stopwatch()
    posterior, data = Posterior(bundle, device=device, chunk_size=job["chunk"]), bundle.config.data
    with watch.stage("read"):
        volume = read_image(Case(name="volume", image=folder / "volume.nii.gz"), data)
    if "ceilings" in job:
        from benchmarks.speed import ceilings

        return ceilings.measure(posterior, posterior.prepare(volume).image[None])
    if device.startswith("cuda"):  # the first call chooses kernels
        import torch

        posterior.segment(volume, samples=1, num_steps=1)
        torch.cuda.reset_peak_memory_stats()
    start, calls = resident_mib(), posterior.encoder_calls
    summary = posterior.summarise(posterior.draw(volume, Draws(job["samples"], job["steps"]), watch))
    write_summary(summary, folder / "out", volume, data.structures)
    return {
        "samples": job["samples"],
        "steps": summary.num_steps,
        "seconds": {stage: summary.seconds[stage] for stage in STAGES},
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "start_mib": start,
        "encoder_calls": posterior.encoder_calls - calls,
        **computer(device),
    }


def make_inputs(folder: Path, job: dict[str, Any]) -> None:
    """A volume of noise with a bright ellipsoid, oblique and anisotropic, and perhaps a model of random weights."""
    import nibabel as nib
    import numpy as np

    from ldseg.bundle import load_bundle

    if job.get("make_model"):
        random_model(Path(job["model"]), default_settings(len(job["shape"]), job.get("classes", 3)))
    channels, image = load_bundle(Path(job["model"])).config.data.in_channels, ball(job["shape"])
    affine = np.array([[0.9, -0.1, 0, 5], [0.1, 0.8, 0, -7], [0, 0, 1.2, 3], [0, 0, 0, 1.0]])
    image = image if channels == 1 else np.stack([image] * channels, axis=-1)
    nib.save(nib.Nifti1Image(image, affine), folder / "volume.nii.gz")


def default_settings(dims: int, classes: int = 3) -> dict[str, Any]:
    """The default configuration with so many classes, in 2D or 3D."""
    names = [str(k) for k in range(1, classes)]
    settings: dict[str, Any] = {"data": {"label_values": list(range(classes)), "structures": names}}
    if dims == 2:
        settings["data"] |= {"spatial_dims": 2, "shape": [64, 64]}
        settings["model"] = {"downsampling": [4, 4], "patch": [2, 2]}
    return settings


def resident_mib() -> float:
    """Memory in use now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def report(rows: list[dict[str, Any]], shape: list[int]) -> str:
    """One line for each K, then how memory and time grow from K = 2 to the largest."""
    lines = []
    for row in rows:
        seconds = row["seconds"] | {"seconds": sum(row["seconds"].values())}
        memory = {"peak MiB": row["peak_mib"], "above start": row["peak_mib"] - row["start_mib"]}
        memory |= {"GPU peak MiB": row["gpu_peak_mib"]} if row["gpu_peak_mib"] else {}
        line = {"K": row["samples"]} | {name: f"{value:.2f}" for name, value in seconds.items()}
        line |= {name: f"{value:.0f}" for name, value in memory.items()}
        lines.append(line | {"encoder calls": row["encoder_calls"]})
    head = f"{' x '.join(map(str, shape))} voxels, {rows[0]['steps']} steps, {rows[0]['device']}"
    return "\n".join([head, "", table(lines), "", *growth({row["samples"]: row for row in rows})])


def growth(by_count: dict[int, dict[str, Any]]) -> list[str]:
    """How memory and time grow from K = 2 to the largest K."""
    most = max(by_count)
    if 2 not in by_count or most <= 2:
        return []

    def measured(row: dict[str, Any]) -> dict[str, float]:
        found = {"peak memory": row["peak_mib"], "GPU peak memory": row["gpu_peak_mib"] or 0.0}
        found["memory above start"] = row["peak_mib"] - row["start_mib"]
        return found | {"seconds": sum(row["seconds"].values())}

    few, many = measured(by_count[2]), measured(by_count[most])
    share = by_count[most]["seconds"]["write"] / many["seconds"]
    text = [f"{name} at K = {most} / K = 2: {many[name] / value:.3f}" for name, value in few.items() if value]
    return [*text, f"share of write at K = {most}: {share:.1%}"]


if __name__ == "__main__":
    sys.exit(main())
