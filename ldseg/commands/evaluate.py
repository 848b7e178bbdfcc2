"""Score a model on a cohort: tables of every case and of the whole, beside the ceiling and the no-diffusion control.

Example:
    python platform/evaluate.py --model models/hippocampus --data Task04_Hippocampus --split test --out runs/evaluation
    python platform/evaluate.py --model models/hippocampus --data Task04_Hippocampus --noise 0:0.2:0.02 --out runs/noise
    python platform/evaluate.py --model models/hippocampus --data Task04_Hippocampus --corrupt crop,flip --out runs/crop
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ldseg.commands import Parser, needs
from ldseg.data.remote import location
from ldseg.posterior.draws import Draws

if TYPE_CHECKING:
    from ldseg.bundle import Bundle
    from ldseg.data.cohort import Case
    from ldseg.evaluation.evaluate import EvaluatedCase


def parse(arguments: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = Parser(__doc__, prog)
    add = parser.add_argument
    add(
        "--model",
        required=True,
        help="a bundle's folder, or models:/NAME@ALIAS or models:/NAME/VERSION of the registry",
    )
    add(
        "--data",
        type=location,
        required=True,
        help="cases: a folder, a manifest, or its address, s3://...; labels are optional",
    )
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
    one = parser.add_mutually_exclusive_group().add_argument
    one("--noise", metavar="LEVELS", help="score at each standard deviation of added noise: 0:0.2:0.02 or 0,0.1,0.2")
    one("--corrupt", metavar="KINDS", help="score as it is and with known damage: noise,bias,motion,crop,flip,empty")
    add("--severity", type=float, default=1.0, help="of the damage, from 0 to 1 (default: %(default)s)")
    add("--device", default="cpu", help="such as cpu or cuda (default: %(default)s)")
    add(
        "--runs",
        type=Path,
        default=Path(os.environ.get("LDSEG_HOME", "runs")),
        help="where models of the registry are kept (default: %(default)s)",
    )
    return parser.parse_args(arguments)


def report(done: EvaluatedCase, options: argparse.Namespace, kind: str = "") -> None:
    """One line for a case, and its picture."""
    from ldseg.evaluation.result import row_line

    print(f"[{done.number}/{done.total}] {row_line(done.row)}", flush=True)
    if done.number <= options.pictures and done.volume is not None and done.summary is not None:
        from ldseg.pictures.case import draw_case

        picture = options.out / "pictures" / kind / f"{done.summary.case}.png"
        draw_case(done.volume, done.summary, picture, done.reference)


def run(options: argparse.Namespace) -> int:
    """Evaluate, print, write; 1 if no case could be scored."""
    from ldseg.data.cohort import for_model, read_cohort
    from ldseg.evaluation.cases import known_posterior, select_cases
    from ldseg.evaluation.evaluate import Scoring, evaluate
    from ldseg.orchestration.models import load_model

    bundle = load_model(options.model, options.runs)
    control = load_model(options.control, options.runs) if options.control else None
    cohort = read_cohort(options.data, foreground_only=bundle.config.data.foreground_only)
    for problem in cohort.problems:
        print(f"left out: {problem}")
    cohort, by_number = for_model(cohort, bundle.config.data)
    if by_number:
        print(by_number)
    cases, source = select_cases(cohort, bundle.card, options.split)
    print(f"{options.model} on {source}", flush=True)
    if options.noise:
        return run_noise(bundle, cases[: options.limit], control, options)
    if options.corrupt:
        return run_corrupt(bundle, cases[: options.limit], control, options)
    result = evaluate(
        bundle,
        cases[: options.limit],
        draws(options),
        control=control,
        scoring=Scoring(known_posterior(options.data), options.boundary),
        progress=lambda done: report(done, options),
    )
    print(f"\n{result.table()}\n")
    for path in result.write(options.out).values():
        print(path)
    if result.summary["labelled"]:
        from ldseg.pictures.reliability import draw_reliability

        print(draw_reliability(result.summary["reliability"], options.out / "reliability.png"))
    if options.pictures:
        print(options.out / "pictures")
    return 0 if result.summary["failed"] < result.summary["cases"] else 1


def draws(options: argparse.Namespace) -> Draws:
    """How samples are drawn."""
    return Draws(options.samples, options.steps, options.seed, options.device)


def run_corrupt(bundle: Bundle, cases: Sequence[Case], control: Bundle | None, options: argparse.Namespace) -> int:
    """The experiment with known damage: a table, corruption.parquet and corruption.json."""
    from ldseg.evaluation.damage import corruption_study, read_corruptions

    def show(name: str, done: EvaluatedCase) -> None:
        print(f"{name:<8}", end="")
        report(done, options, name)

    names = read_corruptions(options.corrupt)
    study = corruption_study(
        bundle, cases, names, draws(options), severity=options.severity, control=control, progress=show
    )
    print(f"\n{study.table()}\n")
    for path in study.write(options.out).values():
        print(path)
    return 0 if any("error" not in row for row in study.rows) else 1


def run_noise(bundle: Bundle, cases: Sequence[Case], control: Bundle | None, options: argparse.Namespace) -> int:
    """The noise experiment: a table, noise.parquet and noise.png."""
    from ldseg.evaluation.damage import read_levels, robustness, robustness_table, write_robustness

    def show(row: dict[str, float]) -> None:
        print("  ".join(f"{name} {value:.3g}" for name, value in row.items()), flush=True)

    rows = robustness(bundle, cases, read_levels(options.noise), draws(options), control=control, progress=show)
    options.out.mkdir(parents=True, exist_ok=True)
    print(f"\n{robustness_table(rows)}\n")
    for path in write_robustness(rows, options.out).values():
        print(path)
    return 0


def main(arguments: list[str] | None = None, prog: str | None = None) -> int:
    """Run; one sentence and exit status 2 for a user's mistake."""
    options = parse(arguments, prog)
    try:
        with needs("", prog or "evaluate.py"):
            return run(options)
    except ValueError as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 2
