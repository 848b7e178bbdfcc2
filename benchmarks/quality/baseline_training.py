"""How each of the methods that are compared is trained for the same time, once for each seed, and kept."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
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


@dataclass(frozen=True)
class Setting:
    """What is the same for all methods."""

    config: Config
    train: TrainingSet
    minutes: float
    device: str = "cpu"


def train_method(name: str, seed: int, setting: Setting, weights: Path) -> None:
    """Train a method, of which an ensemble's members share the minutes, and keep its weights.

    Members have seeds of their own, which no other seed of the ensemble has.
    """
    count, device = MEMBERS.get(name, 1), setting.device
    own = replace(setting, minutes=setting.minutes / count)
    members = [fit(METHODS[name], own, count * seed + member) for member in range(count)]
    method = Ensemble([network for network, _ in members]) if count > 1 else members[0][0]
    where = "cpu" if device == "cpu" else torch.cuda.get_device_name()
    how = {"updates": sum(updates for _, updates in members), "minutes": setting.minutes, "trained_on": where}
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


def fit(build: Build, setting: Setting, seed: int = 0) -> tuple[nn.Module, int]:
    """Train for a time, the learning rate falling with it; returns the averaged network and the number of updates."""
    config, train, device = setting.config, setting.train, setting.device
    training = Training(build, config, device, seed)
    clock = time.process_time if device == "cpu" else time.monotonic
    start, epoch, order = clock(), 0, torch.Generator().manual_seed(seed)
    train.seed = seed  # of crops and augmentation
    options: dict[str, Any] = {"batch_size": config.optim.batch_size, "shuffle": True, "drop_last": True}
    loader = make_loader(train, device, **options, generator=order)
    while True:
        train.set_epoch(epoch)
        training.method.train()
        for batch in loader:
            progress = (clock() - start) / (60 * setting.minutes)
            if progress >= 1:
                return training.average.module.eval(), training.updates
            training.update(batch["image"], batch["label"], progress)
        epoch += 1


class Training:
    """A method's optimiser and moving average, one update at a time."""

    def __init__(self, build: Build, config: Config, device: str = "cpu", seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.method, self.optim = channels_last(build(config), config).to(device), config.optim
        self.device, self.updates = device, 0
        self.average = AveragedModel(self.method, multi_avg_fn=partial(follow, self.optim.ema_decay))
        self.optimizer = torch.optim.AdamW(
            self.method.parameters(), lr=self.optim.learning_rate, weight_decay=self.optim.weight_decay, fused=True
        )
        self.generator = torch.Generator().manual_seed(seed)

    def update(self, images: Tensor, labels: Tensor, progress: float) -> None:
        """One update by a batch; `progress` in [0, 1] of the whole training."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.optim, progress)
        images, labels = (batch.to(self.device, non_blocking=True) for batch in (images, labels))
        amp = self.optim.amp and native_bfloat16(self.device)
        with torch.autocast(self.device, torch.bfloat16, enabled=amp):
            loss: Tensor = self.method.loss(images, labels, self.generator)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.method.parameters(), self.optim.gradient_clip)
        self.optimizer.step()
        self.average.update_parameters(self.method)
        self.updates += 1


def channels_last(method: nn.Module, config: Config) -> nn.Module:
    """The layout of weights that convolutions are fastest in."""
    layout = torch.channels_last if config.data.spatial_dims == 2 else torch.channels_last_3d
    return method.to(memory_format=layout)


def follow(decay: float, averaged: list[Tensor], current: list[Tensor], updates: int) -> None:
    """The moving average of LDSeg's own training: short at first, so that it forgets the random start."""
    torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + int(updates)) / (10 + int(updates))))
