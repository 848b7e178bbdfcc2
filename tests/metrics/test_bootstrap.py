import numpy as np
import pytest

from ldseg.metrics.bootstrap import Resampling, compare, interval, mean, worst_decile


def test_the_interval_of_a_paired_mean_has_the_width_of_the_normal_one_and_holds_the_truth():
    generator = np.random.default_rng(0)
    case = generator.normal(0.8, 0.1, 400)  # what both models share does not widen the interval
    own, other = case + generator.normal(0.01, 0.02, 400), case
    found = compare(own, other, resampling=Resampling(resamples=4000))
    error = (own - other).std() / np.sqrt(400)
    assert found.difference == pytest.approx((own - other).mean(), rel=1e-10)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.05)  # 4000 draws: 2 % of it
    assert found.low < 0.01 < found.high


def test_ninety_percent_intervals_hold_the_truth_nine_times_in_ten():
    generator = np.random.default_rng(1)
    held = 0
    for seed in range(300):
        own, other = generator.normal(1, 1, 50), np.zeros(50)
        found = compare(own, other, resampling=Resampling(resamples=400, seed=seed, confidence=0.9))
        held += found.low <= 1 <= found.high
    assert 0.84 < held / 300 < 0.94  # binomial: 0.9 +- 0.035, and the percentile interval is a little narrow


def test_the_same_seed_gives_the_same_interval_in_any_number_of_chunks(monkeypatch):
    own, other = np.random.default_rng(2).random((2, 30))
    first = compare(own, other, resampling=Resampling(resamples=500, seed=3))
    assert compare(own, other, resampling=Resampling(resamples=500, seed=3)) == first
    assert compare(own, other, resampling=Resampling(resamples=500, seed=4)) != first
    monkeypatch.setattr("ldseg.metrics.bootstrap.CHUNK_VALUES", 90)
    assert compare(own, other, resampling=Resampling(resamples=500, seed=3)) == first


@pytest.mark.parametrize(("n", "expected"), [(1, 0.0), (10, 0.0), (11, 0.5), (30, 1.0)])
def test_the_worst_decile_is_the_mean_of_the_lowest_tenth_rounded_up(n, expected):
    values = np.random.default_rng(0).permutation(n).astype(float)
    assert worst_decile(values) == expected
    assert worst_decile(np.stack([values, values + 1])).tolist() == [expected, expected + 1]


def test_a_model_that_is_only_worse_on_its_worst_cases_shows_in_the_worst_decile_and_hardly_in_the_mean():
    other = np.full(100, 0.9)
    own = other.copy()
    own[::20] = 0.5
    assert compare(own, other).difference == pytest.approx(-0.02)
    assert compare(own, other, worst_decile).difference == pytest.approx(-0.2)


def test_a_ratio_compares_seconds_and_a_champion_that_took_none_is_infinitely_faster():
    found = compare(np.array([2.0, 4.0]), np.array([1.0, 2.0]), ratio=True)
    assert (found.own, found.other, found.difference, found.low, found.high) == (3, 1.5, 2, 2, 2)
    assert compare(np.ones(2), np.zeros(2), mean, ratio=True).low == np.inf


@pytest.mark.parametrize("own", [np.array([]), np.array([1.0]), np.array([np.nan, 1.0])])
def test_values_that_are_not_paired_or_not_finite_are_refused(own):
    with pytest.raises(ValueError, match="equally long rows of finite numbers"):
        compare(own, np.zeros(2))


def test_the_interval_of_a_mean_is_as_wide_as_the_normal_one():
    values = np.random.default_rng(0).normal(0.8, 0.1, 400)
    low, high = interval(values, resamples=4000)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.05)  # 4000 draws: 2 % of it
    assert low < values.mean() < high
    assert interval(values, [f"case{n:03d}" for n in range(400)], resamples=4000) == (low, high)


def test_cases_of_one_patient_are_drawn_together():
    generator = np.random.default_rng(1)
    patient = generator.normal(0, 1, 100)
    values, groups = np.repeat(patient, 4), np.repeat(np.arange(100).astype(str), 4).tolist()
    low, high = interval(values, groups, resamples=4000)
    assert high - low == pytest.approx(2 * 1.96 * patient.std() / 10, rel=0.05), "as if each patient had one case"
    alone = interval(values, resamples=4000)
    assert alone[1] - alone[0] == pytest.approx((high - low) / 2, rel=0.08)


def test_the_interval_of_two_patients_is_what_all_draws_of_them_give():
    """A mean of all cases that are drawn, and not of the patients' means: 1; 3, 3, 3; both: 10 / 4."""
    low, high = interval(np.array([1.0, 3.0, 3.0, 3.0]), ["a", "b", "b", "b"], confidence=0.4)
    assert (low, high) == (2.5, 2.5)
    assert interval(np.array([1.0, 3.0, 3.0, 3.0]), ["a", "b", "b", "b"]) == (1, 3)


def test_one_group_says_nothing_of_others_and_a_gap_is_refused():
    assert np.isnan(interval(np.array([1.0]))).all() and np.isnan(interval(np.ones(3), ["a"] * 3)).all()
    with pytest.raises(ValueError, match="a row of finite numbers and a group for each"):
        interval(np.array([1.0, np.nan]))
    with pytest.raises(ValueError, match="a group for each"):
        interval(np.ones(2), ["a"])


@pytest.mark.parametrize(("statistic", "ratio"), [(mean, False), (mean, True), (worst_decile, False)])
def test_two_equal_cases_of_each_patient_compare_as_half_as_many_cases(statistic, ratio):
    """Also the worst tenth: 40 cases have 4, which are the 2 of 20 cases twice."""
    own, other = np.random.default_rng(3).random((2, 20)) + 1
    half, names = compare(own, other, statistic, ratio=ratio), [f"p{n:02d}" for n in range(20)]
    found = compare(
        np.repeat(own, 2), np.repeat(other, 2), statistic, ratio=ratio, resampling=Resampling(groups=sorted(names * 2))
    )
    for name in ("own", "other", "difference", "low", "high"):
        assert getattr(found, name) == pytest.approx(getattr(half, name), rel=1e-10), name
    assert found.cases == 40
    assert compare(own, other, statistic, ratio=ratio, resampling=Resampling(groups=names[::-1])) == half, (
        "one case a patient"
    )


def test_one_patient_says_nothing_of_others_in_a_comparison_and_groups_must_fit():
    own = np.array([0.5, 0.75])
    found = compare(own, np.zeros(2), resampling=Resampling(groups=["p", "p"]))
    assert found.difference == 0.625 and np.isnan([found.low, found.high]).all()
    with pytest.raises(ValueError, match="a group for each of 2 cases is needed, got 1"):
        compare(own, np.zeros(2), resampling=Resampling(groups=["p"]))
