#!/usr/bin/env python
"""What the number of sampling steps is worth: one model scored at each of them, as a table.

Example:
    python benchmarks/quality/steps.py --model models/hippocampus --data Task04_Hippocampus --out steps
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


from benchmarks.common import Options, table

COLUMNS = {
    "dice": "Dice", "sample_dice": "Dice of single samples", "nll": "NLL", "ece": "ECE", "agreement": "agreement",
    "sample_diversity": "diversity", "ged": "GED\u00b2", "seconds": "seconds",
}  # fmt: skip


def parse() -> argparse.Namespace:
    """The options of the command line."""
    parser = Options(__doc__, "model", "data", "samples", "limit")
    add = parser.add_argument
    add("--split", default="validation", help="steps are chosen on validation cases (default: %(default)s)")
    add("--steps", type=int, nargs="+", default=[1, 2, 4, 8, 15, 50], help="(default: 1 2 4 8 15 50)")
    add("--schedule", choices=("even", "quadratic"), help="where they lie (default: as the model has it)")
    parser.share("out", help="gets steps.parquet")
    return parser.parse_args()


def main() -> int:
    """Score every number of steps on the same cases with the same seeds."""
    options = parse()
    import pyarrow as pa
    import pyarrow.parquet as pq

    from ldseg.bundle import load_bundle
    from ldseg.data.cohort import read_cohort
    from ldseg.evaluation.cases import known_posterior, select_cases
    from ldseg.evaluation.evaluate import Scoring, evaluate
    from ldseg.posterior.draws import Draws

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
    titles = {"steps": "steps"} | COLUMNS
    print("\n" + table([{titles[n]: v if n == "steps" else f"{v:.4f}" for n, v in row.items()} for row in rows]))
    print(f"{options.samples} samples, {len(cases)} cases; {options.out / 'steps.parquet'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
