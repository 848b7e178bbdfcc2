"""The conditional denoiser on the latent grid."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from ldseg.config import ModelConfig
from ldseg.networks.blocks import Attention, ResidualBlock, Up, conv, level_strides, norm, time_embedding, zero


class MatchedFilter(nn.Module):
    """What z_t says as a whole, read with the image in hand.

    What is ambiguous as a whole (how large a structure is, whether it is there) is spread over many positions of z_t
    and lies under the noise at each of them. Features of z_t times features of the embedding, summed over all
    positions, are a filter matched to the case: they raise it above the noise. Group normalisation takes such sums
    away, so they go round it, into the embedding of the step index.
    """

    def __init__(self, config: ModelConfig, channels: int, time_channels: int) -> None:
        super().__init__()
        dims = len(config.patch)
        self.signal = conv(dims, config.latent_channels, channels)
        self.filter = conv(dims, config.embedding_channels or config.latent_channels, channels)
        last = nn.Linear(time_channels, time_channels)
        self.context = nn.Sequential(nn.Linear(channels, time_channels), nn.SiLU(), zero(last))

    def forward(self, latents: Tensor, filters: Tensor) -> tuple[Tensor, Tensor]:
        """Products (B, channels, *latent), and their sums as a change of the time embedding (B, time_channels).

        `filters` are the features of the embedding, (B or 1, channels, *latent).
        """
        products = self.signal(latents) * filters
        sums = products.flatten(2).sum(2) / products[0, 0].numel() ** 0.5  # of noise: as large as a product
        return products, self.context(sums)


class Seen(NamedTuple):
    """What the denoiser sees of an embedding, the same at every step and for every sample: (B or 1, width, *latent).

    Attributes:
        stem: the embedding's part of the first convolution.
        filters: the matched filter's; None without one.
    """

    stem: Tensor
    filters: Tensor | None


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
        self.latent_channels = config.latent_channels
        self.convolve: Any = {2: F.conv2d, 3: F.conv3d}[dims]
        self.stem: Any = conv(dims, config.latent_channels + embedding, widths[0])
        self.matched = MatchedFilter(config, widths[0], self.time_channels) if config.denoiser_context else None
        strides = level_strides(config.downsampling, config.patch, config.levels)

        def block(width: int) -> ResidualBlock:
            return ResidualBlock(dims, width, config.norm_group, self.time_channels)

        self.enter = nn.ModuleList(block(width) for width in widths)
        self.downs = nn.ModuleList(conv(dims, a, b, stride=strides) for a, b in zip(widths, widths[1:], strict=False))
        self.attention = Attention(dims, widths[-1], config.norm_group) if config.denoiser_attention else nn.Identity()
        self.middle = block(widths[-1])
        self.ups = nn.ModuleList(
            Up(dims, b, a, strides) for a, b in reversed(list(zip(widths, widths[1:], strict=False)))
        )
        self.leave = nn.ModuleList(block(width) for width in reversed(widths[:-1]))
        out = conv(dims, widths[0], config.latent_channels)
        self.head = nn.Sequential(norm(widths[0], config.norm_group), nn.SiLU(), out)

    def see(self, embedding: Tensor) -> Seen:
        """What is made of an embedding (B or 1, embedding_channels, *latent) once for all steps and samples."""
        weight = self.stem.weight[:, self.latent_channels :]
        filters = None if self.matched is None else self.matched.filter(embedding)
        return Seen(self.convolve(embedding, weight, self.stem.bias, padding=1), filters)

    def forward(self, latents: Tensor, t: Tensor, embedding: Tensor | Seen) -> Tensor:
        """(B, latent_channels, *latent), (B,) int64 and an embedding, or what `see` makes of it -> like `latents`."""
        seen = self.see(embedding) if isinstance(embedding, Tensor) else embedding
        time = self.time(time_embedding(t, 64))
        x = self.convolve(latents, self.stem.weight[:, : self.latent_channels], padding=1) + seen.stem
        if self.matched is not None and seen.filters is not None:
            products, context = self.matched(latents, seen.filters)
            x, time = x + products, time + context
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
