"""Move the alias "champion" to a registered version, through gates; say why when they don't hold.

The gates are those of platform/gates.toml or of --gates FILE. Scores are those recorded at registration, or, by --data,
both models' measured now; cases that a model was trained or selected on don't count. Every promotion, rollback and
refusal is a line of promotions.jsonl under --runs, chained by hashes. If cluster.yaml describes a cluster that is up,
the registry there is meant (docs/cluster.md).

Exit status: 0 the alias moved or was there already, 1 a gate holds it (or --history finds a changed line), 2 a mistake.

Example:
    python platform/promote.py ldseg 3 --reason "more cases of the second scanner"
    python platform/promote.py ldseg 3 --gates my_gates.toml --data Task04_Hippocampus --dry-run
    python platform/promote.py ldseg --rollback --reason "wrong on left hands"
    python platform/promote.py ldseg --history
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ldseg.commands import Parser, needs
from ldseg.data.remote import location
from ldseg.orchestration.cluster.dispatch import add_options, elsewhere
from ldseg.orchestration.home import home
from ldseg.orchestration.promotion.gates import SHIPPED, read_gates

if TYPE_CHECKING:
    from ldseg.orchestration.tracking.mlflow_client import Tracker


def parse(arguments: list[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = Parser(
        __doc__,
        prog,
        status="Exit status: 0 the gates hold, 1 they do not (or the history was changed), 2 nothing could be done.",
    )
    add = parser.add_argument
    add("model", nargs="?", metavar="NAME", help="of the registered model (default: ldseg; of --history: all)")
    add("number", nargs="?", metavar="VERSION", help="a number or an alias such as challenger (default: the newest)")
    add("--name", help="the same as NAME")
    add("--version", help="the same as VERSION")
    add("--gates", type=Path, default=SHIPPED, metavar="FILE", help="(default: platform/gates.toml)")
    add("--data", type=location, metavar="DIR", help="score both models now on its cases that neither was trained on")
    add("--device", default="cpu", help="for --data, such as cpu or cuda (default: %(default)s)")
    add("--reason", default="", metavar="WHY", help="kept in the history")
    add("--dry-run", action="store_true", help="show the table and the decision, change nothing")
    add("--rollback", action="store_true", help="give the alias back to the champion before")
    add("--history", action="store_true", help="show all decisions and verify their chain")
    add("--min-dice", type=float, help="in place of the file's floors.dice")
    add("--min-cases", type=int, help="in place of the file's cases.min_cases")
    add("--tolerance", type=float, help="in place of the file's margins.dice")
    add("--runs", type=location, metavar="DIR", help="home of all runs (default: LDSEG_HOME or runs)")
    add_options(parser)
    options = parser.parse_args(arguments)
    if options.rollback and options.history:
        parser.error("--rollback and --history are two commands; give one")
    for one, other in (("model", "name"), ("number", "version")):
        if getattr(options, one) and getattr(options, other):
            parser.error(f"the {other} is given twice; give it once")
        setattr(options, one, getattr(options, one) or getattr(options, other))
    if options.rollback and (options.number or options.data):
        parser.error("--rollback takes no version and no --data; it goes one step back")
    return options


def run(options: argparse.Namespace, arguments: list[str]) -> int:
    """Promote, roll back or show, where the registry is."""
    from ldseg.orchestration.tracking import mlflow_client

    _, ended = elsewhere("promote", options.model or "ldseg", options, arguments, shipped=["--gates"])
    if ended is not None:
        return ended
    return _here(options, mlflow_client.connect(home(options.runs)), options.model or "ldseg")


def _here(options: argparse.Namespace, tracker: Tracker, name: str) -> int:
    from ldseg.orchestration.promotion.champion import show_history
    from ldseg.orchestration.promotion.promote import Measurement, promote, rollback

    if options.history:
        text, intact = show_history(tracker, options.model or "")
        print(text)
        return 0 if intact else 1
    if options.rollback:
        decision = rollback(tracker, name, reason=options.reason, dry_run=options.dry_run)
    else:
        gates = read_gates(options.gates).with_values(
            floors__dice=options.min_dice,
            cases__min_cases=options.min_cases,
            margins__dice=options.tolerance,
        )
        measurement = Measurement(options.data, options.device) if options.data else None
        how = {"reason": options.reason, "dry_run": options.dry_run}
        decision = promote(tracker, name, options.number, gates, measurement, **how)
    print(decision.text())
    return 0 if decision.passed else 1


def main(arguments: list[str] | None = None, prog: str | None = None) -> int:
    """Run; one sentence and exit status 2 for a user's mistake or a registry that is away."""
    options = parse(arguments, prog)
    with needs("train", prog or "promote.py"):
        return _caught(options, sys.argv[1:] if arguments is None else arguments)


def _caught(options: argparse.Namespace, arguments: list[str]) -> int:
    from mlflow.exceptions import MlflowException

    try:
        return run(options, arguments)
    except MlflowException as error:
        problem = " ".join(str(error).split())[:300]
        print(f"promote: MLflow does not answer as it should ({problem}); see that it runs, try again", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        print(f"promote: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
