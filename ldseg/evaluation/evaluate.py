"""A model against a cohort: a row of numbers for each case, a summary, and the controls beside them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ldseg import columns
from ldseg.bundle import Bundle
from ldseg.calibration.risk_control import missed_scores
from ldseg.config import DataConfig
from ldseg.data.cohort import Case
from ldseg.data.content import content_columns
from ldseg.data.errors import CaseError, CohortError
from ldseg.data.grid import GridCase, label_to_grid
from ldseg.data.reading import read_case
from ldseg.data.volume import Volume
from ldseg.evaluation.cases import TruePosterior
from ldseg.evaluation.ignored import as_background, on_grid, open_voxels, sizes_elsewhere, summary_elsewhere
from ldseg.evaluation.label_map import against_the_mean, label_classes, named
from ldseg.evaluation.result import EvaluationResult, Pooled, Row
from ldseg.metrics import overlap
from ldseg.metrics.boundary import BAND_MM, Reliability, boundary_band, probability_scores
from ldseg.metrics.coverage import covered
from ldseg.metrics.energy import reader_figures, set_distances
from ldseg.metrics.rank_histogram import Ranks
from ldseg.metrics.recovery import crps, recovery
from ldseg.posterior.accumulator import sample_labels
from ldseg.posterior.draws import DRAWS, Drawn, Draws
from ldseg.posterior.sampling import Posterior
from ldseg.posterior.stopwatch import Stopwatch
from ldseg.posterior.summary import PosteriorSummary

TRUE_DRAWS = 200  # that stand for a true distribution


@dataclass(frozen=True)
class EvaluatedCase:
    """What the caller sees of a case when it is done; `row["error"]` says why the rest is None.

    Attributes:
        number, total: the how-manieth of how many cases, from 1.
        row: its numbers, see `evaluate`.
        volume, summary: the case and what the samples say about it.
        reference: (*native) class indices of the first rater, None for an unlabelled case.
    """

    number: int
    total: int
    row: Row
    volume: Volume | None = None
    summary: PosteriorSummary | None = None
    reference: np.ndarray | None = None


@dataclass(frozen=True)
class Scoring:
    """What samples are scored by.

    Attributes:
        true_posterior: gives fresh draws of the labels where their distribution is known; as many of them as samples
            are scored against the raters as ged_truth, the best that can be expected of `ged`.
        boundary_mm: how far from a rater's boundary is near it (pixels for images without a spacing).
        groups: case -> what it belongs to, see `ldseg.metrics.bootstrap.interval`; None: its patient, where known.

    Raises:
        ValueError: `boundary_mm` is negative.
    """

    true_posterior: TruePosterior | None = None
    boundary_mm: float = BAND_MM
    groups: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        if not self.boundary_mm >= 0:
            raise ValueError(f"boundary_mm must be at least 0, got {self.boundary_mm}")


SCORING = Scoring()


@dataclass(frozen=True)
class _Settings:
    draws: Draws
    scoring: Scoring
    change: Callable[[Volume], Volume] | None = None


@dataclass(frozen=True)
class _Answer:
    """The posterior of one case and its samples as class indices (K, *grid), 0 outside the native field of view."""

    grid: GridCase
    embedding: torch.Tensor
    summary: PosteriorSummary
    samples: np.ndarray

    @classmethod
    def of(cls, posterior: Posterior, drawn: Drawn) -> _Answer:
        """Summarised."""
        return cls(drawn.grid, drawn.embedding, posterior.summarise(drawn), sample_labels(drawn.total))

    def elsewhere(self, where: np.ndarray, data: DataConfig) -> _Answer:
        """The same as if nothing but background were said of these voxels (*native)."""
        there = on_grid(where, self.grid)
        sizes = sizes_elsewhere(self.samples, there, self.grid, data.num_classes)
        summary = summary_elsewhere(self.summary, where, sizes, data)
        return replace(self, summary=summary, samples=as_background(self.samples, there))


def evaluate(
    bundle: Bundle,
    cases: Sequence[Case | CaseError],
    draws: Draws = DRAWS,
    *,
    control: Bundle | None = None,
    scoring: Scoring = SCORING,
    change: Callable[[Volume], Volume] | None = None,
    progress: Callable[[EvaluatedCase], None] | None = None,
) -> EvaluationResult:
    """Score a model's posterior on cases, which may be unlabelled or broken.

    What each column of a row means, and when it is there, is described in `ldseg.columns.COLUMNS`. Labels are compared
    on the native voxels, and sets of samples and of raters on the working grid; the empty rules are those of
    `ldseg.metrics.overlap`. A broken case has "error" instead: one sentence with the case and the cure.

    Args:
        bundle: the model.
        cases: what to score it on; a CaseError stands for a case that can't be used, and gets its row.
        draws: of each case's posterior.
        control: the no-diffusion control, a bundle trained with loss.deterministic.
        scoring: what the samples are held against, beside the labels.
        change: what is done to each image before it is segmented (see `ldseg.evaluation.damage`).
        progress: called after each case.

    Raises:
        CohortError: there is no case.
        ValueError: the number of steps is out of range, or `control` can't stand beside the model.
    """
    if not cases:
        raise CohortError("there is no case to evaluate; give a cohort or a split that has some")
    settings = _Settings(draws, scoring, change)
    where: dict[str, Any] = {"device": draws.device, "precision": draws.precision}
    posterior = Posterior(bundle, **where)
    control_posterior = None if control is None else Posterior(_checked_control(bundle, control), **where)
    rows: list[Row] = []
    pooled = Pooled(Reliability.create(len(bundle.config.data.structures)))
    for number, case in enumerate(cases, start=1):
        try:
            done = _evaluate_case(case, posterior, control_posterior, settings, pooled)
        except CaseError as error:
            name = case.case if isinstance(case, CaseError) else case.name
            done = EvaluatedCase(0, 0, {"case": name, "error": str(error)})
        rows.append(done.row)
        if progress is not None:
            progress(EvaluatedCase(number, len(cases), done.row, done.volume, done.summary, done.reference))
    return EvaluationResult.create(rows, bundle, control, pooled, scoring.groups)


def _checked_control(bundle: Bundle, control: Bundle) -> Bundle:
    if not control.config.loss.deterministic:
        raise ValueError(
            f"{control.path} samples, so it is no control; give a bundle trained with loss.deterministic=true"
        )
    for name in ("spatial_dims", "in_channels", "label_values", "structures", "foreground_only"):
        own, other = getattr(bundle.config.data, name), getattr(control.config.data, name)
        if own != other:
            raise ValueError(f"the control's data.{name} is {other}, the model's {own}; train both on the same cohort")
    return control


def _evaluate_case(
    case: Case | CaseError, posterior: Posterior, control: Posterior | None, settings: _Settings, pooled: Pooled
) -> EvaluatedCase:
    if isinstance(case, CaseError):
        raise case
    data, watch = posterior.config.data, Stopwatch()
    with watch.stage("read"):
        volume, raters = read_case(case, data)
        volume = settings.change(volume) if settings.change else volume
    drawn = _Answer.of(posterior, posterior.draw(volume, settings.draws, watch))
    whole = drawn.summary
    row = _label_free(drawn, posterior) | content_columns(volume, raters, case.patient)
    start = time.perf_counter()
    where = open_voxels(raters)  # left out on both sides
    if where is not None:
        drawn, raters = drawn.elsewhere(where, data), [as_background(rater, where) for rater in raters]
    row |= against_the_mean(drawn.summary, raters[0] if raters else None, posterior.config)
    if raters:
        row |= _against_reference(drawn, volume, raters[0], data)
        truth = {} if where is None else drawn.summary.numbers()
        row |= missed_scores(label_classes(drawn.summary, data), drawn.summary.cautious, raters, data.structures)
        row |= covered(row | truth, data.structures, drawn.grid.unit)
        row |= _ceiling(posterior, drawn, raters[0], where)
        scores, found = _probability_scores(drawn.summary, volume, raters, settings, where)
        row |= scores
        pooled.reliability.merge(found)
        row |= _against_raters(drawn, raters, data, settings.scoring.true_posterior)
        row |= _ranks(drawn, volume, raters[0], data, pooled.ranks)
    if raters and control is not None:
        row |= _control(control, volume, raters, settings, where)
    row[columns.seconds("metrics")] = time.perf_counter() - start
    return EvaluatedCase(0, 0, row, volume, whole, raters[0] if raters else None)


def _label_free(drawn: _Answer, posterior: Posterior) -> Row:
    summary, config = drawn.summary, posterior.config
    sampled = 0 if config.loss.deterministic else summary.num_samples * summary.num_steps
    return summary.numbers() | {
        "sample_diversity": overlap.diversity(drawn.samples, config.data.num_classes),
        "sample_variance": float(summary.sample_variance.mean(dtype=np.float64)),
        "denoiser_calls": sampled,
        **{columns.seconds(stage): value for stage, value in summary.seconds.items()},
    }


def _against_reference(drawn: _Answer, volume: Volume, reference: np.ndarray, data: DataConfig) -> Row:
    predicted, count = label_classes(drawn.summary, data), data.num_classes
    on_grid = _on_grid([reference], drawn.grid)
    volumes = [int((on_grid == k).sum()) * drawn.grid.voxel_size for k in range(1, count)]
    sizes = list(zip(data.structures, volumes, strict=True))
    return {
        **named("dice", overlap.dice_per_class(predicted, reference, count), data),
        **named("hd95", overlap.hd95_mm(predicted, reference, count, volume.spacing_mm), data, "mm"),
        **named("assd", overlap.assd_mm(predicted, reference, count, volume.spacing_mm), data, "mm"),
        **{
            columns.volume(s, drawn.grid.unit, columns.CRPS): crps(drawn.summary.volumes[s], np.array([v]))
            for s, v in sizes
        },
        "sample_dice": float(overlap.pairwise_dice(drawn.samples, on_grid, count).mean()),
        **{columns.volume(s, drawn.grid.unit, columns.REFERENCE): v for s, v in sizes},
    }


@torch.inference_mode()
def _ceiling(posterior: Posterior, drawn: _Answer, reference: np.ndarray, where: np.ndarray | None) -> Row:
    """Dice of the label's own way through encoder and decoder; a model without diffusion has no such way."""
    data, grid = posterior.config.data, drawn.grid
    if posterior.config.loss.deterministic:
        return {}
    one_hot = F.one_hot(label_to_grid(reference, grid), data.num_classes).movedim(-1, 0)[None].float()
    decoded = posterior.model.decode(posterior.model.encode_label(one_hot.to(posterior.device)), drawn.embedding)
    returned = as_background(grid.to_native(decoded[0].float().softmax(0)).argmax(0), where)
    return named("autoencoder_dice", overlap.dice_per_class(returned, reference, data.num_classes), data)


def _probability_scores(
    summary: PosteriorSummary,
    volume: Volume,
    raters: Sequence[np.ndarray],
    settings: _Settings,
    where: np.ndarray | None,
) -> tuple[Row, Reliability]:
    spacing = [s if axis < 3 else math.inf for s, axis in zip(volume.spacing_mm, volume.spatial_axes, strict=True)]
    band = boundary_band(raters, spacing, settings.scoring.boundary_mm)
    probability, labels = summary.mean_probability, list(raters)
    if where is not None:
        probability, band = probability[:, ~where], band[~where]
        labels = [label[~where] for label in labels]
    scores, found = probability_scores(probability, labels, band, tuple(summary.volumes))
    return {**scores}, found


def _ranks(drawn: _Answer, volume: Volume, reference: np.ndarray, data: DataConfig, ranks: Ranks) -> Row:
    axes = [volume.spatial_axes[axis] for axis in drawn.grid.geometry.order]
    spacing = [s if axis < 3 else math.inf for s, axis in zip(drawn.grid.spacing, axes, strict=True)]
    return ranks.add(drawn.grid.case, drawn.samples, _on_grid([reference], drawn.grid)[0], data.structures, spacing)


def _against_raters(
    drawn: _Answer, raters: Sequence[np.ndarray], data: DataConfig, true_posterior: TruePosterior | None = None
) -> Row:
    """Distances between the sets of samples and of raters on the working grid; those among raters need several."""
    on_grid = _on_grid(raters, drawn.grid)
    found = set_distances(drawn.samples, on_grid, data.num_classes)
    row: Row = {"raters": len(raters), "sample_distance": found.cross, "energy_score": found.energy_score}
    if len(raters) > 1:
        row |= {"ged": found.ged, "ged_unbiased": found.ged_unbiased, "ged_floor": found.ged_floor}
        row |= reader_figures(on_grid, data.num_classes)
        row["matched_iou"] = overlap.matched_iou(drawn.samples, on_grid, data.num_classes)
        row["rater_diversity"] = found.between
        if true_posterior is not None:
            fresh = _on_grid(true_posterior(drawn.grid.case, len(drawn.samples)), drawn.grid)
            row[columns.truth("ged")] = overlap.ged(fresh, on_grid, data.num_classes)
            row[columns.truth("matched_iou")] = overlap.matched_iou(fresh, on_grid, data.num_classes)
            many = _on_grid(true_posterior(drawn.grid.case, len(fresh) + TRUE_DRAWS), drawn.grid)
            row |= recovery(drawn.samples, many, data.structures, drawn.grid.voxel_size)
    return row


def _on_grid(labels: Sequence[np.ndarray] | np.ndarray, grid: GridCase) -> np.ndarray:
    return np.stack([(label_to_grid(label, grid) * grid.inside).numpy() for label in labels])


def _control(
    control: Posterior,
    volume: Volume,
    raters: Sequence[np.ndarray],
    settings: _Settings,
    where: np.ndarray | None,
) -> Row:
    """The control's one answer, scored like the model's mean; its GED is that of a set of equal samples."""
    data = control.config.data
    drawn = _Answer.of(control, control.draw(volume, Draws(1)))
    drawn = drawn if where is None else drawn.elsewhere(where, data)
    row = named("dice", overlap.dice_per_class(label_classes(drawn.summary, data), raters[0], data.num_classes), data)
    row |= _probability_scores(drawn.summary, volume, raters, settings, where)[0]
    against = _against_raters(drawn, raters, data)
    row |= {name: against[name] for name in ("ged", "energy_score") if name in against}
    return {columns.control(name): value for name, value in row.items()}
