#!/usr/bin/env python
"""What each deviation from the authors' method is worth: the same short training with one switch turned back at a time.

A switch that the space has turned already is no row: "as shipped" is it. Rows that are done are kept in
OUT/ablation.jsonl, so that the same command goes on after an interruption.

Example:
    python benchmarks/quality/ablation.py --data Task04_Hippocampus --space hippocampus --epochs 4 --out ablation
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import Options, Rows, labelled, overrides, wanted

if TYPE_CHECKING:
    from ldseg.config import Config
    from ldseg.data.cohort import Cohort

SWITCHES: dict[str, dict[str, Any]] = {
    "as shipped": {},
    "as shipped, another seed": {"optim.seed": 1},
    "with a matched filter": {"model.denoiser_context": True},
    "no matched filter": {"model.denoiser_context": False},
    "one noise for the batch": {"loss.shared_noise": True},
    "no shuffling": {"optim.shuffle": False},
    "predicts the noise": {"diffusion.prediction_type": "epsilon"},
    "predicts the noise, decodes z_t - noise": {
        "diffusion.prediction_type": "epsilon",
        "loss.decoded_estimate": "difference",
    },
    "averages the denoiser alone": {"optim.ema_scope": "denoiser"},
    "labels as one channel of numbers": {"model.label_input": "value"},
    "schedule not shifted": {"diffusion.noise_shift": 1.0},
    "z_t not scaled for the denoiser": {"diffusion.input_scale": "none"},
    "embedding as narrow as the latent": {"model.embedding_channels": 0},
    "logits of the image's own": {
        "model.image_logits": True,
        "model.decoder_skips": 0,
        "model.image_patch": [],
        "model.image_climb": False,
        "model.image_widths": [24, 48, 96],
    },
    "decoder sees no image": {"model.image_logits": False, "model.decoder_skips": 0},
    "image encoder hands over the way down": {"model.image_climb": False},
    "both decodings of every item": {"loss.decodings": "both"},
    "one decoding an item, in turns": {"loss.decodings": "one"},
    "Dice on the estimate too": {"loss.estimate_dice": True},
    "cross-entropy alone on the estimate": {"loss.estimate_dice": False},
    "latent noise 0.5": {"loss.latent_noise": 0.5},
    "rotations in every plane": {"data.max_rotation": [25.0]},
    "all steps alike": {"loss.noisiest_share": 0.0},
    "no reconstruction term": {"loss.reconstruction": 0.0},
    "attached target": {"loss.detach_target": False},
    "no reconstruction term, attached target": {"loss.reconstruction": 0.0, "loss.detach_target": False},
    "no decoded estimate (latents first)": {"loss.timestep_weight": "never"},
}
COLUMNS = (
    "dice", "sample_dice", "autoencoder_dice", "energy_score", "sample_diversity", "nll", "ged", "ged_truth", "minutes",
)  # fmt: skip
WIDTHS, DENOISER_WIDTHS = (16, 32, 64, 64, 32), (16, 32, 64)  # of the authors' encoders, and of their denoiser


def switches(base: Config) -> dict[str, dict[str, Any]]:
    """The rows: each switch, and the authors' networks, alone and with all their settings, where the grid lets them."""
    from ldseg.config import ConfigError, flatten
    from ldseg.keras_import import Sizes, authors_config

    data = base.data
    latent = tuple(n // 16 for n in data.shape)
    sizes = Sizes(data.spatial_dims, data.in_channels, data.num_classes, latent, WIDTHS, WIDTHS, DENOISER_WIDTHS)
    own = ("data.", "optim.epochs", "optim.validate_every", "optim.seed")
    try:
        theirs = flatten(authors_config(sizes, data.structures).to_dict())
        method = {key: value for key, value in theirs.items() if not key.startswith(own)}
        base.with_overrides(method)
    except ConfigError:
        return SWITCHES
    return SWITCHES | {
        "the authors' networks": {key: value for key, value in method.items() if key.startswith("model.")},
        "the authors' networks and settings": method,
    }


def parse() -> argparse.Namespace:
    """The options of the command line."""
    parser = Options(__doc__, "data", "space", "samples", "only", "train-only")
    add = parser.add_argument
    add("--epochs", type=int, required=True, help="of each training")
    add("--split", default="validation", help="defaults are chosen on validation cases (default: %(default)s)")
    add("--test-case", action="append", default=[], help="hold out this case (again for more)")
    parser.share("set", help="change what is shipped; repeatable")
    parser.share("device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.share("out", help="gets ablation.jsonl and the models; what is there is not done again")
    return parser.parse_args()


def main() -> int:
    """Train and score every row that is not done yet, then print the table."""
    options = parse()
    import torch

    torch.set_num_threads(1)
    cohort, base = labelled(options.data, options.space, options.test_case)
    base = base.with_overrides({**overrides(options.set), "optim.epochs": options.epochs})
    done = Rows(options.out / "ablation.jsonl", "switch")
    rows = switches(base)
    for name, changed in rows.items():
        config = base.with_overrides(changed)
        if (changed and config == base) or name in done or not wanted(name, options.only, rows):
            continue
        print(f"{name} ...", file=sys.stderr, flush=True)
        model = options.out / re.sub("[^a-z0-9]+", "-", name.lower())
        have_trained(model, config, cohort, options)
        if not options.train_only:
            done.add(name, measure(cohort, options, model))
    print(done.table(COLUMNS))
    counts = [len(cohort.split(part)) for part in ("train", options.split)]
    print(
        f"{options.epochs} epochs of {counts[0]} cases, scored on {counts[1]} {options.split} cases "
        f"with {options.samples} samples; {done.path}"
    )
    return 0


def have_trained(model: Path, config: Config, cohort: Cohort, options: argparse.Namespace) -> None:
    """One training to a bundle, unless it is there; to an empty folder where it diverged.

    Raises:
        ValueError: the bundle that is there has another configuration.
    """
    from ldseg.bundle import load_bundle, save_bundle
    from ldseg.data.dataset import TrainingSet
    from ldseg.training.fit import DivergedError, TrainingState, fit

    if model.exists():
        if any(model.iterdir()) and load_bundle(model).config != config:
            raise ValueError(f"{model} was trained otherwise; give another --out")
        return
    start, cache = time.monotonic(), options.out / "cache"
    cases = TrainingSet(cohort.split("train"), config.data, config.model.multiple, cache, seed=config.optim.seed)
    state = TrainingState.create(config, options.device)
    try:
        for result in fit(state, cases, None, device=options.device):
            print(f"  epoch {result.epoch}  loss {result.metrics['loss']:.3f}", file=sys.stderr, flush=True)
    except DivergedError as error:
        print(f"  {error}", file=sys.stderr)
        model.mkdir()
        return
    card = {"name": "ablation", "split": {}, "minutes": (time.monotonic() - start) / 60}
    save_bundle(model, state.ema.cpu(), config, card)


def measure(cohort: Cohort, options: argparse.Namespace, model: Path) -> dict[str, float]:
    """The scores of a model; none, which the table shows as nan, where its training diverged."""
    if not any(model.iterdir()):
        return {}
    from ldseg.bundle import load_bundle
    from ldseg.evaluation.cases import known_posterior
    from ldseg.evaluation.evaluate import Scoring, evaluate
    from ldseg.posterior.draws import Draws

    bundle = load_bundle(model)
    found = evaluate(
        bundle,
        cohort.split(options.split),
        Draws(options.samples, device=options.device),
        scoring=Scoring(known_posterior(options.data)),
    )
    means = {name: entry["mean"] for name, entry in found.summary["metrics"].items()}
    means["minutes"] = bundle.card["minutes"]
    return {name: means[name] for name in COLUMNS if name in means}


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ValueError as error:
        sys.exit(f"ablation: {error}")
