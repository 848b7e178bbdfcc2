"""What the samples of one case say: maps and numbers, and the files they become."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldseg import columns
from ldseg.calibration.conformal import VolumeIntervals
from ldseg.calibration.familiarity import Judgement
from ldseg.data.formats.scaled import Scale
from ldseg.data.grid import GridCase
from ldseg.data.volume import Volume
from ldseg.posterior import derivatives
from ldseg.posterior.accumulator import PosteriorAccumulator, grid_classes
from ldseg.posterior.derivatives import Map
from ldseg.posterior.plan import KEPT_SAMPLES as KEPT_SAMPLES


@dataclass(frozen=True)
class PosteriorSummary:
    """What the samples of one case say, on the native grid.

    Attributes:
        label: (*native), the input's label values; arg max of the mean probability, before any temperature.
        mean_probability: (S, *native) float32, one map for each structure; of a calibrated bundle at its temperature.
        predictive_entropy: (*native) float32, nats, of the mean probability. Over samples of one model it mixes what
            the image leaves open with what the model does not know.
        sample_variance: (*native) float32, variance of the probability over the samples, summed over the classes.
        volumes: for each structure its size in each sample, (K,), in `unit` ("ml", or "mm2" in 2D).
        agreement: mean pairwise Dice of the samples for each structure, and their mean under "mean".
        seconds: wall time by stage.
        intervals: of a calibrated bundle, None without.
        cautious: (S, *native) bool, the voxels that hold all but a promised share of each structure; structures may
            overlap. None unless the bundle was calibrated for it (`ldseg.calibration.risk_control`) and drawn like
            then.
        judgement: whether the case is like the training cases; None where the calibration doesn't tell.
        samples: (N, *native), label values of the first N samples, for looking at one by one; None if none are kept.
        label_values: of the background and of each structure; empty means 0, 1, 2, ...
        precision: of the networks, see `ldseg.precision`.
        confidence: soft Dice confidence (`ldseg.posterior.accumulator`) of each structure on the working grid, at the
            temperature of a calibrated bundle, and their mean under "mean"; empty where it is not known.
        notes: of the image, see `ldseg.data.volume.Volume`.
        told: for each structure the interval that was told before, of a summary that was read back; else empty.
    """

    case: str
    label: np.ndarray
    mean_probability: np.ndarray
    predictive_entropy: np.ndarray
    sample_variance: np.ndarray
    volumes: dict[str, np.ndarray]
    unit: str
    agreement: dict[str, float]
    seconds: dict[str, float]
    num_samples: int
    num_steps: int
    seed: int
    model_digest: str
    intervals: VolumeIntervals | None = None
    cautious: np.ndarray | None = None
    judgement: Judgement | None = None
    samples: np.ndarray | None = None
    label_values: tuple[int, ...] = ()
    precision: str = "float32"
    confidence: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    told: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def unfamiliar(self) -> bool:
        """Whether the case is known to be unlike the training cases: then no interval is promised for it."""
        return self.judgement is not None and self.judgement.unfamiliar

    def interval(self, structure: str) -> tuple[float, float] | None:
        """The conformal interval of a structure's true size, in `unit`.

        None where its guarantee doesn't hold for this number of samples and steps, or it has no end. For an unfamiliar
        case it is computed, but not promised.
        """
        if structure in self.told:
            return self.told[structure]
        known = self.intervals
        if known is None or known.unit != self.unit or not known.holds_for(self.num_samples, self.num_steps):
            return None
        low, high = known.interval(structure, self.volumes[structure])
        return (low, high) if np.isfinite(high) else None

    def numbers(self) -> dict[str, float | int | str]:
        """One flat row of a table: sizes with their 5th, 50th and 95th percentile, agreement, confidence, seconds.

        soft_dice_confidence, of all and of each structure, is the Dice that the probabilities let expect.

        Where the model is calibrated for this number of samples and steps, also {structure}_volume_{unit}_low and
        _high, the conformal interval of the true volume. A structure with too few calibration cases for a bounded
        interval doesn't have these columns.

        Where the calibration knows the training cases, also distance, familiarity (the p-value) and unfamiliar (1 for
        a case farther from them than all calibration cases, or of one value), see `ldseg.calibration.familiarity`.
        """
        row: dict[str, float | int | str] = {"case": self.case}
        for name, values in self.volumes.items():
            row |= percentiles(name, values, self.unit)
            for end, value in zip((columns.LOW, columns.HIGH), self.interval(name) or (), strict=False):
                row[columns.volume(name, self.unit, end)] = value
            row[columns.quality(name, "agreement")] = self.agreement[name]
        row["agreement"] = self.agreement["mean"]
        row |= confidence_columns(self.confidence)
        row["mean_entropy"] = float(self.predictive_entropy.mean(dtype=np.float64))
        if self.judgement is not None:
            row["distance"], row["familiarity"] = self.judgement.distance, self.judgement.p_value
            row["unfamiliar"] = int(self.judgement.unfamiliar)
        row |= note_column(self.notes)
        row["seconds"] = sum(self.seconds.values())
        return row | {
            "samples": self.num_samples,
            "steps": self.num_steps,
            "seed": self.seed,
            "model_digest": self.model_digest,
            "precision": self.precision,
        }


def note_column(notes: Sequence[str]) -> dict[str, str]:
    """An image's notes as a column of its row, which only a case with notes has."""
    return {"note": "; ".join(notes)} if notes else {}


def percentiles(structure: str, sizes: np.ndarray, unit: str) -> dict[str, float]:
    """A structure's sizes over the samples as columns."""
    return {
        columns.volume(structure, unit, columns.percentile(p)): float(np.percentile(sizes, p))
        for p in columns.PERCENTILES
    }


def by_structure(structures: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    """A value for each structure, and their mean under "mean"."""
    return dict(zip(structures, values, strict=True)) | {"mean": float(np.mean(values))}


def confidence_columns(confidence: Mapping[str, float]) -> dict[str, float]:
    """A summary's confidence as columns of a row: soft_dice_confidence the mean, {structure}_... of each structure."""
    name = "soft_dice_confidence"
    return {name if key == "mean" else columns.quality(key, name): value for key, value in confidence.items()}


def write_summary(summary: PosteriorSummary, folder: Path, like: Volume, structures: Sequence[str]) -> dict[str, Path]:
    """Write a case's maps with the geometry of its input, named after BIDS derivatives (`ldseg.posterior.derivatives`).

    Label maps are integers. Real maps are integers of 8 bits with a slope, which 3D Slicer, ITK and nibabel apply; what
    they read is off by at most half a step: 0.002 of a probability, 0.002 log(C) of an entropy with C classes, 0.002
    (1 - 1/C) of a variance. That is below what a few hundred samples can tell, for a tenth of the bytes.

    Returns:
        Paths by "label", "prob-{structure}", "entropy", "variance", "lookup" (the label map's table, .tsv), "sidecar"
        (.json) and, where there are any, "cautious-{structure}" (masks of 0 and 1) and "sample-{index}".
    """
    start = time.perf_counter()
    values = summary.label_values or tuple(range(len(structures) + 1))
    entries = derivatives.structure_entries(structures, values, summary.volumes, summary.unit, summary.agreement)
    entries = [_with_interval(summary, entry) for entry in entries]
    about = {"Model": summary.model_digest, "Samples": summary.num_samples, "Steps": summary.num_steps}
    about |= {"Seed": summary.seed, "Precision": summary.precision, "Structures": entries}
    paths = derivatives.write_case(
        summary.case, _maps(summary, structures), folder, like, structures=structures, label_values=values, about=about
    )
    summary.seconds["write"] = time.perf_counter() - start
    return paths


def _with_interval(summary: PosteriorSummary, entry: dict[str, Any]) -> dict[str, Any]:
    """A structure's entry with its interval before what the samples say."""
    ends = summary.interval(entry["Name"])
    if ends is None:
        return entry
    told: dict[str, Any] = {"Low": ends[0], "High": ends[1], "Promised": not summary.unfamiliar}
    if summary.intervals is not None:
        told["Coverage"] = 1 - summary.intervals.alpha
    first = ("Name", "Label", "Index", "Unit")
    return {key: entry[key] for key in first} | {"Interval": told} | entry


def _maps(summary: PosteriorSummary, structures: Sequence[str]) -> list[Map]:
    classes = len(structures) + 1
    highest = (math.log(classes), 1 - 1 / classes)  # of one-hot samples, evenly over the classes
    nats, spread = "entropy of the mean probability, nats", "variance of the probability over the samples"
    maps = [
        Map("label", "dseg", summary.label, "label map"),
        Map("entropy", "desc-entropy_uncertainty", summary.predictive_entropy, nats, Scale(highest[0])),
        Map("variance", "desc-variance_uncertainty", summary.sample_variance, spread, Scale(highest[1])),
        *derivatives.probability_maps(summary.mean_probability, structures),
    ]
    if summary.cautious is not None:
        for mask, (name, label) in zip(summary.cautious, derivatives.labels(structures).items(), strict=True):
            ending, about = f"label-{label}_desc-cautious_mask", f"cautious mask of {name}"
            maps.append(Map(f"cautious-{name}", ending, mask.astype(np.uint8), about))
    return [*maps, *derivatives.sample_maps(summary.samples)]


def kept_samples(
    grid: GridCase, accumulator: PosteriorAccumulator, count: int, label_values: Sequence[int]
) -> np.ndarray | None:
    """The first samples on the native voxels.

    They take the way of the label map: what is resampled are the classes' shares, of which the largest wins. In the
    half voxel at the rim of the image, where the working grid's voxels lie outside, it is the background's.

    Args:
        count: how many; fewer if there are fewer.
        label_values: of the classes.

    Returns:
        (N, *native) label values, or None for a count of 0.

    Raises:
        ValueError: the count is below 0.
    """
    if count < 0:
        raise ValueError(f"the number of kept samples must be at least 0, got {count}")
    if count == 0:
        return None
    values = np.asarray(label_values, dtype=label_dtype(label_values))
    drawn = (grid_classes(accumulator, index) for index in range(min(count, accumulator.num_samples)))
    return np.stack([values[_to_native(grid, classes, len(values))] for classes in drawn])


def label_dtype(values: Sequence[int]) -> type[np.generic]:
    """The type of a label map with these values."""
    return np.uint8 if 0 <= min(values) and max(values) < 256 else np.int16


def _to_native(grid: GridCase, classes: Tensor, count: int) -> np.ndarray:
    if grid.geometry.is_exact:
        return grid.to_native(classes[None])[0]
    shares = torch.stack([(classes == value).float() for value in range(count)])
    return grid.to_native(shares).argmax(0)
