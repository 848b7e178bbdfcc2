"""Image encoder: the image once, whatever the number of samples."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ldseg.config import ModelConfig
from ldseg.networks.blocks import FINE, ResidualBlock, Up, conv, latent_factors, level_strides, norm, space_to_depth


class ImageEncoder(nn.Module):
    """Image -> embedding on the latent grid (z_i in the paper).

    Widths beyond the latent grid make it a U-Net: the context of the deeper levels comes back up to the latent
    grid. It runs once per case, so it is the cheapest place for capacity.

    With `decoder_skips` what the label decoder is to see of each finer level travels in the same tensor, as further
    channels: every patch of a finer level becomes channels of the latent grid. With `image_climb` the encoder goes up
    to its finest grid and hands over each level as it is on the way back, seen with its context; the finest grid, on
    which a block costs most, has its only block there.
    """

    def __init__(self, config: ModelConfig, in_channels: int) -> None:
        super().__init__()
        dims, widths, latent, group = len(config.patch), config.image_widths, config.image_levels, config.norm_group
        self.patch = config.image_patch or config.patch
        grids = config.downsampling, self.patch
        self.stem = conv(dims, in_channels * math.prod(self.patch), widths[0])
        self.stages, self.downs, self.ups, self.merges = (nn.ModuleList() for _ in range(4))
        climbs = bool(latent and config.image_climb and config.decoder_skips)
        for level, width in enumerate(widths):
            blocks = config.blocks + (level > 0) - (level == 0 and climbs)  # the finest grid's is on the way up
            self.stages.append(nn.Sequential(*[ResidualBlock(dims, width, group) for _ in range(blocks)]))
            if level + 1 < len(widths):
                self.downs.append(conv(dims, width, widths[level + 1], stride=level_strides(*grids, level)))
        for level in reversed(range(0 if climbs else latent, len(widths) - 1)):
            width = widths[level]
            self.ups.append(Up(dims, widths[level + 1], width, level_strides(*grids, level)))
            self.merges.append(ResidualBlock(dims, width, group))
        self.latent_level = latent
        channels = config.embedding_channels or config.latent_channels
        out = conv(dims, widths[latent], channels, kernel=1)
        self.head = nn.Sequential(norm(widths[latent], group), nn.SiLU(), out)
        finer = latent - config.levels  # levels that the decoder has no grid for, but for its last convolution
        seen = [level for level in range(latent) if level == 0 or level >= finer] if config.decoder_skips else []
        self.factors = {level: latent_factors(*grids, level) for level in seen}
        self.handed = nn.ModuleList(
            nn.Sequential(
                norm(widths[level], group),
                nn.SiLU(),
                conv(dims, widths[level], config.decoder_skips if level >= finer else FINE, kernel=1),
            )
            for level in seen
        )

    def forward(self, images: Tensor) -> Tensor:
        """(B, in_channels, *grid) -> (B, embedding_channels + what is handed to the decoder, *latent)."""
        x = self.stem(space_to_depth(images, self.patch))
        levels = []
        for level, stage in enumerate(self.stages):
            levels.append(stage(x))
            if level < len(self.downs):
                x = self.downs[level](levels[level])
        x = levels[-1]
        for step, (up, merge) in enumerate(zip(self.ups, self.merges, strict=True)):
            level = len(self.downs) - 1 - step
            x = levels[level] = merge(up(x) + levels[level])
        context = self.head(levels[self.latent_level])
        handed = [space_to_depth(h(levels[n]), f) for h, (n, f) in zip(self.handed, self.factors.items(), strict=True)]
        return torch.cat([context, *handed], dim=1) if handed else context
