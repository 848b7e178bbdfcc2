"""The arithmetic of the networks: float32 or bfloat16.

On a CPU the denoiser stays in float32 where latents are small: with a few steps nearly all the time goes to image
encoder and label decoder. Over a large latent grid its steps cost more than they do, and bfloat16 makes it several
times as fast, as it does on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch

from ldseg.model import LDSeg

PRECISIONS = ("auto", "float32", "bfloat16")
TOLERANCE = 0.01  # mean difference of a class probability; what rounding makes is below a tenth of it
LARGE = 4096  # positions of a latent, from which on the denoiser is computed like the others on a CPU too
SMALL = 64  # voxels an axis of the trial on a CPU; on a GPU it is the whole grid, where cuDNN has been wrong


@dataclass(frozen=True)
class Precision:
    """What is computed in, and why.

    Attributes:
        name: "float32" or "bfloat16".
        difference: mean difference of the class probabilities to float32 in the trial, NaN where none was made.
    """

    name: str
    reason: str
    difference: float = float("nan")

    def arithmetic(self, device: str) -> AbstractContextManager[Any]:
        """In which image encoder and label decoder are to be called."""
        return torch.autocast(device.split(":")[0], torch.bfloat16, enabled=self.name == "bfloat16")

    def denoising(self, device: str, latent: Sequence[int]) -> AbstractContextManager[Any]:
        """In which latents of so many positions an axis are to be drawn."""
        rounded = device.startswith("cuda") or math.prod(latent) >= LARGE
        return self.arithmetic(device) if rounded else FLOAT32.arithmetic(device)


FLOAT32 = Precision("float32", "asked for")
BFLOAT16 = Precision("bfloat16", "asked for")


def native_bfloat16(device: str) -> bool:
    """Whether bfloat16 is computed by the hardware and not emulated (which is slower than float32)."""
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu._is_avx512_bf16_supported())


def choose(model: LDSeg, device: str, asked: str = "auto") -> Precision:
    """float32 or bfloat16 for a model on a device.

    "auto" takes bfloat16 where the hardware computes it and a trial with this model comes out as in float32.

    Raises:
        ValueError: there is no such precision.
    """
    if asked not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {asked!r}")
    if asked != "auto":
        return {"float32": FLOAT32, "bfloat16": BFLOAT16}[asked]
    if model.config.model.family == "authors":
        return Precision("float32", "the authors' networks are kept to the digit")
    if not native_bfloat16(device):
        return Precision("float32", f"{device} computes no bfloat16 itself")
    difference = trial(model, device)
    reason = f"mean difference of a probability to float32 in a trial: {difference:.1e}"
    if difference <= TOLERANCE:  # not where it is no number
        return Precision("bfloat16", reason, difference)
    return Precision("float32", f"bfloat16 failed its trial ({reason})", difference)


@torch.inference_mode()
def trial(model: LDSeg, device: str) -> float:
    """Mean absolute difference of one sample's class probabilities in bfloat16 to float32, on a made image."""
    data, multiple = model.config.data, model.config.model.multiple
    whole = device.startswith("cuda")
    shape = [n if whole else min(n, m * max(1, SMALL // m)) for n, m in zip(data.shape, multiple, strict=True)]
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, data.in_channels, *[max(2, n // 4) for n in shape], generator=generator)
    mode = "bilinear" if len(shape) == 2 else "trilinear"
    image = torch.nn.functional.interpolate(coarse, size=shape, mode=mode, align_corners=False).to(device)
    start = torch.randn(1, *model.latent_shape(tuple(shape)), generator=generator).to(device)
    steps = model.config.sampler.num_sample_steps if whole else 1
    sampler = replace(model.config.sampler, method="ddim", num_sample_steps=steps)
    found = []
    for precision in (FLOAT32, BFLOAT16):
        with precision.arithmetic(device):  # the denoiser too, whatever the size: a case may be larger
            embedding = model.encode_image(image).float()
            latent = model.sample_latents(embedding, iter([start]), sampler)
            found.append(model.decode(latent, embedding).float().softmax(1))
    return float((found[0] - found[1]).abs().mean())
