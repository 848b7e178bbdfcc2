import itertools
import math

import numpy as np
import pytest
import torch

from ldseg.posterior.accumulator import PosteriorAccumulator
from ldseg.posterior.adaptive import Drawing, MonteCarloError, Tally, agreement_error, enough, volume_error
from ldseg.posterior.plan import SamplePlan

GRIDS = pytest.mark.parametrize("grid", [(5, 7), (3, 5, 4)])


def _part(probabilities, grid):
    part = PosteriorAccumulator.create(probabilities.shape[1], grid)
    part.add(probabilities)
    return part


def _probabilities(grid, k, seed=0, classes=3, sharpness=3.0):
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(classes, *grid, generator=generator)
    return (torch.randn(k, classes, *grid, generator=generator) + sharpness * mean).softmax(1)


def _jackknife(statistic, n):
    """By its definition: the statistic without each of the samples in turn."""
    without = np.array([statistic([j for j in range(n) if j != i]) for i in range(n)])
    return math.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum())


def test_the_volume_error_is_the_classical_one_and_the_jackknife_of_the_mean():
    counts = np.random.default_rng(0).integers(900, 1100, size=12)
    classical = counts.std(ddof=1) / math.sqrt(12) / counts.mean()
    assert volume_error(counts.tolist()) == pytest.approx(classical, rel=1e-12)
    jackknife = _jackknife(lambda keep: counts[keep].mean(), 12) / counts.mean()
    assert volume_error(counts.tolist()) == pytest.approx(jackknife, rel=1e-10)


def test_the_volume_error_falls_as_one_over_the_root_of_n():
    """Two equally frequent counts a and b: the relative error is |a - b| / (a + b) / sqrt(n - 1)."""
    for n in (4, 16, 64, 256):
        assert volume_error([90, 110] * (n // 2)) == pytest.approx(0.1 / math.sqrt(n - 1), rel=1e-12)


def test_a_structure_in_bernoulli_samples_has_the_error_of_a_share():
    """Present with its full volume in m of n samples: sqrt((1 - p) / p / (n - 1)) with p = m / n."""
    n, m = 40, 10
    error = volume_error([1000] * m + [0] * (n - m))
    assert error == pytest.approx(math.sqrt(0.75 / 0.25 / (n - 1)), rel=1e-12)


def test_volumes_beyond_2_to_the_53_in_square_lose_nothing():
    big = 10**9
    assert volume_error([big, big + 1]) == pytest.approx(0.5 / (big + 0.5), rel=1e-12)


@GRIDS
def test_the_agreement_error_is_the_jackknife_of_the_mean_pairwise_dice(grid):
    total = _part(_probabilities(grid, 9), grid)
    tally = Tally()
    tally.follow(total.masks)

    def mean_dice(k):
        def statistic(keep):
            part = PosteriorAccumulator.create(3, grid)
            part.masks = [total.masks[i] for i in keep]
            return part.pairwise_dice()[k]

        return statistic

    found = tally.error().agreement
    expected = [_jackknife(mean_dice(k), 9) for k in range(2)]
    assert min(expected) > 0 and found == pytest.approx(expected, rel=1e-9)


def test_the_agreement_error_falls_as_one_over_the_root_of_n():
    """Rows of alternating means 0.8 and 0.9 spread by 0.05: 2 * 0.05 * sqrt(n - 1) / (n - 2)."""
    for n in (8, 32, 128):
        expected = 0.1 * math.sqrt(n - 1) / (n - 2)
        assert agreement_error([0.8, 0.9] * (n // 2)) == pytest.approx(expected, rel=1e-12)


@GRIDS
def test_a_tally_kept_up_in_pieces_equals_one_of_all_samples(grid):
    masks = _part(_probabilities(grid, 7), grid).masks
    whole, pieces = Tally(), Tally()
    whole.follow(masks)
    for end in (1, 3, 3, 7):
        pieces.follow(masks[:end])
    assert pieces.error() == whole.error()


def test_too_few_samples_tell_nothing_but_absent_structures_are_settled():
    grid = (4, 4)
    background = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1).expand(3, 3, *grid).clone()
    one = Tally()
    one.follow(_part(background, grid).masks[:1])
    assert one.error() == MonteCarloError((0.0, 0.0), (0.0, 0.0))
    background[:, :, 0] = torch.tensor([0, 1.0, 0]).view(3, 1)
    present = Tally()
    masks = _part(background, grid).masks
    for n, largest in ((1, math.inf), (2, math.inf), (3, 0.0)):
        present.follow(masks[:n])
        assert present.error().largest == largest


def test_identical_samples_stop_at_the_minimum_and_unsettled_ones_at_the_maximum():
    grid, plan = (6, 5), SamplePlan(min=8, max=32, tolerance=0.0)
    same = _probabilities(grid, 1).expand(8, 3, *grid)
    assert not enough(_part(same[:7], grid), plan)
    assert enough(_part(same, grid), plan)
    noise = _probabilities(grid, 32, sharpness=0.0)
    assert [n for n in range(1, 33) if enough(_part(noise[:n], grid), plan)] == [32]


def test_a_looser_tolerance_never_needs_more_samples():
    grid = (12, 12)
    p = _probabilities(grid, 64)
    needed = []
    for tolerance in (0.5, 0.1, 0.04, 0.03, 0.02, 0.015, 0.001):
        plan = SamplePlan(min=4, max=64, tolerance=tolerance)
        needed.append(next(n for n in range(1, 65) if enough(_part(p[:n], grid), plan)))
    assert needed == sorted(needed) and needed[0] == 4 and needed[-1] == 64 and len(set(needed)) > 3


@GRIDS
@pytest.mark.parametrize("models", [1, 2])
def test_a_drawing_adds_chunks_to_the_bit_like_merge_and_stops_where_it_is_enough(grid, models):
    plan = SamplePlan(min=3, max=30, tolerance=0.06)
    samples = [_probabilities(grid, 30, seed) for seed in range(models)]
    drawing, drawn = Drawing(plan, 4, models), []
    for k, indices in drawing.chunks():
        drawn.append((k, indices))
        if drawing.take(_part(samples[k][indices], grid)):
            break
    stop = drawing.totals[0].num_samples
    assert 4 < stop < 30, "else this shows nothing"
    for k in range(models):
        chunks = [indices for model, indices in drawn if model == k]
        assert list(itertools.chain(*chunks)) == list(range(stop))
        merged = PosteriorAccumulator.merge([_part(samples[k][indices], grid) for indices in chunks])
        for name, values in merged.to_arrays().items():
            assert np.array_equal(values, drawing.totals[k].to_arrays()[name]), name
    assert all(error.largest <= plan.tolerance for error in drawing.errors())
    before = [PosteriorAccumulator.merge([_part(x[: stop - 4], grid)]) for x in samples]
    assert not all(enough(total, plan) for total in before)
    with pytest.raises(ValueError, match="complete"):
        drawing.take(_part(samples[0][:4], grid))


def test_a_fixed_number_cuts_its_last_chunk():
    chunks = [indices for _, indices in Drawing(SamplePlan.fixed(10), 4).chunks()]
    assert chunks == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    with pytest.raises(ValueError, match="not complete"):
        _ = Drawing(SamplePlan.fixed(10), 4).totals


@pytest.mark.parametrize(("low", "high", "tolerance"), [(0, 4, 0.1), (5, 4, 0.1), (1, 4, -0.1), (1, 4, math.nan)])
def test_impossible_plans_are_refused(low, high, tolerance):
    with pytest.raises(ValueError, match="samples"):
        SamplePlan(min=low, max=high, tolerance=tolerance)


def test_the_true_mean_volume_lies_within_two_errors_as_often_as_the_t_distribution_says():
    """16 Gaussian volumes: |mean - truth| <= 2 errors in 93.6 % (t with 15 degrees of freedom), 0.55 % a deviation."""
    rng, covered, runs = np.random.default_rng(0), 0, 2000
    for _ in range(runs):
        counts = np.rint(rng.normal(10_000, 500, size=16)).astype(int)
        covered += abs(counts.mean() - 10_000) <= 2 * volume_error(counts.tolist()) * counts.mean()
    assert covered / runs == pytest.approx(0.936, abs=3 * 0.0055)


def _rows(sizes):
    """Nested masks, as when samples differ in size alone: the Dice of a pair is 2 min / (a + b)."""
    dice = 2 * np.minimum.outer(sizes, sizes) / np.add.outer(sizes, sizes)
    return (dice.sum(1) - 1) / (len(sizes) - 1), (dice.sum() - len(sizes)) / len(sizes) / (len(sizes) - 1)


def test_the_true_agreement_lies_within_two_jackknife_errors():
    rng = np.random.default_rng(0)
    truth = _rows(rng.normal(1000, 100, size=4000))[1]
    runs = [_rows(rng.normal(1000, 100, size=24)) for _ in range(1000)]
    covered = np.mean([abs(mean - truth) <= 2 * agreement_error(list(rows)) for rows, mean in runs])
    spread = np.std([mean for _, mean in runs])
    errors = np.mean([agreement_error(list(rows)) for rows, _ in runs])
    assert 0.90 <= covered <= 0.98
    assert errors == pytest.approx(spread, rel=0.1)


def test_stopping_by_the_rule_keeps_the_promised_error():
    """Volumes that spread by 10 %, tolerance 2 %: some 25 samples; the error over runs is near the tolerance."""
    rng, deviations, used = np.random.default_rng(0), [], []
    for _ in range(400):
        counts = np.rint(rng.normal(10_000, 1000, size=64)).astype(int).tolist()
        n = next(n for n in range(8, 65, 4) if n == 64 or volume_error(counts[:n]) <= 0.02)
        deviations.append(np.mean(counts[:n]) / 10_000 - 1)
        used.append(n)
    assert 20 <= np.mean(used) <= 30
    assert float(np.sqrt(np.mean(np.square(deviations)))) <= 0.02 * 1.25  # stopping early is favoured by luck
