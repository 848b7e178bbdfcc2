"""The label map of a case as class indices, and how far it is from what the samples alone say."""

from __future__ import annotations

import math

import numpy as np
import torch

from ldseg import columns
from ldseg.config import Config, DataConfig
from ldseg.evaluation.result import Row
from ldseg.metrics import overlap
from ldseg.posterior.accumulator import arg_max
from ldseg.posterior.summary import PosteriorSummary


def label_classes(summary: PosteriorSummary, data: DataConfig) -> np.ndarray:
    """The summary's label map as class indices, (*native) uint8."""
    indices = np.zeros(summary.label.shape, dtype=np.uint8)
    for index, value in enumerate(data.label_values):
        indices[summary.label == value] = index
    return indices


def named(prefix: str, values: np.ndarray, data: DataConfig, unit: str = "") -> Row:
    """One column for each structure, and the mean over those where the value is defined."""
    row: Row = {columns.score(prefix, s, unit): float(v) for s, v in zip(data.structures, values, strict=True)}
    defined = values[~np.isnan(values)]
    row[columns.score(prefix, unit=unit)] = float(defined.mean()) if defined.size else math.nan
    return row


def against_the_mean(summary: PosteriorSummary, reference: np.ndarray | None, config: Config) -> Row:
    """How the label map and the arg max of the samples' mean probability differ, where the image has a share in one.

    Args:
        summary: of a case.
        reference: (*native) class indices of the first rater, None for an unlabelled case.
        config: of the model.

    Returns:
        label_difference: 1 - mean Dice of the two over the structures (`overlap.dice_per_class`), and with a reference
        mean_dice: that of the arg max of the mean; nothing for a model without `sampler.image_share`, or without
        diffusion.
    """
    if not config.sampler.image_share or config.loss.deterministic:
        return {}
    structures, count = summary.mean_probability, config.data.num_classes
    everything = np.concatenate([1 - structures.sum(0, keepdims=True), structures])
    mean = arg_max(torch.from_numpy(everything)).numpy()
    between = overlap.dice_per_class(label_classes(summary, config.data), mean, count)
    row: Row = {"label_difference": float(1 - between.mean())}
    if reference is not None:
        row["mean_dice"] = float(overlap.dice_per_class(mean, reference, count).mean())
    return row
