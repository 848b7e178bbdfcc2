"""Register a bundle that lies in a folder, a shipped one too, with its scores on cases that it was not trained on.

The test cases are those that the bundle's card names, else the cohort's own test split; whatever the bundle was trained
or selected on is left out, by name and by content. The version becomes the challenger; platform/promote.py makes it the
champion. The same bundle registered again is the same version.

Example:
    python platform/register.py models/hippocampus ldseg --data Task04_Hippocampus
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ldseg.commands import Parser, asks_mlflow, needs
from ldseg.data.remote import absolute, location
from ldseg.orchestration.home import home

EXPERIMENT = "register"


def parse(arguments: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = Parser(__doc__, prog, status="Exit status: 0 the model is a version, 2 it is not.")
    add = parser.add_argument
    add("bundle", type=Path, metavar="BUNDLE", help="the model's folder")
    add("name", metavar="NAME", help="in the model registry")
    add(
        "--data", type=location, required=True, help="a labelled cohort: a folder, a manifest, or its address, s3://..."
    )
    add("--samples", type=int, default=8, help="samples of each case (default: %(default)s)")
    add("--device", default="cpu", help="such as cpu or cuda (default: %(default)s)")
    add("--runs", type=location, metavar="DIR", help="home of all runs (default: LDSEG_HOME or runs)")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> int:
    """Score, then register."""
    from ldseg.bundle import load_bundle
    from ldseg.config import flatten
    from ldseg.data.cohort import read_cohort
    from ldseg.evaluation.cases import select_cases
    from ldseg.orchestration.promotion.evidence import unseen
    from ldseg.orchestration.tracking import mlflow_client, provenance
    from ldseg.orchestration.tracking.run_log import RunLog
    from ldseg.orchestration.tracking.shipper import shipping
    from ldseg.orchestration.training.register import evaluate_held_out, register
    from ldseg.posterior.draws import Draws

    bundle = load_bundle(options.bundle)
    cohort = read_cohort(options.data, foreground_only=bundle.config.data.foreground_only)
    chosen, source = select_cases(cohort, bundle.card, "test")
    cases = unseen(bundle, None, [case for case in chosen if case.labels])
    if not cases:
        raise ValueError(f"there is no labelled case in {options.data} that the model has not seen; give other data")
    print(f"{len(cases)} labelled cases that {options.bundle} has not seen, of {source}", flush=True)
    folder = home(options.runs)
    # a run of its own for each model, calibrated or not
    name = "-".join([options.name, *(digest.removeprefix("sha256:")[:12] for digest in bundle.identity.values())])
    log = RunLog.create(
        mlflow_client.logs(folder) / EXPERIMENT / name, EXPERIMENT, name, parameters=flatten(bundle.config.to_dict()),
        tags={"bundle": str(options.bundle.resolve()), "data": absolute(options.data), **provenance.surroundings()},
    )  # fmt: skip
    draws = Draws(options.samples, device=options.device)
    evaluation = evaluate_held_out(options.bundle, cases, folder / "evaluations" / name, draws, options.data)
    with shipping(folder) as shipper:
        register(shipper, log, options.bundle, options.name, evaluation)
        log.end()
    return 0


def main(arguments: list[str] | None = None, prog: str | None = None) -> int:
    """Run; one sentence and exit status 2 for a user's mistake or a registry that is away."""
    options = parse(arguments, prog)
    try:
        with needs("train", prog or "register.py"), asks_mlflow("see that it runs, then give the same command again"):
            return run(options)
    except (ValueError, OSError) as error:
        print(f"register: {error}", file=sys.stderr)
        return 2
