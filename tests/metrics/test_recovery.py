import numpy as np
import pytest

from ldseg.data.phantom.case import draw_parameters, draw_posterior
from ldseg.metrics.recovery import crps, recovery, recovery_lines

STRUCTURES = ("organ", "nodule", "lobe")
DIMS = pytest.mark.parametrize("grid", [(48, 48), (24, 24, 16)])


def _truth(grid, n, seed=0):
    parameters = draw_parameters(grid, (1.0,) * len(grid), np.random.default_rng(3))
    return draw_posterior(parameters, n, np.random.default_rng(seed))


def test_crps_of_two_draws_is_the_distance_minus_half_their_own():
    # E|X - 1| = (1 + 1) / 2, E|X - X'| over the distinct pairs = 2
    assert crps(np.array([0.0, 2.0]), np.array([1.0])) == pytest.approx(1 - 2 / 2)
    assert crps(np.array([3.0]), np.array([1.0])) == 2.0


def test_crps_is_least_for_the_true_spread():
    generator = np.random.default_rng(0)
    values, unit = generator.normal(size=4000), generator.normal(size=400)
    scores = {scale: crps(scale * unit, values) for scale in (0.2, 0.5, 1.0, 2.0, 4.0)}
    assert min(scores, key=scores.get) == 1.0
    assert scores[1.0] == pytest.approx(1 / np.sqrt(np.pi), rel=0.05)  # of a standard normal under itself


@DIMS
def test_fresh_draws_score_as_the_truth_does(grid):
    found = recovery(_truth(grid, 200, seed=1), _truth(grid, 700), STRUCTURES)
    for name, value in found.items():
        if not name.endswith("_truth"):
            assert value == pytest.approx(found[f"{name}_truth"], abs=0.25, rel=0.2, nan_ok=True), name
    assert np.isnan([found["organ_mode_error"], found["nodule_mode_error"]]).all(), "they have one place"
    assert 0.8 < found["organ_size_sd"] < 1.2 and found["organ_size_ks"] < 0.12


@DIMS
def test_each_way_of_missing_the_posterior_shows_in_its_own_number(grid):
    fresh, good = _truth(grid, 400), _truth(grid, 40, seed=1)
    base = recovery(good, fresh, STRUCTURES)
    collapsed = recovery(np.repeat(good[:1], 40, 0), fresh, STRUCTURES)
    assert collapsed["organ_size_sd"] == 0 and collapsed["organ_size_ks"] > 2 * base["organ_size_ks"]
    assert collapsed["organ_size_crps"] > 1.2 * base["organ_size_crps"]
    without = recovery(np.where(good == 2, 1, good), fresh, STRUCTURES)
    share = (fresh[40:] == 2).reshape(360, -1).any(1).mean()
    assert without["nodule_presence_error"] == pytest.approx(share)
    sides = [label for label in good if (label == 3).any()]
    one_sided = recovery(np.repeat(sides[0][None], 40, 0), fresh, STRUCTURES)
    assert one_sided["lobe_mode_error"] > 0.1 > base["lobe_mode_error"]


def test_the_correlation_of_two_structures_is_seen():
    fresh = _truth((48, 48), 900)
    found = recovery(_truth((48, 48), 300, seed=2), fresh, STRUCTURES)
    true = found["organ_nodule_size_correlation_truth"]
    assert true > 0.3 and found["organ_nodule_size_correlation"] == pytest.approx(true, abs=0.15)
    draws = _truth((48, 48), 300, seed=2)
    unrelated = np.where(draws == 2, 1, draws)
    unrelated[(draws == 2)[np.random.default_rng(0).permutation(300)]] = 2  # the nodules of other draws
    broken = recovery(unrelated, fresh, STRUCTURES)
    assert broken["nodule_presence_error"] == found["nodule_presence_error"]
    assert broken["organ_nodule_size_correlation"] < 0.5 * true


def test_too_few_fresh_draws_are_refused():
    with pytest.raises(ValueError, match="more than 5 fresh draws"):
        recovery(_truth((24, 24), 4), _truth((24, 24), 5), STRUCTURES)


def test_the_table_shows_each_number_beside_that_of_fresh_draws():
    found = recovery(_truth((24, 24), 4, seed=1), _truth((24, 24), 60), STRUCTURES)
    text = "\n".join(recovery_lines({k: v for k, v in found.items() if np.isfinite(v)}, STRUCTURES))
    assert f"{found['organ_size_ks']:.3f} / {found['organ_size_ks_truth']:.3f}" in text and "lobe" in text
    assert recovery_lines({"dice": 0.5}, STRUCTURES) == []
