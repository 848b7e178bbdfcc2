#!/usr/bin/env python
"""Score a model on a cohort: tables of every case and of the whole, beside the ceiling and the no-diffusion control.

Example:
    python platform/evaluate.py --model models/hippocampus --data Task04_Hippocampus --split test --out runs/evaluation
    python platform/evaluate.py --model models/hippocampus --data Task04_Hippocampus --noise 0:0.2:0.02 --out runs/noise
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ldseg.bundle import Bundle, load_bundle
from ldseg.data.cohort import Case, read_cohort
from ldseg.evaluation import EvaluatedCase, evaluate
from ldseg.evaluation_cases import known_posterior, select_cases
from ldseg.picture import draw_case
from ldseg.reliability import draw_reliability
from ldseg.robustness import read_levels, robustness, robustness_table, write_robustness


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add(
        "--model",
        required=True,
        help="a bundle's folder, or models:/NAME@ALIAS or models:/NAME/VERSION of the registry",
    )
    add("--data", type=Path, required=True, help="a folder of cases or a manifest; labels are optional")
    add(
        "--split",
        choices=("train", "validation", "test", "all"),
        default="test",
        help="held-out cases are taken from the model's card where it names them (default: %(default)s)",
    )
    add(
        "--out",
        type=Path,
        required=True,
        help="gets cases.parquet, summary.json, summary.parquet, reliability.png and pictures/",
    )
    add("--control", help="the no-diffusion control: a bundle (or models:/ URI) trained with loss.deterministic=true")
    add("--samples", type=int, default=8, help="draws of each case's posterior (default: %(default)s)")
    add("--steps", type=int, help="denoiser calls a sample (default: the model's own)")
    add("--seed", type=int, default=0, help="of the samples (default: %(default)s)")
    add("--limit", type=int, help="only the first N cases")
    add("--pictures", type=int, default=0, metavar="N", help="draw the first N cases (default: %(default)s)")
    add("--boundary", type=float, default=2.0, metavar="MM", help="what is near the boundary (default: %(default)s)")
    add("--noise", metavar="LEVELS", help="score at each standard deviation of added noise: 0:0.2:0.02 or 0,0.1,0.2")
    add("--device", default="cpu", help="such as cpu or cuda (default: %(default)s)")
    add(
        "--runs",
        type=Path,
        default=Path(os.environ.get("LDSEG_HOME", "runs")),
        help="where models of the registry are kept (default: %(default)s)",
    )
    return parser.parse_args(arguments)


def load(model: str, runs: Path) -> Bundle:
    """A bundle from its folder or from the registry."""
    if not model.startswith("models:"):
        return load_bundle(Path(model))
    from ldseg.orchestration.home import home  # seconds to import, and not needed for a folder
    from ldseg.orchestration.registry import resolve_model

    return load_bundle(resolve_model(model, home(runs)))


def report(done: EvaluatedCase, options: argparse.Namespace) -> None:
    """One line for a case, and its picture."""
    row, place = done.row, f"[{done.number}/{done.total}] "
    if "error" in row:
        print(f"{place}left out: {row['error']}", flush=True)
        return
    dice = f"Dice {row['dice']:.3f}  " if "dice" in row else ""
    print(f"{place}{row['case']}  {dice}agreement {row['agreement']:.3f}  {row['seconds']:.2f} s", flush=True)
    if done.number <= options.pictures and done.volume is not None and done.summary is not None:
        draw_case(done.volume, done.summary, options.out / "pictures" / f"{row['case']}.png", done.reference)


def run(options: argparse.Namespace) -> int:
    """Evaluate, print, write; 1 if no case could be scored."""
    bundle = load(options.model, options.runs)
    control = load(options.control, options.runs) if options.control else None
    cohort = read_cohort(options.data, foreground_only=bundle.config.data.foreground_only)
    for problem in cohort.problems:
        print(f"left out: {problem}")
    cases, source = select_cases(cohort, bundle.card, options.split)
    print(f"{options.model} on {source}", flush=True)
    if options.noise:
        return run_noise(bundle, cases[: options.limit], control, options)
    result = evaluate(
        bundle,
        cases[: options.limit],
        samples=options.samples,
        num_steps=options.steps,
        seed=options.seed,
        device=options.device,
        control=control,
        true_posterior=known_posterior(options.data),
        boundary_mm=options.boundary,
        progress=lambda done: report(done, options),
    )
    print(f"\n{result.table()}\n")
    for path in result.write(options.out).values():
        print(path)
    if result.summary["labelled"]:
        print(draw_reliability(result.summary["reliability"], options.out / "reliability.png"))
    if options.pictures:
        print(options.out / "pictures")
    return 0 if result.summary["failed"] < result.summary["cases"] else 1


def run_noise(bundle: Bundle, cases: Sequence[Case], control: Bundle | None, options: argparse.Namespace) -> int:
    """The noise experiment: a table, noise.parquet and noise.png."""
    settings = {name: getattr(options, name) for name in ("samples", "seed", "device")} | {"num_steps": options.steps}

    def show(row: dict[str, float]) -> None:
        print("  ".join(f"{name} {value:.3g}" for name, value in row.items()), flush=True)

    rows = robustness(bundle, cases, read_levels(options.noise), control=control, progress=show, **settings)
    options.out.mkdir(parents=True, exist_ok=True)
    print(f"\n{robustness_table(rows)}\n")
    for path in write_robustness(rows, options.out).values():
        print(path)
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run; one sentence and exit status 2 for a user's mistake."""
    try:
        return run(parse(arguments))
    except ValueError as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
