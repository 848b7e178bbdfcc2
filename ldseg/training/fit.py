"""Training as a generator of epoch results; it knows no cluster."""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from ldseg import columns
from ldseg.config import IGNORED, Config, ConfigError, OptimConfig
from ldseg.metrics.energy import set_distances
from ldseg.model import LDSeg
from ldseg.posterior.accumulator import PosteriorAccumulator, sample_labels
from ldseg.posterior.sampling import sample_probabilities
from ldseg.precision import native_bfloat16
from ldseg.training.checkpoint import read_state, write_state
from ldseg.training.losses import TrainingLoss, draw_training

if TYPE_CHECKING:
    from ldseg.data.dataset import TrainingSet


MAX_LOADERS = 2  # processes beside a GPU: a step takes longer than an item


class DivergedError(RuntimeError):
    """The loss is no longer finite; the message names the epoch and the cure."""


@dataclass(frozen=True)
class EpochResult:
    """What one epoch gave: `metrics` of training (means over its steps) and, on rank 0, of validation."""

    epoch: int
    metrics: dict[str, float]
    seconds: float


@dataclass
class TrainingState:
    """All that a resumed run needs: networks, their moving average, the optimiser, epochs finished."""

    config: Config
    device: str
    model: LDSeg
    ema: LDSeg
    optimizer: torch.optim.Optimizer
    epoch: int = 0
    updates: int = 0
    history: list[dict[str, float]] = field(default_factory=list)

    @classmethod
    def create(cls, config: Config, device: str = "cpu") -> TrainingState:
        """Fresh networks, reproducible by optim.seed."""
        torch.manual_seed(config.optim.seed)
        model = LDSeg(config).to(device).channels_last()
        ema = copy.deepcopy(model).requires_grad_(False).eval()
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=config.optim.learning_rate, weight_decay=config.optim.weight_decay, fused=True
        )
        return cls(config=config, device=device, model=model, ema=ema, optimizer=optimizer)

    def save(self, folder: Path) -> None:
        """Write it as a checkpoint, with its digest beside it.

        Raises:
            OSError: the disk is full or away.
        """
        content = {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "updates": self.updates,
            "history": self.history,
        }
        write_state(folder, content)

    def load(self, folder: Path) -> None:
        """Continue from `save`; the configuration must be the one it was saved with.

        Raises:
            CheckpointError: it is missing, cut off or changed; the state is as it was.
        """
        content = read_state(folder, self.device)
        self.model.load_state_dict(content["model"])
        self.ema.load_state_dict(content["ema"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.epoch, self.updates, self.history = content["epoch"], content["updates"], content["history"]

    def start_from(self, weights: Mapping[str, Tensor]) -> list[str]:
        """Begin with another model's weights (fine-tuning).

        Returns:
            What that model does not have and what therefore starts fresh.

        Raises:
            ConfigError: it has parts that this model has not, or of another size.
        """
        try:
            missing, unknown = self.model.load_state_dict(dict(weights), strict=False)
        except RuntimeError as error:
            raise ConfigError(f"the weights to start from do not fit: {str(error).splitlines()[1].strip()}") from error
        if unknown:
            raise ConfigError(f"the weights to start from have {unknown[0]}, which this configuration has not")
        self.ema.load_state_dict(self.model.state_dict())
        return list(missing)

    @torch.no_grad()
    def update_ema(self) -> None:
        """Moving average of the networks in optim.ema_scope, short at first so that it forgets the random start."""
        decay = min(self.config.optim.ema_decay, (1 + self.updates) / (10 + self.updates))
        averaged: list[Tensor] = list(self.ema.parameters())
        current: list[Tensor] = list(self.model.parameters())
        torch._foreach_lerp_(averaged, current, 1 - decay)
        for kept, buffer in zip(self.ema.buffers(), self.model.buffers(), strict=True):
            kept.copy_(buffer)
        if self.config.optim.ema_scope == "denoiser":
            for name in ("label_encoder", "image_encoder", "label_decoder"):
                getattr(self.ema, name).load_state_dict(getattr(self.model, name).state_dict())


def learning_rate(optim: OptimConfig, progress: float) -> float:
    """Linear warm-up, then half a cosine down to a hundredth; `progress` in [0, 1] of the whole run."""
    if progress < optim.warmup_fraction:
        return optim.learning_rate * progress / optim.warmup_fraction
    share = (progress - optim.warmup_fraction) / (1 - optim.warmup_fraction)
    return optim.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(share, 1.0))))


def make_loader(cases: TrainingSet, device: str, **options: Any) -> DataLoader[Any]:
    """Batches of training items; beside a GPU processes of their own make them, so that it doesn't wait for them."""
    if device == "cpu":
        return DataLoader(cases, **options)
    workers = min(MAX_LOADERS, len(os.sched_getaffinity(0)))
    return DataLoader(cases, **options, num_workers=workers, persistent_workers=True, pin_memory=True)


def fit(
    state: TrainingState,
    train: TrainingSet,
    validation: TrainingSet | None,
    *,
    device: str = "cpu",
    forward: nn.Module | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[EpochResult]:
    """Train from `state.epoch` to optim.epochs, yielding after each epoch.

    Args:
        state: changed in place; save it after any yield to resume there.
        train, validation: items as `TrainingSet` gives them; validation is used by rank 0.
        forward: `TrainingLoss` of the model wrapped for data-parallel training; None for one process.
        rank, world_size: which share of the cases this process takes.

    Raises:
        DivergedError: the loss is NaN or infinite.
    """
    optim = state.config.optim
    loss_module = forward or TrainingLoss(state.model, has_ignored=train.has_ignored)
    sampler: DistributedSampler[Any] = DistributedSampler(
        train, world_size, rank, shuffle=optim.shuffle, seed=optim.seed
    )
    batch_size = min(optim.batch_size, len(sampler))
    loader = make_loader(train, device, batch_size=batch_size, sampler=sampler, drop_last=True)
    while state.epoch < optim.epochs:
        start = time.perf_counter()
        sampler.set_epoch(state.epoch)
        train.set_epoch(state.epoch)
        generator = torch.Generator().manual_seed(hash((optim.seed, state.epoch, rank)) % 2**63)
        metrics = _train_epoch(state, loss_module, loader, generator, device)
        state.epoch += 1
        due = state.epoch in (1, optim.epochs) or state.epoch % optim.validate_every == 0
        if rank == 0 and validation is not None and due:
            metrics |= validate(state.ema, validation, device=device, samples=optim.validation_samples)
        state.history.append({"epoch": float(state.epoch), **metrics})
        yield EpochResult(state.epoch, metrics, time.perf_counter() - start)


def _train_epoch(
    state: TrainingState, loss_module: nn.Module, loader: DataLoader[Any], generator: torch.Generator, device: str
) -> dict[str, float]:
    optim, steps = state.config.optim, len(loader)
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}  # an update of the image alone has not all terms
    loss_module.train()
    for step, batch in enumerate(loader):
        first = step - step % optim.accumulate
        batches = min(optim.accumulate, steps - first)
        last = step + 1 == first + batches
        # several workers exchange gradients while the last batch of an update runs backward, and not before
        waiting = isinstance(loss_module, DistributedDataParallel) and not last
        with cast(DistributedDataParallel, loss_module).no_sync() if waiting else nullcontext():
            values = _backward(state, loss_module, batch, generator, device, 1 / batches)
        for name, value in values.items():
            sums[name], counts[name] = sums.get(name, 0.0) + value, counts.get(name, 0) + 1
        if last:
            for group in state.optimizer.param_groups:
                group["lr"] = learning_rate(optim, (state.epoch + first / steps) / optim.epochs)
            nn.utils.clip_grad_norm_(state.model.parameters(), optim.gradient_clip)
            state.optimizer.step()
            state.optimizer.zero_grad(set_to_none=True)
            state.updates += 1
            state.update_ema()
    return {name: total / counts[name] for name, total in sums.items()}


def _backward(
    state: TrainingState,
    loss_module: nn.Module,
    batch: dict[str, Any],
    generator: torch.Generator,
    device: str,
    share: float,
) -> dict[str, float]:
    """Add `share` of a batch's gradient to what is there; returns the terms of its loss."""
    amp = state.config.optim.amp and native_bfloat16(device)
    images, labels = (batch[name].to(device, non_blocking=True) for name in ("image", "label"))
    with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=amp):
        terms: dict[str, Tensor] = loss_module(images, labels, *draw_training(state.model, images, generator))
    values = dict(zip(terms, torch.stack([term.detach().float() for term in terms.values()]).tolist(), strict=True))
    if not math.isfinite(values["loss"]):
        raise DivergedError(f"the loss became {values['loss']} in epoch {state.epoch + 1}; lower optim.learning_rate")
    (share * terms["loss"]).backward()
    return values


@torch.no_grad()
def validate(
    model: LDSeg, cases: TrainingSet, *, device: str = "cpu", samples: int = 2, num_steps: int | None = None
) -> dict[str, float]:
    """Score a model on labelled cases at the working grid, a fixed noise for each case.

    Returns:
        val_dice and val_dice_{structure}: Dice of the mean probability of the samples (mean over cases in which
        the structure is present in label or prediction), val_agreement: mean pairwise Dice of the samples,
        val_energy_score: of the samples against all raters (`ldseg.metrics.energy`; proper, lower is better), val_nll:
        negative log-likelihood per voxel in nats, val_autoencoder_dice: of the label's own round trip,
        val_latent_std: spread of the clean latents over the cases as large as the first.
    """
    data = model.config.data
    scores: dict[str, list[float]] = {}
    latents: list[Tensor] = []
    for index in range(len(cases)):
        item = cases[index]
        known = ~(item["labels"] == IGNORED).any(0)  # scores are of the voxels that every rater judged
        label, raters = (item["label"] * known).to(device), item["labels"] * known
        embedding = model.encode_image(item["image"][None].to(device))
        noise = torch.Generator().manual_seed(index)
        shape = model.latent_shape(tuple(label.shape))
        starts = torch.randn((samples, *shape), generator=noise).to(device)
        probabilities = sample_probabilities(model, embedding, starts, noise, num_steps)
        accumulator = PosteriorAccumulator.create(data.num_classes, tuple(label.shape))
        accumulator.add(probabilities.cpu())
        mean = accumulator.mean_probability()
        likelihood = mean.gather(0, label[None].cpu())[:, known].clamp(min=1e-6)
        scores.setdefault("val_nll", []).append(float(-likelihood.double().log().mean()))
        distances = set_distances(sample_labels(accumulator) * known.numpy(), raters.numpy(), data.num_classes)
        scores.setdefault("val_energy_score", []).append(distances.energy_score)
        one_hot = F.one_hot(label, data.num_classes).movedim(-1, 0)[None].float()
        z0 = model.encode_label(one_hot)
        if not latents or z0.shape == latents[0].shape:  # cases may differ in size
            latents.append(z0)
        round_trip = model.decode(z0, embedding)[0].argmax(0) * known.to(device)
        segmented = mean.argmax(0) * known
        agreement = accumulator.pairwise_dice()
        scores.setdefault("val_agreement", []).append(sum(agreement) / len(agreement))
        for k, name in enumerate(data.structures, start=1):
            _append_dice(scores, columns.score("val_dice", name), segmented == k, label.cpu() == k)
            _append_dice(scores, "val_autoencoder_dice", round_trip == k, label == k)
    means = {name: sum(values) / len(values) for name, values in scores.items() if values}
    per_structure = [means[name] for s in data.structures if (name := columns.score("val_dice", s)) in means]
    means["val_dice"] = sum(per_structure) / max(len(per_structure), 1)
    means["val_latent_std"] = float(torch.cat(latents).std(0, correction=0).mean())
    return means


def _append_dice(scores: dict[str, list[float]], name: str, a: Tensor, b: Tensor) -> None:
    total = int(a.sum()) + int(b.sum())
    if total:
        scores.setdefault(name, []).append(2 * int((a & b).sum()) / total)
