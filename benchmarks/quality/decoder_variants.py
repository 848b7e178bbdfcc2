"""The decoders that `decoders.py` compares: what differs from the one that ships, in settings and in the network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.quality.ablation import switches
from benchmarks.quality.baseline_models import LatentDiffusion
from ldseg.config import Config, ConfigError

SHIPPED = "as shipped"
AUTHORS = "the authors' networks"


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
