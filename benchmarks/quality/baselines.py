#!/usr/bin/env python
"""LDSeg beside other ways to segment with uncertainty: the same cases, the same machine, the same training time.

Each method trains for the same minutes of one processor or GPU (an ensemble shares them among its members), with the
same loader, augmentation, optimiser, moving average and arithmetic (bfloat16 where the hardware has it). Everything is
scored on the working grid of the test cases with the same functions; NLL and ECE with a temperature that each method
fits on the validation cases, which also calibrate its volume intervals. "aurc" ranks the test cases by
the soft Dice confidence of the mean probabilities, which every method has, or by the agreement of samples; "excess aurc
damaged" ranks each test case as it is and with known damage to its image, all together. "volume crps" is relative to
the mean volume, "raw coverage" that of the samples' 5th to 95th percentile as they are; "direct dice" is that of the
image encoder's own logits, "half dice" of these and the samples' mean, half of each (see `scoring.py`).

With --seeds every method is trained that many times. Each training is a row, has a file of weights of its own, and can
be made in a process of its own, side by side with others: name the method and its seed with --only (a method's name
stands for all of its seeds), --train-only leaves the scores for later.

Example:
    python benchmarks/quality/baselines.py --data phantoms --space phantom2d --minutes 5 --out baselines
    python benchmarks/quality/baselines.py --data Task04_Hippocampus --space hippocampus --full --out baselines \\
        --model models/hippocampus
    python benchmarks/quality/baselines.py --data phantoms --space phantom2d --seeds 3 --train-only --out baselines \\
        --only "U-Net, seed 2"
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Options, Rows, labelled, wanted

if TYPE_CHECKING:
    from ldseg.bundle import Bundle
    from ldseg.data.cohort import Case

AS_SHIPPED = "LDSeg as shipped"
FULL_MINUTES = 60.0
COLUMNS = (
    "dice", "direct_dice", "half_dice", "sample_dice", "energy_score", "sample_distance", "sample_diversity", "ged",
    "ged_unbiased", "ged_floor", "nll", "nll_raw", "ece", "volume_crps", "raw_coverage", "coverage", "interval_width",
    "aurc_confidence", "aurc_agreement", "excess_aurc_damaged_confidence", "excess_aurc_damaged_agreement",
    "dice_noise", "dice_damaged", "seconds", "updates",
)  # fmt: skip
COMPARED = {"dice": "Dice", "energy_score": "energy score"}


def parse() -> argparse.Namespace:
    """The options of the command line."""
    parser = Options(__doc__, "data", "space", "limit", "only", "train-only")
    add, share = parser.add_argument, parser.share
    share("minutes", default=2.0, help="of training for each method (default: %(default)s)")
    add("--full", action="store_true", help=f"{FULL_MINUTES:.0f} minutes for each method")
    share("samples", default=16)
    add("--seeds", type=int, default=1, metavar="N", help="train each method with seeds 0 to N - 1 (default: 1)")
    add(
        "--split",
        choices=("test", "validation"),
        default="test",
        help="validation: to choose between designs; scores without what is fitted on those cases (default: test)",
    )
    share("model", required=False, help="also this bundle, as it was trained")
    cpu = "cpu: minutes of one processor; cuda: minutes by the clock (default: %(default)s)"
    share("device", default="cpu", help=cpu)
    share("out", help="gets weights and scores; what is there is not done again")
    return parser.parse_args()


def main() -> int:
    """Train and score every method that is not done yet, then print the table."""
    options = parse()
    import torch

    from benchmarks.quality.baseline_training import METHODS, Setting, train_method, trained
    from benchmarks.quality.scoring import Scorer
    from ldseg.bundle import load_bundle
    from ldseg.data.dataset import TrainingSet

    torch.set_num_threads(1)
    cohort, config = labelled(options.data, options.space)
    bundle = load_bundle(options.model) if options.model else None
    if bundle:
        check_unseen(bundle, cohort.split(options.split)[: options.limit], options.split)

    def grids(part: str, *, training: bool = False) -> TrainingSet:
        cases = cohort.split(part)[: None if training else options.limit]
        return TrainingSet(cases, config.data, config.model.multiple, options.out / "cache", training=training)

    train, cases, validation = grids("train", training=True), grids(options.split), grids("validation")
    fitted = validation if options.split == "test" else None
    done = Rows(options.out / f"baselines{'' if fitted else '-validation'}.jsonl", "method")
    if bundle and AS_SHIPPED not in done and not options.train_only:
        shipped = as_method(bundle).to(options.device).eval()
        done.add(AS_SHIPPED, Scorer(shipped, bundle.config, options.samples, options.device).means(cases, fitted))
    setting = Setting(config, train, FULL_MINUTES if options.full else options.minutes, options.device)
    for name, (of, seed) in trainings(METHODS, options.seeds, options.only).items():
        if name in done:
            continue
        weights = options.out / f"{re.sub('[^a-z0-9]+', '-', name.lower())}.safetensors"
        if not weights.exists():
            print(f"{name}: {setting.minutes:g} minutes ...", file=sys.stderr, flush=True)
            train_method(of, seed, setting, weights)
        if options.train_only:
            continue
        method, how = trained(of, config, weights)
        means = Scorer(method.to(options.device), config, options.samples, options.device).means(cases, fitted)
        how |= {"of": of, "seed": seed, "parameters": sum(p.numel() for p in method.parameters())}
        done.add(name, {**means, **how})
    print("\n".join([done.table(COLUMNS), *differences(done.rows), *over_seeds(done.rows)]))
    print(f"{len(train)} training cases, {len(cases)} {options.split} cases, {options.samples} samples; {done.path}")
    return 0


def trainings(methods: Iterable[str], seeds: int, only: Sequence[str] | None) -> dict[str, tuple[str, int]]:
    """The rows that are asked for, each with its method and seed; seed 0 has the name of the method.

    A ValueError if there is none.
    """
    every = {f"{of}, seed {seed}": (of, seed) for of in methods for seed in range(seeds)}
    names = [*methods, *every]
    found = {
        (name if seed else of): (of, seed)
        for name, (of, seed) in every.items()
        if wanted(of, only, names) or wanted(name, only, names)
    }
    if only and not found and AS_SHIPPED not in only:
        raise ValueError(f"--only {' '.join(only)} is none of {', '.join(names)}")
    return found


def as_method(bundle: Bundle) -> Any:
    """A bundle's model beside the others."""
    from benchmarks.quality.baseline_models import LatentDiffusion

    method = LatentDiffusion(bundle.config)
    method.network = bundle.model
    return method


def check_unseen(bundle: Bundle, cases: Sequence[Case], split: str) -> None:
    """A ValueError if a model was trained on one of the cases that are to be scored, or selected on a test case."""
    parts = {"test": ("train", "validation"), "validation": ("train",)}[split]
    used = {name for part in parts for name in (bundle.card.get("split") or {}).get(part, ())}
    if known := [case.name for case in cases if case.name in used]:
        cure = "give the cohort the split of that model, by a manifest"
        raise ValueError(f"{bundle.path} has seen {len(known)} of the {split} cases ({known[0]}); {cure}")


def differences(rows: list[dict[str, Any]]) -> list[str]:
    """Each row's Dice less the first one's over the same cases, with its bootstrap interval, in a line."""
    import numpy as np

    from ldseg.metrics.bootstrap import compare

    kept = {row["method"]: np.array(row["dice_by_case"]) for row in rows if "dice_by_case" in row}
    lines = []
    for name, own in list(kept.items())[1:]:
        first, other = next(iter(kept.items()))
        found = compare(own, other)
        lines.append(
            f"{name} - {first}: Dice {found.difference:+.4f}, 95 % of the bootstrap {found.low:+.4f} to "
            f"{found.high:+.4f}; better in {int((own > other).sum())} of {found.cases} cases"
        )
    return lines


def over_seeds(rows: list[dict[str, Any]]) -> list[str]:
    """LDSeg less each other method: of each seed that both have, and of the means over these seeds, case by case.

    The interval is the bootstrap's over the cases: how much the mean would differ for other cases, the trainings given.
    """
    import numpy as np

    from ldseg.metrics.bootstrap import compare

    kept = {(row["of"], row["seed"]): row for row in rows if "seed" in row}
    lines = []
    for of in dict.fromkeys(of for of, _ in kept if of != "LDSeg"):
        seeds = sorted(seed for name, seed in kept if name == of and ("LDSeg", seed) in kept)
        if len(seeds) < 2:
            continue
        for column, title in COMPARED.items():
            own, other = (np.array([kept[name, s][f"{column}_by_case"] for s in seeds]) for name in ("LDSeg", of))
            each = ", ".join(f"{value:+.4f}" for value in (own - other).mean(1))
            found = compare(own.mean(0), other.mean(0))
            lines.append(
                f"LDSeg - {of}: {title} {each} of seed {', '.join(map(str, seeds))}; in the mean "
                f"{found.difference:+.4f}, 95 % of the bootstrap {found.low:+.4f} to {found.high:+.4f}"
            )
    return lines


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ValueError as error:
        sys.exit(f"baselines: {error}")
