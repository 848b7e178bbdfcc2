"""The image encoder that segments by itself: a residual U-Net, once a case."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ldseg.config import ModelConfig
from ldseg.networks.blocks import conv, latent_factors, level_strides, norm, space_to_depth


class Unit(nn.Module):
    """Convolutions, each normalised and rectified, added to the input (Kerfoot et al. 2019, as MONAI's residual unit).

    The first one strides. With `plain` the last is neither normalised nor rectified, as logits want it.
    """

    def __init__(
        self, widths: tuple[int, int], strides: Sequence[int], group: int, convs: int = 2, plain: bool = False
    ) -> None:
        super().__init__()
        dims, (inputs, outputs) = len(strides), widths
        layers: list[nn.Module] = []
        for number in range(convs):
            first = number == 0
            layers.append(_strided(inputs if first else outputs, outputs, strides if first else [1] * dims))
            if not (plain and number == convs - 1):
                layers += [norm(outputs, group), nn.PReLU()]
        self.layers = nn.Sequential(*layers)
        self.shortcut: nn.Module = nn.Identity()
        if max(strides) > 1:
            self.shortcut = _strided(inputs, outputs, strides)
        elif inputs != outputs:
            self.shortcut = conv(dims, inputs, outputs, kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.shortcut(x) + self.layers(x)
        return out


class UNetEncoder(nn.Module):
    """Image -> embedding on the latent grid (z_i in the paper), and what a U-Net says of the image.

    Behind the embedding travel the features on the grid of the patches and the class logits of every voxel, packed
    into channels of the latent grid: all of it is made once a case, whatever the number of samples.

    The first convolution strides by the patch, the deepest grid has a unit of twice its width, and on the way up
    transposed convolutions take a level with what was there on the way down.
    """

    def __init__(self, config: ModelConfig, in_channels: int, num_classes: int) -> None:
        super().__init__()
        dims, widths, group = len(config.patch), config.image_widths, config.norm_group
        self.patch, self.latent_level = config.patch, config.levels
        grids = config.downsampling, config.patch
        strides = [config.patch, *[level_strides(*grids, level) for level in range(len(widths) - 1)]]
        inputs = [in_channels, *widths]
        self.downs = nn.ModuleList(
            Unit((inputs[level], width), strides[level], group) for level, width in enumerate(widths)
        )
        self.bottom = Unit((widths[-1], 2 * widths[-1]), [1] * dims, group)
        below = 2 * widths[-1]
        self.ups = nn.ModuleList()
        for level in reversed(range(len(widths))):
            outputs = widths[level - 1] if level else num_classes
            own = group if level else 1
            self.ups.append(
                nn.Sequential(
                    _transposed(widths[level] + below, outputs, strides[level]),
                    norm(outputs, own),
                    nn.PReLU(),
                    Unit((outputs, outputs), [1] * dims, own, convs=1, plain=not level),
                )
            )
            below = outputs
        both = [2 * width for width in widths[:-1]] + [3 * widths[-1]]  # on the way up: a level and what comes to it
        channels = config.embedding_channels or config.latent_channels
        width = both[self.latent_level]
        self.head = nn.Sequential(norm(width, group), nn.SiLU(), conv(dims, width, channels, kernel=1))
        self.features = nn.Sequential(conv(dims, both[0], widths[0], kernel=1), norm(widths[0], group), nn.SiLU())
        self.finest = latent_factors(*grids, 0)

    def forward(self, images: Tensor) -> Tensor:
        """(B, in_channels, *grid) -> (B, embedding_channels + packed features and logits, *latent)."""
        levels, x = [], images
        for down in self.downs:
            x = down(x)
            levels.append(x)
        x = self.bottom(x)
        seen = {}
        for up, level in zip(self.ups, reversed(range(len(levels))), strict=True):
            seen[level] = torch.cat([levels[level], x], dim=1)
            x = up(seen[level])
        packed = torch.cat([self.features(seen[0]), space_to_depth(x, self.patch)], dim=1)
        return torch.cat([self.head(seen[self.latent_level]), space_to_depth(packed, self.finest)], dim=1)


def _kernel(strides: Sequence[int]) -> tuple[int, ...]:
    """Three, or as many voxels as leave none out between two strides and overlap by one."""
    return tuple(max(3, 2 * stride - 1) for stride in strides)


def _strided(inputs: int, outputs: int, strides: Sequence[int]) -> nn.Module:
    """Of a grid that the strides divide, in as many dimensions as there are strides."""
    layer: Any = {2: nn.Conv2d, 3: nn.Conv3d}[len(strides)]
    kernel = _kernel(strides)
    return cast(nn.Module, layer(inputs, outputs, kernel, tuple(strides), padding=tuple(k // 2 for k in kernel)))


def _transposed(inputs: int, outputs: int, strides: Sequence[int]) -> nn.Module:
    """The way back to that grid."""
    layer: Any = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[len(strides)]
    kernel, extra = _kernel(strides), tuple(stride - 1 for stride in strides)
    padding = tuple(k // 2 for k in kernel)
    return cast(nn.Module, layer(inputs, outputs, kernel, tuple(strides), padding=padding, output_padding=extra))
