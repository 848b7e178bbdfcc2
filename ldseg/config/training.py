"""The forward process, the loss, the optimisation and the sampler."""

from __future__ import annotations

import typing
from dataclasses import dataclass
from typing import Literal

from ldseg.config.parsing import check, check_choices

Schedule = Literal["linear", "quadratic", "cosine"]
PredictionType = Literal["epsilon", "x0", "v"]
InputScale = Literal["none", "linear", "redundant"]
SamplingMethod = Literal["ddim", "ddpm", "dpm++2m"]


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """The forward process (Ho et al. 2020; cosine of Nichol & Dhariwal 2021, eq. 17).

    `noise_shift` s divides the signal-to-noise ratio of every step by s squared. Label latents are redundant: what is
    large in the image shows through a lot of noise, so with s = 1 nearly every training step can read the label off
    z_t, and a structure's size is decided by the first, coarsest sampling step. 1 is the paper's schedule.

    `input_scale` is what z_t is multiplied by before the denoiser sees it: "none" (the paper), "linear" (the square
    root of alphas_cumprod: the best linear estimate of a white z_0) or "redundant" (that of the schedule before its
    shift: the best linear estimate along what is redundant, with the variance noise_shift squared). Both vanish at the
    noisiest step, where z_t says nothing.
    """

    schedule: Schedule = "cosine"
    num_train_steps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    noise_shift: float = 1.0
    prediction_type: PredictionType = "x0"
    input_scale: InputScale = "linear"

    def __post_init__(self) -> None:
        check(
            self.schedule in typing.get_args(Schedule),
            f"diffusion.schedule must be one of {typing.get_args(Schedule)}, got {self.schedule!r}",
        )
        check(
            self.prediction_type in typing.get_args(PredictionType),
            f"diffusion.prediction_type must be one of {typing.get_args(PredictionType)}, got {self.prediction_type!r}",
        )
        check(
            self.input_scale in typing.get_args(InputScale),
            f"diffusion.input_scale must be one of {typing.get_args(InputScale)}, got {self.input_scale!r}",
        )
        check(self.num_train_steps >= 2, f"diffusion.num_train_steps must be at least 2, got {self.num_train_steps}")
        check(self.noise_shift > 0, f"diffusion.noise_shift must be positive, got {self.noise_shift}")
        check(0 < self.beta_start <= self.beta_end < 1, "diffusion needs 0 < beta_start <= beta_end < 1")


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the one loss that trains all four networks.

    Attributes:
        cross_entropy, dice: on the decoded estimate and, times `reconstruction`, on the decoded clean latent.
        denoising: mean squared error of the denoiser's output (lambda in the paper).
        reconstruction: keeps the label autoencoder from collapsing; 0 is the paper's loss.
        timestep_weight: how the decoded estimate's terms weigh at step t: "uniform" as the paper, "alphas_cumprod"
            (the share of signal in z_t), which leaves the noisy steps to the denoising term, or "never": the networks
            still train together, but nothing that is decoded reaches the denoiser, nor the image encoder unless it has
            logits of its own.
        estimate_dice: `dice` weighs the decoded estimate too; False leaves it to cross-entropy, which is proper.
        decodings: "both", the estimate and the clean latent of every item, or "one" of them, in turns, weighed twice:
            the same loss in the mean.
        image: of cross-entropy and Dice of the image encoder's own logits (`model.image_logits`).
        image_alone: probability that an update trains the image encoder with those logits alone, for less time an
            update; it did not keep the denoiser from learning few cases by heart.
        detach_target: no gradient of the denoising term into the label encoder (its clean latent as a constant).
        latent_noise: standard deviation of Gaussian noise added to the clean latent before it is decoded.
        shared_noise: one draw of the noise for a whole batch, as the authors do, in place of one for each item.
        decoded_estimate: what the segmentation terms decode: the estimate of the clean latent ("x0"), or z_t minus the
            predicted noise without its scales, as the authors do ("difference").
        embedding_dropout: probability of hiding the image embedding of a training item.
        noisiest_share: probability that a training item's step is the last one, where z_t is all noise and only the
            image tells anything, in place of a step drawn evenly; 0 is the paper's.
        deterministic: the no-diffusion control: the image embedding is decoded directly, nothing is sampled.
    """

    cross_entropy: float = 1.0
    dice: float = 2.0
    denoising: float = 1.0
    reconstruction: float = 1.0
    timestep_weight: Literal["uniform", "alphas_cumprod", "never"] = "uniform"
    estimate_dice: bool = True
    decodings: Literal["both", "one"] = "both"
    image: float = 1.0
    image_alone: float = 0.0
    detach_target: bool = True
    latent_noise: float = 0.1
    shared_noise: bool = False
    decoded_estimate: Literal["x0", "difference"] = "x0"
    embedding_dropout: float = 0.0
    noisiest_share: float = 0.0
    deterministic: bool = False

    def __post_init__(self) -> None:
        for name in ("cross_entropy", "dice", "denoising", "reconstruction", "image", "latent_noise"):
            check(getattr(self, name) >= 0, f"loss.{name} must not be negative, got {getattr(self, name)}")
        check_choices(self, "loss")
        for name in ("embedding_dropout", "noisiest_share", "image_alone"):
            check(0 <= getattr(self, name) < 1, f"loss.{name} must lie in [0, 1), got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimisation: AdamW with warm-up and cosine decay, a moving average of the weights (EMA).

    `ema_scope` is what the average covers: "all" four networks, or the "denoiser" alone as the authors do. `shuffle`
    draws the cases in a new order each epoch; the authors keep the order of the files. `batch_size` is per worker, and
    an update takes the mean gradient of `accumulate` batches, one after the other in the memory of one.
    `amp` takes bfloat16 autocast where the device computes it natively. Validation, with `validation_samples` samples
    of each case, follows the first, the last and every `validate_every`-th epoch.
    """

    epochs: int = 100
    batch_size: int = 4
    accumulate: int = 1
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    warmup_fraction: float = 0.03
    ema_decay: float = 0.999
    ema_scope: Literal["all", "denoiser"] = "all"
    shuffle: bool = True
    gradient_clip: float = 1.0
    amp: bool = True
    seed: int = 0
    validate_every: int = 1
    validation_samples: int = 2

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "validate_every", "validation_samples"):
            check(getattr(self, name) >= 1, f"optim.{name} must be at least 1, got {getattr(self, name)}")
        check(self.learning_rate > 0, f"optim.learning_rate must be positive, got {self.learning_rate}")
        check_choices(self, "optim")
        check(0 <= self.ema_decay < 1, f"optim.ema_decay must lie in [0, 1), got {self.ema_decay}")
        check(0 <= self.warmup_fraction < 1, f"optim.warmup_fraction must lie in [0, 1), got {self.warmup_fraction}")


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How latents are drawn: `num_sample_steps` denoiser calls of DDIM (eta 0), DDPM (eta 1) or DPM-Solver++(2M).

    `noise_scale` multiplies every noise that is drawn: above 1 the samples of a sampler that is too narrow spread.
    `standardise` brings the latents to mean 0 and deviation 1 before the first step and after each: "none"; "sample",
    each on its own; "batch", all that are drawn in one call together, as the authors do, so that a sample depends on
    its neighbours (`Posterior` then draws one at a time). `schedule` "even" and "quadratic" are those of
    `samplers.sampling_timesteps`; "authors" takes the steps of the authors' code: times that are no integers, a first
    step that may be large, a last one that does nothing.

    `image_share` is the weight of what the image alone says beside the mean of the samples in what the label map is the
    arg max of: the image encoder's own logits (`model.image_logits`), or one step, which draws nothing. Maps, volumes
    and intervals are the samples' alone.
    """

    method: SamplingMethod = "ddim"
    num_sample_steps: int = 10
    standardise: Literal["none", "sample", "batch"] = "none"
    schedule: Literal["even", "quadratic", "authors"] = "even"
    noise_scale: float = 1.0
    image_share: float = 0.0

    def __post_init__(self) -> None:
        check_choices(self, "sampler")
        check(0 <= self.image_share <= 1, f"sampler.image_share must lie in [0, 1], got {self.image_share}")
        check(self.noise_scale > 0, f"sampler.noise_scale must be positive, got {self.noise_scale}")
        check(
            self.schedule != "authors" or (self.noise_scale == 1 and self.method != "dpm++2m"),
            "sampler.schedule authors takes their own steps: ddim or ddpm, with noise_scale 1",
        )
        check(self.num_sample_steps >= 1, f"sampler.num_sample_steps must be at least 1, got {self.num_sample_steps}")
