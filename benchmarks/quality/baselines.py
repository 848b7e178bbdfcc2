#!/usr/bin/env python
"""LDSeg beside other ways to segment with uncertainty: the same cases, the same machine, the same training time.

Each method trains for the same minutes of one processor or GPU (an ensemble shares them among its members), with the
same loader, augmentation, optimiser, moving average and arithmetic (bfloat16 where the hardware has it). Everything is
scored on the working grid of the test cases with the same functions; NLL and ECE with a temperature that each method
fits on the validation cases, which also calibrate its volume intervals. "aurc" ranks the test cases by
the soft Dice confidence of the mean probabilities, which every method has, or by the agreement of samples; "excess aurc
damaged" ranks each test case as it is and with known damage to its image, all together.

Example:
    python benchmarks/quality/baselines.py --data phantoms --space phantom2d --minutes 5 --out baselines
    python benchmarks/quality/baselines.py --data Task04_Hippocampus --space hippocampus --full --out baselines \\
        --model models/hippocampus
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from benchmarks.common import table, wanted
from benchmarks.quality.baseline_models import DROPOUT, Deterministic, Ensemble, LatentDiffusion, ProbabilisticUNet
from ldseg.bundle import Bundle, load_bundle
from ldseg.calibration.conformal import VolumeRow, fit_intervals
from ldseg.calibration.temperature import fit_temperature, scale_probability
from ldseg.config import Config
from ldseg.data.cohort import Case, read_cohort
from ldseg.data.dataset import TrainingSet
from ldseg.data.volume import Volume
from ldseg.evaluation.corruptions import corrupt
from ldseg.metrics import overlap
from ldseg.metrics.bootstrap import compare
from ldseg.metrics.probability import CalibrationBins
from ldseg.metrics.ranking import aurc, e_aurc
from ldseg.orchestration.search.spaces import load_space, with_cohort
from ldseg.posterior.accumulator import PosteriorAccumulator, soft_dice_confidence
from ldseg.precision import native_bfloat16
from ldseg.training.fit import learning_rate, make_loader

Build = Callable[[Config], nn.Module]
METHODS: dict[str, Build] = {
    "LDSeg": LatentDiffusion,
    "LDSeg without diffusion": lambda config: LatentDiffusion(config.with_overrides({"loss.deterministic": True})),
    "latent diffusion, not end to end": lambda config: LatentDiffusion(
        config.with_overrides({"loss.timestep_weight": "never"})
    ),
    "U-Net": Deterministic,
    "U-Net, MC dropout": lambda config: Deterministic(config, DROPOUT),
    "U-Net, ensemble of 3": Deterministic,
    "Probabilistic U-Net": ProbabilisticUNet,
}
AS_SHIPPED = "LDSeg as shipped"
MEMBERS = {"U-Net, ensemble of 3": 3}
FULL_MINUTES = 60.0
COLUMNS = (
    "dice", "sample_dice", "nll", "nll_raw", "ece", "ged", "sample_diversity", "aurc_confidence", "aurc_agreement",
    "excess_aurc_damaged_confidence", "excess_aurc_damaged_agreement", "coverage", "interval_width", "dice_noise",
    "dice_damaged", "seconds", "updates",
)  # fmt: skip
DAMAGE = ("noise", "bias", "motion", "crop")  # each at half its full severity: noise of 0.1 of the image's range
SEVERITY = 0.5


def parse() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="a labelled cohort")
    add("--space", required=True, help="its base configuration is LDSeg's; data and optimiser are everyone's")
    add("--minutes", type=float, default=2.0, help="of training for each method (default: %(default)s)")
    add("--full", action="store_true", help=f"{FULL_MINUTES:.0f} minutes for each method")
    add("--samples", type=int, default=16, help="of each case (default: %(default)s)")
    add("--limit", type=int, help="only the first N cases of a split")
    add(
        "--split",
        choices=("test", "validation"),
        default="test",
        help="validation: to choose between designs; scores without what is fitted on those cases (default: test)",
    )
    add("--model", type=Path, help="also this bundle, as it was trained")
    add(
        "--device",
        default="cpu",
        help="cpu: minutes of one processor; cuda: minutes by the clock (default: %(default)s)",
    )
    add("--train-only", action="store_true", help="leave the scores to another run, which finds the weights in OUT")
    add("--only", nargs="+", metavar="METHOD", help="these methods, or those that contain one of these words")
    add("--out", type=Path, required=True, help="gets weights and scores; what is there is not done again")
    return parser.parse_args()


def main() -> int:
    """Train and score every method that is not done yet, then print the table."""
    options = parse()
    minutes = FULL_MINUTES if options.full else options.minutes
    torch.set_num_threads(1)
    base = dict(load_space(options.space).base)
    cohort = read_cohort(options.data, foreground_only=bool(base.get("data", {}).get("foreground_only", False)))
    config, cache = with_cohort(base, cohort), options.out / "cache"
    options.out.mkdir(parents=True, exist_ok=True)
    train = TrainingSet(cohort.split("train"), config.data, config.model.multiple, cache)
    cases, validation = (
        TrainingSet(cohort.split(part)[: options.limit], config.data, config.model.multiple, cache, training=False)
        for part in (options.split, "validation")
    )
    bundle = load_bundle(options.model) if options.model else None
    if bundle:
        check_unseen(bundle, cohort.split(options.split)[: options.limit], options.split)
    fitted = validation if options.split == "test" else None
    results = options.out / ("baselines.jsonl" if options.split == "test" else "baselines-validation.jsonl")
    done = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    kept = {row["method"] for row in done}
    if bundle and AS_SHIPPED not in kept and not options.train_only:
        shipped = LatentDiffusion(bundle.config)
        shipped.network = bundle.model
        shipped = shipped.to(options.device).eval()
        row = {"method": AS_SHIPPED, **score(shipped, bundle.config, cases, fitted, options.samples, options.device)}
        done.append(keep(row, results))
    for name in METHODS:
        if not wanted(name, options.only, METHODS) or name in kept:
            continue
        weights = options.out / f"{re.sub('[^a-z0-9]+', '-', name.lower())}.safetensors"
        if not weights.exists():
            print(f"{name}: {minutes:g} minutes ...", file=sys.stderr, flush=True)
            train_method(name, config, train, minutes, options.device, weights)
        if options.train_only:
            continue
        method, how = trained(name, config, weights)
        method = method.to(options.device)
        row = {"method": name, **score(method, config, cases, fitted, options.samples, options.device), **how}
        row["parameters"] = sum(p.numel() for p in method.parameters())
        done.append(keep(row, results))
    print("\n".join([table(done, "method", COLUMNS), *differences(done)]))
    print(f"{len(train)} training cases, {len(cases)} {options.split} cases, {options.samples} samples; {results}")
    return 0


def check_unseen(bundle: Bundle, cases: Sequence[Case], split: str) -> None:
    """A ValueError if a model was trained on one of the cases that are to be scored, or selected on a test case."""
    parts = {"test": ("train", "validation"), "validation": ("train",)}[split]
    used = {name for part in parts for name in (bundle.card.get("split") or {}).get(part, ())}
    if known := [case.name for case in cases if case.name in used]:
        cure = "give the cohort the split of that model, by a manifest"
        raise ValueError(f"{bundle.path} has seen {len(known)} of the {split} cases ({known[0]}); {cure}")


def train_method(name: str, config: Config, train: TrainingSet, minutes: float, device: str, weights: Path) -> None:
    """Train a method, of which an ensemble's members share the minutes, and keep its weights."""
    count, where = MEMBERS.get(name, 1), "cpu" if device == "cpu" else torch.cuda.get_device_name()
    members = [fit(METHODS[name], config, train, minutes / count, seed, device) for seed in range(count)]
    method = Ensemble([network for network, _ in members]) if count > 1 else members[0][0]
    how = {"updates": sum(updates for _, updates in members), "minutes": minutes, "trained_on": where}
    part = weights.with_suffix(".part")
    save_model(method.to(memory_format=torch.contiguous_format), str(part), {"how": json.dumps(how)})
    part.rename(weights)


def trained(name: str, config: Config, weights: Path) -> tuple[nn.Module, dict[str, Any]]:
    """A method with the weights that `train_method` kept, and how they came about."""
    build, count = METHODS[name], MEMBERS.get(name, 1)
    method = Ensemble([build(config) for _ in range(count)]) if count > 1 else build(config)
    load_model(method.to(memory_format=torch.contiguous_format), weights)
    with safe_open(weights, framework="pt") as file:
        how = json.loads(file.metadata()["how"])
    return channels_last(method, config).eval(), how


def keep(row: dict[str, Any], results: Path) -> dict[str, Any]:
    """Write a row down, so that an interruption costs one method at most."""
    with results.open("a") as file:
        file.write(json.dumps(row) + "\n")
    return row


def fit(
    build: Build, config: Config, train: TrainingSet, minutes: float, seed: int, device: str
) -> tuple[nn.Module, int]:
    """Train for a time, the learning rate falling with it; returns the averaged network and the number of updates."""
    torch.manual_seed(seed)
    method, optim = channels_last(build(config), config).to(device), config.optim
    clock = time.process_time if device == "cpu" else time.monotonic
    average = AveragedModel(method, multi_avg_fn=partial(follow, optim.ema_decay))
    optimizer = torch.optim.AdamW(
        method.parameters(), lr=optim.learning_rate, weight_decay=optim.weight_decay, fused=True
    )
    generator, start, updates, epoch = torch.Generator().manual_seed(seed), clock(), 0, 0
    order = torch.Generator().manual_seed(seed)
    loader = make_loader(train, device, batch_size=optim.batch_size, shuffle=True, drop_last=True, generator=order)
    while True:
        train.set_epoch(epoch)
        method.train()
        for batch in loader:
            progress = (clock() - start) / (60 * minutes)
            if progress >= 1:
                return average.module.eval(), updates
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(optim, progress)
            images, labels = (batch[name].to(device, non_blocking=True) for name in ("image", "label"))
            with torch.autocast(device, torch.bfloat16, enabled=optim.amp and native_bfloat16(device)):
                loss: Tensor = method.loss(images, labels, generator)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(method.parameters(), optim.gradient_clip)
            optimizer.step()
            average.update_parameters(method)
            updates += 1
        epoch += 1


def channels_last(method: nn.Module, config: Config) -> nn.Module:
    """The layout of weights that convolutions are fastest in."""
    layout = torch.channels_last if config.data.spatial_dims == 2 else torch.channels_last_3d
    return method.to(memory_format=layout)


def follow(decay: float, averaged: list[Tensor], current: list[Tensor], updates: int) -> None:
    """The moving average of LDSeg's own training: short at first, so that it forgets the random start."""
    torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + int(updates)) / (10 + int(updates))))


def score(
    method: nn.Module, config: Config, cases: TrainingSet, validation: TrainingSet | None, samples: int, device: str
) -> dict[str, Any]:
    """Means over the cases; temperature and intervals of the volumes come from the validation cases, where given."""
    draw_all = partial(draw_cases, method, config, samples=samples, device=device)
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    calibration = draw_all(validation, pairs=pairs)[1] if validation else None
    temperature = fit_temperature(pairs).temperature if validation else 1.0
    rows, volumes = draw_all(cases, temperature)
    damaged = {name: draw_all(cases, temperature, damage=name)[0] for name in DAMAGE}
    means: dict[str, Any] = {name: float(np.nanmean([row[name] for row in rows])) for name in rows[0]}

    def ranked(rows: list[dict[str, float]], name: str) -> tuple[np.ndarray, np.ndarray]:
        return np.array([1 - row["dice"] for row in rows]), np.array([-row[name] for row in rows])

    everything = [*rows, *(row for found in damaged.values() for row in found)]
    for name in ("confidence", "agreement") if means["sample_diversity"] else ("confidence",):
        means[f"aurc_{name}"] = aurc(*ranked(rows, name))
        means[f"excess_aurc_damaged_{name}"] = e_aurc(*ranked(everything, name))
    means["dice_noise"] = float(np.mean([row["dice"] for row in damaged["noise"]]))
    means["dice_damaged"] = float(np.mean([row["dice"] for found in damaged.values() for row in found]))
    means |= {"temperature": temperature, "dice_by_case": [float(row["dice"]) for row in rows]}
    return means | (coverage(calibration, volumes) if calibration else {})


def coverage(calibration: list[VolumeRow], test: list[VolumeRow]) -> dict[str, float]:
    """Share of true volumes inside the 90 % conformal intervals, and the intervals' mean width over the mean volume."""
    intervals = fit_intervals(calibration, steps=1, unit="voxels")
    inside, widths, sizes = [], [], []
    for row in test:
        for name in intervals.structures:
            low, high = intervals.interval(name, row.volumes[name])
            inside.append(low <= row.truth[name] <= high)
            widths.append(high - low)
            sizes.append(row.truth[name])
    return {"coverage": float(np.mean(inside)), "interval_width": float(np.mean(widths) / np.mean(sizes))}


@torch.no_grad()
def draw_cases(
    method: nn.Module,
    config: Config,
    cases: TrainingSet,
    temperature: float = 1.0,
    *,
    samples: int,
    device: str,
    damage: str = "",
    pairs: list[tuple[np.ndarray, np.ndarray]] | None = None,
) -> tuple[list[dict[str, float]], list[VolumeRow]]:
    """Scores of each case, and its structures' sizes in voxels; `pairs` gets each mean and label inside the image."""
    classes, names = config.data.num_classes, config.data.structures
    rows: list[dict[str, float]] = []
    volumes = []
    for index in range(len(cases)):
        item, start, generator = cases[index], time.monotonic(), torch.Generator().manual_seed(index)
        raters, inside = item["labels"].numpy(), item["inside"]
        image = (harm(item, damage) if damage else item["image"])[None].to(device)
        drawn = [p.float().cpu() for p in method.draw(image, samples, generator)]
        total = PosteriorAccumulator.create(classes, tuple(inside.shape), inside)
        total.add(torch.stack(drawn))
        seconds = time.monotonic() - start
        labels = np.stack([(p.argmax(0) * inside).numpy() for p in drawn]).astype(np.uint8)
        found = scores(total, labels, raters, inside.numpy(), classes, temperature)
        rows.append({**found, "seconds": seconds})
        if pairs is not None:
            mean = total.mean_probability().numpy()[:, inside.numpy()]
            pairs.extend((mean, rater[inside.numpy()]) for rater in raters)
        sizes = np.repeat(total.voxel_counts(), samples // len(drawn) if len(drawn) < samples else 1, axis=0)
        truth = [float((raters[0] == k).sum()) for k in range(1, classes)]
        by_name = {name: sizes[:, k].astype(np.float64) for k, name in enumerate(names)}
        volumes.append(VolumeRow(item["case"], by_name, dict(zip(names, truth, strict=True))))
    return rows, volumes


def harm(item: dict[str, Any], damage: str) -> Tensor:
    """An item's image (C, *grid) with known damage, brought back to mean 0 and deviation 1 as every image is."""
    digest, dims = hashlib.sha256(item["case"].encode()).hexdigest(), item["image"].ndim - 1
    volume = Volume(item["case"], item["image"].numpy(), np.eye(4), Path(), None, dims, digest)
    array = corrupt(volume, damage, SEVERITY).array
    return torch.from_numpy((array - array.mean()) / (array.std() + 1e-6))


def scores(
    total: PosteriorAccumulator,
    labels: np.ndarray,
    raters: np.ndarray,
    inside: np.ndarray,
    classes: int,
    temperature: float,
) -> dict[str, float]:
    """One case: the mean against the first rater, probabilities and samples against all."""
    mean, bins = total.mean_probability().numpy(), CalibrationBins()
    scaled = scale_probability(torch.from_numpy(mean), temperature)
    raw, seen = (array[1:][:, inside] for array in (mean, scaled.numpy()))
    for rater in raters:
        bins.add_top_label(seen, rater[inside])
    row = {
        "dice": float(overlap.dice_per_class(mean.argmax(0) * inside, raters[0] * inside, classes).mean()),
        "sample_dice": float(overlap.pairwise_dice(labels, raters[:1], classes).mean()),
        "nll": float(np.mean([overlap.nll(seen, rater[inside]) for rater in raters])),
        "nll_raw": float(np.mean([overlap.nll(raw, rater[inside]) for rater in raters])),
        "ece": bins.error,
        "agreement": float(np.mean(total.pairwise_dice())),
        "confidence": float(np.mean(soft_dice_confidence(scaled, torch.from_numpy(inside)))),
        "sample_diversity": overlap.diversity(labels, classes) if len(labels) > 1 else 0.0,
    }
    return row | ({"ged": overlap.ged(labels, raters * inside, classes)} if len(raters) > 1 else {})


def differences(rows: list[dict[str, Any]]) -> list[str]:
    """Each method's Dice less the first one's over the same cases, with its bootstrap interval, in a line."""
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


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ValueError as error:
        sys.exit(f"baselines: {error}")
