"""How fast this machine convolves and copies at best, and how near image encoder and label decoder come to it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

COPIED = 2**26  # float32 values: 256 MiB, more than most caches hold
TRIES = 10


def best_seconds(work: Callable[[], Any]) -> float:
    """The fastest of some calls, after one that isn't timed: a ceiling is what the machine can do undisturbed."""
    work()
    found = []
    for _ in range(TRIES):
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return min(found)


def gflop(work: Callable[[], Any]) -> float:
    """Billions of operations in the convolutions and matrix products of a call; a multiply-add is two."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops()) / 1e9


def convolutions_alone(network: nn.Module, work: Callable[[], Any]) -> float:
    """Seconds that the convolutions of a call take by themselves: each with its own input, layout and type."""
    calls: Counter[tuple[Any, ...]] = Counter()
    seen: dict[tuple[Any, ...], tuple[nn.Module, Tensor]] = {}

    def note(layer: Any, inputs: tuple[Tensor], _: Tensor) -> None:
        kind = (*layer.weight.shape, *layer.stride, *inputs[0].shape)
        calls[kind] += 1
        seen[kind] = layer, inputs[0].clone()

    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Conv3d)]
    handles = [layer.register_forward_hook(note) for layer in layers]
    work()
    for handle in handles:
        handle.remove()
    return sum(calls[kind] * best_seconds(partial(layer, x)) for kind, (layer, x) in seen.items())


def shares(work: Callable[[], Any]) -> dict[str, float]:
    """Which part of a call's seconds on a CPU each kind of operation takes, the six largest."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(TRIES):
            work()
    spent = {event.key.removeprefix("aten::"): event.self_cpu_time_total for event in profiler.key_averages()}
    largest = sorted(spent, key=spent.__getitem__, reverse=True)[:6]
    return {name: spent[name] / sum(spent.values()) for name in largest}


def copying(device: str) -> float:
    """GB/s read and written by a copy of 256 MiB."""
    source = torch.zeros(COPIED, device=device)
    target = source.clone()
    return 2 * source.nbytes / best_seconds(lambda: target.copy_(source)) / 1e9


@torch.inference_mode()
def measure(posterior: Any, image: Tensor) -> dict[str, Any]:
    """What is reached at a case's size, and what could be.

    Args:
        posterior: `ldseg.posterior.sampling.Posterior`; its model is measured in its precision.
        image: (1, in_channels, *grid).

    Returns:
        "copy_gb_s"; for "encode", "denoise" (a chunk's step) and "decode" (a sample) their "gflop" (attention is not
        counted), the best "gflop_s", the "ceiling_gflop_s" of their convolutions by themselves, and `shares`.
    """
    model, device, precision, chunk = posterior.model, posterior.device, posterior.precision, posterior.chunk_size
    found: dict[str, Any] = {"copy_gb_s": copying(device)}
    image = image.to(device)
    arithmetic = precision.arithmetic(device)
    with arithmetic:
        embedding = model.encode_image(image).float()
    size = model.latent_shape(tuple(image.shape[2:]))
    latents = torch.randn(chunk, *size, device=device).contiguous(memory_format=model.memory_format)
    seen = embedding.expand(chunk, *embedding.shape[1:]).contiguous(memory_format=model.memory_format)
    t = torch.full((chunk,), 500, device=device)
    stages: dict[str, tuple[Any, nn.Module, Callable[[], Any]]] = {
        "encode": (arithmetic, model.image_encoder, lambda: model.encode_image(image).float()),
        "denoise": (precision.denoising(device, size[1:]), model.denoiser, lambda: model.denoise(latents, t, seen)),
        "decode": (
            arithmetic,
            model.label_decoder,
            lambda: model.decode(latents[:1], embedding).softmax(1, dtype=torch.float32),
        ),
    }
    for stage, (rounding, network, work) in stages.items():
        with rounding:
            billions = gflop(work)
            found[stage] = {
                "precision": "bfloat16" if torch.is_autocast_enabled(device.split(":")[0]) else "float32",
                "gflop": billions,
                "gflop_s": billions / best_seconds(work),
                "ceiling_gflop_s": billions / convolutions_alone(network, work),
                "shares": {} if device.startswith("cuda") else shares(work),
            }
    return found
