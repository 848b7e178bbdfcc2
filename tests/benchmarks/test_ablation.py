"""The switches that are turned back one at a time: each is a configuration that trains."""

import pytest
import torch
from tiny import tiny_config

from benchmarks.quality import ablation
from benchmarks.quality.baseline_models import LatentDiffusion


@pytest.mark.parametrize("image_logits", [True, False])
@pytest.mark.parametrize("dims", [2, 3])
def test_every_switch_gives_a_loss(dims, image_logits):
    base = tiny_config(dims).with_overrides({"model.image_logits": image_logits})
    images, labels = torch.randn(2, 1, *base.data.shape), torch.randint(0, 3, (2, *base.data.shape))
    for name, changed in ablation.SWITCHES.items():
        method = LatentDiffusion(base.with_overrides(changed))
        assert torch.isfinite(method.loss(images, labels, torch.Generator().manual_seed(0))), name


def test_both_ways_of_a_switch_are_rows_so_that_one_of_them_differs_from_any_base():
    for base in (tiny_config(2), tiny_config(2).with_overrides({"loss.decodings": "one", "loss.estimate_dice": False})):
        differing = {name for name, changed in ablation.SWITCHES.items() if base.with_overrides(changed) != base}
        for pair in (
            {"both decodings of every item", "one decoding an item, in turns"},
            {"Dice on the estimate too", "cross-entropy alone on the estimate"},
            {"decoder sees the image", "decoder sees no image"},
        ):
            assert len(pair & differing) == 1


def test_a_space_whose_grid_is_not_the_authors_has_every_other_switch():
    assert ablation.switches(tiny_config(3)) == ablation.SWITCHES
