"""What can be added up before a network is evaluated, so that it does less and passes over its memory less often."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


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
