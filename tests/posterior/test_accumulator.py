import itertools
import math

import numpy as np
import pytest
import torch

from ldseg.metrics import overlap
from ldseg.posterior.accumulator import PosteriorAccumulator, entropy, soft_dice_confidence

GRIDS = pytest.mark.parametrize("grid", [(5, 7), (3, 5, 4)])


def _probabilities(grid, k=5, classes=3):
    return torch.randn(k, classes, *grid, generator=torch.Generator().manual_seed(0)).mul(3).softmax(1)


@GRIDS
def test_streamed_maps_equal_those_of_all_samples_at_once(grid):
    p = _probabilities(grid)
    accumulator = PosteriorAccumulator.create(3, grid)
    for chunk in p.split(2):
        accumulator.add(chunk)
    torch.testing.assert_close(accumulator.mean_probability(), p.mean(0))
    torch.testing.assert_close(accumulator.sample_variance(), p.var(0, correction=0).sum(0), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(accumulator.predictive_entropy(), entropy(p.mean(0), 0))
    expected = accumulator.entropy_sum / accumulator.num_samples
    torch.testing.assert_close(expected, entropy(p, 1).mean(0))
    assert (accumulator.predictive_entropy() >= expected - 1e-6).all()  # Jensen


@GRIDS
def test_agreement_is_the_mean_dice_of_all_pairs(grid):
    p = _probabilities(grid)
    accumulator = PosteriorAccumulator.create(3, grid)
    accumulator.add(p)
    labels = p.argmax(1)
    for k, agreement in enumerate(accumulator.pairwise_dice(), start=1):
        masks = labels == k
        pairs = [2 * int((a & b).sum()) / int(a.sum() + b.sum()) for a, b in itertools.combinations(masks, 2)]
        assert agreement == pytest.approx(np.mean(pairs), rel=1e-12)


def test_voxels_outside_the_field_of_view_do_not_count():
    inside = torch.zeros(4, 4, dtype=torch.bool)
    inside[:2] = True
    accumulator = PosteriorAccumulator.create(2, (4, 4), inside)
    accumulator.add(torch.stack([torch.zeros(4, 4), torch.ones(4, 4)])[None])
    assert accumulator.voxel_counts().tolist() == [[8]]


def test_equal_certain_samples_have_no_uncertainty():
    p = torch.nn.functional.one_hot(torch.arange(3).repeat(4).view(3, 4), 3).movedim(-1, 0).float()
    accumulator = PosteriorAccumulator.create(3, (3, 4))
    accumulator.add(p.expand(4, 3, 3, 4))
    assert accumulator.pairwise_dice() == [1.0, 1.0]
    for values in (accumulator.predictive_entropy(), accumulator.sample_variance(), accumulator.entropy_sum):
        assert float(values.abs().max()) == 0.0


def test_two_opposite_samples_have_one_bit_of_entropy_and_no_agreement():
    accumulator = PosteriorAccumulator.create(2, (2, 2))
    a = torch.stack([torch.ones(2, 2), torch.zeros(2, 2)])
    accumulator.add(torch.stack([a, a.flip(0)]))
    assert accumulator.predictive_entropy().flatten().tolist() == pytest.approx([math.log(2)] * 4)
    assert accumulator.pairwise_dice() == [0.0]
    assert accumulator.sample_variance().tolist() == [[0.5, 0.5]] * 2  # 0.25 for each of the two classes


def test_two_empty_structures_agree():
    accumulator = PosteriorAccumulator.create(2, (2, 2))
    accumulator.add(torch.stack([torch.ones(2, 2, 2), torch.zeros(2, 2, 2)], dim=1))
    assert accumulator.pairwise_dice() == [1.0]


@GRIDS
def test_merged_parts_equal_one_pass_to_the_bit(grid):
    p = _probabilities(grid, k=6)
    whole, parts = PosteriorAccumulator.create(3, grid), []
    for chunk in p.split(2):
        part = PosteriorAccumulator.create(3, grid)
        part.add(chunk)
        parts.append(PosteriorAccumulator.from_arrays(part.to_arrays()))
    merged = PosteriorAccumulator.merge(parts)
    assert [part.num_samples for part in parts] == [2, 2, 2] and merged.num_samples == 6
    whole.add(p)
    assert np.array_equal(merged.voxel_counts(), whole.voxel_counts())
    assert merged.pairwise_dice() == whole.pairwise_dice()
    torch.testing.assert_close(merged.mean_probability(), whole.mean_probability())


def test_voxel_counts_are_exact_above_2_to_the_24():
    grid = (2**12, 2**12 + 8)
    accumulator = PosteriorAccumulator.create(2, grid)
    accumulator.add(torch.tensor([0.1, 0.9]).view(1, 2, 1, 1).expand(1, 2, *grid))
    assert accumulator.voxel_counts().tolist() == [[2**12 * (2**12 + 8)]]


def test_masks_lie_in_blocks_and_survive_more_samples_than_a_block_holds(monkeypatch):
    monkeypatch.setattr(PosteriorAccumulator, "BLOCK", 3)
    probabilities = torch.rand(7, 3, 5, 4, generator=torch.Generator().manual_seed(0)).softmax(1)
    total = PosteriorAccumulator.create(3, (5, 4))
    total.add(probabilities)
    labels = probabilities.argmax(1)
    assert total.voxel_counts().tolist() == [[int((x == k).sum()) for k in (1, 2)] for x in labels]
    assert len({id(mask.base) for mask in total.masks}) == 3


@GRIDS
def test_confidence_is_the_dice_that_independent_voxels_let_expect(grid):
    generator = np.random.default_rng(0)
    p = generator.beta(0.5, 0.5, size=(8, *grid)).astype(np.float32)  # copies of a grid: enough for the approximation
    (found,) = soft_dice_confidence(torch.from_numpy(np.stack([1 - p, p])), torch.ones(p.shape, dtype=torch.bool))
    truths = generator.random((400, *p.shape)) < p
    expected = np.mean([overlap.dice_per_class(p > 0.5, truth, 2)[0] for truth in truths])
    assert found == pytest.approx(expected, abs=0.005) and 0.7 < expected < 0.9


def test_confidence_has_closed_forms():
    everywhere = torch.ones((1, 4), dtype=torch.bool)
    sure = torch.tensor([[[0.0, 0, 1, 1]], [[1, 1, 0, 0]]])
    assert soft_dice_confidence(sure, everywhere) == [1]
    p = torch.tensor([[[0.05, 0.1, 0.1, 0.9]], [[0.9, 0.6, 0.1, 0.05]], [[0.05, 0.3, 0.8, 0.05]]])
    assert soft_dice_confidence(p, everywhere) == [round(2 * 1.5 / 3.65, 6), round(2 * 0.8 / 2.2, 6)]
    inside = torch.tensor([[True, True, False, True]])
    assert soft_dice_confidence(p, inside) == [round(2 * 1.5 / 3.55, 6), pytest.approx(1 - 0.3)], "a structure outside"


def test_confidence_that_nothing_is_there_is_the_chance_of_that_if_it_comes_and_goes_as_one():
    truths = torch.zeros(10, 2, 5, 5)
    truths[:, 0] = 1
    truths[:3, :, 1:4, 1:4] = torch.tensor([0.0, 1])[None, :, None, None]  # three raters see it, seven don't
    mean, everywhere = truths.mean(0), torch.ones((5, 5), dtype=torch.bool)
    dice = [overlap.dice_per_class(np.zeros((5, 5), int), truth.argmax(0).numpy(), 2)[0] for truth in truths]
    assert soft_dice_confidence(mean, everywhere) == [pytest.approx(np.mean(dice), abs=1e-6)] and np.mean(dice) == 0.7


def test_confidence_does_not_depend_on_how_much_sure_background_there_is():
    p = torch.rand((3, 6, 6), generator=torch.Generator().manual_seed(0)).mul(4).softmax(0)
    large = torch.tensor([0.998, 0.001, 0.001])[:, None, None].repeat(1, 200, 200)  # a temperature's tails
    large[:, :6, :6] = p
    found = [soft_dice_confidence(q, torch.ones(q.shape[1:], dtype=torch.bool)) for q in (p, large)]
    assert found[0] == found[1]
