#!/usr/bin/env python
"""K samples of one 128x128x256 volume by the authors' own code and by ours, on the same machine in the same run.

The authors' code (a checkout of github.com/FahimZaman/LDSeg) runs under a Python that has TensorFlow. It has no
function for K samples, so its `segment` is called K times, one volume a call; its plots are left out, and of its K
label maps the most frequent label is written. TensorFlow has no grouped convolution for CPUs, and what Keras falls back
to is about ten times as slow; that is mended by a convolution for each group (--unmended also times it as it is). The
trained denoiser was never published: random weights take its place, the same on both sides.

First one sample from the same noise is held against ours, in float32 and, where the processor computes it, in bfloat16:
unless the labels agree, no time is told. Every method is warmed up by one sample, then reads the volume, draws K
samples and writes its maps. The default architecture and the network of a search space (--space) have random weights,
which is enough for their time; each is measured with its own number of steps and with two, as the model that ships is
sampled.

Example:
    python benchmarks/speed/against_authors.py --authors LDSeg --python tensorflow/bin/python \\
        --image LDSeg/Data/Knee/Image/Case1.nii.gz
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Options, ball, in_a_process, random_model, segment_file, table
from benchmarks.speed.authors_keras import print_row

SHAPE = (128, 128, 256)  # theirs; the label encoder is bound to it
WIDTHS = (16, 32, 64, 64, 32)
FILES = ("labelEncoder3D", "labelDecoder3D", "imageEncoder3D", "denoiser3D")  # the last was never published
NETWORKS = ("label_encoder", "label_decoder", "image_encoder", "denoiser")
AGREE = 0.999  # of the voxels
COLUMNS = ("read", "encode", "denoise", "decode", "rest", "write")
MENDED, SHIPPED, FAITHFUL, DEFAULT = "authors, mended", "authors, as shipped", "faithful bundle", "default architecture"
SPACE = "space"
OURS: tuple[tuple[str, str, int | None], ...] = (  # model, precision, steps
    (FAITHFUL, "float32", None),
    (FAITHFUL, "bfloat16", None),
    (DEFAULT, "auto", None),
    (DEFAULT, "auto", 2),
    (SPACE, "auto", None),
    (SPACE, "auto", 2),
)


def parse() -> argparse.Namespace:
    """The options of the command line."""
    parser = Options(__doc__, "worker")
    add = parser.add_argument
    add("--authors", type=Path, metavar="FOLDER", help="a checkout of their code (default: only our side is measured)")
    add("--python", type=Path, metavar="FILE", help="a Python with tensorflow 2.12 and what else their code imports")
    add("--image", type=Path, metavar="NIFTI", help="brought to 128x128x256 first (default: a made volume)")
    add("--samples", type=int, default=8, metavar="K", help="(default: %(default)s)")
    add("--space", default="knee", metavar="NAME", help="of tune_spaces, or a .py file (default: %(default)s)")
    add("--unmended", action="store_true", help="also time their code as it is, which takes many minutes")
    return parser.parse_args()


def problem(options: argparse.Namespace) -> str:
    """What is wrong with the options, with a cure; empty if nothing is."""
    if options.samples < 1:
        return f"--samples must be at least 1, got {options.samples}"
    if options.image and not options.image.is_file():
        return f"--image {options.image} is no file"
    if bool(options.authors) != bool(options.python) or (options.unmended and not options.authors):
        return "--authors and --python belong together, and --unmended needs them; give both or neither"
    if not options.authors:
        return ""
    needed = ["utilities/model3D.py", "utilities/sampler3D.py", *[f"savedModels/{name}.hdf5" for name in FILES[:3]]]
    missing = [name for name in needed if not (options.authors / name).is_file()]
    if missing:
        return f"{options.authors} lacks {', '.join(missing)}; give a checkout of github.com/FahimZaman/LDSeg"
    probe = [str(options.python), "-c", "import tensorflow, SimpleITK, scipy, natsort, tqdm, matplotlib"]
    try:
        done = subprocess.run(probe, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    except OSError as error:
        return f"--python {options.python} can't be run ({error.strerror}); give the path of an interpreter"
    reason = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
    return f"--python {options.python} can't run their code: {reason}" if done.returncode else ""


def main() -> int:
    """Compare, then measure each in a process of its own, print one table."""
    options = parse()
    if options.worker is not None:
        job = json.loads(options.worker)
        return {"make": make, "compare": compare, "measure": measure}[job["task"]](job)
    if wrong := problem(options):
        print(f"against_authors: {wrong}", file=sys.stderr)
        return 2
    rows, agreement = [], {}
    with tempfile.TemporaryDirectory() as name:
        job = {"folder": name, "samples": options.samples, "image": str(options.image or ""), "shape": SHAPE}
        job["space"] = options.space
        job |= child(job, task="make", random=not options.authors)
        if options.authors:
            for kind in (MENDED, SHIPPED) if options.unmended else (MENDED,):
                row, agreement[kind] = run_theirs({**job, "kind": kind, "mended": kind == MENDED}, options)
                if row is None:
                    differ = agreement[kind]["float32"]["different"]
                    print(f"against_authors: {kind}: {differ} labels differ from ours", file=sys.stderr)
                    return 1
                rows.append(row)
        for kind, precision, steps in OURS:
            found = agreement.get(MENDED, {}).get(precision, {"equal": 1.0})
            if precision == "bfloat16" and (not job["bfloat16"] or found["equal"] < AGREE):
                continue
            print(f"{kind}, {precision} ...", file=sys.stderr, flush=True)
            rows.append(child(job, task="measure", kind=kind, precision=precision, steps=steps))
    print(report(rows, agreement, options))
    return 0


def child(job: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Run one of our jobs in a process of its own."""
    return in_a_process(__file__, {**job, **more})


def run_theirs(job: dict[str, Any], options: argparse.Namespace) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """One sample of theirs and of ours from the same noise, and only if they agree the row of their K samples."""
    folder = Path(job["folder"])
    weights = folder / "weights"
    weights.mkdir(exist_ok=True)
    for name in FILES:
        if (source := options.authors / "savedModels" / f"{name}.hdf5").is_file():
            shutil.copy(source, weights)
    job["authors"] = str(options.authors.resolve())
    environment = {**os.environ, "MPLBACKEND": "Agg", "TF_CPP_MIN_LOG_LEVEL": "2"}
    command = [str(options.python), str(Path(__file__).with_name("authors_keras.py")), json.dumps(job)]
    print(f"{job['kind']} ...", file=sys.stderr, flush=True)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(command, **pipes, stderr=log, text=True, env=environment)
        try:
            answer(process, log.name)
            agreement = child(job, task="compare")
            if agreement["float32"]["equal"] < AGREE:
                return None, agreement
            print("go", file=process.stdin, flush=True)
            return answer(process, log.name), agreement
        finally:
            process.kill()
            process.wait()


def answer(process: subprocess.Popen[str], log: str) -> dict[str, Any]:
    """The next line that their process writes.

    Raises:
        SystemExit: it ended before.
    """
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        end = "\n".join(Path(log).read_text(errors="replace").splitlines()[-15:])
        raise SystemExit(f"against_authors: the authors' code ended early; the last that it wrote:\n{end}")
    return dict(json.loads(line))


def make(job: dict[str, Any]) -> int:
    """The volume, our bundles of random weights, and without their files a faithful one."""
    import nibabel as nib
    import numpy as np

    from ldseg.config import ConfigError
    from ldseg.data.grid import prepare
    from ldseg.data.volume import read_volume
    from ldseg.keras_import import DENOISER_WIDTHS, Sizes, authors_config
    from ldseg.orchestration.search.spaces import load_space
    from ldseg.precision import native_bfloat16

    try:
        of_space = load_space(job["space"]).configuration({}, {"data.spatial_dims": 3})
    except ConfigError as error:
        raise SystemExit(f"against_authors: --space: {error}") from None

    sizes = Sizes(3, 1, 3, tuple(n // 16 for n in SHAPE), WIDTHS, WIDTHS, DENOISER_WIDTHS)
    faithful = authors_config(sizes, ["one", "two"])
    data = {"shape": list(SHAPE), "label_values": [0, 1, 2], "structures": ["one", "two"], "axes": "itk"}
    settings = {DEFAULT: {"data": data}, SPACE: of_space.to_dict()}
    settings |= {FAITHFUL: faithful.to_dict()} if job["random"] else {}
    folder, image = Path(job["folder"]), ball(SHAPE)
    for kind, values in settings.items():
        random_model(folder / kind, values)
    if job["image"]:
        volume = read_volume(Path(job["image"]), case="volume", spatial_dims=3)
        image = prepare(volume, faithful.data, faithful.model.multiple).image[0].numpy()
    nib.save(nib.Nifti1Image(image.transpose(), np.eye(4)), folder / "volume.nii.gz")
    print(json.dumps({"bfloat16": native_bfloat16("cpu")}))
    return 0


def compare(job: dict[str, Any]) -> int:
    """Import their files and draw the sample that starts with their noise."""
    import numpy as np
    import torch

    from ldseg.bundle import load_bundle, save_bundle
    from ldseg.data.volume import read_volume
    from ldseg.keras_import import import_authors
    from ldseg.posterior.sampling import Posterior, steps_config

    folder = Path(job["folder"])
    files = [folder / "weights" / f"{name}.hdf5" for name in FILES]
    model, card = import_authors(dict(zip(NETWORKS, files, strict=True)), ["one", "two"])
    save_bundle(folder / FAITHFUL, model, model.config, card)
    theirs, found = np.load(folder / "theirs.npz"), {}
    start = torch.from_numpy(theirs["start"]).float().movedim(-1, 1)
    for precision in ("float32", "bfloat16")[: 1 + job["bfloat16"]]:
        posterior = Posterior(load_bundle(folder / FAITHFUL), device="cpu", precision=precision)
        grid = posterior.prepare(read_volume(folder / "volume.nii.gz", case="volume", spatial_dims=3))
        embedding = posterior.encode(grid)
        with torch.inference_mode():
            latents = posterior.model.sample_latents(embedding, iter([start]), steps_config(posterior.model, None))
        labels = posterior.decode(latents[0], embedding).argmax(1)[0].numpy()
        different = int((labels != theirs["labels"]).sum())
        found[precision] = {"equal": 1 - different / labels.size, "different": different}
    shares = [float((theirs["labels"] == k).mean()) for k in range(3)]
    print(json.dumps({**found, "shares": shares}))
    return 0


def measure(job: dict[str, Any]) -> int:
    """K samples by one of our bundles, from the file to the files."""
    from ldseg.bundle import load_bundle
    from ldseg.data.volume import read_volume
    from ldseg.posterior.draws import Draws
    from ldseg.posterior.sampling import Posterior

    folder, path = Path(job["folder"]), Path(job["folder"]) / "volume.nii.gz"
    posterior = Posterior(load_bundle(folder / job["kind"]), device="cpu", precision=job["precision"])
    posterior.segment(read_volume(path, case="volume", spatial_dims=3), samples=1)
    begin = time.perf_counter()
    summary = segment_file(posterior, path, Draws(job["samples"], job["steps"]), folder / "out")
    total = time.perf_counter() - begin
    seconds = {stage: summary.seconds[stage] for stage in COLUMNS if stage != "rest"}
    # their last step changes nothing, and the faithful sampler leaves it out
    calls = summary.num_steps - (posterior.config.sampler.schedule == "authors")
    name = f"{SPACE} {job['space']}" if job["kind"] == SPACE else job["kind"]
    print_row(f"{name}, {summary.num_steps} steps", calls * job["samples"], seconds, total, summary.precision)
    return 0


def report(rows: list[dict[str, Any]], agreement: dict[str, Any], options: argparse.Namespace) -> str:
    """What agrees, then a line for each method."""
    cores = len(os.sched_getaffinity(0))
    text = [f"{' x '.join(map(str, SHAPE))} voxels, K = {options.samples}, {cores} cores"]
    for kind, found in agreement.items():
        shares = ", ".join(f"{share:.1%}" for share in found["shares"])
        equal = " and ".join(f"{found[name]['equal']:.4%} ({name})" for name in found if name != "shares")
        text.append(f"{kind}: labels of one sample equal ours on {equal} of the voxels; their classes: {shares}")
    if not options.authors:
        text.append("only our side, random weights: give --authors and --python to compare")
    base = next((row["seconds"]["all"] for row in rows if row["kind"] == MENDED), None)
    lines = []
    for row in rows:
        line = {"seconds": row["kind"], "computed in": row["by"], "denoiser calls": row["calls"]}
        line |= {name: f"{row['seconds'][name]:.2f}" for name in (*COLUMNS, "all")}
        line["mended / this"] = "" if base is None else f"{base / row['seconds']['all']:.2f}"
        lines.append(line | {"peak GiB": f"{row['peak_gib']:.1f}"})
    return "\n".join([*text, "", table(lines)])


if __name__ == "__main__":
    sys.exit(main())
