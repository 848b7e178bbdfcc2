"""The pieces that the four networks share, for any number of spatial dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDE = 2**16  # values a group, from which on a GPU normalises with all its processors
VECTOR = 32  # bfloat16 values that a CPU computes at once
ROW = 8  # positions
FINE = 8  # channels of the decoder on a grid that is finer than its own patches: all of them are passed over a sample


def conv(dims: int, inputs: int, outputs: int, kernel: int = 3, stride: Sequence[int] | int = 1) -> nn.Module:
    """Same-size convolution (before striding) in `dims` spatial dimensions."""
    layer: Any = {2: nn.Conv2d, 3: nn.Conv3d}[dims]
    return cast(nn.Module, layer(inputs, outputs, kernel, stride, padding=kernel // 2))


class Norm(nn.GroupNorm):
    """GroupNorm with the same weights and numbers, computed in the way that is fast for the input."""

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda and x[0].numel() > WIDE * self.num_groups:
            return self._wide(x)
        if self.num_groups == self.num_channels:
            return self._each_channel(x)
        narrow = x.dtype == torch.bfloat16 and x.device.type == "cpu" and self.num_channels < VECTOR
        if narrow and len(x) == 1 and x[0, 0].numel() % ROW == 0 and not torch.is_grad_enabled():
            return self._narrow(x)
        return super().forward(x)

    def _each_channel(self, x: Tensor) -> Tensor:
        """Instance normalisation, up to seven times as fast on CPUs as GroupNorm; it answers in channels last.

        Batch normalisation of each item's positions is the only one there that takes that layout as it is.
        """
        if x.is_cuda:
            y = F.instance_norm(x, weight=self.weight, bias=self.bias, eps=self.eps)
            return y.contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)
        last = x.movedim(1, -1)
        items = last.flatten(1, -2)
        each = [F.batch_norm(i, None, None, self.weight, self.bias, training=True, eps=self.eps) for i in items]
        rows = each[0][None] if len(each) == 1 else torch.stack(each)
        return rows.view(last.shape).movedim(-1, 1)

    def _narrow(self, x: Tensor) -> Tensor:
        """One item without gradients, whose channels fill no vector: PyTorch's kernel takes them value by value.

        Rows of several positions fill vectors. Batch normalisation gives the mean and variance of each column, and
        those of a group's columns are joined.
        """
        last = x.movedim(1, -1)
        rows = last.reshape(-1, ROW * self.num_channels)
        zeros = torch.zeros(rows.shape[1])  # in float32, so that the statistics are so too
        columns = torch.batch_norm_update_stats(rows, zeros, zeros, 0.0)
        means, variances = (values.view(ROW, self.num_groups, -1) for values in columns)
        mean = means.mean((0, 2), keepdim=True)
        variance = (variances + (means - mean).square()).mean((0, 2), keepdim=True)
        mean, variance = (values.expand_as(means).flatten() for values in (mean, variance))
        y = F.batch_norm(rows, mean, variance, self.weight.repeat(ROW), self.bias.repeat(ROW), eps=self.eps)
        return y.view(last.shape).movedim(-1, 1)

    def _wide(self, x: Tensor) -> Tensor:
        """PyTorch's kernels give each group to one of a GPU's hundred processors; this gives it to all of them."""
        groups = x.unflatten(1, (self.num_groups, -1)).to(torch.promote_types(x.dtype, torch.float32))
        variance, mean = torch.var_mean(groups, dim=tuple(range(2, groups.ndim)), correction=0)
        channels = self.num_channels // self.num_groups
        deviation = (variance + self.eps).sqrt().repeat_interleave(channels, dim=1)
        scale = self.weight / deviation
        shift = self.bias - mean.repeat_interleave(channels, dim=1) * scale
        over = (*scale.shape, *[1] * (x.ndim - 2))
        return torch.addcmul(shift.view(over), x, scale.view(over)).to(x.dtype)


def norm(channels: int, group: int) -> nn.GroupNorm:
    """GroupNorm with `group` channels a group: independent of the batch."""
    return Norm(channels // group, channels)


def zero(layer: nn.Module) -> nn.Module:
    """Start a branch at nothing, so that its block starts as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def space_to_depth(x: Tensor, patch: Sequence[int]) -> Tensor:
    """(B, C, *spatial) -> (B, C * prod(patch), *(spatial / patch)): every patch becomes channels."""
    split = [n for size, p in zip(x.shape[2:], patch, strict=True) for n in (size // p, p)]
    dims = len(patch)
    x = x.reshape(*x.shape[:2], *split)
    order = (0, 1, *[3 + 2 * i for i in range(dims)], *[2 + 2 * i for i in range(dims)])
    return x.permute(order).flatten(1, 1 + dims)


def depth_to_space(x: Tensor, patch: Sequence[int]) -> Tensor:
    """The inverse of `space_to_depth`."""
    dims = len(patch)
    channels = x.shape[1] // math.prod(patch)
    grid = x.shape[2:]
    x = x.reshape(len(x), channels, *patch, *grid)
    order = (0, 1, *[n for i in range(dims) for n in (2 + dims + i, 2 + i)])
    return x.permute(order).reshape(len(x), channels, *[g * p for g, p in zip(grid, patch, strict=True)])


class DepthToSpace(nn.Module):
    """`depth_to_space` as a layer."""

    def __init__(self, patch: Sequence[int]) -> None:
        super().__init__()
        self.patch = tuple(patch)

    def forward(self, x: Tensor) -> Tensor:
        return depth_to_space(x, self.patch)


def level_strides(downsampling: Sequence[int], patch: Sequence[int], level: int) -> tuple[int, ...]:
    """Stride of the halving after `level`, per axis; level 0 is the grid of the patches.

    Down to the latent grid an axis is halved until its own factor is reached; deeper levels halve every axis
    that is downsampled at all, so that the time axis of 2D+t (factor 1) keeps its length.
    """
    ratios = [d // p for d, p in zip(downsampling, patch, strict=True)]
    if 2**level >= max(ratios):
        return tuple(2 if d > 1 else 1 for d in downsampling)
    return tuple(2 if ratio >= 2 ** (level + 1) else 1 for ratio in ratios)


def latent_factors(downsampling: Sequence[int], patch: Sequence[int], level: int) -> tuple[int, ...]:
    """Grid of a level / latent grid, per axis."""
    factors = [d // p for d, p in zip(downsampling, patch, strict=True)]
    for finer in range(level):
        factors = [f // s for f, s in zip(factors, level_strides(downsampling, patch, finer), strict=True)]
    return tuple(factors)


class ResidualBlock(nn.Module):
    """GroupNorm, SiLU, conv, twice, added to the input; a time embedding scales and shifts in between."""

    def __init__(self, dims: int, width: int, group: int, time_channels: int = 0) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(width, group), conv(dims, width, width)
        self.norm2, self.conv2 = norm(width, group), zero(conv(dims, width, width))
        self.time = nn.Linear(time_channels, 2 * width) if time_channels else None

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        h = self.norm2(self.conv1(F.silu(self.norm1(x))))
        if self.time is not None and time is not None:
            scale, shift = self.time(F.silu(time)).view(len(x), -1, *[1] * (x.ndim - 2)).chunk(2, dim=1)
            h = h * (1 + scale) + shift
        return x + self.conv2(F.silu(h))


class Attention(nn.Module):
    """Multi-head self-attention over all positions, added to the input (32 channels a head at most)."""

    def __init__(self, dims: int, channels: int, group: int) -> None:
        super().__init__()
        self.heads = max(1, channels // 32)
        self.norm = norm(channels, group)
        self.qkv, self.out = (
            conv(dims, channels, 3 * channels, kernel=1),
            zero(conv(dims, channels, channels, kernel=1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).unflatten(1, (3, self.heads, -1)).transpose(-1, -2).unbind(1)
        h = F.scaled_dot_product_attention(q.contiguous(), k.contiguous(), v.contiguous())
        return x + self.out(h.transpose(-1, -2).flatten(1, 2).view_as(x))


class Up(nn.Module):
    """Mix the channels on the coarse grid, where it is cheap, then nearest up-sampling by a halving's strides."""

    def __init__(self, dims: int, inputs: int, outputs: int, strides: Sequence[int]) -> None:
        super().__init__()
        self.scale = tuple(float(s) for s in strides)
        self.mix = conv(dims, inputs, outputs, kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.mix(x), scale_factor=self.scale, mode="nearest")


def time_embedding(t: Tensor, channels: int) -> Tensor:
    """Sinusoids of the step index (Vaswani et al. 2017): (B,) -> (B, channels) float32."""
    half = channels // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, device=t.device, dtype=torch.float32) / half)
    angles = t.float()[:, None] * frequencies[None]
    return torch.cat([angles.sin(), angles.cos()], dim=1)
