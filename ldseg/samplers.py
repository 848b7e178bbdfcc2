"""DDPM, DDIM and DPM-Solver++(2M) with any number of steps: pure functions, the noise is an argument."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor

from ldseg.config import PredictionType, SamplerConfig
from ldseg.diffusion import predict_epsilon, predict_x0, q_posterior_mean_variance, standardise

Denoiser = Callable[[Tensor, Tensor], Tensor]
STANDARDISE: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "sample": standardise,
    "batch": lambda x: (x - x.mean()) / (x.std(correction=0) + 1e-5),
}


def sampling_timesteps(
    num_train_steps: int, num_sample_steps: int, schedule: Literal["even", "quadratic"] = "even"
) -> list[int]:
    """Steps of a schedule, noisiest first; the first is always T - 1, so one step is a direct estimate.

    "even" spaces them evenly; "quadratic" by the square of their number, close together where the noise is largest.
    """
    if not 1 <= num_sample_steps <= num_train_steps:
        raise ValueError(f"num_sample_steps must lie in [1, {num_train_steps}], got {num_sample_steps}")
    power = {"even": 1, "quadratic": 2}[schedule]
    down = [round(num_train_steps * i**power / num_sample_steps**power) for i in range(num_sample_steps)]
    return [num_train_steps - 1 - max(i, steps) for i, steps in enumerate(down)]  # each its own, however many


def sample(
    denoiser: Denoiser,
    noise: Iterator[Tensor],
    alphas_cumprod: Tensor,
    prediction_type: PredictionType,
    config: SamplerConfig,
) -> Tensor:
    """Run the reverse process from pure noise to a clean latent.

    DDIM with eta 0 (Song et al. 2021, eq. 12) and DPM-Solver++(2M) (`second_order_step`) draw once from `noise`; DDPM
    (eta 1) once more before each step but the last. Every draw is multiplied by `config.noise_scale`. After the last
    step the estimate of the clean latent itself is returned.

    Args:
        denoiser: (x_t (B, C, *spatial), t (B,) int64) -> its output, like x_t.
        noise: standard normal tensors (B, C, *spatial); the first is the start.
        alphas_cumprod: (T,) float64.

    Returns:
        Clean latents (B, C, *spatial).
    """
    if config.schedule == "authors":
        raise ValueError("the authors' steps are not whole: sample_authors takes them")
    steps = sampling_timesteps(len(alphas_cumprod), config.num_sample_steps, config.schedule)
    scale = STANDARDISE[config.standardise]
    x = scale(next(noise)) * config.noise_scale
    earlier: tuple[Tensor, Tensor] | None = None
    for step, following in zip(steps, [*steps[1:], None], strict=True):
        t = torch.full((len(x),), step, dtype=torch.int64, device=x.device)
        x0 = predict_x0(x, t, denoiser(x, t), alphas_cumprod, prediction_type)
        if following is None:
            return scale(x0)
        a_t, a_prev = alphas_cumprod[step], alphas_cumprod[following]
        if config.method == "ddpm":
            mean, variance = q_posterior_mean_variance(x0, x, a_t, a_prev)
            x = mean.to(x.dtype) + float(variance.sqrt()) * config.noise_scale * next(noise)
        elif config.method == "dpm++2m":
            x = second_order_step(x, x0, a_t, a_prev, earlier)
            earlier = x0, a_t
        else:
            x = float(a_prev.sqrt()) * x0 + float((1 - a_prev).sqrt()) * predict_epsilon(x, t, x0, alphas_cumprod)
        x = scale(x)
    raise AssertionError("unreachable: there is at least one step")


def second_order_step(
    x_t: Tensor, x0: Tensor, a_t: Tensor, a_next: Tensor, earlier: tuple[Tensor, Tensor] | None
) -> Tensor:
    """One step of DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2); the first of them is DDIM's.

    Args:
        x_t, x0: the latents at this step and the estimate of the clean ones, both (B, C, *spatial).
        a_t, a_next: alphas_cumprod at this step and at the next, scalars; a_next > a_t.
        earlier: the estimate of the step before and alphas_cumprod there; None at the first step.

    Returns:
        The latents at the next step, like x_t.
    """
    half_log_snr = [float(torch.logit(a)) / 2 for a in (a_t, a_next)]
    h = half_log_snr[1] - half_log_snr[0]
    if earlier is not None:
        x0_before, a_before = earlier
        x0 = x0 + (x0 - x0_before) * (h / (2 * (half_log_snr[0] - float(torch.logit(a_before)) / 2)))
    return float(((1 - a_next) / (1 - a_t)).sqrt()) * x_t - float(a_next.sqrt()) * math.expm1(-h) * x0


def authors_schedule(num_train_steps: int, num_sample_steps: int) -> tuple[Tensor, Tensor]:
    """Times (evenly spaced from 0 to T - 1, no integers) and alphas_cumprod at them, both (steps,) float64, rising.

    The cosine of Nichol & Dhariwal 2021, eq. 17, over its value at 0: alphas_cumprod is 1 at time 0 (the authors'
    misc.noiseScheduler, which takes the cosine whatever is configured).
    """
    times = torch.linspace(0, num_train_steps - 1, num_sample_steps, dtype=torch.float64)
    s = 0.008
    f = torch.cos((times / num_train_steps + s) / (1 + s) * math.pi / 2) ** 2
    return times, f / math.cos(s / (1 + s) * math.pi / 2) ** 2


def sample_authors(denoiser: Denoiser, noise: Iterator[Tensor], num_train_steps: int, config: SamplerConfig) -> Tensor:
    """The authors' sampling loop, for a denoiser that predicts the noise.

    Their step to time 0 returns the estimate of the clean latent; the last of the steps, at time 0 itself, changes
    nothing, so `num_sample_steps` steps are one useful call fewer, and one step decodes noise.

    Args:
        denoiser: (z_t (B, C, *spatial), t (B,) float32) -> the noise, like z_t.
        noise: as in `sample`.

    Returns:
        Clean latents (B, C, *spatial).
    """
    times, alphas_cumprod = authors_schedule(num_train_steps, config.num_sample_steps)
    scale = STANDARDISE[config.standardise]
    x = scale(next(noise))
    for step in reversed(range(1, len(times))):
        t = torch.full((len(x),), float(times[step]), device=x.device)
        epsilon, a_t, a_prev = denoiser(x, t), float(alphas_cumprod[step]), float(alphas_cumprod[step - 1])
        x0 = (x - math.sqrt(1 - a_t) * epsilon) / math.sqrt(a_t)
        variance = (1 - a_prev) / (1 - a_t) * (1 - a_t / a_prev) if config.method == "ddpm" else 0.0
        x = math.sqrt(a_prev) * x0 + math.sqrt(max(1 - a_prev - variance, 0.0)) * epsilon
        if config.method == "ddpm":
            x = x + math.sqrt(variance) * next(noise)
        x = scale(x)
    return scale(x)
