"""From validation cases to a model's calibration: volume intervals, a temperature, and what is familiar to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ldseg.bundle import Bundle
from ldseg.calibration.conformal import PERCENTILES, VolumeIntervals, VolumeRow, fit_intervals
from ldseg.calibration.familiarity import LEAST_REFERENCE, Familiarity, fit_familiarity, image_features
from ldseg.calibration.file import Calibration
from ldseg.calibration.risk_control import RiskControl, check_missed, fit_risk_control, missed_curve
from ldseg.calibration.temperature import TemperatureFit, fit_temperature
from ldseg.data.cohort import Case
from ldseg.data.errors import CaseError
from ldseg.data.grid import label_to_grid
from ldseg.data.reading import read_case, read_image
from ldseg.evaluation.ignored import as_background, on_grid, open_voxels, sizes_elsewhere
from ldseg.posterior.accumulator import sample_labels
from ldseg.posterior.draws import DRAWS, Draws
from ldseg.posterior.sampling import Posterior, steps_config

Progress = Callable[[str], None]


@dataclass
class _Drawing:
    """Draws one case after the other; keeps the volumes and hands on the probabilities."""

    posterior: Posterior
    draws: Draws
    progress: Progress
    rows: list[VolumeRow] = field(default_factory=list)
    units: set[str] = field(default_factory=set)
    curves: dict[str, list[np.ndarray]] | None = None
    features: list[np.ndarray] = field(default_factory=list)

    def pairs(self, cases: Sequence[Case]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """For each rater of each case the unscaled mean probability (C, n) and the class indices (n,) of the n voxels
        of the working grid that lie in the image and were judged. A case that can't be read is told and left out."""
        for number, case in enumerate(cases, start=1):
            try:
                mean, labels = self._draw(case)
            except CaseError as error:
                self.progress(f"[{number}/{len(cases)}] left out: {error}")
                continue
            self.progress(f"[{number}/{len(cases)}] {case.name}")
            for label in labels:
                yield mean, label

    def _draw(self, case: Case) -> tuple[np.ndarray, list[np.ndarray]]:
        data = self.posterior.config.data
        volume, native = read_case(case, data)
        for note in volume.notes:
            self.progress(f"{case.name}: {note}")
        drawn = self.posterior.draw(volume, self.draws)
        grid, total = drawn.grid, drawn.total
        sizes, where = total.voxel_counts() * grid.voxel_size, open_voxels(native)
        judged = grid.inside
        if where is not None:  # a volume is that of the voxels which every rater judged, on both sides
            there = on_grid(where, grid)
            sizes = sizes_elsewhere(sample_labels(total), there, grid, data.num_classes)
            judged = judged & ~torch.from_numpy(there)
            native = [as_background(label, where) for label in native]
        labels = [label_to_grid(label, grid)[judged].numpy() for label in native]
        counts = np.bincount(labels[0], minlength=data.num_classes)
        named = list(enumerate(data.structures))
        volumes = {name: sizes[:, k] for k, name in named}
        self.rows.append(VolumeRow(case.name, volumes, {n: float(counts[k + 1] * grid.voxel_size) for k, n in named}))
        self.units.add(grid.unit)
        self.features.append(self._features(drawn.embedding))
        mean = total.mean_probability().cpu()
        if self.curves is not None:
            probability = grid.to_native(mean)
            found = {name: missed_curve(probability[k + 1], native, k + 1) for k, name in named}
            for name, curve in found.items():
                self.curves[name] += [] if curve is None else [curve]
        return mean[:, judged].numpy(), labels

    def _features(self, embedding: Tensor) -> np.ndarray:
        return image_features(self.posterior.model.context(embedding))

    def familiarity(self, reference: Sequence[Case]) -> Familiarity | None:
        """From the training cases that can be read and the cases drawn before; None where there are too few."""
        features = []
        for case in reference:
            try:
                grid = self.posterior.prepare(read_image(case, self.posterior.config.data))
            except CaseError as error:
                self.progress(f"training case left out: {error}")
                continue
            features.append(self._features(self.posterior.encode(grid)))
        return (
            fit_familiarity(np.stack(features), np.stack(self.features)) if len(features) >= LEAST_REFERENCE else None
        )


def calibrate(
    bundle: Bundle,
    cases: Sequence[Case],
    draws: Draws = DRAWS,
    *,
    reference: Sequence[Case] = (),
    alpha: float = 0.1,
    missed: float | None = None,
    progress: Progress = lambda line: None,
) -> tuple[Calibration, list[VolumeRow]]:
    """Fit volume intervals, the temperature and what is familiar on cases that the model was not trained on.

    Samples are drawn as `Posterior` draws them; an earlier calibration of the bundle plays no part. Volumes are those
    of the working grid, of the truth those of the first rater; the temperature is fitted on all raters.

    Args:
        bundle: the model, whose card names the cases that it was trained on.
        cases: labelled ones; the intervals promise their coverage for cases drawn from where these were drawn. Where
            the model was also selected on them (its card's "validation"), that promise is not strict.
        draws: of each case. The intervals hold for this number of samples and steps and no other. The seed is also that
            of the voxels that the temperature sees.
        reference: cases that it was trained on, labelled or not, to know what is familiar to it; nothing is known of
            that with fewer than `ldseg.calibration.familiarity.LEAST_REFERENCE`.
        alpha: the share of new cases whose true volume may lie outside, in (0, 1).
        missed: the expected share of a structure's voxels that its cautious mask may miss, in (0, 1), on the native
            voxels and over all raters; None for no such mask.
        progress: told a line for each case.

    Returns:
        The calibration, and the volumes that it was fitted on.

    Raises:
        ValueError: there is no labelled case that could be read, the model was trained on one or has one as reference,
            their volumes have not the same unit, or an argument is out of range.
    """
    if not 0 < alpha < 1:  # told before the drawing, which takes minutes
        raise ValueError(f"alpha must lie in (0, 1), got {alpha}")
    if missed is not None:
        check_missed(missed)
    trained = set((bundle.card.get("split") or {}).get("train", ())) | {case.name for case in reference}
    seen = [case.name for case in cases if case.name in trained]
    if seen:
        raise ValueError(f"the model was trained on {len(seen)} of the cases, such as {seen[0]}; calibrate on others")
    labelled = [case for case in cases if case.labels]
    if not labelled:
        raise ValueError("a calibration needs labelled cases and there is none; give data with labels")
    drawing = _Drawing(Posterior(bundle, device=draws.device, precision=draws.precision), draws, progress)
    drawing.curves = None if missed is None else {name: [] for name in bundle.config.data.structures}
    temperature = fit_temperature(drawing.pairs(labelled), seed=draws.seed)
    if len(drawing.units) > 1:
        raise ValueError(f"the cases' volumes are in {' and '.join(sorted(drawing.units))}; calibrate on one kind")
    steps, unit = steps_config(bundle.model, draws.steps).num_sample_steps, drawing.units.pop()
    intervals = fit_intervals(drawing.rows, steps=steps, unit=unit, alpha=alpha)
    control = None
    if missed is not None and drawing.curves is not None:
        control = fit_risk_control(drawing.curves, samples=draws.samples, steps=steps, alpha=missed)
    familiarity = drawing.familiarity(reference)
    return Calibration(intervals, temperature, bundle.digest, control, familiarity), drawing.rows


def raw_coverage(rows: Sequence[VolumeRow], structure: str) -> float:
    """Share of the cases whose true volume lies between the 5th and the 95th percentile of its samples."""
    ends = [(np.percentile(row.volumes[structure], PERCENTILES), row.truth[structure]) for row in rows]
    return float(np.mean([low <= truth <= high for (low, high), truth in ends]))


def calibration_table(calibration: Calibration, rows: Sequence[VolumeRow]) -> str:
    """What was found, as text for a terminal."""
    intervals = calibration.intervals
    lines = [f"{'structure':<24}{'5-95 % of the samples covers':<32}{'widened by (widths)':<24}cases"]
    for name, quantile in zip(intervals.structures, intervals.quantiles, strict=True):
        lines.append(f"{name:<24}{f'{raw_coverage(rows, name):.0%}':<32}{f'{quantile:.3f}':<24}{intervals.cases}")
    notes = [
        *_interval_lines(intervals),
        _temperature_line(calibration.temperature),
        *_risk_lines(calibration.risk_control),
    ]
    return "\n".join([*lines, *notes, *_familiarity_lines(calibration.familiarity)])


def _interval_lines(intervals: VolumeIntervals) -> list[str]:
    if np.isfinite(intervals.quantiles).all():
        return []
    return [
        f"{intervals.cases} cases are too few for intervals at alpha {intervals.alpha:g}: give more, or another one"
    ]


def _risk_lines(control: RiskControl | None) -> list[str]:
    if control is None:
        return []
    lines = []
    for name, threshold, cases in zip(control.structures, control.thresholds, control.cases, strict=True):
        taken = f"at {threshold:.4g} and above" if threshold else "everywhere: too few cases, or too much is missed"
        lines.append(f"missed of {name} at most {control.alpha:.0%} in the mean: {taken} ({cases} cases)")
    return lines


def _temperature_line(fit: TemperatureFit) -> str:
    change = f"NLL {fit.nll_before:.5f} -> {fit.nll_after:.5f} nats"
    return f"temperature {fit.temperature:.3f}: {change} ({fit.voxels} voxels of {fit.cases} labels)"


def _familiarity_lines(familiarity: Familiarity | None) -> list[str]:
    if familiarity is None:
        return []
    ends = f"{familiarity.distances[0]:.2f} to {familiarity.distances[-1]:.2f}"
    count = len(familiarity.distances)
    return [
        f"familiarity: {count} cases at distance {ends} of {familiarity.reference} training cases; "
        f"of cases like them 1 in {count + 1} is told as unfamiliar on average over calibration sets, "
        f"with 95 % of the sets fewer than {familiarity.likely_false_alarms:.0%}"
    ]
