"""Metrics against closed forms, in 2D and 3D."""

from __future__ import annotations

import itertools
import math
import resource
from fractions import Fraction

import numpy as np
import pytest

from ldseg.metrics import overlap
from ldseg.metrics.overlap import (
    CalibrationBins,
    assd_mm,
    brier,
    dice_per_class,
    diversity,
    expected_calibration_error,
    ged,
    hd95_mm,
    iou_distances,
    matched_iou,
    nll,
    overlap_counts,
    pairwise_dice,
)
from ldseg.metrics.probability import share_error

RANKS = pytest.mark.parametrize("dims", [2, 3])
SPACING = (0.5, 2.0, 3.5)


def block(dims: int, start: int, stop: int, size: int = 24, across: tuple[int, int] = (6, 14)) -> np.ndarray:
    """A box of class 1: [start, stop) along the first axis, `across` along the others."""
    label = np.zeros((size,) * dims, dtype=np.uint8)
    label[(slice(start, stop), *[slice(*across)] * (dims - 1))] = 1
    return label


@RANKS
def test_dice_of_half_shifted_blocks_is_one_half(dims: int) -> None:
    assert dice_per_class(block(dims, 4, 12), block(dims, 8, 16), 2) == pytest.approx([0.5], rel=1e-6)


@RANKS
def test_dice_is_one_for_equal_zero_for_disjoint_and_follows_the_empty_rule(dims: int) -> None:
    a, empty = block(dims, 4, 12), np.zeros((24,) * dims, dtype=np.uint8)
    assert dice_per_class(a, a, 2) == [1]
    assert dice_per_class(a, block(dims, 12, 20), 2) == [0]
    assert dice_per_class(empty, empty, 2) == [1]
    assert dice_per_class(a, empty, 2) == dice_per_class(empty, a, 2) == [0]


@RANKS
def test_dice_has_one_entry_per_structure_and_leaves_background_out(dims: int) -> None:
    a = block(dims, 4, 12) + 2 * block(dims, 12, 16)
    assert dice_per_class(a, a, 4).tolist() == [1, 1, 1]


@RANKS
@pytest.mark.parametrize("axis", [0, 1])
def test_slabs_shifted_along_one_axis_have_the_shift_as_hd95_in_millimetres(dims: int, axis: int) -> None:
    """One voxel thin slabs across the whole grid: every surface voxel is at exactly the shift from the other slab."""
    spacing, shift = SPACING[:dims], 5
    a, b = (np.zeros((16,) * dims, dtype=np.uint8) for _ in range(2))
    np.moveaxis(a, axis, 0)[4], np.moveaxis(b, axis, 0)[4 + shift] = 1, 1
    assert hd95_mm(a, b, 2, spacing) == pytest.approx([shift * spacing[axis]], rel=1e-6)
    assert assd_mm(a, b, 2, spacing) == pytest.approx([shift * spacing[axis]], rel=1e-6)


def test_shifted_cubes_have_the_distances_counted_by_hand() -> None:
    """A 4x4 square in 2D with 12 boundary pixels, moved by 2 pixels of 1.5 mm along the first axis.

    From A to B: rows 0 and 1 of A lie 2 and 1 pixels before B's first row (4 + 2 boundary pixels; row 1 has its two
    ends only). Row 2 has its two ends on B's first row: distance 0. Row 3's four pixels: the two ends are on B's
    sides: 0; the two inner ones are one row inside B's first row: 1 row (1.5 mm), or 1 column (1 mm) from a side: 1 mm.
    """
    a, b = np.zeros((12, 12), dtype=np.uint8), np.zeros((12, 12), dtype=np.uint8)
    a[3:7, 4:8], b[5:9, 4:8] = 1, 1
    directed = np.array([3.0] * 4 + [1.5] * 2 + [0.0] * 2 + [0.0] * 2 + [1.0] * 2)
    assert assd_mm(a, b, 2, (1.5, 1.0)) == pytest.approx([directed.mean()], rel=1e-6)
    assert hd95_mm(a, b, 2, (1.5, 1.0)) == pytest.approx([np.percentile(directed, 95)], rel=1e-6)


def test_hd95_is_the_larger_directed_percentile_not_a_pooled_one() -> None:
    """A lies on B, and B goes on for 40 columns: one directed percentile is 0, the other nearly 40."""
    a, b = np.zeros((3, 100), dtype=np.uint8), np.zeros((3, 100), dtype=np.uint8)
    a[1, 5:45], b[1, 5:85] = 1, 1
    far = np.array([0.0] * 40 + list(range(1, 41)))
    assert hd95_mm(a, b, 2, (1, 1)) == pytest.approx([np.percentile(far, 95)], rel=1e-6)
    assert np.percentile(np.concatenate([far, np.zeros(40)]), 95) < np.percentile(far, 95)
    assert assd_mm(a, b, 2, (1, 1)) == pytest.approx([far.sum() / (80 + 40)], rel=1e-6)


@RANKS
def test_surface_distances_are_nan_without_any_surface_and_infinite_with_one(dims: int) -> None:
    a, empty = block(dims, 4, 12), np.zeros((24,) * dims, dtype=np.uint8)
    for score in (hd95_mm, assd_mm):
        assert math.isnan(score(empty, empty, 2, SPACING[:dims])[0])
        assert score(a, empty, 2, SPACING[:dims])[0] == score(empty, a, 2, SPACING[:dims])[0] == math.inf
        assert score(a, a, 2, SPACING[:dims])[0] == 0


def test_mismatched_shapes_and_spacings_are_refused() -> None:
    a = block(2, 4, 12)
    with pytest.raises(ValueError, match=r"\(24, 24\) and \(24, 23\)"):
        dice_per_class(a, a[:, 1:], 2)
    with pytest.raises(ValueError, match="2 positive entries"):
        hd95_mm(a, a, 2, (1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="at least one sample"):
        ged(a[None][:0], a[None], 2)


@RANKS
def test_iou_distance_of_half_shifted_blocks_is_two_thirds_and_averages_over_structures(dims: int) -> None:
    a, b = block(dims, 4, 12)[None], block(dims, 8, 16)[None]
    assert iou_distances(a, b, 2) == pytest.approx(np.array([[2 / 3]]), rel=1e-12)
    assert iou_distances(a, b, 3) == pytest.approx(np.array([[1 / 3]]), rel=1e-12), (
        "a class empty in both is distance 0"
    )
    assert iou_distances(a, np.zeros_like(a), 2) == [[1]]
    assert pairwise_dice(a, b, 3)[:, 0, 0] == pytest.approx([0.5, 1], rel=1e-12)


@RANKS
def test_ged_of_a_set_against_itself_is_zero(dims: int) -> None:
    generator = np.random.default_rng(0)
    samples = generator.integers(0, 3, (5, *(6,) * dims), dtype=np.uint8)
    assert ged(samples, samples, 3) == pytest.approx(0, abs=1e-12)
    assert ged(samples, samples[::-1], 3) == pytest.approx(0, abs=1e-12)


@RANKS
def test_ged_of_two_modes_with_different_frequencies_is_twice_the_squared_difference(dims: int) -> None:
    """Disjoint A and B (d = 1), frequencies p and q of A: 2(p(1-q) + q(1-p)) - 2p(1-p) - 2q(1-q) = 2(p - q)^2."""
    a, b = block(dims, 0, 6), block(dims, 12, 18)
    samples, raters = np.stack([a, a, a, b]), np.stack([a, b])
    assert ged(samples, raters, 2) == pytest.approx(2 * (3 / 4 - 1 / 2) ** 2, rel=1e-12)
    assert ged(np.stack([a]), np.stack([b]), 2) == 2
    assert ged(np.zeros_like(samples), np.zeros_like(raters), 2) == 0


@RANKS
def test_diversity_counts_distinct_pairs_only(dims: int) -> None:
    a, b = block(dims, 0, 6), block(dims, 12, 18)
    samples = np.stack([a, a, b])
    assert diversity(samples, 2) == pytest.approx(2 / 3, rel=1e-12)
    assert diversity(np.stack([a, a]), 2) == 0
    assert math.isnan(diversity(a[None], 2))


def test_overlap_counts_are_the_same_in_many_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(1)
    a, b = generator.integers(0, 3, (3, 7, 11), dtype=np.uint8), generator.integers(0, 3, (2, 7, 11), dtype=np.uint8)
    slow = [[[int(((x == c) & (y == c)).sum()) for y in b] for x in a] for c in (1, 2)]
    assert overlap_counts(a, b, 3)[0].tolist() == slow
    monkeypatch.setattr(overlap, "VOXELS_PER_CHUNK", 10)
    assert overlap_counts(a, b, 3)[0].tolist() == slow


def test_overlap_counts_are_exact_above_two_to_the_24_voxels() -> None:
    """float32 stops counting at 16 777 216; here the two maps share 2**24 + 1 voxels."""
    size = 2**24 + 1
    a = np.ones((1, size), dtype=np.uint8)
    shared, summed = overlap_counts(a, a, 2)
    assert (shared.item(), summed.item()) == (size, 2 * size)


@RANKS
def test_proper_scores_match_their_formulas(dims: int) -> None:
    label = block(dims, 4, 12)
    truth = label.mean()
    p = np.full((1, *label.shape), 0.25, dtype=np.float32)
    assert nll(p, label) == pytest.approx(-truth * math.log(0.25) - (1 - truth) * math.log(0.75), rel=1e-10)
    assert brier(p, label) == pytest.approx(truth * 2 * 0.75**2 + (1 - truth) * 2 * 0.25**2, rel=1e-10)


def test_perfect_and_wrong_certainty_bound_the_proper_scores() -> None:
    label = block(2, 4, 12)
    perfect = (label[None] == np.array([1, 2])[:, None, None]).astype(np.float32)
    assert (nll(perfect, label), brier(perfect, label)) == (0, 0)
    assert expected_calibration_error(perfect, label) == 0
    wrong = np.stack([np.zeros_like(perfect[0]), np.ones_like(perfect[0])])
    assert nll(wrong, label) == pytest.approx(-math.log(1e-6), rel=1e-12)
    assert brier(wrong, label) == pytest.approx(2, rel=1e-12)
    assert expected_calibration_error(wrong, label) == pytest.approx(1, rel=1e-12)


@RANKS
def test_ece_is_the_gap_between_confidence_and_accuracy(dims: int) -> None:
    label = block(dims, 4, 12)
    p = np.full((1, *label.shape), 0.125, dtype=np.float32)
    accuracy = 1 - label.mean()
    assert expected_calibration_error(p, label) == pytest.approx(abs(0.875 - accuracy), rel=1e-10)


def test_ece_does_not_let_bins_cancel() -> None:
    """Half the voxels are over-confident by 1/4 and half under-confident by 1/4: the error is 1/4, not 0."""
    p = np.repeat([0.625, 0.875], 800).astype(np.float32)[None]
    label = np.concatenate([np.arange(800) < 700, np.arange(800) < 500]).astype(np.uint8)
    assert expected_calibration_error(p, label, num_bins=10) == pytest.approx(0.25, rel=1e-12)


def test_calibration_does_not_depend_on_sharding() -> None:
    generator = np.random.default_rng(2)
    p, event = generator.random(1000), generator.random(1000) < 0.3
    whole, left, right = CalibrationBins(10), CalibrationBins(10), CalibrationBins(10)
    whole.add(p, event), left.add(p[:300], event[:300]), right.add(p[300:], event[300:])
    right.merge(left)
    assert right.counts.tolist() == whole.counts.tolist() and right.hits.tolist() == whole.hits.tolist()
    assert right.error == pytest.approx(whole.error, rel=1e-12)
    assert whole.counts.tolist() == np.histogram(p, 10, (0, 1))[0].tolist()


def test_the_ends_of_the_unit_interval_fall_into_the_outer_bins() -> None:
    bins = CalibrationBins(4)
    bins.add(np.array([0.0, 1.0]), np.array([True, False]))
    assert bins.counts.tolist() == [1, 0, 0, 1] and bins.error == 1
    assert math.isnan(CalibrationBins().error)


def test_ece_is_exact_above_two_to_the_24_voxels_a_bin_in_little_memory() -> None:
    """One bin with 2**24 + 2**22 + 7 voxels of p = 3/4 (a dyadic number, so that the oracle is a fraction)."""
    size, correct = 2**24 + 2**22 + 7, 2**24 + 12345
    p = np.full((1, size), 0.75, dtype=np.float32)
    label = np.zeros(size, dtype=np.uint8)
    label[:correct] = 1
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    error = expected_calibration_error(p, label)
    grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert error == pytest.approx(float(abs(Fraction(correct, size) - Fraction(3, 4))), rel=1e-12)
    assert grown_mib < 300, "chunks are what bounds the memory"


@RANKS
def test_matched_iou_is_one_for_the_same_shares_and_counts_what_is_left_over(dims: int) -> None:
    a, b = block(dims, 4, 12), block(dims, 12, 20)
    assert matched_iou(np.stack([a, b]), np.stack([b, a]), 2) == 1
    assert matched_iou(np.stack([a, b]), np.stack([a, a, b, b, b, a]), 2) == 1
    # three of four samples and two of four raters show a: a quarter of the matched pairs must differ
    assert matched_iou(np.stack([a, a, a, b]), np.stack([a, a, b, b]), 2) == pytest.approx(3 / 4)
    assert matched_iou(np.stack([a]), np.stack([block(dims, 8, 16)]), 2) == pytest.approx(1 / 3)


@RANKS
@pytest.mark.parametrize(("count", "raters"), [(4, 2), (3, 2), (1, 3)])
def test_matched_iou_is_the_best_of_all_matchings(dims: int, count: int, raters: int) -> None:
    """By trying them all; class 2 is empty here and there, and two empty masks have IoU 1."""
    generator = np.random.default_rng(count)
    one, other = (generator.integers(0, 3, (n, *(4, 3, 2)[:dims])) for n in (count, raters))
    one[0][one[0] == 2], other[0][other[0] == 2] = 0, 0

    def iou(a: np.ndarray, b: np.ndarray) -> float:
        pairs = [((a == c) & (b == c), (a == c) | (b == c)) for c in (1, 2)]
        return float(np.mean([both.sum() / any_.sum() if any_.any() else 1.0 for both, any_ in pairs]))

    size = math.lcm(count, raters)
    rows, columns = np.arange(size) % count, np.arange(size) % raters
    table = np.array([[iou(one[i], other[j]) for j in columns] for i in rows])
    best = max(np.mean([table[k, p] for k, p in enumerate(order)]) for order in itertools.permutations(range(size)))
    assert matched_iou(one, other, 3) == pytest.approx(best, rel=1e-12)


@RANKS
def test_the_share_error_is_the_gap_between_probability_and_share_of_raters(dims: int) -> None:
    """Half of the raters drew the box: p = 1/2 there is calibrated, p = 0.8 is 0.3 too sure of 0.8."""
    drawn, empty = block(dims, 4, 12), block(dims, 0, 0)
    p = np.stack([drawn * 0.5, np.zeros(drawn.shape)])
    assert share_error(p, [drawn, empty]) == 0
    assert share_error(p * 1.6, [drawn, empty]) == pytest.approx(0.3 / 0.8, rel=1e-12)
    assert share_error(p * 0.4, [drawn, empty]) == pytest.approx(0.3 / 0.5, rel=1e-12)
    assert share_error(p[:1], [drawn]) == pytest.approx(0.5, rel=1e-12)
    assert math.isnan(share_error(p * 0, [empty]))


@RANKS
def test_the_share_error_is_that_of_a_slow_reference_in_any_chunks(dims: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(dims)
    p = generator.dirichlet((1, 1, 1), (9, 8, 7)[:dims])[..., 1:]
    raters = generator.integers(0, 3, (3, *p.shape[:-1]))
    errors = []
    for c in (1, 2):
        cells: dict[int, list[float]] = {}
        mass = 0.0
        for index in np.ndindex(p.shape[:-1]):
            own, share = p[(*index, c - 1)], float(np.mean([rater[index] == c for rater in raters]))
            cells.setdefault(int(own * 15), []).append(own - share)
            mass += max(own, share)
        errors.append(sum(abs(sum(gaps)) for gaps in cells.values()) / mass)
    monkeypatch.setattr("ldseg.metrics.probability.VOXELS_PER_CHUNK", 10)
    assert share_error(np.moveaxis(p, -1, 0), list(raters)) == pytest.approx(np.mean(errors), rel=1e-10)
    with pytest.raises(ValueError, match="shapes must be equal"):
        share_error(np.moveaxis(p, -1, 0), [raters[0][1:]])
