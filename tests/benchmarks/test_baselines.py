"""Methods side by side: which trainings there are, what a score means, and what the seeds together say."""

import math

import numpy as np
import pytest
import torch
from tiny import tiny_config

from benchmarks.common import Rows
from benchmarks.quality import baseline_training
from benchmarks.quality.baseline_models import LatentDiffusion
from benchmarks.quality.baselines import differences, over_seeds, trainings
from benchmarks.quality.scoring import Scorer, beside_samples, of_volumes, scores
from ldseg.calibration.conformal import VolumeRow
from ldseg.data.cohort import read_cohort
from ldseg.data.dataset import TrainingSet
from ldseg.posterior.accumulator import PosteriorAccumulator

METHODS = ["LDSeg", "U-Net", "U-Net, MC dropout"]


def test_each_method_and_seed_is_a_row_and_a_method_stands_for_all_of_its_seeds():
    assert trainings(METHODS, 1, None) == {name: (name, 0) for name in METHODS}
    assert list(trainings(METHODS, 2, ["U-Net", "LDSeg"])) == ["LDSeg", "LDSeg, seed 1", "U-Net", "U-Net, seed 1"]
    assert trainings(METHODS, 3, ["U-Net, seed 2"]) == {"U-Net, seed 2": ("U-Net", 2)}
    assert trainings(METHODS, 3, ["U-Net, seed 0"]) == {"U-Net": ("U-Net", 0)}
    assert list(trainings(METHODS, 2, ["dropout"])) == ["U-Net, MC dropout", "U-Net, MC dropout, seed 1"]
    with pytest.raises(ValueError, match="is none of LDSeg"):
        trainings(METHODS, 2, ["U-Net, seed 2"])


def strips(*lengths: int) -> np.ndarray:
    """Label maps of 4x4 whose first so many pixels are class 1."""
    maps = np.zeros((len(lengths), 16), dtype=np.uint8)
    for label, length in zip(maps, lengths, strict=True):
        label[:length] = 1
    return maps.reshape(-1, 4, 4)


def scored(samples: np.ndarray, raters: np.ndarray) -> dict[str, float]:
    total = PosteriorAccumulator.create(2, (4, 4))
    total.add(torch.nn.functional.one_hot(torch.from_numpy(samples).long(), 2).movedim(-1, 1).float())
    return scores(total, samples, raters, 1.0)


def test_energy_score_of_one_answer_is_its_distance_and_of_several_less_half_of_theirs():
    one = scored(strips(8), strips(4))
    assert one["energy_score"] == one["sample_distance"] == 0.5 and one["sample_diversity"] == 0 and "ged" not in one
    two = scored(strips(8, 4), strips(4))
    assert (two["sample_distance"], two["sample_diversity"]) == (0.25, 0.5) and two["energy_score"] == 0


def test_ged_over_distinct_pairs_is_the_same_for_one_answer_and_for_equal_ones():
    raters = strips(4, 8)
    found = [scored(strips(*[8] * count), raters)["ged_unbiased"] for count in (1, 5)]
    assert found == pytest.approx([2 * 0.25 - 0.5] * 2)


def test_volumes_are_scored_relative_to_the_mean_true_volume_and_held_by_percentiles():
    names = ("organ", "nodule")
    rows = [
        VolumeRow("a", {"organ": np.array([90.0, 130.0]), "nodule": np.array([0.0])}, {"organ": 100.0, "nodule": 0.0}),
        VolumeRow("b", {"organ": np.array([80.0]), "nodule": np.array([3.0])}, {"organ": 100.0, "nodule": 4.0}),
    ]
    found = of_volumes(rows)
    # organ: |X - y| 20 less half of the 40 between the two, and 20, over 100; nodule: 0 and 1 over a mean of 2
    assert found["volume_crps"] == pytest.approx(np.mean([(0 + 20) / 2 / 100, 0.5 / 2]))
    assert found["raw_coverage"] == 0.5
    gone = [VolumeRow("a", {n: np.zeros(2) for n in names}, dict.fromkeys(names, 0.0))]
    assert math.isnan(of_volumes(gone)["volume_crps"]) and of_volumes(gone)["raw_coverage"] == 1


def test_half_of_the_direct_answer_and_half_of_the_samples_mean():
    rater = strips(8)[0].astype(np.int64)
    structure = torch.from_numpy(rater).bool()
    of_direct, of_mean = torch.where(structure, 0.45, 0.1), torch.where(structure, 0.9, 0.55)
    direct, mean = (torch.stack([1 - p, p]) for p in (of_direct, of_mean))  # one finds nothing, the other too much
    inside = torch.ones(4, 4, dtype=torch.bool)
    assert beside_samples(direct, mean, rater, inside) == {"direct_dice": 0, "half_dice": 1}
    assert beside_samples(mean, mean, rater, structure)["direct_dice"] == 1, "what lies outside does not count"


@pytest.mark.parametrize("dims", [2, 3])
def test_a_network_whose_image_says_something_alone_has_a_direct_answer(dims):
    base = tiny_config(dims)
    image = torch.randn(1, 1, *base.data.shape)

    def direct(changed):
        return LatentDiffusion(base.with_overrides(changed)).direct(image)

    assert direct({"model.image_logits": False, "diffusion.input_scale": "none"}) is None
    assert direct({"model.image_logits": True, "loss.deterministic": True}) is None
    for logits in (True, False):
        answer = direct({"model.image_logits": logits})
        assert answer.shape == (3, *base.data.shape) and torch.allclose(answer.sum(0), torch.ones(base.data.shape))


def row(of: str, seed: int, values: list[float]) -> dict:
    name = f"{of}, seed {seed}" if seed else of
    return {"method": name, "of": of, "seed": seed, "dice_by_case": values, "energy_score_by_case": values}


def test_differences_over_seeds_are_of_the_cases_means():
    rows = [row("LDSeg", 0, [0.9, 0.8]), row("LDSeg", 1, [0.7, 0.8]), row("U-Net", 0, [0.8, 0.7])]
    assert over_seeds(rows) == [], "one seed is what `differences` tells"
    rows.append(row("U-Net", 1, [0.6, 0.7]))
    lines = over_seeds([{"method": "LDSeg as shipped", "dice_by_case": [1.0, 1.0]}, *rows])
    told = "+0.1000, +0.1000 of seed 0, 1; in the mean +0.1000, 95 % of the bootstrap +0.1000 to +0.1000"
    assert lines == [f"LDSeg - U-Net: {title} {told}" for title in ("Dice", "energy score")]
    assert [line.split(":")[0] for line in differences(rows)] == [
        f"{name} - LDSeg" for name in ("LDSeg, seed 1", "U-Net", "U-Net, seed 1")
    ]


def test_seeds_and_members_are_trained_apart_and_scored(phantoms, tmp_path):
    cohort, config = read_cohort(phantoms), tiny_config(2).with_overrides({"model.image_logits": True})
    labels = {"data.label_values": list(cohort.label_values), "data.structures": list(cohort.structures)}
    config = config.with_overrides(labels)
    train = TrainingSet(cohort.split("train"), config.data, config.model.multiple)
    setting = baseline_training.Setting(config, train, minutes=0.01)
    firsts = []
    for seed in range(2):
        weights = tmp_path / f"{seed}.safetensors"
        baseline_training.train_method("U-Net, ensemble of 3", seed, setting, weights)
        ensemble, how = baseline_training.trained("U-Net, ensemble of 3", config, weights)
        assert how["updates"] >= 3 and how["minutes"] == 0.01
        firsts += [next(member.parameters()).sum().item() for member in ensemble.members]
    assert len(set(firsts)) == 6

    cases, validation = (
        TrainingSet(cohort.split(part), config.data, config.model.multiple, training=False)
        for part in ("test", "validation")
    )
    ours = LatentDiffusion(config).eval()
    for method in (ensemble, ours):
        means = Scorer(method, config, 4).means(cases, validation)
        assert {"energy_score", "volume_crps", "raw_coverage", "coverage", "ged_unbiased"} <= means.keys()
        assert ("direct_dice" in means) == ("half_dice" in means) == (method is ours)
        assert np.mean(means["energy_score_by_case"]) == pytest.approx(means["energy_score"])
        assert means["energy_score"] == pytest.approx(means["sample_distance"] - means["sample_diversity"] / 2)


def test_rows_of_other_processes_are_seen(tmp_path):
    one, other = (Rows(tmp_path / "rows.jsonl", "method") for _ in range(2))
    one.add("U-Net", {"dice": 0.5})
    assert "U-Net" in other and other.rows == [{"method": "U-Net", "dice": 0.5}]
