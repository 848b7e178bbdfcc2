"""The conditional denoiser on the latent grid."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ldseg.config import ModelConfig
from ldseg.networks.blocks import Attention, ResidualBlock, Up, conv, level_strides, norm, time_embedding


class Denoiser(nn.Module):
    """A small U-Net on [noisy label latent, image embedding] with the step index (f_score in the paper)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dims, widths = len(config.patch), config.denoiser_widths
        embedding = config.embedding_channels or config.latent_channels
        self.time_channels = 4 * widths[0]
        self.time = nn.Sequential(
            nn.Linear(64, self.time_channels), nn.SiLU(), nn.Linear(self.time_channels, self.time_channels)
        )
        self.stem = conv(dims, config.latent_channels + embedding, widths[0])
        strides = level_strides(config, config.levels)

        def block(width: int) -> ResidualBlock:
            return ResidualBlock(dims, width, width, self.time_channels)

        self.enter = nn.ModuleList(block(width) for width in widths)
        self.downs = nn.ModuleList(conv(dims, a, b, stride=strides) for a, b in zip(widths, widths[1:], strict=False))
        self.attention = Attention(dims, widths[-1]) if config.denoiser_attention else nn.Identity()
        self.middle = block(widths[-1])
        self.ups = nn.ModuleList(
            Up(dims, b, a, strides) for a, b in reversed(list(zip(widths, widths[1:], strict=False)))
        )
        self.leave = nn.ModuleList(block(width) for width in reversed(widths[:-1]))
        self.head = nn.Sequential(norm(widths[0]), nn.SiLU(), conv(dims, widths[0], config.latent_channels))

    def forward(self, latents: Tensor, t: Tensor, embedding: Tensor) -> Tensor:
        """(B, latent_channels, *latent), (B,) int64, (B, embedding_channels, *latent) -> like `latents`."""
        time = self.time(time_embedding(t, 64))
        x = self.stem(torch.cat([latents, embedding], dim=1))
        skips = []
        for level, enter in enumerate(self.enter):
            x = enter(x, time)
            if level < len(self.downs):
                skips.append(x)
                x = self.downs[level](x)
        x = self.middle(self.attention(x), time)
        for up, leave, skip in zip(self.ups, self.leave, reversed(skips), strict=True):
            x = leave(up(x) + skip, time)
        return self.head(x)
