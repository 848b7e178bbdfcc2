"""Scores of any method that draws segmentations, on the working grid of each case, with the same functions for all."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldseg.calibration.conformal import PERCENTILES, VolumeRow, fit_intervals
from ldseg.calibration.temperature import fit_temperature, scale_probability
from ldseg.config import Config
from ldseg.data.dataset import TrainingSet
from ldseg.data.volume import Volume
from ldseg.evaluation.corruptions import corrupt
from ldseg.metrics import overlap
from ldseg.metrics.energy import set_distances
from ldseg.metrics.probability import CalibrationBins
from ldseg.metrics.ranking import aurc, e_aurc
from ldseg.metrics.recovery import crps
from ldseg.posterior.accumulator import PosteriorAccumulator, soft_dice_confidence

DAMAGE = ("noise", "bias", "motion", "crop")  # each at half its full severity: noise of 0.1 of the image's range
SEVERITY = 0.5
Scores = dict[str, float]
Pairs = list[tuple[np.ndarray, np.ndarray]]
BY_CASE = ("dice", "energy_score")  # what `baselines.py` compares case by case


@dataclass(frozen=True)
class Scorer:
    """A method (`baseline_models`) and how its samples are drawn."""

    method: Any
    config: Config
    samples: int
    device: str = "cpu"

    def means(self, cases: TrainingSet, validation: TrainingSet | None) -> dict[str, Any]:
        """Over the cases; temperature and intervals of the volumes come from the validation cases, where given."""
        pairs: Pairs = []
        calibration = self.each(validation, pairs=pairs)[1] if validation else None
        temperature = fit_temperature(pairs).temperature if validation else 1.0
        rows, volumes = self.each(cases, temperature)
        damaged = {name: self.each(cases, temperature, damage=name)[0] for name in DAMAGE}
        means: dict[str, Any] = {name: float(np.nanmean([row[name] for row in rows])) for name in rows[0]}
        means |= of_volumes(volumes)
        everything = [*rows, *(row for found in damaged.values() for row in found)]
        for name in ("confidence", "agreement") if means["sample_diversity"] else ("confidence",):
            means[f"aurc_{name}"] = aurc(*_ranked(rows, name))
            means[f"excess_aurc_damaged_{name}"] = e_aurc(*_ranked(everything, name))
        means["dice_noise"] = float(np.mean([row["dice"] for row in damaged["noise"]]))
        means["dice_damaged"] = float(np.mean([row["dice"] for row in everything[len(rows) :]]))
        means |= {"temperature": temperature}
        means |= {f"{name}_by_case": [float(row[name]) for row in rows] for name in BY_CASE}
        if calibration:
            inside, widths, truths = held(self._repeated(calibration), self._repeated(volumes)).T
            means |= {"coverage": float(inside.mean()), "interval_width": float(widths.mean() / truths.mean())}
        return means

    @torch.no_grad()
    def each(
        self, cases: TrainingSet, temperature: float = 1.0, *, damage: str = "", pairs: Pairs | None = None
    ) -> tuple[list[Scores], list[VolumeRow]]:
        """Scores of each case, and its structures' volumes in voxels; `pairs` gets each mean and label in the image."""
        rows: list[Scores] = []
        volumes = []
        for index in range(len(cases)):
            item, start, generator = cases[index], time.monotonic(), torch.Generator().manual_seed(index)
            raters, inside = item["labels"].numpy(), item["inside"]
            image = (harm(item, damage) if damage else item["image"])[None].to(self.device)
            drawn = [p.float().cpu() for p in self.method.draw(image, self.samples, generator)]
            total = PosteriorAccumulator.create(self.config.data.num_classes, tuple(inside.shape), inside)
            total.add(torch.stack(drawn))
            seconds, mean = time.monotonic() - start, total.mean_probability()
            labels = np.stack([(p.argmax(0) * inside).numpy() for p in drawn]).astype(np.uint8)
            rows.append({**scores(total, labels, raters, temperature), "seconds": seconds})
            if (direct := self.method.direct(image)) is not None:
                rows[-1] |= beside_samples(direct.float().cpu(), mean, raters[0], inside)
            if pairs is not None:
                seen = mean.numpy()[:, inside.numpy()]
                pairs.extend((seen, rater[inside.numpy()]) for rater in raters)
            volumes.append(self._volumes(item["case"], total.voxel_counts(), raters[0]))
        return rows, volumes

    def _volumes(self, case: str, sizes: np.ndarray, rater: np.ndarray) -> VolumeRow:
        names = self.config.data.structures
        truth = {name: float((rater == k).sum()) for k, name in enumerate(names, 1)}
        return VolumeRow(case, {name: sizes[:, k].astype(np.float64) for k, name in enumerate(names)}, truth)

    def _repeated(self, rows: Sequence[VolumeRow]) -> list[VolumeRow]:
        """Fewer answers than samples were asked for (one, or one of each member), as often as they go into them."""
        return [
            replace(row, volumes={k: np.repeat(v, max(1, self.samples // len(v))) for k, v in row.volumes.items()})
            for row in rows
        ]


def _ranked(rows: Sequence[Scores], name: str) -> tuple[np.ndarray, np.ndarray]:
    return np.array([1 - row["dice"] for row in rows]), np.array([-row[name] for row in rows])


def held(calibration: Sequence[VolumeRow], new: Sequence[VolumeRow], alpha: float = 0.1) -> np.ndarray:
    """(N, 3): of each new case's structures whether the calibrated interval holds the volume, its width, the volume."""
    intervals = fit_intervals(calibration, steps=1, unit="any", alpha=alpha)
    found = []
    for row in new:
        for name in intervals.structures:
            low, high = intervals.interval(name, row.volumes[name])
            found.append((low <= row.truth[name] <= high, high - low, row.truth[name]))
    return np.array(found, dtype=np.float64)


def of_volumes(rows: Sequence[VolumeRow]) -> Scores:
    """How well the samples' volumes, as they are drawn, tell the first rater's.

    volume_crps: their continuous ranked probability score (one answer: its absolute error), a structure's mean over
    the cases in units of its mean true volume over the same cases, then the mean over the structures. raw_coverage: the
    share of cases' structures whose true volume lies between the 5th and the 95th percentile, ends included.
    """
    inside, relative = [], []
    for name in rows[0].truth:
        ends = [np.percentile(row.volumes[name], PERCENTILES) for row in rows]
        inside += [low <= row.truth[name] <= high for row, (low, high) in zip(rows, ends, strict=True)]
        errors = [crps(row.volumes[name], np.array([row.truth[name]])) for row in rows]
        if any(row.truth[name] for row in rows):
            relative.append(np.mean(errors) / np.mean([row.truth[name] for row in rows]))
    return {"volume_crps": float(np.mean(relative)) if relative else math.nan, "raw_coverage": float(np.mean(inside))}


def beside_samples(direct: Tensor, mean: Tensor, rater: np.ndarray, inside: Tensor) -> Scores:
    """Dice of what a sampling network's image encoder says by itself, and of half of it and half of the samples' mean.

    Args:
        direct, mean: class probabilities (C, *grid).
        rater: class indices (*grid).
        inside: (*grid) bool, the voxels that count.
    """
    counted, answers = inside.numpy(), {"direct_dice": direct, "half_dice": (direct + mean) / 2}
    return {
        name: float(overlap.dice_per_class(p.argmax(0).numpy() * counted, rater * counted, len(mean)).mean())
        for name, p in answers.items()
    }


def harm(item: dict[str, Any], damage: str) -> Tensor:
    """An item's image (C, *grid) with known damage, brought back to mean 0 and deviation 1 as every image is."""
    digest, dims = hashlib.sha256(item["case"].encode()).hexdigest(), item["image"].ndim - 1
    volume = Volume(item["case"], item["image"].numpy(), np.eye(4), Path(), None, dims, digest)
    array = corrupt(volume, damage, SEVERITY).array
    return torch.from_numpy((array - array.mean()) / (array.std() + 1e-6))


def scores(total: PosteriorAccumulator, labels: np.ndarray, raters: np.ndarray, temperature: float) -> Scores:
    """One case: the mean against the first rater, probabilities and samples against all.

    energy_score is sample_distance (of samples and raters) less half of sample_diversity (of the samples), as in
    `ldseg.evaluation.evaluate`; for one answer it is its distance from the raters.
    """
    mean, bins, inside = total.mean_probability().numpy(), CalibrationBins(), total.inside.numpy()
    classes = len(mean)
    scaled = scale_probability(torch.from_numpy(mean), temperature)
    raw, seen = (array[1:][:, inside] for array in (mean, scaled.numpy()))
    found = set_distances(labels, raters * inside, classes)
    for rater in raters:
        bins.add_top_label(seen, rater[inside])
    row = {
        "dice": float(overlap.dice_per_class(mean.argmax(0) * inside, raters[0] * inside, classes).mean()),
        "sample_dice": float(overlap.pairwise_dice(labels, raters[:1], classes).mean()),
        "nll": float(np.mean([overlap.nll(seen, rater[inside]) for rater in raters])),
        "nll_raw": float(np.mean([overlap.nll(raw, rater[inside]) for rater in raters])),
        "ece": bins.error,
        "agreement": float(np.mean(total.pairwise_dice())),
        "confidence": float(np.mean(soft_dice_confidence(scaled, total.inside))),
        "energy_score": found.energy_score,
        "sample_distance": found.cross,
        "sample_diversity": found.within if len(labels) > 1 else 0.0,
    }
    if len(raters) == 1:
        return row
    unbiased = 2 * found.energy_score - found.between  # `found.ged_unbiased`, and of one answer as of many equal ones
    return row | {"ged": found.ged, "ged_unbiased": unbiased, "ged_floor": found.ged_floor}
