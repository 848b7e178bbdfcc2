"""Label encoder and label decoder."""

from __future__ import annotations

import math

from torch import Tensor, nn

from ldseg.config import ModelConfig
from ldseg.diffusion import standardise
from ldseg.networks.blocks import ResidualBlock, Up, conv, depth_to_space, level_strides, norm, space_to_depth


class LabelEncoder(nn.Module):
    """One-hot labels -> label latent, standardised per sample (f_label-enc in the paper)."""

    def __init__(self, config: ModelConfig, num_classes: int) -> None:
        super().__init__()
        dims, widths = len(config.patch), config.autoencoder_widths
        self.patch, self.label_input = config.patch, config.label_input
        channels = num_classes if config.label_input == "one_hot" else 1
        layers: list[nn.Module] = [conv(dims, channels * math.prod(config.patch), widths[0])]
        for level, width in enumerate(widths):
            layers += [ResidualBlock(dims, width, width) for _ in range(config.blocks)]
            if level + 1 < len(widths):
                layers.append(conv(dims, width, widths[level + 1], stride=level_strides(config, level)))
        layers += [norm(widths[-1]), nn.SiLU(), conv(dims, widths[-1], config.latent_channels, kernel=1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, labels: Tensor) -> Tensor:
        """(B, num_classes, *grid) one-hot or probabilities -> (B, latent_channels, *latent)."""
        if self.label_input == "value":
            labels = labels.argmax(1, keepdim=True).to(labels.dtype)
        return standardise(self.layers(space_to_depth(labels, self.patch)))


class LabelDecoder(nn.Module):
    """Label latent -> class logits on the working grid."""

    def __init__(self, config: ModelConfig, num_classes: int) -> None:
        super().__init__()
        dims, widths = len(config.patch), config.autoencoder_widths
        self.patch = config.patch
        layers: list[nn.Module] = [conv(dims, config.latent_channels, widths[-1])]
        for level in reversed(range(len(widths))):
            layers += [ResidualBlock(dims, widths[level], widths[level]) for _ in range(config.blocks)]
            if level > 0:
                layers.append(Up(dims, widths[level], widths[level - 1], level_strides(config, level - 1)))
        layers += [norm(widths[0]), nn.SiLU(), conv(dims, widths[0], num_classes * math.prod(config.patch))]
        self.layers = nn.Sequential(*layers)

    def forward(self, latents: Tensor) -> Tensor:
        """(B, latent_channels, *latent) -> logits (B, num_classes, *grid)."""
        return depth_to_space(self.layers(latents), self.patch)
