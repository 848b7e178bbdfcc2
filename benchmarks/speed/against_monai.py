#!/usr/bin/env python
"""K samples and their maps by LDSeg and by what one would build of MONAI's parts: seconds and peak memory.

Every method gets the same volume (noise, random weights: only time is measured), adds its samples up in the same
accumulator and ends with the same maps; each runs in a process of its own, in the layout channels last and, where the
hardware computes it, in bfloat16. The latent diffusions are of like size: the same latent grid and channels, the same
widths, one residual block a level, the same number of denoiser calls. Diffusion of the full grid is timed on one sample
and multiplied, so its line is an estimate.

Example:
    python benchmarks/speed/against_monai.py --shape 96 128 96 --samples 32
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Options, chosen_device, computer, in_a_process, table

METHODS = ("LDSeg", "MONAI latent diffusion", "MONAI U-Net, MC dropout", "MONAI diffusion of the full grid")
EXTRAPOLATED = METHODS[-1]
CLASSES, GROUP = 3, 8


def parse() -> argparse.Namespace:
    """The options of the command line."""
    parser = Options(__doc__, "chunk", "device", "worker")
    add = parser.add_argument
    add("--shape", type=int, nargs=3, default=[96, 128, 96], metavar="N", help="voxels (default: 96 128 96)")
    add("--samples", type=int, default=32, metavar="K", help="(default: %(default)s)")
    add("--steps", type=int, default=10, help="denoiser calls a sample (default: %(default)s)")
    add("--only", nargs="+", metavar="WORD", help="methods whose names contain one of these words")
    add("--float32", action="store_true", help="no bfloat16")
    return parser.parse_args()


def main() -> int:
    """Measure each method in a process of its own, print one table."""
    options = parse()
    if options.worker is not None:
        return work(json.loads(options.worker))
    rows = []
    for method in METHODS:
        if options.only and not any(word in method for word in options.only):
            continue
        print(f"{method} ...", file=sys.stderr, flush=True)
        rows.append(in_a_process(__file__, {**vars(options), "method": method}))
    print(report(rows, options))
    return 0


def work(job: dict[str, Any]) -> int:
    """In the child: one method, warmed up by one sample."""
    import torch

    from ldseg.posterior.accumulator import PosteriorAccumulator
    from ldseg.precision import native_bfloat16

    device = chosen_device(job["device"])
    rounded = native_bfloat16(device) and not job["float32"]
    shape, count = tuple(job["shape"]), 1 if job["method"] == EXTRAPOLATED else job["samples"]
    torch.manual_seed(0)
    draw, parameters = METHOD_BUILDERS[job["method"]](job, device)
    image = torch.randn(1, 1, *shape, device=device)
    with torch.inference_mode(), torch.autocast(device.split(":")[0], torch.bfloat16, enabled=rounded):
        next(iter(draw(image, 1)))
        start = time.perf_counter()
        total = PosteriorAccumulator.create(CLASSES, shape, torch.ones(shape, dtype=torch.bool), device)
        for probabilities in draw(image, count):
            total.add(probabilities)
        mean, entropy, variance = total.mean_probability(), total.predictive_entropy(), total.sample_variance()
        maps = [m.cpu() for m in (mean, entropy, variance)]
        seconds = time.perf_counter() - start
    assert total.num_samples == count and all(bool(m.isfinite().all()) for m in maps)
    assert torch.allclose(mean.sum(0), torch.ones(shape, device=device), atol=1e-2)  # MC dropout's are rounded
    row = {
        "method": job["method"], "parameters": parameters, "seconds": seconds * job["samples"] / count,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
        "precision": "bfloat16" if rounded else "float32", **computer(device),
    }  # fmt: skip
    print(json.dumps(row))
    return 0


Draw = Callable[[Any, int], Iterator[Any]]


def config(job: dict[str, Any]) -> Any:
    """LDSeg's default configuration for three classes on this grid."""
    from ldseg.config import Config

    data = {"label_values": [0, 1, 2], "structures": ["one", "two"], "shape": list(job["shape"])}
    return Config.from_dict({"data": data, "sampler": {"num_sample_steps": job["steps"]}})


def ldseg(job: dict[str, Any], device: str) -> tuple[Draw, int]:
    """The model in its default configuration."""
    import torch

    from ldseg.model import LDSeg
    from ldseg.posterior.sampling import sample_probabilities

    model = LDSeg(config(job)).to(device).channels_last().eval()
    generator = torch.Generator().manual_seed(0)

    def draw(image: Any, count: int) -> Iterator[Any]:
        embedding = model.encode_image(image)
        for start in range(0, count, job["chunk"]):
            noise = torch.randn(min(job["chunk"], count - start), *model.latent_shape(tuple(image.shape[2:])))
            for sample in sample_probabilities(model, embedding, noise.to(device), generator):
                yield sample[None]

    return draw, size(model)


def monai_latent(job: dict[str, Any], device: str) -> tuple[Draw, int]:
    """AutoencoderKL of the label and of the image, DiffusionModelUNet on the latent, LatentDiffusionInferer."""
    import torch
    from monai.inferers import LatentDiffusionInferer
    from monai.networks.nets import AutoencoderKL, DiffusionModelUNet
    from monai.networks.schedulers import DDIMScheduler

    model = config(job).model
    common: dict[str, Any] = {
        "spatial_dims": 3, "num_res_blocks": 1, "attention_levels": (False,) * 3, "norm_num_groups": GROUP,
        "latent_channels": model.latent_channels, "with_encoder_nonlocal_attn": False,
        "with_decoder_nonlocal_attn": False,
    }  # fmt: skip
    label = AutoencoderKL(in_channels=CLASSES, out_channels=CLASSES, channels=(24, 24, 48), **common)
    picture = AutoencoderKL(in_channels=1, out_channels=1, channels=model.image_widths, **common)
    unet = DiffusionModelUNet(
        spatial_dims=3, in_channels=2 * model.latent_channels, out_channels=model.latent_channels, num_res_blocks=1,
        channels=model.denoiser_widths, attention_levels=(False, True), norm_num_groups=GROUP, num_head_channels=32,
    )  # fmt: skip
    for network in (label, picture, unet):
        network.to(device=device, memory_format=torch.channels_last_3d).eval()
    scheduler = DDIMScheduler(num_train_timesteps=1000)
    scheduler.set_timesteps(job["steps"])
    inferer = LatentDiffusionInferer(scheduler, scale_factor=1.0)

    def draw(image: Any, count: int) -> Iterator[Any]:
        seen = picture.encode(image)[0]
        for start in range(0, count, job["chunk"]):
            noise = torch.randn(min(job["chunk"], count - start), *seen.shape[1:], device=device)
            logits = inferer.sample(
                input_noise=noise, autoencoder_model=label, diffusion_model=unet, scheduler=scheduler,
                conditioning=seen.expand(len(noise), *seen.shape[1:]), mode="concat", verbose=False,
            )  # fmt: skip
            for sample in logits:
                yield sample[None].float().softmax(1)

    return draw, size(label.decoder) + size(picture.encoder) + size(unet)


def monai_dropout(job: dict[str, Any], device: str) -> tuple[Draw, int]:
    """MONAI's U-Net with its dropout on, K passes."""
    import torch

    from benchmarks.quality.baseline_models import DROPOUT, Deterministic

    method = Deterministic(config(job), DROPOUT)
    method.to(device=device, memory_format=torch.channels_last_3d)
    generator = torch.Generator().manual_seed(0)

    def draw(image: Any, count: int) -> Iterator[Any]:
        for sample in method.draw(image, count, generator):
            yield sample[None]

    return draw, size(method)


def monai_pixel(job: dict[str, Any], device: str) -> tuple[Draw, int]:
    """DiffusionModelUNet on the label itself, the image beside it."""
    import torch
    from monai.inferers import DiffusionInferer
    from monai.networks.nets import DiffusionModelUNet
    from monai.networks.schedulers import DDIMScheduler

    unet = DiffusionModelUNet(
        spatial_dims=3, in_channels=CLASSES + 1, out_channels=CLASSES, num_res_blocks=1, channels=(24, 48, 96),
        attention_levels=(False,) * 3, norm_num_groups=GROUP, num_head_channels=32,
    )  # fmt: skip
    unet.to(device=device, memory_format=torch.channels_last_3d).eval()
    scheduler = DDIMScheduler(num_train_timesteps=1000)
    scheduler.set_timesteps(job["steps"])
    inferer = DiffusionInferer(scheduler)

    def draw(image: Any, count: int) -> Iterator[Any]:
        for _ in range(count):
            noise = torch.randn(1, CLASSES, *image.shape[2:], device=device)
            yield inferer.sample(
                input_noise=noise, diffusion_model=unet, scheduler=scheduler, conditioning=image, mode="concat",
                verbose=False,
            ).float().softmax(1)  # fmt: skip

    return draw, size(unet)


METHOD_BUILDERS = dict(zip(METHODS, (ldseg, monai_latent, monai_dropout, monai_pixel), strict=True))


def size(network: Any) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in network.parameters())


def report(rows: list[dict[str, Any]], options: argparse.Namespace) -> str:
    """A line for each method, and how many times LDSeg's seconds it takes."""
    own = next((row["seconds"] for row in rows if row["method"] == METHODS[0]), float("nan"))
    shape = " x ".join(map(str, options.shape))
    head = f"{shape} voxels, {CLASSES} classes, K = {options.samples}, {options.steps} steps, {rows[0]['precision']}, "
    lines = [
        {
            "": row["method"],
            "parameters": f"{row['parameters']:,}",
            "seconds": ("about " if row["method"] == EXTRAPOLATED else "") + f"{row['seconds']:.1f}",
            "times LDSeg": f"{row['seconds'] / own:.1f}",
            "peak memory, GiB": f"{(row['gpu_peak_mib'] or row['peak_mib']) / 1024:.2f}",
        }
        for row in rows
    ]
    return f"{head}{rows[0]['device']}\n\n{table(lines)}"


if __name__ == "__main__":
    sys.exit(main())
