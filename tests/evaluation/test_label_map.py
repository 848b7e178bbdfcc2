"""How far the label map is from the samples' mean, where the image's own probabilities have a share in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scored import RANKS, write_case
from tiny import random_bundle, tiny_config

from ldseg.data.cohort import Case
from ldseg.data.volume import read_label, read_volume
from ldseg.evaluation.evaluate import evaluate
from ldseg.metrics import overlap
from ldseg.posterior.draws import Draws
from ldseg.posterior.sampling import Posterior


@RANKS
def test_the_label_map_and_the_mean_are_scored_side_by_side(tmp_path: Path, dims: int) -> None:
    config, case = tiny_config(dims).with_overrides({"sampler.image_share": 0.5}), write_case(tmp_path, "one", dims)
    bundle = random_bundle(tmp_path / "b", config)
    result = evaluate(bundle, [case, Case(name="bare", image=case.image)], Draws(3, seed=5))
    row, bare = result.rows
    volume = read_volume(case.image, case="one", spatial_dims=dims)
    truth = read_label(case.labels[0], volume, config.data)
    summary = Posterior(bundle).segment(volume, samples=3, seed=5)
    structures = summary.mean_probability
    mean = np.concatenate([1 - structures.sum(0)[None], structures]).argmax(0)
    between, scores = (overlap.dice_per_class(mean, other, 3).mean() for other in (summary.label, truth))
    assert row["label_difference"] == pytest.approx(1 - between, rel=1e-12) and 0 < row["label_difference"] < 1
    assert row["mean_dice"] == pytest.approx(scores, rel=1e-12) != row["dice"]
    assert bare["label_difference"] == row["label_difference"] and "mean_dice" not in bare
    table = result.table().splitlines()
    for title, value in (("Dice of the samples' mean", scores), ("label map's distance from the mean", 1 - between)):
        assert any(line.startswith(f"{title:<36}{value:.3f}") for line in table), title


def test_without_a_share_there_is_nothing_to_tell(tmp_path: Path) -> None:
    config, case = tiny_config(2), write_case(tmp_path, "one", 2)
    result = evaluate(random_bundle(tmp_path / "b", config), [case], Draws(2))
    assert not {"label_difference", "mean_dice"} & set(result.rows[0])
    assert "the mean" not in result.table() and "samples' mean" not in result.table()
