#!/usr/bin/env python
"""What a label decoder costs a sample and what it is worth: each of them trained, end to end, for the same time.

The cost is that of decoding one sample on the training grid. The authors' decoder is the last row, with their label
and image encoder, at full resolution. Rows that are done are kept in OUT/decoders.jsonl.

Example:
    python -m ldseg.data.phantom --out phantoms --dims 2 --cases 600
    python benchmarks/quality/decoders.py --data phantoms --space phantom2d --minutes 3 --out decoders
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Options, Rows, labelled, wanted

if TYPE_CHECKING:
    from benchmarks.quality.baseline_models import LatentDiffusion
    from benchmarks.quality.decoder_variants import Row
    from ldseg.config import Config

COLUMNS = ("decode_gflop", "decode_ms", "updates", "dice", "sample_dice", "nll", "sample_diversity", "ged", "minutes")


def parse() -> argparse.Namespace:
    """The options of the command line."""
    parser = Options(__doc__, "data", "space", "samples", "only")
    parser.share("minutes", default=3.0, help="of training for each, of one processor (default: %(default)s)")
    parser.share("out", help="gets decoders.jsonl; what is there is not done again")
    return parser.parse_args()


def main() -> int:
    """Train and score every row that is not done yet, then print the table."""
    options = parse()
    import torch

    from benchmarks.quality.decoder_variants import rows

    torch.set_num_threads(1)
    cohort, base = labelled(options.data, options.space)
    done = Rows(options.out / "decoders.jsonl", "decoder")
    every = rows(base)
    for name, row in every.items():
        if wanted(name, options.only, every) and name not in done:
            print(f"{name} ...", file=sys.stderr, flush=True)
            done.add(name, measure(row, base.with_overrides(row.overrides), cohort, options))
    print(done.table(COLUMNS))
    print(f"{len(cohort.split('train'))} training, {len(cohort.split('validation'))} validation cases; {done.path}")
    return 0


def measure(row: Row, config: Config, cohort: Any, options: argparse.Namespace) -> dict[str, float]:
    """Cost and scores of a decoder, on the validation cases: defaults are chosen by them."""
    import numpy as np

    from benchmarks.quality.baseline_models import LatentDiffusion
    from benchmarks.quality.baseline_training import channels_last, fit
    from benchmarks.quality.scoring import Scorer
    from ldseg.data.dataset import TrainingSet

    def build(config: Config) -> LatentDiffusion:
        method = LatentDiffusion(config)
        row.change(method)
        return method

    def cases(part: str) -> TrainingSet:
        cache = options.out / "cache"
        return TrainingSet(cohort.split(part), config.data, config.model.multiple, cache, training=part == "train")

    cost = decoding(channels_last(build(config), config).eval(), config)
    start = time.process_time()
    method, updates = fit(build, config, cases("train"), options.minutes)
    minutes = (time.process_time() - start) / 60
    scored, _ = Scorer(method, config, options.samples).each(cases("validation"))
    means = {name: float(np.nanmean([case[name] for case in scored])) for name in scored[0]}
    return {**cost, "updates": updates, "minutes": minutes, **{k: v for k, v in means.items() if k in COLUMNS}}


def decoding(method: LatentDiffusion, config: Config) -> dict[str, float]:
    """Operations and time of decoding one sample on the training grid, in bfloat16, by one thread."""
    import torch

    from benchmarks.speed.ceilings import best_seconds, gflop

    network: Any = method.network
    with torch.inference_mode():
        embedding = network.encode_image(torch.zeros(1, config.data.in_channels, *config.data.shape))
        latents = torch.randn(1, *network.latent_shape(config.data.shape))
        with torch.autocast("cpu", torch.bfloat16):
            seconds = best_seconds(lambda: network.decode(latents, embedding))
        return {"decode_gflop": gflop(lambda: network.decode(latents, embedding)), "decode_ms": 1000 * seconds}


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ValueError as error:
        sys.exit(f"decoders: {error}")
