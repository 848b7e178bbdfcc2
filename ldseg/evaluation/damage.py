"""Does a model warn of damage? Cases as they are and once for each kind of damage, scored alike, ranked together."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ldseg.bundle import Bundle
from ldseg.data.cohort import Case
from ldseg.data.errors import CaseError
from ldseg.evaluation.corruptions import CORRUPTIONS, corrupt
from ldseg.evaluation.corruptions import add_noise as add_noise
from ldseg.evaluation.evaluate import EvaluatedCase, evaluate
from ldseg.evaluation.result import Row, parquet, without_nan
from ldseg.files import replacing, write_atomically
from ldseg.metrics.ranking import failure_detection, failure_lines
from ldseg.posterior.draws import DRAWS, Draws

MOST_LEVELS = 101
NOISE_COLUMNS = {
    "dice": "Dice", "control_dice": "control: Dice", "agreement": "agreement", "ece": "ECE",
    "control_ece": "control: ECE", "nll": "NLL", "control_nll": "control: NLL",
}  # fmt: skip


NONE = "none"
DAMAGE_COLUMNS = {
    "dice": "Dice", "control_dice": "control: Dice", "agreement": "agreement", "nll": "NLL", "distance": "distance",
    "unfamiliar": "unfamiliar",
}  # fmt: skip


def read_corruptions(text: str) -> list[str]:
    """Names from a list with commas.

    Raises:
        ValueError: one is unknown or there twice.
    """
    names = [name.strip() for name in text.split(",")]
    if not set(names) <= set(CORRUPTIONS) or len(set(names)) < len(names):
        raise ValueError(f"--corrupt {text!r} must be a list of some of {','.join(CORRUPTIONS)}, each at most once")
    return names


@dataclass(frozen=True)
class CorruptionStudy:
    """What damage does to a model, and whether it shows without a label.

    Attributes:
        rows: of `ldseg.evaluation.evaluate`, with "corruption" ("none" for a case as it is); a broken case has "error".
        summary: "severity"; "corruptions": for each kind and for none the number of cases and the means over them of
            dice, control_dice, agreement, nll, distance and unfamiliar (those that the rows have);
            "failure_detection": how well the scores rank the cases of all kinds together, see `ldseg.metrics.ranking`.
    """

    rows: list[Row]
    summary: dict[str, Any]

    def table(self) -> str:
        """The summary as text for a terminal: Markdown, and a line for each score."""
        found = self.summary["corruptions"]
        names = [name for name in DAMAGE_COLUMNS if any(name in entry for entry in found.values())]
        head = ["corruption", "cases", *(DAMAGE_COLUMNS[name] for name in names)]
        lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
        for kind, entry in found.items():
            cells = [f"{entry[name]:.3f}" if name in entry else "-" for name in names]
            lines.append(f"| {' | '.join([kind, str(entry['cases']), *cells])} |")
        return "\n".join([*lines, "", *failure_lines(self.summary["failure_detection"])])

    def write(self, folder: Path) -> dict[str, Path]:
        """Write corruption.parquet (the rows) and corruption.json (the summary), each whole or not at all."""
        folder = Path(folder)
        text = json.dumps(without_nan(self.summary), indent=2, allow_nan=False) + "\n"
        content = {"corruption.parquet": parquet(self.rows), "corruption.json": text.encode()}
        for name, data in content.items():
            write_atomically(folder / name, data)
        return {name: folder / name for name in content}


def corruption_study(
    bundle: Bundle,
    cases: Sequence[Case | CaseError],
    names: Sequence[str],
    draws: Draws = DRAWS,
    *,
    severity: float = 1.0,
    control: Bundle | None = None,
    progress: Callable[[str, EvaluatedCase], None] | None = None,
) -> CorruptionStudy:
    """Score a model on cases as they are and with each kind of damage; the labels stay.

    Args:
        bundle, cases, control: as in `ldseg.evaluation.evaluate`.
        names: of `ldseg.evaluation.corruptions.CORRUPTIONS`.
        severity: of each, in [0, 1].
        draws: whose seed is also that of the damage.
        progress: called with the kind after each case.

    Raises:
        ValueError: see `ldseg.evaluation.corruptions.corrupt` and `evaluate`.
    """
    if not 0 <= severity <= 1:  # told before the drawing, which takes minutes
        raise ValueError(f"the severity must lie in [0, 1], got {severity}")
    rows: list[Row] = []
    for name in (NONE, *names):
        change = None if name == NONE else functools.partial(corrupt, name=name, severity=severity, seed=draws.seed)
        report = None if progress is None else functools.partial(progress, name)
        result = evaluate(bundle, cases, draws, control=control, change=change, progress=report)
        rows += [{"corruption": name, **row} for row in result.rows]
    found = {name: _means([row for row in rows if row["corruption"] == name]) for name in (NONE, *names)}
    good = [row for row in rows if "error" not in row]
    summary = {"severity": severity, "corruptions": found, "failure_detection": failure_detection(good)}
    return CorruptionStudy(rows, summary)


def _means(rows: Sequence[Row]) -> dict[str, float | int]:
    """Over the cases that have a finite number."""
    means: dict[str, float | int] = {"cases": sum("error" not in row for row in rows)}
    for name in DAMAGE_COLUMNS:
        values = np.array([row[name] for row in rows if name in row], dtype=np.float64)
        if np.isfinite(values).any():
            means[name] = float(values[np.isfinite(values)].mean())
    return means


def read_levels(text: str) -> list[float]:
    """Standard deviations from START:STOP:STEP (both ends included) or from a list with commas.

    Raises:
        ValueError: it is neither, or a level is negative, or there are more than 101.
    """
    try:
        if ":" in text:
            start, stop, step = (float(part) for part in text.split(":"))
            count = math.floor((stop - start) / step + 1e-9) + 1 if step > 0 else 0
            levels = [round(start + i * step, 10) for i in range(min(count, MOST_LEVELS + 1))]
        else:
            levels = [float(part) for part in text.split(",")]
    except ValueError:
        levels = []
    if not levels or len(levels) > MOST_LEVELS or not all(0 <= level < math.inf for level in levels):
        raise ValueError(
            f"--noise {text!r} must be START:STOP:STEP such as 0:0.2:0.02 or a list such as 0,0.1,0.2, "
            f"none of it negative and at most {MOST_LEVELS} levels"
        )
    return levels


def robustness(
    bundle: Bundle,
    cases: Sequence[Case | CaseError],
    levels: Sequence[float],
    draws: Draws = DRAWS,
    *,
    control: Bundle | None = None,
    progress: Callable[[dict[str, float]], None] | None = None,
) -> list[dict[str, float]]:
    """Score a model, and a deterministic control beside it, at each level of noise.

    Args:
        bundle, cases, draws, control: as in `ldseg.evaluation.evaluate`; every level sees the same cases.
        levels: standard deviations, see `add_noise`.
        progress: called with each row.

    Returns:
        A row for each level: sigma, cases, failed (how many could not be read), and means over the labelled cases of
        dice, agreement, ece, nll and, with a control, control_dice, control_ece and control_nll.
    """
    rows = []
    for level in levels:
        change = functools.partial(add_noise, sigma=level)
        summary = evaluate(bundle, cases, draws, control=control, change=change).summary
        means = {name: float(entry["mean"]) for name, entry in summary["metrics"].items() if name in NOISE_COLUMNS}
        rows.append({"sigma": level, "cases": summary["labelled"], "failed": summary["failed"], **means})
        if progress is not None:
            progress(rows[-1])
    return rows


def robustness_table(rows: Sequence[dict[str, float]]) -> str:
    """The rows as Markdown."""
    names = [name for name in NOISE_COLUMNS if name in rows[0]]
    lines = ["| sigma | " + " | ".join(NOISE_COLUMNS[name] for name in names) + " |", "|---" * (len(names) + 1) + "|"]
    lines += [f"| {row['sigma']:.3g} | " + " | ".join(f"{row[name]:.3f}" for name in names) + " |" for row in rows]
    return "\n".join(lines)


def write_robustness(rows: Sequence[dict[str, float]], folder: Path) -> dict[str, Path]:
    """Write noise.parquet and noise.png (Dice and calibration error against sigma, model and control)."""
    folder = Path(folder)
    write_atomically(folder / "noise.parquet", parquet(rows))
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    for axes, name, title in zip(figure.subplots(1, 2), ("dice", "ece"), ("Dice", "calibration error"), strict=True):
        for prefix, label, style in (("", "model", "o-"), ("control_", "control, no diffusion", "s--")):
            if f"{prefix}{name}" in rows[0]:
                axes.plot([row["sigma"] for row in rows], [row[f"{prefix}{name}"] for row in rows], style, label=label)
        axes.set_xlabel("standard deviation of the noise / range of the image")
        axes.set_ylabel(title)
        axes.set_ylim(0, 1.02 if name == "dice" else None)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, loc="lower left")
    with replacing(folder / "noise.png") as file:
        canvas.print_png(file)
    return {name: folder / name for name in ("noise.parquet", "noise.png")}
