"""The networks of the authors of LDSeg, trait by trait as Keras computes them (code: FahimZaman/LDSeg, e85b4c8).

They differ from `ldseg.networks` on purpose: epsilons of 1e-3, "same" padding of strided convolutions at the end only,
a layer normalisation with a gain for each latent position, attention whose residual is the normalised input, grouped
convolutions in the 3D image encoder. Modules are declared in the order in which Keras stores their weights, which is
what `ldseg.keras_import` fills them by.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldseg.networks.keras_layers import (
    EPSILON,
    batch_norm,
    conv,
    folded,
    rows,
    silu_,
    time_embedding,
    transposed_kernel,
)  # fmt: skip

DROPOUT = 0.2


class Upsample(nn.Module):
    """Twice the size: a transposed convolution in 2D, nearest neighbours and a convolution in 3D."""

    def __init__(self, dims: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.transposed = dims == 2
        self.layer = nn.ConvTranspose2d(inputs, outputs, 3, 2) if self.transposed else conv(dims, inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        if self.transposed:
            return self.layer(x)[..., :-1, :-1]
        if not self.training:
            layer: Any = self.layer
            kernel = transposed_kernel(layer.weight).contiguous(memory_format=torch.channels_last_3d)
            return F.conv_transpose3d(x, kernel, layer.bias, stride=2, padding=1)
        return self.layer(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class AutoencoderBlock(nn.Module):
    """Two convolutions with batch normalisation beside a 1x1 shortcut with its own."""

    def __init__(self, dims: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = conv(dims, inputs, outputs), batch_norm(dims, outputs)
        self.conv2, self.shortcut = conv(dims, outputs, outputs), conv(dims, inputs, outputs, kernel=1)
        self.norm2, self.shortcut_norm = batch_norm(dims, outputs), batch_norm(dims, outputs)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            h = self.norm2(self.conv2(F.silu(self.norm1(self.conv1(x)))))
            return F.silu(self.shortcut_norm(self.shortcut(x)) + self.dropout(h))
        # the same in as few passes over the memory as there can be: at full resolution each of them counts
        conv1, conv2 = cast(Any, self.conv1), cast(Any, self.conv2)
        (weight, bias), (weight2, bias2) = folded(conv1, self.norm1), folded(conv2, self.norm2)
        shortcut, shortcut_bias = folded(self.shortcut, self.shortcut_norm)
        h = conv2._conv_forward(silu_(conv1._conv_forward(x, weight, bias)), weight2, bias2 + shortcut_bias)
        h = h.contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)
        rows(h).addmm_(rows(x).to(h.dtype), shortcut.flatten(1).t().to(h.dtype))
        return silu_(h)


class PositionNorm(nn.Module):
    """Keras's LayerNormalization over all axes, with a gain and an offset for each position."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape, size = shape, math.prod(shape)  # flat, for they are no kernels with a memory format
        self.weight, self.bias = nn.Parameter(torch.ones(size)), nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.shape, self.weight.view(self.shape), self.bias.view(self.shape), EPSILON)


class LabelEncoder(nn.Module):
    """Class numbers as one channel -> label latent; bound to one size by its last layer."""

    def __init__(self, dims: int, widths: tuple[int, ...], latent: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for level, (inputs, width) in enumerate(zip((1, *widths), widths, strict=False)):
            layers.append(AutoencoderBlock(dims, inputs, width))
            if level + 1 < len(widths):
                layers.append(nn.MaxPool2d(2) if dims == 2 else conv(dims, width, width, stride=2))
        layers += [conv(dims, widths[-1], 1, kernel=1 if dims == 2 else 2), PositionNorm((1, *latent))]
        self.layers = nn.Sequential(*layers)

    def forward(self, labels: Tensor) -> Tensor:
        """(B, classes, *grid) one-hot -> (B, 1, *latent)."""
        return self.layers(labels.argmax(1, keepdim=True).to(labels.dtype))


class LabelDecoder(nn.Module):
    """Label latent -> logits of the classes; the softmax over them is what Keras returns."""

    def __init__(self, dims: int, widths: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, width in zip((1, *widths), widths, strict=False):
            layers += [Upsample(dims, inputs, width), AutoencoderBlock(dims, width, width)]
        layers += [nn.SiLU(), conv(dims, widths[-1], num_classes, kernel=1), batch_norm(dims, num_classes)]
        self.layers = nn.Sequential(*layers)

    def forward(self, latents: Tensor) -> Tensor:
        """(B, 1, *latent) -> (B, classes, *grid)."""
        *blocks, _, last, norm = self.layers
        for block in blocks:
            latents = block(latents)
        if self.training:
            return norm(last(F.silu(latents)))
        weight, bias = folded(last, norm)
        return F.linear(silu_(latents).movedim(1, -1), weight.flatten(1), bias).movedim(-1, 1)


class Attention(nn.Module):
    """Self-attention over all positions; `raw_residual` adds to the input, else to the normalised input."""

    def __init__(self, channels: int, groups: int, heads: int, raw_residual: bool) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=EPSILON)
        self.query, self.key, self.value, self.out = (nn.Linear(channels, channels) for _ in range(4))
        self.heads, self.raw_residual = heads, raw_residual

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        tokens = normed.flatten(2).transpose(1, 2)
        q, k, v = (
            layer(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        h = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return (x if self.raw_residual else normed) + h.transpose(1, 2).reshape(x.shape)


class ImageBlock(nn.Module):
    """Two convolutions beside a 1x1 shortcut, then half the size: by a strided convolution in 2D, by maxima in 3D."""

    def __init__(self, dims: int, inputs: int, outputs: int) -> None:
        super().__init__()
        groups = 1 if dims == 2 else 4
        self.conv1 = conv(dims, inputs, outputs, groups=groups)
        self.conv2 = conv(dims, outputs, outputs, groups=groups)
        self.shortcut = conv(dims, inputs, outputs, kernel=1)
        self.down = conv(dims, outputs, outputs, stride=2) if dims == 2 else nn.MaxPool3d(2)
        self.norm = nn.GroupNorm(4, outputs, eps=EPSILON)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(silu_(self.dropout(self.conv1(F.silu(x)))))
        return self.norm(self.down(silu_(h.add_(self.shortcut(x)))))


class ImageEncoder(nn.Module):
    """Image -> embedding; with attention at the two coarsest levels and on the embedding itself in 2D."""

    def __init__(self, dims: int, in_channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv(dims, in_channels, widths[0])]
        for level, (inputs, width) in enumerate(zip(widths, widths[1:], strict=False)):
            layers.append(ImageBlock(dims, inputs, width))
            if dims == 2 and level >= len(widths) - 3:
                layers.append(Attention(width, groups=8, heads=8, raw_residual=True))
        if dims == 2:
            layers += [
                conv(dims, widths[-1], 1, kernel=1),
                Attention(1, groups=1, heads=1, raw_residual=True),
                nn.SiLU(),
            ]
        else:
            layers.append(conv(dims, widths[-1], 1))
        self.layers = nn.Sequential(*layers, batch_norm(dims, 1))

    def forward(self, images: Tensor) -> Tensor:
        """(B, in_channels, *grid) in [0, 1] -> (B, 1, *latent)."""
        return self.layers(images)


class ResidualBlock(nn.Module):
    """Two convolutions with group normalisation, the time embedding added in between."""

    def __init__(self, dims: int, inputs: int, outputs: int, time_channels: int) -> None:
        super().__init__()
        self.norm1, self.time = nn.GroupNorm(4, inputs, eps=EPSILON), nn.Linear(time_channels, outputs)
        self.conv1 = conv(dims, inputs, outputs)
        self.norm2, self.conv2 = nn.GroupNorm(4, outputs, eps=EPSILON), conv(dims, outputs, outputs)
        self.shortcut = conv(dims, inputs, outputs, kernel=1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.time(F.silu(time)).view(len(x), -1, *[1] * (x.ndim - 2))
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class Step(nn.Module):
    """A residual block, then attention where there is some; of the rest of the U-Net only what has weights."""

    def __init__(self, dims: int, inputs: int, width: int, time_channels: int, attention: bool) -> None:
        super().__init__()
        self.block = ResidualBlock(dims, inputs, width, time_channels)
        self.attention = Attention(width, groups=4, heads=1, raw_residual=False) if attention else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.attention(self.block(x, time))


class Resize(nn.Module):
    """Half the size by a strided convolution, or twice the size by nearest neighbours and a convolution."""

    def __init__(self, dims: int, width: int, up: bool) -> None:
        super().__init__()
        self.layer, self.up = conv(dims, width, width, stride=1 if up else 2), up

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.layer(F.interpolate(x, scale_factor=2.0, mode="nearest") if self.up else x)


class Denoiser(nn.Module):
    """A U-Net on [z_t, z_i] with two residual blocks a level; in 2D more of what it computes is kept as a skip."""

    def __init__(self, dims: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.time_channels, self.all_skips = 4 * widths[0], dims == 2
        self.time1 = nn.Linear(self.time_channels, self.time_channels)
        self.stem = conv(dims, 2, widths[0])
        self.time2 = nn.Linear(self.time_channels, self.time_channels)
        self.downs, self.middle, self.ups = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        skips, channels = [widths[0]] * self.all_skips, widths[0]
        for level, width in enumerate(widths):
            for inputs in (channels, width):
                self.downs.append(Step(dims, inputs, width, self.time_channels, level > 0))
            skips += [width, width]
            channels = width
            if level + 1 < len(widths):
                self.downs.append(Resize(dims, width, up=False))
                skips += [width] * self.all_skips
        self.middle.extend(Step(dims, channels, channels, self.time_channels, first) for first in (True, False))
        for level in reversed(range(len(widths))):
            for _ in range(3 if self.all_skips else 2):
                step = Step(dims, channels + skips.pop(), widths[level], self.time_channels, level > 0)
                self.ups.append(step)
                channels = widths[level]
            if level > 0:
                self.ups.append(Resize(dims, channels, up=True))
        self.head = nn.Sequential(nn.GroupNorm(4, channels, eps=EPSILON), nn.SiLU(), conv(dims, channels, 1))

    def forward(self, latents: Tensor, t: Tensor, embedding: Tensor) -> Tensor:
        """(B, 1, *latent), (B,) steps that need not be integers, (B, 1, *latent) -> the noise, like `latents`."""
        time = self.time2(F.silu(self.time1(time_embedding(t, self.time_channels))))
        x = self.stem(torch.cat([latents, embedding], dim=1))
        skips = [x] if self.all_skips else []
        for module in self.downs:
            x = module(x, time)
            if self.all_skips or isinstance(module, Step):
                skips.append(x)
        for module in self.middle:
            x = module(x, time)
        for module in self.ups:
            x = module(torch.cat([x, skips.pop()], dim=1) if isinstance(module, Step) else x, time)
        return self.head(x)
