#!/usr/bin/env python
"""Whether samples say where two neighbouring structures meet: the plane between them, against the reader's.

The hippocampus's readers cut anterior from posterior at one coronal slice, a choice for the whole organ at once, so it
is a doubt that a sampler has to hold as one. For each case: the plane across the axis from posterior to anterior that
parts the two with the fewest voxels on the wrong side, in the label and in every sample; its continuous ranked
probability score (fair estimator, in slices), how far the middle of the samples lies off, their spread, and whether
their 5 to 95 % range holds the reader's. One answer that draws nothing scores its absolute error.

Example:
    python benchmarks/quality/plane.py --model models/hippocampus --data Task04_Hippocampus
    python benchmarks/quality/plane.py --model models/hippocampus --data Task04_Hippocampus --steps 1 --samples 1
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Options, table

if TYPE_CHECKING:
    import numpy as np


def parse() -> argparse.Namespace:
    """The options of the command line."""
    parser = Options(__doc__, "model", "data", "samples", "limit")
    add = parser.add_argument
    add("--split", default="test", help="(default: %(default)s)")
    add("--steps", type=int, help="(default: as the model has it)")
    add("--axis", type=int, default=1, help="of the working grid, across which they meet (default: 1, to anterior)")
    add("--far", type=int, default=1, metavar="K", help="the class on its far side (default: 1, anterior)")
    add("--near", type=int, default=2, metavar="K", help="the class on its near side (default: 2, posterior)")
    return parser.parse_args()


def plane(label: np.ndarray, axis: int, far: int, near: int) -> int:
    """The slice from which on `far` begins, so that the fewest voxels lie on the wrong side; the first of equals.

    Args:
        label: class indices (*grid).
    """
    import numpy as np

    others = tuple(other for other in range(label.ndim) if other != axis)
    before = np.concatenate([[0], (label == far).sum(others).cumsum()])
    after = np.concatenate([(label == near).sum(others)[::-1].cumsum()[::-1], [0]])
    return int((before + after).argmin())


def main() -> int:
    """Score the planes of a split's cases."""
    options = parse()
    import numpy as np

    from ldseg.bundle import load_bundle
    from ldseg.data.cohort import for_model, read_cohort
    from ldseg.data.grid import label_to_grid
    from ldseg.data.reading import read_case
    from ldseg.evaluation.cases import select_cases
    from ldseg.metrics.recovery import crps
    from ldseg.posterior.accumulator import sample_labels
    from ldseg.posterior.draws import Draws
    from ldseg.posterior.sampling import Posterior

    try:
        posterior = Posterior(load_bundle(options.model))
        data, how = posterior.config.data, (options.axis, options.far, options.near)
        cohort, _ = for_model(read_cohort(options.data, foreground_only=data.foreground_only), data)
        cases, source = select_cases(cohort, posterior.bundle.card, options.split)
        found = []
        for case in cases[: options.limit]:
            volume, raters = read_case(case, data)
            drawn = posterior.draw(volume, Draws(options.samples, options.steps))
            truth = plane((label_to_grid(raters[0], drawn.grid) * drawn.grid.inside).numpy(), *how)
            planes = np.array([plane(label, *how) for label in sample_labels(drawn.total)])
            low, high = np.percentile(planes, [5, 95])
            off, holds = abs(float(np.median(planes)) - truth), low <= truth <= high
            found.append((crps(planes, np.array([truth])), off, planes.std(), holds, off == 0))
    except ValueError as error:
        print(f"plane: {error}", file=sys.stderr)
        return 2
    names = ("CRPS, slices", "middle off, slices", "spread, slices", "5 to 95 % hold it", "middle right")
    means = np.mean(found, axis=0)
    print(table([{name: float(value) for name, value in zip(names, means, strict=True)}]))
    print(f"{options.model} on {len(found)} cases of {source}, {options.samples} samples")
    return 0


if __name__ == "__main__":
    sys.exit(main())
