"""The tables of an evaluation: on disk as Parquet and JSON, on a terminal as text."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ldseg import columns
from ldseg.bundle import Bundle
from ldseg.calibration.conformal import VolumeIntervals
from ldseg.files import write_atomically
from ldseg.metrics.bootstrap import interval
from ldseg.metrics.boundary import Reliability
from ldseg.metrics.coverage import coverage, coverage_lines
from ldseg.metrics.probability import CalibrationBins
from ldseg.metrics.rank_histogram import Ranks, rank_lines
from ldseg.metrics.ranking import failure_detection, failure_lines
from ldseg.metrics.recovery import recovery_lines

Row = dict[str, float | int | str]

NOT_SUMMARISED = ("samples", "steps", "seed", "raters")
WITH_INTERVAL = ("energy_score", "nll")


@dataclass(frozen=True)
class Pooled:
    """What a cohort's cases come to that can't be read off their rows."""

    reliability: Reliability
    ranks: Ranks = field(default_factory=Ranks)


@dataclass(frozen=True)
class EvaluationResult:
    """Per-case rows and what they come to.

    Attributes:
        rows: one for each case, see `ldseg.evaluation.evaluate`; a broken case has "case" and "error" only.
        summary: cases, labelled, failed; model, control, structures, samples, steps, seed; "resampled": what the
            bootstrap draws ("cases", "patients" or "groups") and their number; "metrics": for each numeric column
            mean, its 95 % bootstrap interval (mean_low, mean_high), sd (of the sample), median, min, max and n
            over the cases where it is finite, and `infinite`, the number of cases where it is not (a distance to a
            structure that one side misses); "ranks": see `ldseg.metrics.rank_histogram`; "reliability": the cohort's
            top-label calibration bins and their error, under "boundary" those near the boundary, and under "structures"
            each structure's one-vs-rest bins, see `ldseg.metrics.boundary`; "failure_detection": how well agreement,
            soft Dice confidence, mean entropy, sample variance and distance (those that the rows have) rank the cases
            by 1 - dice, see `ldseg.metrics.ranking`; "coverage": how often the samples' percentiles and a calibrated
            model's intervals hold the truth, see `ldseg.metrics.coverage`.
    """

    rows: list[Row]
    summary: dict[str, Any]

    def __repr__(self) -> str:
        count, failed = self.summary.get("cases", len(self.rows)), self.summary.get("failed", 0)
        dice = self.summary.get("metrics", {}).get("dice", {}).get("mean")
        return f"<EvaluationResult: {count} cases, {failed} failed" + (f", Dice {dice:.3f}>" if dice else ">")

    @classmethod
    def create(
        cls,
        rows: list[Row],
        bundle: Bundle,
        control: Bundle | None,
        pooled: Pooled,
        groups: Mapping[str, str] | None = None,
    ) -> EvaluationResult:
        """Summarise the rows; `groups`: case -> what it belongs to, by default its patient, where the rows name it."""
        good = [row for row in rows if "error" not in row]
        first: Row = good[0] if good else {}
        unit = "patients" if groups is None else "groups"
        groups = {str(r["case"]): str(r["patient"]) for r in good if "patient" in r} if groups is None else groups
        return cls(
            rows,
            {
                "cases": len(rows),
                "labelled": sum("dice" in row for row in good),
                "failed": len(rows) - len(good),
                "model": str(bundle.path),
                "model_digest": bundle.digest,
                "control": None if control is None else str(control.path),
                "control_digest": None if control is None else control.digest,
                "structures": list(bundle.config.data.structures),
                **{name: first.get(name) for name in ("samples", "steps", "seed", "precision")},
                "resampled": _resampled(good, groups, unit),
                "metrics": _statistics(good, groups),
                "ranks": pooled.ranks.summary(groups),
                "reliability": _reliability(pooled.reliability, bundle.config.data.structures),
                "failure_detection": failure_detection(good),
                "coverage": coverage(good, bundle.config.data.structures, _intervals(bundle), groups),
            },
        )

    def write(self, folder: Path) -> dict[str, Path]:
        """Write cases.parquet, summary.json and summary.parquet (a row for each metric), each whole or not at all.

        JSON has no NaN and no infinity: they become null.
        """
        folder = Path(folder)
        statistics = [{"metric": name, **values} for name, values in self.summary["metrics"].items()]
        content = {
            "cases.parquet": parquet(self.rows),
            "summary.json": (json.dumps(without_nan(self.summary), indent=2, allow_nan=False) + "\n").encode(),
            "summary.parquet": parquet(statistics or [{"metric": "cases", "n": len(self.rows)}]),
        }
        for name, data in content.items():
            write_atomically(folder / name, data)
        return {name: folder / name for name in content}

    def table(self) -> str:
        """The summary as text for a terminal."""
        return "\n".join(_lines(self.summary, self.summary["metrics"]))


def row_line(row: Row) -> str:
    """A row in short, for a terminal."""
    if "error" in row:
        return f"left out: {row['error']}"
    dice = f"Dice {row['dice']:.3f}  " if "dice" in row else ""
    note = f"  note: {row['note']}" if row.get("note") else ""
    far = f"  unfamiliar (distance {row['distance']:.1f})" if row.get("unfamiliar") else ""
    return f"{row['case']}  {dice}agreement {row['agreement']:.3f}  {row['seconds']:.2f} s{far}{note}"


def _intervals(bundle: Bundle) -> VolumeIntervals | None:
    return None if bundle.calibration is None else bundle.calibration.intervals


def _resampled(rows: Sequence[Row], groups: Mapping[str, str], unit: str) -> dict[str, str | int]:
    """What the intervals are over: `unit` where it holds several cases; those without a label have no say in it."""
    cases = [str(row["case"]) for row in rows if "dice" in row] or [str(row["case"]) for row in rows]
    number = len({groups.get(case, case) for case in cases})
    return {"what": unit if number < len(cases) else "cases", "number": number}


def _statistics(rows: Sequence[Row], groups: Mapping[str, str]) -> dict[str, dict[str, float | int]]:
    statistics: dict[str, dict[str, float | int]] = {}
    for name in _columns(rows):
        known = [row for row in rows if isinstance(row.get(name), float | int)]
        values = np.array([row[name] for row in known], dtype=np.float64)
        if name not in NOT_SUMMARISED and values.size:
            finite = np.isfinite(values)
            cases = [str(row["case"]) for row, good in zip(known, finite, strict=True) if good]
            spread = _spread(values[finite], [groups.get(case, case) for case in cases])
            statistics[name] = spread | {"n": int(finite.sum()), "infinite": int(np.isinf(values).sum())}
    return statistics


def _spread(values: np.ndarray, groups: Sequence[str]) -> dict[str, float | int]:
    if not values.size:
        return dict.fromkeys(("mean", "mean_low", "mean_high", "sd", "median", "min", "max"), math.nan)
    low, high = interval(values, groups)
    return {
        "mean": float(values.mean()),
        "mean_low": low,
        "mean_high": high,
        "sd": float(values.std(ddof=1)) if values.size > 1 else math.nan,
        "median": float(np.median(values)),
        "min": float(values.min()),
        "max": float(values.max()),
    }


def _reliability(found: Reliability, structures: Sequence[str]) -> dict[str, Any]:
    named = zip(structures, found.structures, strict=True)
    return {
        **_bins(found.everywhere, found.everywhere.error),
        "boundary": _bins(found.boundary, found.boundary.error),
        "structures": {name: _bins(one.bins, one.error) | {"mass": one.mass} for name, one in named},
    }


def _bins(bins: CalibrationBins, error: float) -> dict[str, Any]:
    return {
        "ece": error,
        "counts": bins.counts.tolist(),
        "hits": bins.hits.tolist(),
        "confidence": bins.confidence.tolist(),
    }


def _columns(rows: Iterable[dict[str, Any]]) -> list[str]:
    """All keys in the order in which they first appear."""
    return list(dict.fromkeys(name for row in rows for name in row))


def parquet(rows: Sequence[dict[str, Any]]) -> bytes:
    """Rows as the bytes of a Parquet file; they may lack columns: those cells are null."""
    table = pa.table({name: [row.get(name) for row in rows] for name in _columns(rows)})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return bytes(sink.getvalue().to_pybytes())


def without_nan(value: Any) -> Any:
    """For JSON, which has no NaN and no infinity: they become null."""
    if isinstance(value, dict):
        return {key: without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [without_nan(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


Cell = Callable[..., str]
"""Column -> its mean and standard deviation as text, "-" where there is none; by default to three digits."""


def _cell(metrics: dict[str, dict[str, float | int]], name: str, digits: int = 3, ends: bool = False) -> str:
    """`ends`: also those of the mean's interval."""
    entry = metrics.get(name, {})
    mean, sd, low = (entry.get(key, math.nan) for key in ("mean", "sd", "mean_low"))
    if math.isnan(mean):
        return "-"
    spread = "" if math.isnan(sd) else f" ± {sd:.{digits}f}"
    spread += f" [{low:.{digits}f}, {entry['mean_high']:.{digits}f}]" if ends and not math.isnan(low) else ""
    return f"{mean:.{digits}f}{spread}" + (f" ({entry['infinite']} missed)" if entry["infinite"] else "")


def _lines(summary: dict[str, Any], metrics: dict[str, dict[str, float | int]]) -> list[str]:
    cell, structures = functools.partial(_cell, metrics), summary["structures"]
    counts = f"{summary['cases']} cases, {summary['labelled']} labelled, {summary['failed']} failed"
    drawn = f"{summary['samples']} samples x {summary['steps']} steps, seed {summary['seed']}, {summary['precision']}"
    over = f"over {summary['resampled']['number']} {summary['resampled']['what']}"
    text = [
        f"{counts}; {drawn}; mean ± sd [95 % of means, {over}]",
        "",
        *_structure_table(structures, cell),
        "",
    ]
    text += [f"{title:<36}{value}" for title, value in _further(structures, cell).items() if value.strip("-/ ")]
    means = {stage: entry["mean"] for name, entry in metrics.items() if (stage := columns.stage_of(name))}
    stages = [f"{stage} {mean:.2f}" for stage, mean in means.items() if mean > 0 and stage != "metrics"]
    text += ["  of which " + ", ".join(stages)] if stages else []
    text += failure_lines(summary["failure_detection"]) + coverage_lines(summary["coverage"])
    text += rank_lines(summary["ranks"])
    return text + recovery_lines({name: entry["mean"] for name, entry in metrics.items()}, structures)


def _structure_table(structures: Sequence[str], cell: Cell) -> list[str]:
    def line(structure: str) -> list[str]:
        dice, ceiling = (columns.score(name, structure) for name in ("dice", "autoencoder_dice"))
        distances = [cell(columns.score(name, structure, "mm"), 2) for name in ("hd95", "assd")]
        agreement = columns.quality(structure, "agreement") if structure else "agreement"
        scores = [cell(dice, ends=True), *distances, cell(agreement), cell(ceiling), cell(columns.control(dice))]
        return [structure or "mean", *scores]

    head = ["structure", "Dice", "HD95 mm", "ASSD mm", "agreement", "ceiling (autoencoder)", "control (no diffusion)"]
    rows = [head, *[line(name) for name in structures], line("")]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    text = ["  ".join(entry.ljust(width) for entry, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [text[0], "  ".join("-" * width for width in widths), *text[1:]]


def _further(structures: Sequence[str], cell: Cell) -> dict[str, str]:
    def both(name: str) -> str:
        return f"{cell(name, 4, ends=name in WITH_INTERVAL)} / {cell(columns.control(name), 4)}"

    return {
        "Dice of single samples": cell("sample_dice"),
        "Dice of the samples' mean": cell("mean_dice"),
        "label map's distance from the mean": cell("label_difference"),
        "sample diversity (1 - IoU of pairs)": cell("sample_diversity"),
        "samples' distance from the raters": cell("sample_distance"),
        "energy score, model / control": both("energy_score"),
        "raters' diversity": cell("rater_diversity"),
        "GED² of the samples": cell("ged", ends=True),
        "GED², distinct pairs / floor of GED²": f"{cell('ged_unbiased', ends=True)} / {cell('ged_floor')}",
        "GED² of fresh true draws": cell(columns.truth("ged")),
        "matched IoU, samples / fresh draws": f"{cell('matched_iou')} / {cell(columns.truth('matched_iou'))}",
        "share error, model / control": both("share_error"),
        "GED² of the control": cell(columns.control("ged")),
        "GED²: rater, majority, empty mask": " / ".join(cell(f"ged_{n}") for n in ("reader", "majority", "empty")),
        "NLL (nats), model / control": both("nll"),
        "Brier, model / control": both("brier"),
        "ECE, model / control": both("ece"),
        "near the boundary: NLL": both(columns.near_boundary("nll")),
        "near the boundary: Brier": both(columns.near_boundary("brier")),
        "near the boundary: ECE": both(columns.near_boundary("ece")),
        **{f"ECE of {name}": both(columns.score("ece", name)) for name in structures},
        **{f"missed of {name}": _missed(name, cell) for name in structures},
        "share of unfamiliar cases": cell("unfamiliar"),
        "denoiser calls a case": cell("denoiser_calls", 0),
        "seconds a case": cell("seconds", 2),
    }


def _missed(name: str, cell: Cell) -> str:
    missed, excess = columns.score("missed", name), columns.score("excess", name)
    plain, cautious, outside = (cell(c) for c in (missed, columns.cautious(missed), columns.cautious(excess)))
    return plain if cautious == "-" else f"{plain}; cautious mask {cautious}, of which {outside} is none of it"
