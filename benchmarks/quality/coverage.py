#!/usr/bin/env python
"""Whether the volume intervals keep their promise, or one split of the held-out cases was lucky: many splits of them.

All held-out cases (those of several evaluations of one model) are split anew at random, again and again: as many as
the model's calibration had calibrate the intervals, the others are new cases. In the mean over the splits the promised
share of true volumes must lie inside; the spread is what one split of so few cases can do.

Example:
    python platform/evaluate.py --model MODEL --data Task04_Hippocampus --split validation --out validation
    python platform/evaluate.py --model MODEL --data Task04_Hippocampus --split test --out test
    python benchmarks/quality/coverage.py validation test
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Options

if TYPE_CHECKING:
    import numpy as np

    from ldseg.calibration.conformal import VolumeRow


def parse() -> argparse.Namespace:
    """The options of the command line."""
    parser = Options(__doc__)
    add = parser.add_argument
    add("evaluations", type=Path, nargs="+", help="folders that platform/evaluate.py wrote; the first calibrated it")
    add("--splits", type=int, default=2000, help="random splits (default: %(default)s)")
    add("--alpha", type=float, default=0.1, help="share that may lie outside (default: %(default)s)")
    return parser.parse_args()


def read(folder: Path) -> list[VolumeRow]:
    """An evaluation's cases; samples that have the percentiles which were written down."""
    import pyarrow.parquet as pq

    from ldseg import columns
    from ldseg.calibration.conformal import VolumeRow

    rows = pq.read_table(folder / "cases.parquet").to_pylist()
    named = filter(None, map(columns.read_volume_column, rows[0]))
    volumes = {f"{s}_volume_{unit}": (s, unit) for s, unit, what in sorted(named) if what == columns.REFERENCE}
    return [
        VolumeRow(
            row["case"],
            {name: _with_percentiles(row, *parts) for name, parts in volumes.items()},
            {name: row[columns.volume(*parts, columns.REFERENCE)] for name, parts in volumes.items()},
        )
        for row in rows
    ]


def _with_percentiles(row: dict[str, Any], structure: str, unit: str) -> np.ndarray:
    import numpy as np

    from ldseg import columns

    low, middle, high = (row[columns.volume(structure, unit, columns.percentile(p))] for p in columns.PERCENTILES)
    return np.array([low, low, middle, high, high])


def main() -> int:
    """Split and print."""
    options = parse()
    import numpy as np

    from benchmarks.quality.scoring import held

    parts = [read(folder) for folder in options.evaluations]
    cases = [row for part in parts for row in part]
    count = len(parts[0])
    if count == len(cases):
        raise ValueError("there is no new case; give several evaluations")
    generator = np.random.default_rng(0)
    shares = []
    for _ in range(options.splits):
        order = generator.permutation(len(cases))
        chosen = [[cases[k] for k in part] for part in (order[:count], order[count:])]
        shares.append(held(*chosen, options.alpha)[:, 0].mean())
    low, high = np.percentile(shares, (2.5, 97.5))
    print(f"promised {1 - options.alpha:.1%} and at most {1 / (count + 1):.1%} more; {len(cases)} held-out cases, "
          f"{count} of them calibrate, {options.splits} splits")  # fmt: skip
    print(f"inside, mean over the splits: {np.mean(shares):.1%}; 95 % of the splits: {low:.1%} to {high:.1%}")
    own = held(parts[0], cases[count:], options.alpha)[:, 0].mean()
    unlucky = np.mean(np.array(shares) <= own)
    print(f"inside with the split as it is: {own:.1%}; {unlucky:.1%} of the splits do no better")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ValueError as error:
        sys.exit(f"coverage: {error}")
