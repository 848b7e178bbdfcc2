"""How each of the methods that are compared is trained for the same time, and kept."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from benchmarks.quality.baseline_models import DROPOUT, Deterministic, Ensemble, LatentDiffusion, ProbabilisticUNet
from ldseg.config import Config
from ldseg.data.dataset import TrainingSet
from ldseg.precision import native_bfloat16
from ldseg.training.fit import learning_rate, make_loader

Build = Callable[[Config], nn.Module]
METHODS: dict[str, Build] = {
    "LDSeg": LatentDiffusion,
    "LDSeg without diffusion": lambda config: LatentDiffusion(config.with_overrides({"loss.deterministic": True})),
    "latent diffusion, not end to end": lambda config: LatentDiffusion(
        config.with_overrides({"loss.timestep_weight": "never"})
    ),
    "U-Net": Deterministic,
    "U-Net, MC dropout": lambda config: Deterministic(config, DROPOUT),
    "U-Net, ensemble of 3": Deterministic,
    "Probabilistic U-Net": ProbabilisticUNet,
}
MEMBERS = {"U-Net, ensemble of 3": 3}


def train_method(name: str, config: Config, train: TrainingSet, minutes: float, device: str, weights: Path) -> None:
    """Train a method, of which an ensemble's members share the minutes, and keep its weights."""
    count, where = MEMBERS.get(name, 1), "cpu" if device == "cpu" else torch.cuda.get_device_name()
    members = [fit(METHODS[name], config, train, minutes / count, seed, device) for seed in range(count)]
    method = Ensemble([network for network, _ in members]) if count > 1 else members[0][0]
    how = {"updates": sum(updates for _, updates in members), "minutes": minutes, "trained_on": where}
    part = weights.with_suffix(".part")
    save_model(method.to(memory_format=torch.contiguous_format), str(part), {"how": json.dumps(how)})
    part.rename(weights)


def trained(name: str, config: Config, weights: Path) -> tuple[nn.Module, dict[str, Any]]:
    """A method with the weights that `train_method` kept, and how they came about."""
    build, count = METHODS[name], MEMBERS.get(name, 1)
    method = Ensemble([build(config) for _ in range(count)]) if count > 1 else build(config)
    load_model(method.to(memory_format=torch.contiguous_format), weights)
    with safe_open(weights, framework="pt") as file:
        how = json.loads(file.metadata()["how"])
    return channels_last(method, config).eval(), how


def fit(
    build: Build, config: Config, train: TrainingSet, minutes: float, seed: int = 0, device: str = "cpu"
) -> tuple[nn.Module, int]:
    """Train for a time, the learning rate falling with it; returns the averaged network and the number of updates."""
    torch.manual_seed(seed)
    method, optim = channels_last(build(config), config).to(device), config.optim
    clock = time.process_time if device == "cpu" else time.monotonic
    average = AveragedModel(method, multi_avg_fn=partial(follow, optim.ema_decay))
    optimizer = torch.optim.AdamW(
        method.parameters(), lr=optim.learning_rate, weight_decay=optim.weight_decay, fused=True
    )
    generator, start, updates, epoch = torch.Generator().manual_seed(seed), clock(), 0, 0
    order = torch.Generator().manual_seed(seed)
    loader = make_loader(train, device, batch_size=optim.batch_size, shuffle=True, drop_last=True, generator=order)
    while True:
        train.set_epoch(epoch)
        method.train()
        for batch in loader:
            progress = (clock() - start) / (60 * minutes)
            if progress >= 1:
                return average.module.eval(), updates
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(optim, progress)
            images, labels = (batch[name].to(device, non_blocking=True) for name in ("image", "label"))
            with torch.autocast(device, torch.bfloat16, enabled=optim.amp and native_bfloat16(device)):
                loss: Tensor = method.loss(images, labels, generator)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(method.parameters(), optim.gradient_clip)
            optimizer.step()
            average.update_parameters(method)
            updates += 1
        epoch += 1


def channels_last(method: nn.Module, config: Config) -> nn.Module:
    """The layout of weights that convolutions are fastest in."""
    layout = torch.channels_last if config.data.spatial_dims == 2 else torch.channels_last_3d
    return method.to(memory_format=layout)


def follow(decay: float, averaged: list[Tensor], current: list[Tensor], updates: int) -> None:
    """The moving average of LDSeg's own training: short at first, so that it forgets the random start."""
    torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + int(updates)) / (10 + int(updates))))
