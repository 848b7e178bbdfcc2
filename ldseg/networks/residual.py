"""The label decoder of a model whose image encoder gives logits of its own."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ldseg.config import ModelConfig
from ldseg.networks.blocks import ResidualBlock, Up, conv, depth_to_space, latent_factors, level_strides, norm, zero


class Handed(NamedTuple):
    """What the label decoder sees of an image.

    Attributes:
        context: (B, widths[-1], *latent), of the embedding.
        features: (B, widths[0], *patches).
        logits: (B, classes * patch, *patches), the image encoder's own.
    """

    context: Tensor
    features: Tensor
    logits: Tensor


class ResidualDecoder(nn.Module):
    """Label latent -> class logits on the working grid, of a model with `image_logits`.

    What it makes of the latent is a residual: it is added to the logits that the image encoder gives alone, and sees
    that encoder's features on the grid of the patches. The latent says which segmentation, the image where its
    boundary runs. Nothing is computed at full size: the last channels are the patches' voxels.
    """

    def __init__(self, config: ModelConfig, num_classes: int) -> None:
        super().__init__()
        dims, widths, group = len(config.patch), config.autoencoder_widths, config.norm_group
        grids = config.downsampling, config.patch
        self.patch, self.factors = config.patch, latent_factors(*grids, 0)
        self.embedding = config.embedding_channels or config.latent_channels
        self.logits = num_classes * math.prod(config.patch)
        layers: list[nn.Module] = [conv(dims, config.latent_channels, widths[-1])]
        for level in reversed(range(len(widths))):
            blocks = config.blocks if level > 0 else 0  # features from there are at hand
            layers += [ResidualBlock(dims, widths[level], group) for _ in range(blocks)]
            if level > 0:
                layers.append(Up(dims, widths[level], widths[level - 1], level_strides(*grids, level - 1)))
        layers += [norm(widths[0], group), nn.SiLU(), conv(dims, widths[0], self.logits)]
        self.layers = nn.Sequential(*layers)
        context = zero(conv(dims, self.embedding, widths[-1], kernel=1))
        self.skips = nn.ModuleList([context, conv(dims, config.image_widths[0], widths[0], kernel=1)])

    def forward(self, latents: Tensor, seen: Tensor | Handed) -> Tensor:
        """Class logits (B, num_classes, *grid).

        Args:
            latents: (B, latent_channels, *latent).
            seen: the image encoder's output, or what `hand_over` makes of it.
        """
        handed = self.hand_over(seen) if isinstance(seen, Tensor) else seen
        # the next layer's layout: SiLU's gradient is several times as slow where its inputs' differ
        x = _channels_last(self.layers[0](latents) + handed.context)
        x = _channels_last(self.layers[1:-3](x) + handed.features)
        return depth_to_space(handed.logits + self.layers[-3:](x), self.patch)

    def hand_over(self, embedding: Tensor) -> Handed:
        """What is the same for every sample of an image, unpacked and brought to this network's widths."""
        context, fine = self.skips
        features, logits = self.unpack(embedding)
        return Handed(context(embedding[:, : self.embedding]), fine(features), logits)

    def unpack(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """The image encoder's features and logits, which it packs behind the embedding, on the grid of the patches."""
        packed = depth_to_space(embedding[:, self.embedding :], self.factors)
        features, logits = packed.split([packed.shape[1] - self.logits, self.logits], dim=1)
        return _channels_last(features), logits

    def image_logits(self, embedding: Tensor) -> Tensor:
        """The image encoder's own class logits (B, num_classes, *grid)."""
        return depth_to_space(self.unpack(embedding)[1], self.patch)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)
