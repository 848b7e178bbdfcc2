"""The names of the columns in tables of cases: composed and taken apart here alone, each with what it means."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

PERCENTILES = (5, 50, 95)
REFERENCE, LOW, HIGH, CRPS = "reference", "low", "high", "crps"


def percentile(number: int) -> str:
    """What ends the column of a volume's percentile."""
    return f"p{number:02d}"


def volume(structure: str, unit: str, what: str) -> str:
    """A structure's size: one of its percentiles over the samples, an end of its interval, or that of the reference."""
    return f"{structure}_volume_{unit}_{what}"


def read_volume_column(column: str) -> tuple[str, str, str] | None:
    """Structure, unit and what of a column that `volume` names, else None."""
    found = re.fullmatch(r"(.+)_volume_([^_]+)_([^_]+)", column)
    return None if found is None else (found[1], found[2], found[3])


def score(name: str, structure: str = "", unit: str = "") -> str:
    """A score of one structure, such as dice_{structure} or hd95_{structure}_mm; without one that of all together."""
    return "_".join(part for part in (name, structure, unit) if part)


def quality(structure: str, name: str) -> str:
    """What the samples say of a structure by themselves, or of its interval, such as {structure}_agreement."""
    return f"{structure}_{name}"


def cautious(column: str) -> str:
    """The same of the cautious mask."""
    return f"{column}_cautious"


def near_boundary(column: str) -> str:
    """The same near the raters' boundary alone."""
    return f"{column}_boundary"


def control(column: str) -> str:
    """The same of the control without diffusion."""
    return f"control_{column}"


def truth(column: str) -> str:
    """The same of fresh draws of a known posterior: the best that can be expected."""
    return f"{column}_truth"


def seconds(stage: str) -> str:
    """The time that a stage took."""
    return f"seconds_{stage}"


def stage_of(column: str) -> str:
    """The stage of a column that `seconds` names, else ""."""
    return column.removeprefix("seconds_") if column.startswith("seconds_") else ""


@dataclass(frozen=True)
class Column:
    """A column and what it means.

    Attributes:
        name_pattern: its name; {structure}, {other}, {unit} and {stage} stand for what they say.
        meaning: in a sentence.
        unit: of its values; empty for words, and "1" for pure numbers.
        where: "every table", or when it is there.
    """

    name_pattern: str
    meaning: str
    unit: str
    where: str

    def matches(self, column: str) -> bool:
        """Whether a column is one of these."""
        pattern = re.sub(r"\\\{\w+\\\}", ".+", re.escape(self.name_pattern))
        return re.fullmatch(pattern, column) is not None


def _each(where: str, *columns: tuple[str, str, str]) -> tuple[Column, ...]:
    return tuple(Column(*column, where) for column in columns)


EVERY, LABELLED, RATERS, KNOWN = "every table", "labelled cases", "several raters", "phantoms, whose posterior is known"
CALIBRATED, CAUTIOUS, FAMILIAR = (
    "a model that is calibrated for this number of samples and steps",
    "a model that is calibrated with --missed",
    "a model whose calibration knows its training cases",
)
ENSEMBLE, EVALUATION, CONTROL = "several models", "evaluations", "evaluations with --control"
SHARED = "evaluations of a model with sampler.image_share"
_SCORES = _each(
    LABELLED,
    ("dice_{structure}", "Dice of the label map with the first rater, on the native voxels", "1"),
    ("dice", "mean of dice_{structure} over the structures where it is defined", "1"),
    ("nll", "negative log likelihood of the mean probability, a voxel, averaged over the raters", "nats"),
    ("brier", "Brier score of the mean probability, averaged over the raters", "1"),
    ("ece", "expected calibration error of the mean probability, over all raters", "1"),
    ("nll_boundary", "nll within --boundary of a rater's boundary", "nats"),
    ("brier_boundary", "brier within --boundary of a rater's boundary", "1"),
    ("ece_boundary", "ece within --boundary of a rater's boundary", "1"),
    ("ece_{structure}", "expected calibration error of the structure's probability", "1"),
    ("energy_score", "sample_distance less half of sample_diversity: a proper score, lower is better", "1"),
    ("share_error", "calibration error of the mean probability against the share of raters", "1"),
    ("ged", "squared generalised energy distance of samples and raters, 1 - IoU on the working grid", "1"),
)
_RECOVERY = (
    ("{structure}_size_ks", "Kolmogorov-Smirnov distance of the samples' sizes and the true ones", "1"),
    ("{structure}_size_crps", "continuous ranked probability score of the samples' sizes", "{unit}"),
    ("{structure}_size_sd", "standard deviation of the samples' sizes over that of the true ones", "1"),
    ("{structure}_presence_error", "how far the share of samples that have the structure is from the true share", "1"),
    ("{structure}_mode_error", "how far the share of samples in one of two places is from the true share", "1"),
    ("{structure}_{other}_size_correlation", "correlation of the size of both together with that of the other", "1"),
    ("ged", "ged of fresh draws of the truth", "1"),
    ("matched_iou", "matched_iou of fresh draws of the truth", "1"),
)
COLUMNS: tuple[Column, ...] = (
    *_each(
        EVERY,
        ("case", "name of the case", ""),
        ("{structure}_volume_{unit}_p05", "5th percentile of the structure's size over the samples", "{unit}"),
        ("{structure}_volume_{unit}_p50", "median of the structure's size over the samples", "{unit}"),
        ("{structure}_volume_{unit}_p95", "95th percentile of the structure's size over the samples", "{unit}"),
        ("{structure}_agreement", "mean Dice over all pairs of samples", "1"),
        ("agreement", "mean of {structure}_agreement over the structures", "1"),
        ("{structure}_soft_dice_confidence", "the Dice that the probabilities let expect", "1"),
        ("soft_dice_confidence", "mean of {structure}_soft_dice_confidence over the structures", "1"),
        ("mean_entropy", "entropy of the mean probability, averaged over the voxels", "nats"),
        ("seconds", "time from the file to the maps", "s"),
        ("samples", "draws of the posterior", "1"),
        ("steps", "denoiser calls a sample", "1"),
        ("seed", "of the samples", "1"),
        ("model_digest", "names the model; of several, with spaces between", ""),
        ("precision", "what the networks were computed in", ""),
    ),
    *_each("results of segment and of the service", ("state", "done, failed, cancelled or left out", "")),
    *_each("results of segment", ("rank", "which case to look at first: 1", "")),
    *_each(
        "tables of the service, once a case was reviewed",
        ("review", "what a reviewer says of the case: accept, correct or reject", ""),
        ("review_note", "the reviewer's note", ""),
        ("reviewer", "name of the token that the review came with", ""),
        ("reviewed", "when, in UTC", ""),
    ),
    *_each("cases that are to be looked at", ("note", "what was decided on reading the image, a sentence each", "")),
    *_each("cases that failed", ("error", "one sentence with the case and the cure", "")),
    *_each(
        CALIBRATED,
        ("{structure}_volume_{unit}_low", "lower end of the conformal interval of the true size", "{unit}"),
        ("{structure}_volume_{unit}_high", "upper end of the conformal interval of the true size", "{unit}"),
        ("{structure}_covered", "1 where the conformal interval holds the reference's size, in evaluations", "1"),
    ),
    *_each(
        FAMILIAR,
        ("distance", "how far the image is from the training cases (Mahalanobis, Ledoit-Wolf)", "1"),
        ("familiarity", "conformal p-value of a case being like the training cases", "1"),
        ("unfamiliar", "1 for a case farther away than all calibration cases, or of one value", "1"),
    ),
    *_each(
        ENSEMBLE,
        ("models", "how many", "1"),
        ("mean_total", "mean over the voxels of the entropy of the models' mean probability", "nats"),
        ("mean_epistemic", "mean over the voxels of what the models don't agree on", "nats"),
        ("mean_aleatoric", "mean over the voxels of what the models agree is open", "nats"),
        ("mean_{structure}_total", "mean_total over the structure's voxels in the label map", "nats"),
        ("mean_{structure}_epistemic", "mean_epistemic over the structure's voxels in the label map", "nats"),
        ("mean_{structure}_aleatoric", "mean_aleatoric over the structure's voxels in the label map", "nats"),
    ),
    *_each(
        EVALUATION,
        ("content", "digest of the image", ""),
        ("labels", "digest of the labels", ""),
        ("patient", "whose case it is, where the cohort's manifest names patients", ""),
        ("corruption", "kind of damage, with --corrupt", ""),
        ("sample_diversity", "mean 1 - IoU over pairs of samples", "1"),
        ("sample_variance", "variance of the probability over the samples, averaged over the native voxels", "1"),
        ("denoiser_calls", "samples times steps; 0 for a model without diffusion", "1"),
        ("seconds_{stage}", "time of a stage: read, encode, denoise, decode, aggregate, resample, metrics", "s"),
    ),
    *_each(
        SHARED,
        ("label_difference", "1 - mean Dice of the label map and the arg max of the mean probability", "1"),
        ("mean_dice", "dice of the arg max of the mean probability, in labelled cases", "1"),
    ),
    *_SCORES[:-2],
    *_each(
        LABELLED,
        ("hd95_{structure}_mm", "95th percentile Hausdorff distance (pixels for images without a spacing)", "mm"),
        ("hd95_mm", "mean of hd95_{structure}_mm over the structures where it is defined", "mm"),
        ("assd_{structure}_mm", "average symmetric surface distance (pixels for images without a spacing)", "mm"),
        ("assd_mm", "mean of assd_{structure}_mm over the structures where it is defined", "mm"),
        ("autoencoder_dice_{structure}", "dice_{structure} of the label's way through encoder and decoder", "1"),
        ("autoencoder_dice", "mean of autoencoder_dice_{structure} over the structures", "1"),
        ("sample_dice", "mean Dice of the single samples with the first rater, on the working grid", "1"),
        ("{structure}_volume_{unit}_reference", "the structure's size in the first rater's label", "{unit}"),
        ("{structure}_volume_{unit}_crps", "continuous ranked probability score of the samples' sizes", "{unit}"),
        ("sample_distance", "mean 1 - IoU between samples and raters, on the working grid", "1"),
        ("{structure}_covered_raw", "1 where the samples' 5th to 95th percentile holds the reference's size", "1"),
        ("missed_{structure}", "share of the structure's voxels outside the label map, over the raters", "1"),
        ("{structure}_volume_rank", "rank of the reference's size among the samples', 0 to 1; ties in the middle", "1"),
        ("{structure}_boundary_rank", "the same of how far out its boundary lies, in the mean over the surface", "1"),
        ("raters", "how many labels the case has", "1"),
    ),
    *_each(
        CAUTIOUS,
        ("missed_{structure}_cautious", "share of the structure's voxels outside its cautious mask", "1"),
        ("excess_{structure}_cautious", "share of the cautious mask that no rater drew", "1"),
    ),
    *_each(
        RATERS,
        ("ged", "squared generalised energy distance of samples and raters, 1 - IoU on the working grid", "1"),
        ("share_error", "calibration error of the mean probability against the share of raters", "1"),
        ("ged_unbiased", "ged over distinct pairs: 0 is expected of a perfect posterior", "1"),
        (
            "ged_floor",
            "what ged is expected to be for a perfect posterior: (1/samples + 1/raters) rater_diversity",
            "1",
        ),
        ("ged_reader", "ged of one rater against the others, in the mean over the raters", "1"),
        ("ged_majority", "ged of the raters' majority against all of them", "1"),
        ("ged_empty", "ged of an empty mask against the raters", "1"),
        ("matched_iou", "mean IoU of samples and raters, matched in pairs (HM-IoU)", "1"),
        ("rater_diversity", "mean 1 - IoU over pairs of raters", "1"),
    ),
    *_each(KNOWN, *_RECOVERY[:-2]),
    *(
        Column(truth(name), f"{meaning}, for fresh draws of the truth", unit, KNOWN)
        for name, meaning, unit in _RECOVERY
    ),
    *(Column(control(c.name_pattern), f"{c.meaning}, of the control", c.unit, CONTROL) for c in _SCORES),
)


def describe(column: str) -> Column | None:
    """What is known of a column by its name."""
    found: Sequence[Column] = [entry for entry in COLUMNS if entry.matches(column)]
    return max(found, key=lambda entry: len(re.sub(r"\{\w+\}", "", entry.name_pattern)), default=None)
