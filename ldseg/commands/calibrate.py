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
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ldseg.commands import OF_CASES, Parser, Progress, fail, status, tell
from ldseg.data.remote import location
from ldseg.posterior.draws import Draws

if TYPE_CHECKING:
    from ldseg.calibration.file import Worth
    from ldseg.data.cohort import Case


def parse(arguments: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = Parser(__doc__, prog, status=OF_CASES)
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
        "--missed",
        type=float,
        metavar="SHARE",
        help="also find thresholds whose masks (CASE_label-STRUCTURE_desc-cautious_mask) miss at most this share of a "
        "structure in the mean over new cases that have it; 0.1 takes 9 of them or more (default: no such masks)",
    )
    add(
        "--replace",
        action="store_true",
        help="take the place of a better calibration too: of more cases, or with intervals, masks or familiarity that "
        "this one has not (default: refuse; the older file stays beside the new one in any case)",
    )
    add("--seed", type=int, default=0, help="of the samples (default: %(default)s)")
    add("--device", default="cpu", help="such as cpu or cuda (default: %(default)s)")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> int:
    """Calibrate, print, write; the exit status."""
    from ldseg.bundle import load_bundle
    from ldseg.calibration.file import Worth, save_calibration
    from ldseg.data.cohort import for_model, read_cohort
    from ldseg.evaluation.calibrate import calibrate, calibration_table
    from ldseg.evaluation.cases import left_out, reference_cases, select_cases
    from ldseg.files import check_writable

    bundle = load_bundle(options.model)
    check_writable(options.model)
    cohort = read_cohort(options.data, foreground_only=bundle.config.data.foreground_only)
    tell(cohort)
    cohort, by_number = for_model(cohort, bundle.config.data)
    if by_number:
        print(by_number)
    cases, source = select_cases(cohort, bundle.card, options.split)
    print(f"{options.model} on {source}", flush=True)
    before, reference = None, reference_cases(cohort, bundle.card)
    if bundle.calibration is not None and not options.replace:
        before = Worth.of(bundle.calibration)
        check_worth(options.model, before, expected(options, cases, reference, bundle.config.data.structures))
    labelled = sum(bool(case.labels) for case in cases)
    lines = itertools.count(1)
    with Progress(labelled) as progress:

        def say(line: str) -> None:
            print(line, flush=True)
            progress.note(min(next(lines), labelled))

        calibration, rows = calibrate(
            bundle,
            cases,
            Draws(options.samples, seed=options.seed, device=options.device),
            reference=reference,
            alpha=options.alpha,
            missed=options.missed,
            progress=say,
        )
    print(f"\n{calibration_table(calibration, rows)}\n")
    if before is not None:
        check_worth(options.model, before, Worth.of(calibration))  # cases may have been left out
    print(save_calibration(options.model, calibration))
    return status(len(rows), labelled + len(left_out(cohort, bundle.card, options.split)))


def expected(
    options: argparse.Namespace, cases: Sequence[Case], reference: Sequence[Case], structures: Sequence[str]
) -> Worth:
    """What the calibration will be worth if every case can be read: known before the drawing, which takes minutes."""
    from ldseg.calibration.conformal import conformal_quantile
    from ldseg.calibration.familiarity import LEAST_REFERENCE
    from ldseg.calibration.file import Worth

    labelled = sum(bool(case.labels) for case in cases)
    suffice = math.isfinite(conformal_quantile([0.0] * labelled, options.alpha))
    masks = 0 if options.missed is None else len(structures)
    return Worth(labelled, len(structures) if suffice else 0, masks, len(reference) >= LEAST_REFERENCE)


def check_worth(model: Path, before: Worth, after: Worth) -> None:
    """Refuse to make a calibration worse.

    Raises:
        ValueError: something is lost.
    """
    if lost := before.lost_by(after):
        cure = "give more cases, and the cohort that the model was trained on, or --replace"
        raise ValueError(f"the calibration of {model} is better than this one would be ({lost}); {cure}")


def main(arguments: list[str] | None = None, prog: str | None = None) -> int:
    """Run; one sentence and exit status 2 for a user's mistake."""
    options = parse(arguments, prog)
    try:
        return run(options)
    except (ValueError, OSError) as error:
        return fail("calibrate", error, options.model)
