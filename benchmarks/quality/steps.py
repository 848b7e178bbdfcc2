#!/usr/bin/env python
"""What the number of sampling steps is worth: one model scored at each of them, as a table and a plot.

Example:
    python benchmarks/quality/steps.py --model models/hippocampus --data Task04_Hippocampus --out steps
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ldseg.bundle import load_bundle
from ldseg.data.cohort import read_cohort
from ldseg.evaluation.cases import known_posterior, select_cases
from ldseg.evaluation.evaluate import Scoring, evaluate
from ldseg.posterior.draws import Draws

COLUMNS = {
    "dice": "Dice", "sample_dice": "Dice of single samples", "nll": "NLL", "ece": "ECE", "agreement": "agreement",
    "sample_diversity": "diversity", "ged": "GED\u00b2", "seconds": "seconds",
}  # fmt: skip


def parse() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", type=Path, required=True, help="a bundle")
    add("--data", type=Path, required=True, help="a labelled cohort")
    add("--split", default="validation", help="steps are chosen on validation cases (default: %(default)s)")
    add("--steps", type=int, nargs="+", default=[1, 2, 4, 8, 15, 50], help="(default: 1 2 4 8 15 50)")
    add("--schedule", choices=("even", "quadratic"), help="where they lie (default: as the model has it)")
    add("--samples", type=int, default=8, help="of each case (default: %(default)s)")
    add("--limit", type=int, help="only the first N cases")
    add("--out", type=Path, required=True, help="gets steps.parquet and steps.png")
    return parser.parse_args()


def main() -> int:
    """Score every number of steps on the same cases with the same seeds."""
    options = parse()
    try:
        bundle = load_bundle(options.model)
        if options.schedule:
            bundle.model.config = bundle.config.with_overrides({"sampler.schedule": options.schedule})
        cohort = read_cohort(options.data, foreground_only=bundle.config.data.foreground_only)
        cases, source = select_cases(cohort, bundle.card, options.split)
        cases, truth = cases[: options.limit], known_posterior(options.data)
        print(f"{options.model} on {source}", flush=True)
        rows = []
        for count in options.steps:
            found = evaluate(bundle, cases, Draws(options.samples, steps=count), scoring=Scoring(truth))
            means = {name: entry["mean"] for name, entry in found.summary["metrics"].items()}
            rows.append({"steps": count, **{name: means[name] for name in COLUMNS if name in means}})
            print("  ".join(f"{name} {value:.4g}" for name, value in rows[-1].items()), flush=True)
    except ValueError as error:
        print(f"steps: {error}", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), options.out / "steps.parquet")
    draw(rows, options.out / "steps.png")
    print("\n" + table(rows))
    print(
        f"{options.samples} samples, {len(cases)} cases; {options.out / 'steps.parquet'}, {options.out / 'steps.png'}"
    )
    return 0


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, a line for each number of steps."""
    names = [name for name in COLUMNS if name in rows[0]]
    lines = ["| steps | " + " | ".join(COLUMNS[name] for name in names) + " |", "|---" * (len(names) + 1) + "|"]
    lines += [f"| {row['steps']} | " + " | ".join(f"{row[name]:.4f}" for name in names) + " |" for row in rows]
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Accuracy, diversity, calibration and time against the number of steps."""
    figure = Figure(figsize=(11, 3), layout="constrained")
    FigureCanvasAgg(figure)
    panels = (("dice", "sample_dice"), ("sample_diversity",), ("nll",), ("seconds",))
    for axes, names in zip(figure.subplots(1, 4), panels, strict=True):
        for name in (name for name in names if name in rows[0]):
            axes.plot([row["steps"] for row in rows], [row[name] for row in rows], "o-", label=COLUMNS[name])
        axes.set_xscale("log", base=2)
        axes.set_xticks([row["steps"] for row in rows], [str(row["steps"]) for row in rows])
        axes.set_xlabel("denoiser calls a sample")
        axes.legend(frameon=False)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
