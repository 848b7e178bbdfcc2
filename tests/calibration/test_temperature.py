"""Temperature scaling of models whose overconfidence is known by construction."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ldseg.calibration.temperature import BOUNDS, fit_temperature, scale_probability

RANKS = pytest.mark.parametrize("shape", [(64, 60), (20, 16, 12)])


def case(shape: tuple[int, ...], times: float, seed: int, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn from softmax(logits), and the float32 probability of a model that takes `times` these logits."""
    generator = torch.Generator().manual_seed(seed)
    logits = 1.5 * torch.randn((classes, *shape), generator=generator, dtype=torch.float64)
    true = logits.softmax(0).flatten(1)
    label = torch.multinomial(true.T, 1, generator=generator)[:, 0].reshape(shape)
    return (times * logits).softmax(0).float().numpy(), label.numpy()


@RANKS
@pytest.mark.parametrize("times", [0.5, 1.0, 2.0])
def test_a_model_with_logits_times_a_factor_gets_that_factor(shape: tuple[int, ...], times: float) -> None:
    """Within 3 %: 20 cases of 3840 voxels leave a standard error below 1 %."""
    fit = fit_temperature((case(shape, times, seed) for seed in range(20)), voxels_per_case=10_000)
    assert fit.temperature == pytest.approx(times, rel=0.03)
    assert (fit.cases, fit.voxels) == (20, 20 * 3840)
    assert fit.nll_after <= fit.nll_before
    if times == 2:
        true = fit_temperature(case(shape, 1.0, seed) for seed in range(20))
        assert fit.nll_after == pytest.approx(true.nll_after, rel=1e-3) and fit.nll_before > 1.1 * fit.nll_after


@RANKS
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0, 15.0])
def test_no_label_changes(shape: tuple[int, ...], temperature: float) -> None:
    probability = torch.from_numpy(case(shape, 2.0, 0, classes=4)[0])
    probability[:, 0] = torch.tensor([0.0, 1.0, 0.0, 0.0]).view(-1, *[1] * (len(shape) - 1))
    scaled = scale_probability(probability, temperature)
    assert torch.equal(scaled.argmax(0), probability.argmax(0)) and scaled.dtype == torch.float32
    assert torch.allclose(scaled.sum(0), torch.ones(shape), rtol=1e-6) and bool(scaled.isfinite().all())


def test_scaling_divides_the_log_odds() -> None:
    probability = case((50, 40), 1.0, 1)[0].astype(np.float64)
    scaled = scale_probability(torch.from_numpy(probability), 2.5).numpy()
    odds, expected = np.log(scaled[0] / scaled[2]), np.log(probability[0] / probability[2]) / 2.5
    assert odds == pytest.approx(expected, rel=1e-10, abs=1e-12)
    one = torch.from_numpy(probability)
    assert torch.equal(scale_probability(one, 1.0), one)


def test_the_fit_is_the_same_to_the_last_bit_and_draws_by_its_seed() -> None:
    cases = [case((40, 40), 2.0, seed) for seed in range(3)]
    first = fit_temperature(cases, voxels_per_case=500, seed=7)
    assert first == fit_temperature(iter(cases), voxels_per_case=500, seed=7) and first.voxels == 1500
    assert first.temperature != fit_temperature(cases, voxels_per_case=500, seed=8).temperature
    everything = fit_temperature(cases, voxels_per_case=1600)
    assert everything.temperature == pytest.approx(fit_temperature(cases, voxels_per_case=9999).temperature, rel=1e-12)


def test_the_temperature_found_is_the_best_of_a_fine_grid() -> None:
    probability, label = case((30, 30), 1.7, 3)
    fit = fit_temperature([(probability, label)])
    tried = {}
    for temperature in np.linspace(0.5, 4, 141):
        scaled = scale_probability(torch.from_numpy(probability).double(), float(temperature)).numpy()
        tried[temperature] = -np.log(np.take_along_axis(scaled, label[None], 0)).mean()
    assert abs(min(tried, key=tried.__getitem__) - fit.temperature) <= 0.025 and fit.nll_after <= min(tried.values())


def test_a_model_that_is_never_wrong_goes_to_the_end_of_the_bounds() -> None:
    probability, label = case((20, 20), 1.0, 0)
    fit = fit_temperature([(probability, probability.argmax(0))])
    assert fit.temperature == pytest.approx(BOUNDS[0], rel=0.01) and fit.nll_after < 0.02


def test_what_cannot_be_scaled_or_fitted_is_refused() -> None:
    probability, label = case((4, 4), 1.0, 0)
    for temperature in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="above 0"):
            scale_probability(torch.from_numpy(probability), temperature)
    with pytest.raises(ValueError, match="no case"):
        fit_temperature([])
    with pytest.raises(ValueError, match="must fit"):
        fit_temperature([(probability, label[:2])])
    for bad in ((probability, label + 3), (probability * np.nan, label), (probability * 3, label)):
        with pytest.raises(ValueError, match="must lie in"):
            fit_temperature([bad])
    with pytest.raises(ValueError, match="voxels_per_case"):
        fit_temperature([(probability, label)], voxels_per_case=0)
