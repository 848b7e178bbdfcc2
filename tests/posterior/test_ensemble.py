import math

import pytest
import torch
from ensembles import _certain, _model, _random

from ldseg.posterior.accumulator import PosteriorAccumulator
from ldseg.posterior.ensemble import decompose

GRIDS = pytest.mark.parametrize("grid", [(5, 7), (3, 4, 5)])


@GRIDS
def test_the_parts_add_up_and_none_is_negative(grid):
    parts = decompose([_model(_random(grid, seed)) for seed in range(3)])
    assert torch.allclose(parts.total, parts.epistemic + parts.aleatoric, atol=1e-6, rtol=0)
    assert torch.equal(parts.aleatoric, parts.within_samples + parts.between_samples)
    for part in (parts.epistemic, parts.within_samples, parts.between_samples):
        assert part.min() > -1e-6
    assert parts.epistemic.max() <= math.log(3) + 1e-6


@GRIDS
def test_the_parts_are_those_of_all_samples_at_once(grid):
    p = torch.stack([_random(grid, seed) for seed in range(4)]).double()  # (models, samples, classes, *grid)

    def h(q, dim):
        return -(q * q.log()).sum(dim)

    parts = decompose([_model(q.float()) for q in p])
    own = h(p.mean(1), 1).mean(0)
    expected = (h(p.mean((0, 1)), 0), h(p.mean((0, 1)), 0) - own, h(p, 2).mean((0, 1)), own - h(p, 2).mean((0, 1)))
    found = parts.total, parts.epistemic, parts.within_samples, parts.between_samples
    for part, wanted in zip(found, expected, strict=True):
        assert torch.allclose(part, wanted, atol=1e-6, rtol=0)


@GRIDS
def test_models_that_contradict_each_other_are_epistemic_and_samples_that_do_are_not(grid):
    disagreeing = decompose([_model(_certain(grid, 0)), _model(_certain(grid, 2))])
    assert torch.allclose(disagreeing.epistemic, torch.full(grid, math.log(2), dtype=torch.float64))
    assert disagreeing.aleatoric.abs().max() < 1e-9
    both = _model(torch.cat([_certain(grid, 0), _certain(grid, 2)]))
    open_image = decompose([both, both])
    assert open_image.epistemic.abs().max() < 1e-9
    assert torch.allclose(open_image.between_samples, torch.full(grid, math.log(2), dtype=torch.float64))
    assert decompose([_model(_random(grid, 0))]).epistemic.abs().max() < 1e-9, "one model knows of no other"


def test_what_can_not_be_split_is_told():
    with pytest.raises(ValueError, match="at least one model"):
        decompose([])
    with pytest.raises(ValueError, match="each with at least one sample"):
        decompose([PosteriorAccumulator.create(3, (4, 4))])
    with pytest.raises(ValueError, match="on one grid"):
        decompose([_model(_random((4, 4), 0)), _model(_random((4, 5), 0))])
