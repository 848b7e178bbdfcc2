#!/usr/bin/env python
"""What steps and the rest of the sampler are worth: one model scored with each of them, as a table.

There is a row for each schedule, scale of the noise and number of steps; the last line names the row whose samples
follow the raters best, by the energy score (lower is better).

Example:
    python benchmarks/quality/steps.py --model models/hippocampus --data Task04_Hippocampus --out steps
    python benchmarks/quality/steps.py --model models/hippocampus --data Task04_Hippocampus --out steps --steps 4 8 \\
        --method dpm++2m --schedule even quadratic --noise-scale 1 1.2
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Options, table

COLUMNS = {
    "dice": "Dice", "sample_dice": "Dice of single samples", "energy_score": "energy score",
    "sample_distance": "distance from the raters", "sample_diversity": "diversity", "raw_coverage": "raw coverage",
    "nll": "NLL", "ece": "ECE", "agreement": "agreement", "ged": "GED\u00b2", "seconds": "seconds",
}  # fmt: skip


def parse() -> argparse.Namespace:
    """The options of the command line."""
    parser = Options(__doc__, "model", "data", "samples", "limit")
    add, own = parser.add_argument, "(default: as the model has it)"
    add("--split", default="validation", help="steps are chosen on validation cases (default: %(default)s)")
    add("--steps", type=int, nargs="+", default=[1, 2, 4, 8, 15, 50], help="(default: 1 2 4 8 15 50)")
    add("--schedule", nargs="+", choices=("even", "quadratic"), help=f"where they lie {own}")
    add("--method", choices=("ddim", "ddpm", "dpm++2m"), help=f"of sampling {own}")
    add("--noise-scale", type=float, nargs="+", metavar="X", help=f"what the noise is multiplied by {own}")
    parser.share("out", help="gets steps.parquet")
    return parser.parse_args()


def main() -> int:
    """Score every sampler on the same cases with the same seeds."""
    options = parse()
    import pyarrow as pa
    import pyarrow.parquet as pq

    from ldseg.bundle import load_bundle
    from ldseg.data.cohort import for_model, read_cohort
    from ldseg.evaluation.cases import known_posterior, select_cases
    from ldseg.evaluation.evaluate import Scoring, evaluate
    from ldseg.posterior.draws import Draws

    try:
        bundle = load_bundle(options.model)
        own = bundle.config.sampler
        asked = options.schedule or [own.schedule], options.noise_scale or [own.noise_scale], options.steps
        data = bundle.config.data
        cohort, _ = for_model(read_cohort(options.data, foreground_only=data.foreground_only), data)
        cases, source = select_cases(cohort, bundle.card, options.split)
        cases, truth = cases[: options.limit], known_posterior(options.data)
        print(f"{options.model} on {source}", flush=True)
        rows = []
        for schedule, scale, count in itertools.product(*asked):
            row = {"method": options.method or own.method, "schedule": schedule, "noise_scale": scale, "steps": count}
            sampler = {f"sampler.{name}": value for name, value in row.items() if name != "steps"}
            bundle.model.config = bundle.config.with_overrides(sampler)
            found = evaluate(bundle, cases, Draws(options.samples, steps=count), scoring=Scoring(truth))
            means = {name: entry["mean"] for name, entry in found.summary["metrics"].items()}
            if "energy_score" not in means:
                raise ValueError(f"none of the cases of {options.data} could be scored; give labelled ones")
            covered = [means[name] for name in means if name.endswith("_covered_raw")]
            means["raw_coverage"] = sum(covered) / len(covered)
            rows.append(row | {name: means[name] for name in COLUMNS if name in means})
            print(
                "  ".join(f"{n} {v:.4g}" if isinstance(v, float) else str(v) for n, v in rows[-1].items()), flush=True
            )
    except ValueError as error:
        print(f"steps: {error}", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), options.out / "steps.parquet")
    print(
        "\n" + table([{COLUMNS.get(n, n): f"{v:.4f}" if n in COLUMNS else v for n, v in row.items()} for row in rows])
    )
    print(f"{options.samples} samples, {len(cases)} cases; {options.out / 'steps.parquet'}")
    best = min(rows, key=lambda row: row["energy_score"])
    words = f"{best['method']}, {best['schedule']}, noise_scale {best['noise_scale']:g}, {best['steps']} steps"
    print(f"best energy score: {best['energy_score']:.4f} with {words}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
