#!/usr/bin/env python
"""What a label decoder costs a sample and what it is worth: each of them trained, end to end, for the same time.

The cost is that of decoding one sample on the training grid. The authors' decoder is the last row, with their label
and image encoder, at full resolution. Rows that are done are kept in OUT/decoders.jsonl.

Example:
    python -m ldseg.data.phantom --out phantoms --dims 2 --cases 600
    python benchmarks/quality/decoders.py --data phantoms --space phantom2d --minutes 3 --out decoders
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.common import table, wanted
from benchmarks.quality.ablation import foreground_only, switches
from benchmarks.quality.baseline_models import LatentDiffusion
from benchmarks.quality.baselines import channels_last, draw_cases, fit
from benchmarks.speed.ceilings import best_seconds, gflop
from ldseg.config import Config, ConfigError
from ldseg.data.cohort import read_cohort
from ldseg.data.dataset import TrainingSet
from ldseg.orchestration.search.spaces import load_space, with_cohort

SHIPPED = "as shipped"
AUTHORS = "the authors' networks"
COLUMNS = ("decode_gflop", "decode_ms", "updates", "dice", "sample_dice", "nll", "sample_diversity", "ged", "minutes")


class Depthwise(nn.Sequential):
    """A convolution of each channel on its own, then one of 1x1."""

    def __init__(self, layer: Any) -> None:
        kind, inputs, outputs = type(layer), layer.in_channels, layer.out_channels
        super().__init__(kind(inputs, inputs, 3, padding=1, groups=inputs), kind(inputs, outputs, 1))


class Factored(nn.Sequential):
    """One convolution along each axis."""

    def __init__(self, layer: Any) -> None:
        kind, dims = type(layer), layer.weight.ndim - 2
        layers = []
        for axis in range(dims):
            size = tuple(3 if a == axis else 1 for a in range(dims))
            padding = tuple(n // 2 for n in size)
            layers.append(
                kind(layer.in_channels if axis == 0 else layer.out_channels, layer.out_channels, size, padding=padding)
            )
        super().__init__(*layers)


class HalfSize(nn.Module):
    """Logits on the grid of the patches, brought to full size by linear interpolation."""

    def __init__(self, decoder: Any, classes: int) -> None:
        super().__init__()
        *layers, last = decoder.layers
        decoder.layers = nn.Sequential(*layers, type(last)(last.in_channels, classes, 3, padding=1))
        self.scale, decoder.patch = tuple(float(p) for p in decoder.patch), (1,) * len(decoder.patch)
        self.decoder, self.mode = decoder, {2: "bilinear", 3: "trilinear"}[len(decoder.patch)]

    def forward(self, latents: Tensor, embedding: Tensor | None = None) -> Tensor:
        """(B, latent_channels, *latent) -> (B, classes, *grid)."""
        return F.interpolate(self.decoder(latents, embedding), scale_factor=self.scale, mode=self.mode)


@dataclass(frozen=True)
class Row:
    """What differs from the decoder that ships: settings, and what is done to the network."""

    overrides: dict[str, Any] = field(default_factory=dict)
    change: Callable[[LatentDiffusion], None] = lambda method: None


def convolutions(kind: Callable[[Any], nn.Module], method: LatentDiffusion) -> None:
    """Put another kind in place of the decoder's convolutions but the first and the last."""
    for block in method.network.label_decoder.modules():
        for name in ("conv1", "conv2"):
            if hasattr(block, name):
                setattr(block, name, kind(getattr(block, name)))


def half_size(method: LatentDiffusion) -> None:
    """Decode logits of the patches' size."""
    network: Any = method.network
    network.label_decoder = HalfSize(network.label_decoder, network.config.data.num_classes)


def rows(base: Config) -> dict[str, Row]:
    """The decoders to try, relative to what the space ships."""
    model, dims = base.model, base.data.spatial_dims
    widths, image = model.autoencoder_widths, model.image_widths
    moving = [factor > 1 for factor in model.downsampling]

    def times(value: tuple[int, ...], factor: float) -> list[int]:
        return [int(v * factor) if m else v for v, m in zip(value, moving, strict=True)]

    more = [16] * (max(model.patch).bit_length() - 1)
    finer = {"model.autoencoder_widths": [*more, *widths], "model.image_widths": [*more, *image]}
    coarser = {"model.autoencoder_widths": list(widths[1:]), "model.image_widths": list(image[1:])}
    deeper = {"model.autoencoder_widths": [*widths, widths[-1]], "model.denoiser_widths": [model.denoiser_widths[-1]]}
    found = {
        SHIPPED: Row(),
        "first and last convolution at full size": Row({"model.patch": [1] * dims, **finer}),
        "patches twice as large": Row({"model.patch": times(model.patch, 2), **coarser}),
        "half the channels, in eights": Row({"model.autoencoder_widths": [max(8, w // 16 * 8) for w in widths]}),
        "twice the channels": Row({"model.autoencoder_widths": [2 * w for w in widths]}),
        "two blocks a level, everywhere": Row({"model.blocks": 2}),
        "depthwise convolutions": Row(change=partial(convolutions, Depthwise)),
        "a convolution along each axis": Row(change=partial(convolutions, Factored)),
        "logits at half size": Row(change=half_size),
        "latent of twice the size": Row(
            {
                "model.downsampling": times(model.downsampling, 0.5),
                "model.autoencoder_widths": list(widths[:-1]),
                "model.denoiser_widths": [*model.denoiser_widths, model.denoiser_widths[-1]],
            }
        ),
        "latent of half the size": Row({"model.downsampling": times(model.downsampling, 2), **deeper}),
        "decoder sees the image": Row({"model.decoder_skips": 24}),
        "decoder sees no image": Row({"model.decoder_skips": 0}),
    }
    if AUTHORS in (theirs := switches(base)):
        found[AUTHORS] = Row(theirs[AUTHORS])
    return {name: row for name, row in found.items() if name == SHIPPED or differs(row, base)}


def differs(row: Row, base: Config) -> bool:
    """Whether a row is something else than what ships, and this space's grids allow it."""
    try:
        return row.change is not Row.change or base.with_overrides(row.overrides) != base
    except ConfigError:
        return False


def parse() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="a labelled cohort")
    add("--space", required=True, help="its base configuration is what is shipped")
    add("--minutes", type=float, default=3.0, help="of training for each, of one processor (default: %(default)s)")
    add("--samples", type=int, default=8, help="of each case (default: %(default)s)")
    add("--only", nargs="+", metavar="ROW", help="these rows, or those that contain one of these words")
    add("--out", type=Path, required=True, help="gets decoders.jsonl; what is there is not done again")
    return parser.parse_args()


def main() -> int:
    """Train and score every row that is not done yet, then print the table."""
    options = parse()
    torch.set_num_threads(1)
    cohort = read_cohort(options.data, foreground_only=foreground_only(options.space))
    base = with_cohort(dict(load_space(options.space).base), cohort)
    options.out.mkdir(parents=True, exist_ok=True)
    results = options.out / "decoders.jsonl"
    done = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    every = rows(base)
    for name, row in every.items():
        if not wanted(name, options.only, every) or name in {kept["decoder"] for kept in done}:
            continue
        print(f"{name} ...", file=sys.stderr, flush=True)
        done.append({"decoder": name, **measure(row, base.with_overrides(row.overrides), cohort, options)})
        with open(results, "a") as file:
            file.write(json.dumps(done[-1]) + "\n")
    print(table(done, "decoder", COLUMNS))
    print(f"{len(cohort.split('train'))} training, {len(cohort.split('validation'))} validation cases; {results}")
    return 0


def measure(row: Row, config: Config, cohort: Any, options: argparse.Namespace) -> dict[str, float]:
    """Cost and scores of a decoder, on the validation cases: defaults are chosen by them."""

    def build(config: Config) -> LatentDiffusion:
        method = LatentDiffusion(config)
        row.change(method)
        return method

    train, validation = (
        TrainingSet(
            cohort.split(part), config.data, config.model.multiple, options.out / "cache", training=part == "train"
        )
        for part in ("train", "validation")
    )
    cost = decoding(channels_last(build(config), config).eval(), config)
    start = time.process_time()
    method, updates = fit(build, config, train, options.minutes, 0, "cpu")
    minutes = (time.process_time() - start) / 60
    scored, _ = draw_cases(method, config, validation, samples=options.samples, device="cpu")
    means = {name: float(np.nanmean([case[name] for case in scored])) for name in scored[0]}
    return {**cost, "updates": updates, "minutes": minutes, **{k: v for k, v in means.items() if k in COLUMNS}}


@torch.inference_mode()
def decoding(method: Any, config: Config) -> dict[str, float]:
    """Operations and time of decoding one sample on the training grid, in bfloat16, by one thread."""
    image = torch.zeros(1, config.data.in_channels, *config.data.shape)
    embedding = method.network.encode_image(image)
    latents = torch.randn(1, *method.network.latent_shape(config.data.shape))
    with torch.autocast("cpu", torch.bfloat16):
        seconds = best_seconds(lambda: method.network.decode(latents, embedding))
    return {"decode_gflop": gflop(lambda: method.network.decode(latents, embedding)), "decode_ms": 1000 * seconds}


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ValueError as error:
        sys.exit(f"decoders: {error}")
