import math

import pytest
import torch

from ldseg.config import DiffusionConfig, SamplerConfig
from ldseg.diffusion import (
    draw_steps,
    make_alphas_cumprod,
    make_input_scale,
    predict_epsilon,
    predict_x0,
    prediction_target,
    q_posterior_mean_variance,
    q_sample,
    standardise,
)
from ldseg.samplers import sample, sampling_timesteps, second_order_step

SCHEDULES = ("linear", "quadratic", "cosine")
KINDS = ("epsilon", "x0", "v")


def _alphas(schedule="cosine", n=1000):
    return make_alphas_cumprod(DiffusionConfig(schedule=schedule, num_train_steps=n))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_alphas_cumprod_falls_in_double_precision(schedule):
    config = DiffusionConfig(schedule=schedule)
    alphas = make_alphas_cumprod(config)
    assert alphas.dtype == torch.float64
    assert (alphas.diff() < 0).all() and 0 < alphas[-1] < alphas[0] < 1


def test_the_cosine_schedule_is_the_papers_closed_form():
    alphas = _alphas()
    f = [math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in (0, 1, 500)]
    assert float(alphas[0]) == pytest.approx(f[1] / f[0], rel=1e-10)
    assert float(alphas[499]) == pytest.approx(f[2] / f[0], rel=1e-10)


def test_a_noise_shift_divides_the_signal_to_noise_ratio_by_its_square():
    plain, shifted = (make_alphas_cumprod(DiffusionConfig(noise_shift=s)) for s in (1.0, 3.0))
    torch.testing.assert_close(shifted / (1 - shifted), plain / (1 - plain) / 9, rtol=1e-9, atol=0)


def test_the_linear_input_scale_gives_the_best_linear_estimate_of_white_latents():
    config = DiffusionConfig(noise_shift=2.0)
    alphas, scale, t = make_alphas_cumprod(config), make_input_scale(config), 400
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(200_000, 1, generator=generator, dtype=torch.float64) for _ in range(2))
    x_t = q_sample(x0, torch.full((200_000,), t), noise, alphas)
    slope = float((x0 * x_t).mean() / x_t.square().mean())
    assert slope == pytest.approx(float(scale[t]), abs=0.01)  # 3 standard errors: 0.007


def test_the_redundant_input_scale_is_that_of_a_latent_with_the_variance_noise_shift_squared():
    config = DiffusionConfig(noise_shift=3.0, input_scale="redundant")
    a, scale = make_alphas_cumprod(config), make_input_scale(config)
    torch.testing.assert_close(scale**2, 9 * a / (9 * a + 1 - a), rtol=1e-9, atol=0)
    assert (make_input_scale(DiffusionConfig(input_scale="none")) == 1).all()


@pytest.mark.parametrize("grid", [(6, 8), (4, 6, 8)])
@pytest.mark.parametrize("kind", KINDS)
def test_every_parameterisation_gives_back_the_clean_latent_and_its_noise(kind, grid):
    alphas = _alphas()
    x0, noise = torch.randn(5, 3, *grid, dtype=torch.float64), torch.randn(5, 3, *grid, dtype=torch.float64)
    t = torch.tensor([0, 10, 250, 700, 900])
    x_t = q_sample(x0, t, noise, alphas)
    target = prediction_target(x0, t, noise, alphas, kind)
    torch.testing.assert_close(predict_x0(x_t, t, target, alphas, kind), x0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(predict_epsilon(x_t, t, x0, alphas), noise, rtol=1e-8, atol=1e-8)


def test_a_wrong_number_of_timesteps_is_refused():
    with pytest.raises(ValueError, match=r"t must have shape \(4,\), got \(1,\)"):
        q_sample(torch.zeros(4, 1, 2, 2), torch.zeros(1, dtype=torch.int64), torch.zeros(4, 1, 2, 2), _alphas())


def test_the_posterior_of_neighbouring_steps_is_ho_equations_6_and_7():
    config = DiffusionConfig(schedule="linear")
    alphas, t = make_alphas_cumprod(config), 400
    betas = 1 - alphas / torch.cat([torch.ones(1, dtype=torch.float64), alphas[:-1]])
    x0, x_t = torch.randn(7, dtype=torch.float64), torch.randn(7, dtype=torch.float64)
    mean, variance = q_posterior_mean_variance(x0, x_t, alphas[t], alphas[t - 1])
    expected = (
        alphas[t - 1].sqrt() * betas[t] / (1 - alphas[t]) * x0
        + (1 - betas[t]).sqrt() * (1 - alphas[t - 1]) / (1 - alphas[t]) * x_t
    )
    torch.testing.assert_close(mean, expected, rtol=1e-10, atol=1e-12)
    assert float(variance) == pytest.approx(float((1 - alphas[t - 1]) / (1 - alphas[t]) * betas[t]), rel=1e-10)


def test_standardise_treats_each_sample_alone():
    x = torch.randn(3, 2, 5, 4) * torch.tensor([1.0, 10.0, 0.1]).view(3, 1, 1, 1) + 4
    y = standardise(x)
    torch.testing.assert_close(y.flatten(1).mean(1), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.flatten(1).std(1, correction=0), torch.ones(3), atol=2e-3, rtol=0)
    torch.testing.assert_close(standardise(x[1:2])[0], y[1], rtol=0, atol=0)


@pytest.mark.parametrize("schedule", ["even", "quadratic"])
@pytest.mark.parametrize("n", [1, 2, 3, 7, 50, 999, 1000])
def test_sampling_timesteps_fall_from_the_noisiest(n, schedule):
    steps = sampling_timesteps(1000, n, schedule)
    assert len(steps) == n and steps[0] == 999 and min(steps) >= 0
    assert all(a > b for a, b in zip(steps, steps[1:], strict=False))


def test_quadratic_steps_lie_closer_together_where_the_noise_is_largest():
    assert sampling_timesteps(1000, 4, "even") == [999, 749, 499, 249]
    assert sampling_timesteps(1000, 4, "quadratic") == [999, 937, 749, 437]


def test_zero_steps_are_refused():
    with pytest.raises(ValueError, match="num_sample_steps"):
        sampling_timesteps(1000, 0)


def _gaussian_denoiser(alphas, mean, variance, kind):
    """The ideal denoiser of data N(mean, variance): E[x0 | x_t] is linear in x_t."""

    def denoise(x, t):
        a = alphas[t].view(-1, *[1] * (x.ndim - 1))
        x0 = mean + a.sqrt() * variance / (a * variance + 1 - a) * (x - a.sqrt() * mean)
        noise = (x - a.sqrt() * x0) / (1 - a).sqrt()
        return prediction_target(x0, t, noise, alphas, kind)

    return denoise


def _noise(shape, seed):
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("method", ["ddim", "ddpm", "dpm++2m"])
@pytest.mark.parametrize("kind", ["x0", "v"])
def test_ideal_denoising_of_gaussian_data_gives_its_mean_and_variance(method, kind):
    alphas = _alphas()
    denoiser = _gaussian_denoiser(alphas, 0.7, 0.25, kind)
    x = sample(denoiser, _noise((20000, 1, 1, 1), 0), alphas, kind, SamplerConfig(method=method, num_sample_steps=250))
    # 20,000 draws: three standard errors of the mean are 0.011, of the variance 0.0075; the rest is the step size
    assert float(x.mean()) == pytest.approx(0.7, abs=0.012)
    assert float(x.var()) == pytest.approx(0.25, abs=0.015)


@pytest.mark.parametrize("schedule", ["even", "quadratic"])
def test_ddim_error_falls_with_the_number_of_steps(schedule):
    alphas = _alphas()
    denoiser = _gaussian_denoiser(alphas, 0.0, 0.25, "x0")
    errors = []
    for steps in (10, 20, 40, 80):
        config = SamplerConfig(num_sample_steps=steps, schedule=schedule)
        x = sample(denoiser, _noise((64, 1, 1, 1), 3), alphas, "x0", config)
        start = next(_noise((64, 1, 1, 1), 3))
        errors.append(float((x - 0.5 * start).abs().mean()))  # the flow of this ODE only rescales
    assert all(b < 0.7 * a for a, b in zip(errors, errors[1:], strict=False))


def _spread(method, schedule, steps):
    """The share of the deviation of standard normal data that survives the sampling with an ideal denoiser."""
    alphas = _alphas()
    config = SamplerConfig(method=method, num_sample_steps=steps, schedule=schedule)
    x = sample(_gaussian_denoiser(alphas, 0.0, 1.0, "x0"), _noise((4, 1, 1, 1), 3), alphas, "x0", config)
    return float((x / next(_noise((4, 1, 1, 1), 3))).mean())


@pytest.mark.parametrize("schedule", ["even", "quadratic"])
@pytest.mark.parametrize("steps", [10, 20])
def test_the_second_order_sampler_keeps_the_spread_that_ddim_loses(schedule, steps):
    ddim, second = (_spread(method, schedule, steps) for method in ("ddim", "dpm++2m"))
    assert ddim < second <= 1.0001 and 1 - second < (1 - ddim) / 3


def test_ten_even_steps_keep_what_the_documents_say():
    assert [round(_spread(method, "even", 10), 2) for method in ("ddim", "dpm++2m")] == [0.88, 0.98]


def test_a_step_of_the_second_order_sampler_falls_by_four_with_half_the_step():
    alphas = _alphas("cosine").double()
    denoiser = _gaussian_denoiser(alphas, 0.0, 0.25, "x0")
    start = next(_noise((64, 1), 3))

    def flow(steps):  # between two levels of noise, both far from the ends
        x, earlier = (0.25 * alphas[steps[0]] + 1 - alphas[steps[0]]).sqrt() * start, None
        for now, following in zip(steps, steps[1:], strict=False):
            t = torch.full((64,), now)
            x0 = predict_x0(x, t, denoiser(x, t), alphas, "x0")
            x = second_order_step(x, x0, alphas[now], alphas[following], earlier)
            earlier = x0, alphas[now]
        exact = (0.25 * alphas[steps[-1]] + 1 - alphas[steps[-1]]).sqrt() * start
        return float((x - exact).abs().mean())

    errors = [flow(list(range(800, 199, -600 // n))) for n in (12, 24, 48, 96)]
    assert all(3 < a / b < 5 for a, b in zip(errors, errors[1:], strict=False)), errors


def test_the_first_step_of_the_second_order_sampler_is_ddims():
    x_t, x0 = torch.randn(3, 2, 4, 4, dtype=torch.float64), torch.randn(3, 2, 4, 4, dtype=torch.float64)
    a_t, a_next = torch.tensor(0.2, dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64)
    epsilon = (x_t - a_t.sqrt() * x0) / (1 - a_t).sqrt()
    ddim = a_next.sqrt() * x0 + (1 - a_next).sqrt() * epsilon
    torch.testing.assert_close(second_order_step(x_t, x0, a_t, a_next, None), ddim, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("method", ["ddim", "ddpm", "dpm++2m"])
def test_the_noise_scale_scales_what_a_linear_denoiser_makes_of_noise(method):
    alphas = _alphas()
    denoiser = _gaussian_denoiser(alphas, 0.0, 0.25, "x0")
    plain, wide = (
        sample(denoiser, _noise((8, 1, 2, 2), 5), alphas, "x0", SamplerConfig(method=method, noise_scale=scale))
        for scale in (1.0, 1.5)
    )
    torch.testing.assert_close(wide, 1.5 * plain, rtol=1e-9, atol=1e-12)


def test_one_step_is_the_direct_estimate():
    alphas = _alphas()
    calls = []

    def denoiser(x, t):
        calls.append(t.tolist())
        return torch.full_like(x, 0.3)

    x = sample(denoiser, _noise((2, 1, 4, 4), 0), alphas, "x0", SamplerConfig(num_sample_steps=1))
    assert calls == [[999, 999]] and torch.equal(x, torch.full_like(x, 0.3))


def test_a_share_of_the_items_trains_at_the_noisiest_step_and_the_rest_evenly():
    steps = draw_steps(20_000, 1000, 0.25, torch.Generator().manual_seed(0))
    noisiest = float((steps == 999).double().mean())
    assert noisiest == pytest.approx(0.25 + 0.75 / 1000, abs=0.01)  # 3 standard deviations
    rest = steps[steps < 999].double()
    assert float(rest.mean()) == pytest.approx(499, abs=8) and float(rest.std()) == pytest.approx(999 / 12**0.5, abs=5)
    even = draw_steps(100, 1000, 0.0, torch.Generator().manual_seed(1))
    assert torch.equal(even, torch.randint(0, 1000, (100,), generator=torch.Generator().manual_seed(1)))
