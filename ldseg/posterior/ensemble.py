"""What several models say about one case: maps of how much of the uncertainty is theirs, and the files they become."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ldseg import columns
from ldseg.config import DataConfig
from ldseg.data.formats.scaled import Scale
from ldseg.data.grid import GridCase
from ldseg.data.volume import Volume
from ldseg.posterior import derivatives
from ldseg.posterior.accumulator import PosteriorAccumulator, entropy, soft_dice_confidence
from ldseg.posterior.derivatives import Map
from ldseg.posterior.summary import by_structure, confidence_columns, label_dtype, note_column, percentiles

PARTS = ("total", "epistemic", "aleatoric")


@dataclass(frozen=True)
class EnsembleSummary:
    """What M models with K samples each say about a case, on the native grid.

    Attributes:
        label: (*native), the input's label values; arg max of the mean probability.
        mean_probability: (S, *native) float32, mean over the models, one map for each structure.
        total, epistemic, aleatoric: (*native) float32, nats; total = epistemic + aleatoric
        (`ldseg.posterior.ensemble`).
        volumes: for each structure its size in each sample, (M K,), in `unit`; one model's samples after another's.
        agreement: mean pairwise Dice over all samples of all models for each structure, and their mean under "mean".
        means: of each part over the field of view ("total", ...) and over each structure in the label map
            ("{structure}_total", ...), nats; 0 for a structure that is not there.
        seconds: wall time by stage.
        num_samples: of each model.
        model_digests: one for each model.
        label_values: of the background and of each structure.
        confidence: as in `ldseg.posterior.summary.PosteriorSummary`, without a temperature.
        notes: of the image, see `ldseg.data.volume.Volume`.
    """

    case: str
    label: np.ndarray
    mean_probability: np.ndarray
    total: np.ndarray
    epistemic: np.ndarray
    aleatoric: np.ndarray
    volumes: dict[str, np.ndarray]
    unit: str
    agreement: dict[str, float]
    means: dict[str, float]
    seconds: dict[str, float]
    num_samples: tuple[int, ...]
    num_steps: int
    seed: int
    model_digests: tuple[str, ...]
    label_values: tuple[int, ...]
    confidence: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def numbers(self) -> dict[str, float | int | str]:
        """One flat row of a table, with the columns of one model's row and, further, the parts' means and `models`.

        `samples` counts all models', `model_digest` holds all digests with a space between.
        """
        row: dict[str, float | int | str] = {"case": self.case}
        for name, values in self.volumes.items():
            row |= percentiles(name, values, self.unit)
            row[columns.quality(name, "agreement")] = self.agreement[name]
        row |= {"agreement": self.agreement["mean"], "mean_entropy": self.means["total"]}
        row |= confidence_columns(self.confidence)
        row |= note_column(self.notes)
        row |= {f"mean_{name}": value for name, value in self.means.items()}
        row |= {"seconds": sum(self.seconds.values()), "samples": sum(self.num_samples), "steps": self.num_steps}
        digests = " ".join(self.model_digests)
        return row | {"seed": self.seed, "models": len(self.model_digests), "model_digest": digests}


def summarise_ensemble(
    grid: GridCase,
    models: Sequence[PosteriorAccumulator],
    digests: Sequence[str],
    data: DataConfig,
    *,
    seed: int,
    num_steps: int,
) -> EnsembleSummary:
    """The summary of one case that each of several models has drawn on the same working grid.

    Every model weighs the same in the probabilities, every sample in volumes and agreement. No calibration is applied:
    a temperature was fitted to one model. Each map is resampled once, whatever the number of models and samples.

    Args:
        digests: of the models, in their order.
        data: the models' common settings of structures and label values.
        num_steps: denoiser steps of a sample.

    Raises:
        ValueError: there is no model, one has no samples, or their grids or classes differ.
    """
    if len(models) != len(digests):
        raise ValueError(f"{len(models)} models need as many digests, got {len(digests)}")
    start = time.perf_counter()
    parts = decompose(models)
    mean = torch.stack([model.mean_probability() for model in models]).mean(0)
    merged = PosteriorAccumulator.merge(models)
    counts, agreement = merged.voxel_counts(), merged.pairwise_dice()
    confidence = soft_dice_confidence(mean, merged.inside)
    resampling = time.perf_counter()
    native = grid.to_native(torch.cat([mean.cpu(), _stacked(parts)]))
    values, winner = np.asarray(data.label_values, dtype=label_dtype(data.label_values)), native[: len(mean)].argmax(0)
    maps = dict(zip(PARTS, native[len(mean) :], strict=True))
    seconds = {"aggregate": resampling - start, "resample": time.perf_counter() - resampling}
    return EnsembleSummary(
        case=grid.case,
        label=values[winner],
        mean_probability=native[1 : len(mean)],
        total=maps["total"],
        epistemic=maps["epistemic"],
        aleatoric=maps["aleatoric"],
        volumes={name: counts[:, k] * grid.voxel_size for k, name in enumerate(data.structures)},
        unit=grid.unit,
        agreement=by_structure(data.structures, agreement),
        means=_means(maps, winner, data.structures),
        seconds=seconds,
        notes=grid.volume.notes,
        num_samples=tuple(model.num_samples for model in models),
        num_steps=num_steps,
        seed=seed,
        model_digests=tuple(digests),
        label_values=data.label_values,
        confidence=by_structure(data.structures, confidence),
    )


def write_ensemble(summary: EnsembleSummary, folder: Path, like: Volume, structures: Sequence[str]) -> dict[str, Path]:
    """Write a case's maps like `ldseg.posterior.summary.write_summary`.

    The three parts are integers of 16 bits with one common step, log(C) / 65535 nats with C classes: each is read back
    to half a step, so their sum meets the total to one and a half. (8 bits would swallow a small epistemic part.)

    Returns:
        Paths by "label", "prob-{structure}", "total", "epistemic", "aleatoric", "lookup" and "sidecar".
    """
    start = time.perf_counter()
    values = summary.label_values
    entries = derivatives.structure_entries(structures, values, summary.volumes, summary.unit, summary.agreement)
    about = {"Models": list(summary.model_digests), "Samples": list(summary.num_samples), "Steps": summary.num_steps}
    about |= {"Seed": summary.seed, "MeanNats": summary.means, "Structures": entries}
    paths = derivatives.write_case(
        summary.case, _maps(summary, structures), folder, like, structures=structures, label_values=values, about=about
    )
    summary.seconds["write"] = time.perf_counter() - start
    return paths


def _maps(summary: EnsembleSummary, structures: Sequence[str]) -> list[Map]:
    scale = Scale(math.log(len(structures) + 1), bits=16)
    arrays = (summary.total, summary.epistemic, summary.aleatoric)
    about = (
        "entropy of the mean probability over all models, nats",
        "mutual information of prediction and model, nats",
        "what the models agree is open: total less epistemic, nats",
    )
    parts = [
        Map(name, f"desc-{name}_uncertainty", array, text, scale)
        for name, array, text in zip(PARTS, arrays, about, strict=True)
    ]
    label = Map("label", "dseg", summary.label, "label map")
    return [label, *parts, *derivatives.probability_maps(summary.mean_probability, structures)]


def _stacked(parts: Decomposition) -> Tensor:
    """(3, *grid) float32; rounding may leave a part a hair below zero."""
    epistemic, aleatoric = parts.epistemic.clamp(min=0), parts.aleatoric.clamp(min=0)
    return torch.stack([epistemic + aleatoric, epistemic, aleatoric]).float().cpu()


def _means(maps: dict[str, np.ndarray], winner: np.ndarray, structures: Sequence[str]) -> dict[str, float]:
    means = {part: float(array.mean(dtype=np.float64)) for part, array in maps.items()}
    for k, name in enumerate(structures, start=1):
        there = winner == k
        for part, array in maps.items():
            means[f"{name}_{part}"] = float(array[there].mean(dtype=np.float64)) if there.any() else 0.0
    return means


@dataclass(frozen=True)
class Decomposition:
    """Maps in nats, (*grid) float64, that add up: total = epistemic + within_samples + between_samples.

    Attributes:
        total: entropy of the mean probability over all models and samples.
        epistemic: mutual information of prediction and model (Depeweg et al. 2018): 0 for one model, and at most the
            logarithm of their number.
        within_samples: mean entropy of the single samples.
        between_samples: mutual information of prediction and sample within a model, averaged over the models.
    """

    total: Tensor
    epistemic: Tensor
    within_samples: Tensor
    between_samples: Tensor

    @property
    def aleatoric(self) -> Tensor:
        """What the models agree is open: within and between their samples."""
        return self.within_samples + self.between_samples


def decompose(models: Sequence[PosteriorAccumulator]) -> Decomposition:
    """Split the uncertainty of M models, each with K >= 1 samples of one case on one grid; memory does not grow with K.

    Samples of ONE model say nothing about what it does not know: for a single accumulator the epistemic part is 0.

    Raises:
        ValueError: there is no model, or one has no samples, or their grids differ.
    """
    if not models or not all(model.num_samples for model in models):
        raise ValueError("give at least one model, each with at least one sample")
    shapes = {tuple(model.probability_sum.shape) for model in models}
    if len(shapes) > 1:
        raise ValueError(f"the models must be on one grid with the same classes, got {sorted(shapes)}")
    means = torch.stack([_normalised(model) for model in models])
    own = entropy(means, dim=1)
    within = torch.stack([model.entropy_sum.double() / model.num_samples for model in models]).mean(0)
    total = entropy(means.mean(0), dim=0)
    return Decomposition(total, total - own.mean(0), within, own.mean(0) - within)


def _normalised(model: PosteriorAccumulator) -> Tensor:
    """Mean probability in float64, free of the rounding of float32 sums."""
    mean = (model.probability_sum.double() / model.num_samples).clamp(min=0)
    return mean / mean.sum(0, keepdim=True)
