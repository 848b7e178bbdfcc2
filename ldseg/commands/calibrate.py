"""Calibrate a model on held-out cases: intervals that cover the truth, probabilities as sure as they are right.

Writes calibration.json into the bundle's folder; the weights, and with them the digest, stay as they are. From then on
every row of the model has {structure}_volume_{unit}_low and _high where it is drawn with the same --samples, and, where
the data holds cases that the model was trained on, distance, familiarity and unfamiliar (see
ldseg/calibration/familiarity.py).

Example:
    python platform/calibrate.py --model models/hippocampus --data Task04_Hippocampus --alpha 0.1
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from ldseg.commands import Parser
from ldseg.data.remote import location
from ldseg.posterior.draws import Draws


def parse(arguments: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = Parser(__doc__, prog)
    add = parser.add_argument
    add("--model", type=Path, required=True, help="a bundle's folder; gets calibration.json")
    add("--data", type=location, required=True, help="a folder of labelled cases, a manifest, or its address, s3://...")
    add(
        "--split",
        choices=("validation", "test"),
        default="validation",
        help="cases are taken from the model's card where it names them, never those it was trained on; a model that "
        "was selected on its validation cases is calibrated strictly on others (default: %(default)s)",
    )
    add("--samples", type=int, default=8, help="draws a case; the intervals hold for as many (default: %(default)s)")
    add(
        "--alpha",
        type=float,
        default=0.1,
        help="share of new cases whose true volume may lie outside; 0.1 takes 9 cases or more (default: %(default)s)",
    )
    add(
        "--confidence",
        type=float,
        help="with which at least 1 - alpha of new cases lie inside, for this calibration set and not in the mean over "
        "calibration sets; 0 for the mean (default: 0.95 where there are cases enough for it: 29 at alpha 0.1)",
    )
    add(
        "--missed",
        type=float,
        metavar="SHARE",
        help="also find thresholds whose masks (CASE_label-STRUCTURE_desc-cautious_mask) miss at most this share of a "
        "structure in the mean over new cases that have it; 0.1 takes 9 of them or more (default: no such masks)",
    )
    add("--seed", type=int, default=0, help="of the samples (default: %(default)s)")
    add("--device", default="cpu", help="such as cpu or cuda (default: %(default)s)")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> int:
    """Calibrate, print, write."""
    from ldseg.bundle import load_bundle
    from ldseg.calibration.file import save_calibration
    from ldseg.data.cohort import read_cohort
    from ldseg.evaluation.calibrate import Promises, calibrate, calibration_table
    from ldseg.evaluation.cases import reference_cases, select_cases

    promises = Promises(options.alpha, options.confidence, options.missed)
    bundle = load_bundle(options.model)
    cohort = read_cohort(options.data, foreground_only=bundle.config.data.foreground_only)
    for problem in cohort.problems:
        print(f"left out: {problem}")
    cases, source = select_cases(cohort, bundle.card, options.split)
    print(f"{options.model} on {source}", flush=True)
    calibration, rows = calibrate(
        bundle,
        cases,
        Draws(options.samples, seed=options.seed, device=options.device),
        reference=reference_cases(cohort, bundle.card),
        promises=promises,
        progress=partial(print, flush=True),
    )
    print(f"\n{calibration_table(calibration, rows)}\n")
    print(save_calibration(options.model, calibration))
    return 0


def main(arguments: list[str] | None = None, prog: str | None = None) -> int:
    """Run; one sentence and exit status 2 for a user's mistake."""
    options = parse(arguments, prog)
    try:
        return run(options)
    except ValueError as error:
        print(f"calibrate: {error}", file=sys.stderr)
        return 2
