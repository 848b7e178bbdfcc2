"""Label encoder and label decoder."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ldseg.config import ModelConfig
from ldseg.diffusion import standardise
from ldseg.networks.blocks import (
    FINE,
    DepthToSpace,
    ResidualBlock,
    Up,
    conv,
    depth_to_space,
    latent_factors,
    level_strides,
    norm,
    space_to_depth,
    zero,
)


class LabelEncoder(nn.Module):
    """One-hot labels -> label latent, standardised per sample (f_label-enc in the paper)."""

    def __init__(self, config: ModelConfig, num_classes: int) -> None:
        super().__init__()
        dims, widths, group = len(config.patch), config.autoencoder_widths, config.norm_group
        grids = config.downsampling, config.patch
        self.patch, self.label_input = config.patch, config.label_input
        channels = num_classes if config.label_input == "one_hot" else 1
        layers: list[nn.Module] = [conv(dims, channels * math.prod(config.patch), widths[0])]
        for level, width in enumerate(widths):
            layers += [ResidualBlock(dims, width, group) for _ in range(config.blocks)]
            if level + 1 < len(widths):
                layers.append(conv(dims, width, widths[level + 1], stride=level_strides(*grids, level)))
        layers += [norm(widths[-1], group), nn.SiLU(), conv(dims, widths[-1], config.latent_channels, kernel=1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, labels: Tensor) -> Tensor:
        """(B, num_classes, *grid) one-hot or probabilities -> (B, latent_channels, *latent)."""
        if self.label_input == "value":
            labels = labels.argmax(1, keepdim=True).to(labels.dtype)
        return standardise(self.layers(space_to_depth(labels, self.patch)))


class LabelDecoder(nn.Module):
    """Label latent -> class logits on the working grid.

    With `decoder_skips` it also sees the image, as a U-Net does: the embedding on the latent grid, and what the image
    encoder hands over of the finer levels. The latent says which segmentation, the image where its boundary runs.
    Where the image encoder works on a finer grid (`image_patch`), the last convolution is on that grid.
    """

    def __init__(self, config: ModelConfig, num_classes: int) -> None:
        super().__init__()
        dims, widths, group = len(config.patch), config.autoencoder_widths, config.norm_group
        grids = config.downsampling, config.patch
        self.patch = config.patch
        layers: list[nn.Module] = [conv(dims, config.latent_channels, widths[-1])]
        self.skips = nn.ModuleDict()  # by the place of the layer that they go before
        self.handed: list[tuple[int, tuple[int, ...]]] = []  # channels, and grid / latent grid, coarsest first
        self.embedding = config.embedding_channels or config.latent_channels
        if config.decoder_skips:
            self.skips["1"] = zero(conv(dims, self.embedding, widths[-1], kernel=1))
        for level in reversed(range(len(widths))):
            if config.decoder_skips and level < config.levels:
                self.skips[str(len(layers))] = zero(conv(dims, config.decoder_skips, widths[level], kernel=1))
                self.handed.append((config.decoder_skips, latent_factors(*grids, level)))
            layers += [ResidualBlock(dims, widths[level], group) for _ in range(config.blocks)]
            if level > 0:
                layers.append(Up(dims, widths[level], widths[level - 1], level_strides(*grids, level - 1)))
        layers += [norm(widths[0], group), nn.SiLU()]
        if config.decoder_skips and config.image_levels > config.levels:
            finer = tuple(p // q for p, q in zip(config.patch, config.image_patch, strict=True))
            layers += [conv(dims, widths[0], FINE * math.prod(finer), kernel=1), DepthToSpace(finer)]
            self.skips[str(len(layers))] = nn.Identity()  # the encoder has mixed them; here each pass counts
            self.handed.append((FINE, latent_factors(config.downsampling, config.image_patch, 0)))
            layers.append(nn.SiLU())
            self.patch, widths = config.image_patch, (FINE,)
        layers.append(conv(dims, widths[0], num_classes * math.prod(self.patch)))
        self.layers = nn.Sequential(*layers)

    def forward(self, latents: Tensor, embedding: Tensor | None = None) -> Tensor:
        """(B, latent_channels, *latent) and the image encoder's output -> logits (B, num_classes, *grid)."""
        seen = {} if embedding is None else dict(zip(self.skips, self._unpack(embedding), strict=True))
        x, layout = latents, torch.channels_last if latents.ndim == 4 else torch.channels_last_3d
        for place, layer in enumerate(self.layers):
            if str(place) in seen:
                # the next convolution's layout: SiLU's gradient is several times as slow where its inputs' differ
                x = (x + self.skips[str(place)](seen[str(place)])).contiguous(memory_format=layout)
            x = layer(x)
        return depth_to_space(x, self.patch)

    def _unpack(self, embedding: Tensor) -> list[Tensor]:
        """Coarsest first, as the decoder meets them; they were packed finest first."""
        sizes = [channels * math.prod(factors) for channels, factors in reversed(self.handed)]
        context, *finer = embedding.split([self.embedding, *sizes], dim=1)
        return [context, *(depth_to_space(x, f) for x, (_, f) in zip(reversed(finer), self.handed, strict=True))]
