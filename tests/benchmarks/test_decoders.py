"""The decoders that are compared can be built for any space's grid, and decode to its size."""

import pytest
import torch
from tiny import tiny_config

from benchmarks.quality import ablation
from benchmarks.quality.baseline_models import LatentDiffusion
from benchmarks.quality.decoder_variants import AUTHORS, rows


@pytest.mark.parametrize("dims", [2, 3])
def test_every_decoder_that_is_tried_decodes_to_the_grid(dims):
    base = tiny_config(dims)
    found = rows(base)
    assert len(found) >= 9 and AUTHORS not in found  # their networks need grids of 64
    for name, row in found.items():
        config = base.with_overrides(row.overrides)
        method = LatentDiffusion(config)
        row.change(method)
        embedding = method.network.encode_image(torch.zeros(1, 1, *config.data.shape))
        latents = torch.zeros(1, *method.network.latent_shape(config.data.shape))
        assert method.network.decode(latents, embedding).shape == (1, 3, *config.data.shape), name


def test_a_space_whose_grid_is_not_the_authors_has_every_other_switch():
    assert ablation.switches(tiny_config(3)) == ablation.SWITCHES
