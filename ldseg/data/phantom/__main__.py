"""`python -m ldseg.data.phantom`, `ldseg phantom`: write a cohort whose posterior is known."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ldseg.data.phantom.config import DEFAULT_SHAPES, PhantomConfig

EXAMPLE = "--out phantoms --dims 3 --cases 40 --raters 4 --shape 32 32 24 --seed 0"
STATUS = "Exit status: 0 the cohort is written, 2 it is not."


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Write a phantom cohort from the command line; `prog` is what the program was called by."""
    prog = prog or "python -m ldseg.data.phantom"
    defaults = PhantomConfig()
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Write a cohort whose posterior is known.",
        epilog=f"example: {prog} {EXAMPLE}\n\n{STATUS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument(
        "--kind", choices=list(DEFAULT_SHAPES), default=defaults.kind,
        help="organ: three structures in 2D or 3D; echo: a beating chamber in 2D+t (default: %(default)s)",
    )  # fmt: skip
    numbers = {
        "--dims": (defaults.dims, "2 for images, 3 for volumes"),
        "--cases": (defaults.cases, "number of cases"),
        "--raters": (defaults.raters, "labels per case"),
        "--seed": (defaults.seed, "the same seed writes the same cohort"),
    }
    for name, (default, meaning) in numbers.items():
        parser.add_argument(name, type=int, default=default, help=f"{meaning} (default: {default})")
    shapes = "32 32 24, 64 64 for 2 dims, 64 64 12 for echo"
    parser.add_argument("--shape", type=int, nargs="+", help=f"voxels per axis (default: {shapes})")
    spacings = "1 1 1.5, 1 1 for 2 dims, 1 1 0.04 for echo"
    parser.add_argument(
        "--spacing", type=float, nargs="+", help=f"mean voxel size in mm, frames in s (default: {spacings})"
    )
    options = parser.parse_args(arguments)
    from ldseg.data.phantom.cohort import write_phantoms  # with SciPy, for which --help does not wait

    try:
        config = PhantomConfig(
            kind=options.kind, dims=options.dims, cases=options.cases, raters=options.raters, seed=options.seed,
            shape=tuple(options.shape) if options.shape else None,
            spacing_mm=tuple(options.spacing) if options.spacing else None,
        )  # fmt: skip
        manifest = write_phantoms(options.out, config, _print_progress)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(manifest)
    return 0


def _print_progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        end = "\n" if done == total else ""
        print(f"\r{done} of {total} cases", end=end, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
