"""How a model bears noise in its images: scores and a picture against the noise's standard deviation."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ldseg.bundle import Bundle
from ldseg.corruptions import add_noise as add_noise
from ldseg.data.cohort import Case
from ldseg.data.volume import write_atomically
from ldseg.evaluation import evaluate

MOST_LEVELS = 101
NOISE_COLUMNS = {
    "dice": "Dice", "control_dice": "control: Dice", "agreement": "agreement", "ece": "ECE",
    "control_ece": "control: ECE", "nll": "NLL", "control_nll": "control: NLL",
}  # fmt: skip


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
    cases: Sequence[Case],
    levels: Sequence[float],
    *,
    control: Bundle | None = None,
    progress: Callable[[dict[str, float]], None] | None = None,
    **options: Any,
) -> list[dict[str, float]]:
    """Score a model, and a deterministic control beside it, at each level of noise.

    Args:
        bundle, cases, control: as in `ldseg.evaluation.evaluate`; every level sees the same cases.
        levels: standard deviations, see `add_noise`.
        progress: called with each row.
        options: further ones of `evaluate`: samples, num_steps, seed, device.

    Returns:
        A row for each level: sigma, cases, and the means over the labelled cases of dice, agreement, ece, nll and,
        with a control, control_dice, control_ece and control_nll.
    """
    rows = []
    for level in levels:
        change = functools.partial(add_noise, sigma=level)
        summary = evaluate(bundle, cases, control=control, change=change, **options).summary
        means = {name: float(entry["mean"]) for name, entry in summary["metrics"].items() if name in NOISE_COLUMNS}
        rows.append({"sigma": level, "cases": summary["labelled"], **means})
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
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(rows)), sink)
    write_atomically(folder / "noise.parquet", bytes(sink.getvalue().to_pybytes()))
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
    canvas.print_png(str(folder / "noise.png"))
    return {name: folder / name for name in ("noise.parquet", "noise.png")}
