"""DDPM and DDIM with any number of steps: pure functions, the noise is an argument."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ldseg.config import PredictionType, SamplerConfig
from ldseg.diffusion import predict_epsilon, predict_x0, q_posterior_mean_variance

Denoiser = Callable[[Tensor, Tensor], Tensor]


def sampling_timesteps(num_train_steps: int, num_sample_steps: int) -> list[int]:
    """Evenly spaced steps, noisiest first; the first is always T - 1, so one step is a direct estimate."""
    if not 1 <= num_sample_steps <= num_train_steps:
        raise ValueError(f"num_sample_steps must lie in [1, {num_train_steps}], got {num_sample_steps}")
    return [num_train_steps - 1 - round(i * num_train_steps / num_sample_steps) for i in range(num_sample_steps)]


def sample(
    denoiser: Denoiser,
    noise: Iterator[Tensor],
    alphas_cumprod: Tensor,
    prediction_type: PredictionType,
    config: SamplerConfig,
) -> Tensor:
    """Run the reverse process from pure noise to a clean latent.

    DDIM with eta 0 (Song et al. 2021, eq. 12) draws once from `noise`; DDPM (eta 1) once more before each step but
    the last. After the last step the estimate of the clean latent itself is returned.

    Args:
        denoiser: (x_t (B, C, *spatial), t (B,) int64) -> its output, like x_t.
        noise: standard normal tensors (B, C, *spatial); the first is the start.
        alphas_cumprod: (T,) float64.

    Returns:
        Clean latents (B, C, *spatial).
    """
    steps = sampling_timesteps(len(alphas_cumprod), config.num_sample_steps)
    x = next(noise)
    for step, following in zip(steps, [*steps[1:], None], strict=True):
        t = torch.full((len(x),), step, dtype=torch.int64, device=x.device)
        x0 = predict_x0(x, t, denoiser(x, t), alphas_cumprod, prediction_type)
        if following is None:
            return x0
        a_t, a_prev = alphas_cumprod[step], alphas_cumprod[following]
        if config.method == "ddpm":
            mean, variance = q_posterior_mean_variance(x0, x, a_t, a_prev)
            x = mean.to(x.dtype) + float(variance.sqrt()) * next(noise)
        else:
            x = float(a_prev.sqrt()) * x0 + float((1 - a_prev).sqrt()) * predict_epsilon(x, t, x0, alphas_cumprod)
    raise AssertionError("unreachable: there is at least one step")
