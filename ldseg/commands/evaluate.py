"""Score a model on a cohort: tables of every case and of the whole, beside the ceiling and the no-diffusion control.

Example:
    python platform/evaluate.py --model models/hippocampus --data Task04_Hippocampus --split test --out runs/evaluation
    python platform/evaluate.py --model models/hippocampus --data Task04_Hippocampus --noise 0:0.2:0.02 --out runs/noise
    python platform/evaluate.py --model models/hippocampus --data Task04_Hippocampus --corrupt crop,flip --out runs/crop
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ldseg.commands import OF_CASES, Parser, Progress, fail, needs, status, tell
from ldseg.data.remote import location
from ldseg.posterior.draws import Draws

if TYPE_CHECKING:
    from ldseg.bundle import Bundle
    from ldseg.data.cohort import Case
    from ldseg.data.errors import CaseError
    from ldseg.evaluation.evaluate import EvaluatedCase


def parse(arguments: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = Parser(__doc__, prog, status=OF_CASES)
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
        try:
            draw_case(done.volume, done.summary, picture, done.reference)
        except OSError as error:  # the scores are worth more than a picture
            fail("evaluate", error, picture)


def run(options: argparse.Namespace) -> int:
    """Evaluate, print, write; the exit status."""
    from ldseg.data.cohort import for_model, read_cohort
    from ldseg.evaluation.cases import known_posterior, left_out, select_cases
    from ldseg.evaluation.evaluate import Scoring, evaluate
    from ldseg.files import check_writable
    from ldseg.orchestration.models import load_model

    check_writable(options.out)
    bundle = load_model(options.model, options.runs)
    control = load_model(options.control, options.runs) if options.control else None
    cohort = read_cohort(options.data, foreground_only=bundle.config.data.foreground_only)
    tell(cohort)
    cohort, by_number = for_model(cohort, bundle.config.data)
    if by_number:
        print(by_number)
    found, source = select_cases(cohort, bundle.card, options.split)
    cases: list[Case | CaseError] = list(found)
    cases = (cases + list(left_out(cohort, bundle.card, options.split)))[: options.limit]
    print(f"{options.model} on {source}", flush=True)
    if options.noise:
        return run_noise(bundle, cases, control, options)
    if options.corrupt:
        return run_corrupt(bundle, cases, control, options)
    with Progress(len(cases)) as progress:

        def show(done: EvaluatedCase) -> None:
            report(done, options)
            progress.note(done.number)

        scoring = Scoring(known_posterior(options.data), options.boundary)
        result = evaluate(bundle, cases, draws(options), control=control, scoring=scoring, progress=show)
    print(f"\n{result.table()}\n")
    for path in result.write(options.out).values():
        print(path)
    if result.summary["labelled"]:
        from ldseg.pictures.reliability import draw_reliability

        print(draw_reliability(result.summary["reliability"], options.out / "reliability.png"))
    if options.pictures:
        print(options.out / "pictures")
    return status(result.summary["cases"] - result.summary["failed"], result.summary["cases"])


def draws(options: argparse.Namespace) -> Draws:
    """How samples are drawn."""
    return Draws(options.samples, options.steps, options.seed, options.device)


def run_corrupt(
    bundle: Bundle, cases: Sequence[Case | CaseError], control: Bundle | None, options: argparse.Namespace
) -> int:
    """The experiment with known damage: a table, corruption.parquet and corruption.json."""
    from ldseg.evaluation.damage import corruption_study, read_corruptions

    names = read_corruptions(options.corrupt)
    with Progress(len(cases)) as progress:

        def show(name: str, done: EvaluatedCase) -> None:
            print(f"{name:<8}", end="")
            report(done, options, name)
            progress.note(done.number)

        study = corruption_study(
            bundle, cases, names, draws(options), severity=options.severity, control=control, progress=show
        )
    print(f"\n{study.table()}\n")
    for path in study.write(options.out).values():
        print(path)
    return status(sum("error" not in row for row in study.rows), len(study.rows))


def run_noise(
    bundle: Bundle, cases: Sequence[Case | CaseError], control: Bundle | None, options: argparse.Namespace
) -> int:
    """The noise experiment: a table, noise.parquet and noise.png."""
    from ldseg.evaluation.damage import read_levels, robustness, robustness_table, write_robustness

    levels = read_levels(options.noise)
    with Progress(len(levels)) as progress:

        def show(row: dict[str, float]) -> None:
            print("  ".join(f"{name} {value:.3g}" for name, value in row.items()), flush=True)
            progress.note(levels.index(row["sigma"]) + 1)

        rows = robustness(bundle, cases, levels, draws(options), control=control, progress=show)
    print(f"\n{robustness_table(rows)}\n")
    for path in write_robustness(rows, options.out).values():
        print(path)
    return status(len(cases) - int(rows[0]["failed"]), len(cases))


def main(arguments: list[str] | None = None, prog: str | None = None) -> int:
    """Run; one sentence and exit status 2 for a user's mistake."""
    options = parse(arguments, prog)
    try:
        with needs("", prog or "evaluate.py"):
            return run(options)
    except (ValueError, OSError) as error:
        return fail("evaluate", error, options.out)
