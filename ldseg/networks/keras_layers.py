"""What the authors' networks are made of, as Keras computes it."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-3
MOMENTUM = 0.01  # Keras counts it the other way round: 0.99


def conv(dims: int, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Module:
    """A convolution with TensorFlow's "same" padding on even sizes; stride 2 and even kernels pad at the end."""
    layer: Any = {2: nn.Conv2d, 3: nn.Conv3d}[dims]
    if stride == 1 and kernel % 2:
        return layer(inputs, outputs, kernel, padding=kernel // 2, groups=groups)
    pad: Any = {2: nn.ConstantPad2d, 3: nn.ConstantPad3d}[dims]
    return nn.Sequential(pad((0, 1) * dims, 0.0), layer(inputs, outputs, kernel, stride, groups=groups))


def batch_norm(dims: int, channels: int) -> nn.Module:
    """Batch normalisation with Keras's defaults."""
    return {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dims](channels, eps=EPSILON, momentum=MOMENTUM)


def time_embedding(t: Tensor, channels: int) -> Tensor:
    """Sines, then cosines; the slowest frequency is 1 / 10000 exactly (half - 1 in the denominator)."""
    half = channels // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, device=t.device, dtype=torch.float32) / (half - 1))
    angles = t.float()[:, None] * frequencies[None]
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def folded(layer: Any, norm: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution with the batch normalisation after it taken in, as it is in evaluation."""
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    weight = layer.weight * scale.view(-1, *[1] * (layer.weight.ndim - 1))
    return weight, norm.bias + (layer.bias - norm.running_mean) * scale


def rows(x: Tensor) -> Tensor:
    """(B, C, *spatial) -> (B * positions, C), in the same memory where x has channels last."""
    return x.movedim(1, -1).flatten(0, -2)


def silu_(x: Tensor) -> Tensor:
    """SiLU in the memory of what nobody else reads, unless gradients want it."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


def transposed_kernel(weight: Tensor) -> Tensor:
    """Of the transposed convolution with stride 2 that equals nearest neighbours to twice the size and a convolution.

    Of a kernel's three taps an axis two fall on the same voxel of the small grid: added up before, they cost 8
    products a channel in 3D where there were 27.

    Args:
        weight: (outputs, inputs, 3, ...).

    Returns:
        (inputs, outputs, 4, ...), for a padding of 1.
    """
    for axis in range(2, weight.ndim):
        first, middle, last = weight.unbind(axis)
        weight = torch.stack([last, middle + last, first + middle, first], axis)
    return weight.transpose(0, 1)
