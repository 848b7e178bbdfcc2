"""Ranks against closed forms, a slow reference, and draws that could be the truth."""

import numpy as np
import pytest
from scipy import ndimage

from ldseg.metrics.rank_histogram import Ranks, boundary_rank, condensed, rank_lines, rank_of


def test_ranks_count_the_draws_below_and_spread_ties_evenly():
    draws = np.array([1.0, 2.0, 3.0])
    assert rank_of(2.5, draws).tolist() == [0, 0, 1, 0]
    assert rank_of(0.0, draws).tolist() == [1, 0, 0, 0] and rank_of(9.0, draws).tolist() == [0, 0, 0, 1]
    assert rank_of(2.0, draws).tolist() == [0, 0.5, 0.5, 0]
    assert rank_of(5.0, np.array([5.0, 5.0, 5.0])).tolist() == [0.25] * 4
    assert rank_of(np.array([0.0, 9.0]), np.stack([draws, draws], 1)).tolist() == [0.5, 0, 0, 0.5]


def _disc(radius, spacing, shape):
    grid = np.meshgrid(*[(np.arange(n) - n / 2) * s for n, s in zip(shape, spacing, strict=True)], indexing="ij")
    return sum(g**2 for g in grid) < radius**2


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.5, 2.0), (1.0, 1.0, 1.5)])
def test_a_boundary_beyond_all_samples_has_the_last_rank_and_one_within_all_the_first(spacing):
    shape = tuple(round(60 / s) for s in spacing) if len(spacing) == 2 else (40, 40, 30)
    samples = np.stack([_disc(r, spacing, shape) for r in (9.0, 12.0, 15.0)])
    assert boundary_rank(samples, _disc(18.0, spacing, shape), spacing) == pytest.approx([0, 0, 0, 1])
    assert boundary_rank(samples, _disc(6.0, spacing, shape), spacing) == pytest.approx([1, 0, 0, 0])
    between = boundary_rank(samples, _disc(13.5, spacing, shape), spacing)
    assert between is not None and between.argmax() == 2


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.7, 1.9), (1.0, 0.8, 2.5)])
def test_boundary_ranks_are_those_of_distances_at_every_voxel(spacing):
    """Masks with holes, islands and parts at the image's edge."""
    noise = np.random.default_rng(len(spacing)).normal(size=(6, *(17, 15, 9)[: len(spacing)]))
    masks = np.stack([ndimage.gaussian_filter(one, 1.5) + ndimage.gaussian_filter(noise[0], 2) > 0 for one in noise])
    padded = np.pad(masks, [(0, 0)] + [(1, 1)] * len(spacing))
    majority = padded.sum(0) > 3
    surface = majority & ~ndimage.binary_erosion(majority)
    distance = [
        ndimage.distance_transform_edt(mask, sampling=spacing) - ndimage.distance_transform_edt(~mask, sampling=spacing)
        for mask in padded
    ]
    depths = np.round([one[surface] for one in distance], 6)
    assert boundary_rank(masks[:-1], masks[-1], spacing) == pytest.approx(rank_of(depths[-1], depths[:-1]), abs=1e-12)


def test_ranks_of_exchangeable_masks_are_even_and_of_narrow_samples_a_u():
    rng = np.random.default_rng(0)

    def pooled(spread):
        ranks = Ranks()
        for number in range(300):
            radii = np.append(10 + spread * rng.normal(size=4), 10 + 2 * rng.normal())
            masks = np.stack([_disc(max(r, 2.0), (1.0, 1.0), (44, 44)) for r in radii]).astype(int)
            ranks.add(str(number), masks[:-1], masks[-1], ["disc"], (1.0, 1.0))
        return ranks.summary()

    even, narrow = pooled(2.0), pooled(0.7)
    for column in ("disc_volume_rank", "disc_boundary_rank"):
        assert np.abs(np.array(even[column]["bins"]) - 0.2).max() < 0.08  # 3.5 standard errors of a share of 300
        assert even[column]["low"] < 0.4 < even[column]["high"] and even[column]["n"] == 300
        assert even[column]["flat"] == pytest.approx(0.4)
        bins = narrow[column]["bins"]
        assert bins[0] > 0.28 and bins[-1] > 0.28 and bins[2] < 0.15 and narrow[column]["low"] > 0.4


def test_a_boundary_that_is_not_there_has_no_rank():
    some, none = _disc(4.0, (1.0, 1.0), (20, 20)), np.zeros((20, 20), bool)
    assert boundary_rank(np.stack([none, none]), none, (1.0, 1.0)) is None
    assert boundary_rank(np.stack([some, some]), none, (1.0, 1.0)) is None
    assert boundary_rank(np.stack([some, none]), some, (1.0, 1.0)) is None
    ranks = Ranks()
    assert ranks.add("a", np.stack([some, some]).astype(int), none.astype(int), ["s"], (1.0, 1.0)) == {
        "s_volume_rank": 0
    }
    assert ranks.add("b", some[None].astype(int), some.astype(int), ["s"], (1.0, 1.0)) == {}
    assert list(ranks.summary()) == ["s_volume_rank"]


def test_frames_are_no_neighbours_of_each_other():
    frames = np.stack([_disc(r, (1.0, 1.0), (30, 30)) for r in (5.0, 9.0)], axis=-1)
    wider = np.stack([_disc(r, (1.0, 1.0), (30, 30)) for r in (7.0, 11.0)], axis=-1)
    assert boundary_rank(frames[None], wider, (1.0, 1.0, np.inf)) == pytest.approx([0, 1])


def test_fewer_bins_keep_what_is_flat_and_where_it_is_not():
    assert condensed(np.full(9, 1 / 9)) == pytest.approx([0.2] * 5, rel=1e-12)
    assert condensed(np.array([1.0, 0, 0])) == pytest.approx([0.6, 0.4, 0, 0, 0])


def test_the_mean_rank_the_outer_share_and_its_interval_over_patients():
    ranks, truth = Ranks(), np.array([1, 1, 1, 0, 0])
    below = np.array([[1, 0, 0, 0, 0], [1, 1, 0, 0, 0]])  # both smaller than the truth
    around = np.array([[1, 0, 0, 0, 0], [1, 1, 1, 1, 0]])
    found = [ranks.add(f"c{n}", below if n < 2 else around, truth, ["s"], (1.0,)) for n in range(4)]
    assert [row["s_volume_rank"] for row in found] == [1, 1, 0.5, 0.5]
    entry = ranks.summary()["s_volume_rank"]
    assert entry["outside"] == 0.5 and entry["flat"] == pytest.approx(2 / 3) and 0 <= entry["low"] < 0.5
    assert entry["bins"] == pytest.approx([0, 0.1, 0.3, 0.3, 0.3], abs=1e-12)
    together = ranks.summary(dict.fromkeys(("c0", "c1", "c2", "c3"), "one patient"))["s_volume_rank"]
    assert np.isnan(together["low"]), "one patient says nothing of others"
    line, boundary = rank_lines(ranks.summary())
    assert boundary.startswith("s boundary rank ")
    assert (
        line.startswith("s volume rank in fifths ") and "beyond all samples 50.0% [" in line and "(flat 66.7%)" in line
    )
