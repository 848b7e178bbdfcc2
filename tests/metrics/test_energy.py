"""Energy distances against closed forms, slow references, and draws of the truth."""

import numpy as np
import pytest

from ldseg.metrics.energy import reader_figures, set_distances
from ldseg.metrics.overlap import ged


def _d(a: np.ndarray, b: np.ndarray, num_classes: int) -> float:
    """1 - IoU in the mean over the classes, by sets."""
    values = []
    for c in range(1, num_classes):
        one, other = (set(map(tuple, np.argwhere(x == c))) for x in (a, b))
        values.append(1 - len(one & other) / len(one | other) if one | other else 0.0)
    return float(np.mean(values))


def _sets(dims, samples=5, readers=3, classes=3):
    rng = np.random.default_rng(dims)
    shape = (7, 6, 5)[:dims]
    return rng.integers(0, classes, (samples, *shape)), rng.integers(0, classes, (readers, *shape))


@pytest.mark.parametrize("dims", [2, 3])
def test_the_distances_are_those_of_a_slow_reference(dims):
    samples, readers = _sets(dims)
    found = set_distances(samples, readers, 3)
    assert found.cross == pytest.approx(np.mean([_d(s, y, 3) for s in samples for y in readers]), rel=1e-12)
    for value, group in ((found.within, samples), (found.between, readers)):
        pairs = [_d(a, b, 3) for i, a in enumerate(group) for j, b in enumerate(group) if i != j]
        assert value == pytest.approx(np.mean(pairs), rel=1e-12)
    assert found.energy_score == pytest.approx(found.cross - found.within / 2, rel=1e-12)
    assert found.ged == pytest.approx(ged(samples, readers, 3), rel=1e-12)


def test_shifted_bars_have_the_energy_score_of_the_closed_form():
    # bars of length 10 along a line: shifted by k their IoU is (10 - k) / (10 + k)
    def bar(start):
        line = np.zeros((1, 40), dtype=int)
        line[0, start : start + 10] = 1
        return line

    found = set_distances(np.stack([bar(10), bar(12)]), bar(11)[None], 2)
    near, far = 1 - 9 / 11, 1 - 8 / 12
    assert found.cross == pytest.approx(near) and found.within == pytest.approx(far)
    assert found.energy_score == pytest.approx(near - far / 2)
    assert np.isnan(found.between) and np.isnan(found.ged_unbiased) and np.isnan(found.ged_floor)
    assert set_distances(bar(10)[None], bar(11)[None], 2).energy_score == pytest.approx(near)


def test_draws_of_the_readers_own_distribution_reach_the_floor_and_nothing_below():
    """Bars at a random place: fresh draws have GED (1/n + 1/m) E d(Y, Y') with self-pairs, and 0 without."""
    rng = np.random.default_rng(0)

    def draws(count, cases):
        lines = np.zeros((cases, count, 60), dtype=int)
        for line, start in zip(lines.reshape(-1, 60), rng.integers(0, 25, cases * count), strict=True):
            line[start : start + 20] = 1
        return lines

    found = [set_distances(s, y, 2) for s, y in zip(draws(8, 400), draws(4, 400), strict=True)]
    error = np.std([f.ged_unbiased for f in found]) / 20  # standard error over 400 cases
    assert abs(np.mean([f.ged_unbiased for f in found])) < 4 * error < 0.05
    assert np.mean([f.ged for f in found]) == pytest.approx(np.mean([f.ged_floor for f in found]), abs=4 * error)


def test_the_energy_score_is_proper_where_sharper_and_wider_draws_are_worse():
    """Truth at one of 25 places: draws of all of them score better than narrower ones and than wider ones."""
    rng = np.random.default_rng(1)

    def score(width, cases=2000, count=6):
        found = []
        for _ in range(cases):
            starts = np.append(rng.integers(-width, width + 1, count), rng.integers(-12, 13)) + 40
            lines = (np.arange(100) >= starts[:, None]) & (np.arange(100) < starts[:, None] + 20)
            found.append(set_distances(lines[:-1].astype(int), lines[-1:].astype(int), 2).energy_score)
        return np.mean(found)

    narrow, true, wide = score(3), score(12), score(30)
    assert true < narrow - 0.02 and true < wide - 0.02


@pytest.mark.parametrize("empty", ["samples", "readers"])
def test_a_set_without_masks_is_refused(empty):
    sets = {"samples": np.zeros((2, 3, 3), int), "readers": np.zeros((2, 3, 3), int)}
    sets[empty] = sets[empty][:0]
    with pytest.raises(ValueError, match="at least one sample and one reader"):
        set_distances(sets["samples"], sets["readers"], 2)


def test_simple_answers_score_what_the_definition_says():
    _, readers = _sets(2, readers=4, classes=2)
    found = reader_figures(readers, 2)
    between = np.mean([_d(a, b, 2) for a in readers for b in readers])
    empty = np.mean([_d(np.zeros_like(readers[0]), y, 2) for y in readers])
    assert found["ged_empty"] == pytest.approx(2 * empty - between, rel=1e-12)
    majority = (readers.mean(0) > 0.5).astype(int)
    assert found["ged_majority"] == pytest.approx(ged(majority[None], readers, 2), rel=1e-12)
    others = [
        np.mean([[_d(a, b, 2) for a in np.delete(readers, i, 0)] for b in np.delete(readers, i, 0)]) for i in range(4)
    ]
    own = [np.mean([_d(readers[i], y, 2) for y in np.delete(readers, i, 0)]) for i in range(4)]
    assert found["ged_reader"] == pytest.approx(
        np.mean([2 * a - b for a, b in zip(own, others, strict=True)]), rel=1e-12
    )
