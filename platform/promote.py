#!/usr/bin/env python
"""Move the alias "champion" to a registered version, through gates; say why when they don't hold.

Example:
    python platform/promote.py --name ldseg --version 3 --min-dice 0.85
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ldseg.orchestration import tracking
from ldseg.orchestration.home import home
from ldseg.orchestration.promotion import Gates, promote, rollback


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--name", default="ldseg", help="of the registered model (default: %(default)s)")
    add("--version", type=int, help="to promote (default: the newest)")
    add(
        "--min-dice",
        type=float,
        default=0.7,
        help="least mean foreground Dice on the test cases (default: %(default)s)",
    )
    add("--min-diversity", type=float, default=0.001, help="least mean 1 - IoU between samples (default: %(default)s)")
    add("--min-cases", type=int, default=3, help="least number of test cases (default: %(default)s)")
    add(
        "--tolerance",
        type=float,
        default=0.005,
        help="how far the mean Dice may be below the champion's on their common test cases (default: %(default)s)",
    )
    add("--rollback", action="store_true", help="give the alias back to the version that had it before")
    add("--runs", type=Path, help="home of all runs (default: LDSEG_HOME or runs)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """0 when the alias moved (or was there already), 1 when a gate holds it, 2 for a user's mistake."""
    options = parse(arguments)
    try:
        tracker = tracking.connect(home(options.runs))
        if options.rollback:
            decision = rollback(tracker, options.name)
        else:
            gates = Gates(
                min_dice=options.min_dice,
                min_diversity=options.min_diversity,
                min_cases=options.min_cases,
                tolerance=options.tolerance,
            )
            decision = promote(tracker, options.name, options.version, gates)
    except (ValueError, OSError) as error:
        print(f"promote: {error}", file=sys.stderr)
        return 2
    print(decision.text())
    return 0 if decision.promoted else 1


if __name__ == "__main__":
    sys.exit(main())
