"""The forward process and its parameterisations: pure functions, schedules in float64."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from ldseg.config import DiffusionConfig, PredictionType


def make_alphas_cumprod(config: DiffusionConfig) -> Tensor:
    """Share of signal variance left after each step, (T,) float64, decreasing, in (0, 1).

    Linear: Ho et al. 2020, section 4. Quadratic: linear in the square root. Cosine: Nichol & Dhariwal 2021, eq. 17,
    with s = 0.008 and betas clipped at 0.999. `noise_shift` then divides the signal-to-noise ratio of every step by
    its square (Hoogeboom et al. 2023, section 3.1).
    """
    alphas_cumprod = torch.cumprod(1 - _base_betas(config), dim=0)
    return alphas_cumprod / (alphas_cumprod + config.noise_shift**2 * (1 - alphas_cumprod))


def make_input_scale(config: DiffusionConfig) -> Tensor:
    """What z_t is multiplied by for the denoiser, (T,) float64 in (0, 1]; see `DiffusionConfig`."""
    if config.input_scale == "none":
        return torch.ones(config.num_train_steps, dtype=torch.float64)
    shift = config.noise_shift if config.input_scale == "linear" else 1.0
    return make_alphas_cumprod(dataclasses.replace(config, noise_shift=shift)).sqrt()


def _base_betas(config: DiffusionConfig) -> Tensor:
    n = config.num_train_steps
    if config.schedule == "linear":
        return torch.linspace(config.beta_start, config.beta_end, n, dtype=torch.float64)
    if config.schedule == "quadratic":
        return torch.linspace(config.beta_start**0.5, config.beta_end**0.5, n, dtype=torch.float64) ** 2
    s = 0.008
    x = torch.arange(n + 1, dtype=torch.float64) / n
    f = torch.cos((x + s) / (1 + s) * math.pi / 2) ** 2
    return (1 - f[1:] / f[:-1]).clamp(max=0.999)


def _lookup(alphas_cumprod: Tensor, t: Tensor, like: Tensor) -> Tensor:
    if t.shape != like.shape[:1]:
        raise ValueError(f"t must have shape ({len(like)},), got {tuple(t.shape)}")
    return alphas_cumprod.to(like.device)[t].to(like.dtype).view(-1, *[1] * (like.ndim - 1))


def draw_steps(count: int, num_train_steps: int, noisiest_share: float, generator: torch.Generator) -> Tensor:
    """Steps to train at, (count,) int64: drawn evenly, or the last one with probability `noisiest_share`."""
    steps = torch.randint(0, num_train_steps, (count,), generator=generator)
    if not noisiest_share:
        return steps
    noisiest = torch.rand(count, generator=generator) < noisiest_share
    return torch.where(noisiest, num_train_steps - 1, steps)


def q_sample(x0: Tensor, t: Tensor, noise: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """Diffuse clean latents to step t (Ho et al. 2020, eq. 4).

    Args:
        x0: clean latents (B, C, *spatial).
        t: step indices (B,), int64, 0 = least noisy.
        noise: standard normal, like x0.
        alphas_cumprod: (T,) float64.

    Returns:
        x_t, like x0.
    """
    a = _lookup(alphas_cumprod, t, x0)
    return a.sqrt() * x0 + (1 - a).sqrt() * noise


def prediction_target(x0: Tensor, t: Tensor, noise: Tensor, alphas_cumprod: Tensor, kind: PredictionType) -> Tensor:
    """What the denoiser regresses: the noise, the clean latent, or v (Salimans & Ho 2022, appendix D)."""
    if kind == "epsilon":
        return noise
    if kind == "x0":
        return x0
    a = _lookup(alphas_cumprod, t, x0)
    return a.sqrt() * noise - (1 - a).sqrt() * x0


def predict_x0(x_t: Tensor, t: Tensor, output: Tensor, alphas_cumprod: Tensor, kind: PredictionType) -> Tensor:
    """Clean latents from the denoiser's output (Ho et al. 2020, eq. 15; Salimans & Ho 2022).

    With "epsilon" the estimate divides by sqrt(alphas_cumprod), which is 1e-3 at the noisiest step of the cosine
    schedule; it is clamped to +-5, beyond which standardised latents do not lie.
    """
    if kind == "x0":
        return output
    a = _lookup(alphas_cumprod, t, x_t)
    if kind == "v":
        return a.sqrt() * x_t - (1 - a).sqrt() * output
    return ((x_t - (1 - a).sqrt() * output) / a.sqrt()).clamp(-5, 5)


def predict_epsilon(x_t: Tensor, t: Tensor, x0: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """The noise that leads from x0 to x_t; the inverse of `q_sample` in its noise."""
    a = _lookup(alphas_cumprod, t, x_t)
    return (x_t - a.sqrt() * x0) / (1 - a).sqrt()


def q_posterior_mean_variance(x0: Tensor, x_t: Tensor, a_t: Tensor, a_prev: Tensor) -> tuple[Tensor, Tensor]:
    """q(x_prev | x_t, x0) between any two steps (Ho et al. 2020, eq. 6-7, with beta = 1 - a_t / a_prev).

    Args:
        a_t, a_prev: alphas_cumprod at the two steps, scalars; a_prev >= a_t.

    Returns:
        Mean, like x_t, and the scalar variance.
    """
    beta = 1 - a_t / a_prev
    mean = a_prev.sqrt() * beta / (1 - a_t) * x0 + (1 - beta).sqrt() * (1 - a_prev) / (1 - a_t) * x_t
    return mean, (1 - a_prev) / (1 - a_t) * beta


def standardise(latents: Tensor, eps: float = 1e-5) -> Tensor:
    """Zero mean and unit variance over each sample's channels and positions, never across samples."""
    flat = latents.flatten(1)
    centred = flat - flat.mean(1, keepdim=True)
    return (centred / (centred.pow(2).mean(1, keepdim=True) + eps).sqrt()).view_as(latents)
