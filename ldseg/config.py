"""One frozen dataclass per component; unknown keys are errors that name the nearest right one."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Schedule = Literal["linear", "quadratic", "cosine"]
PredictionType = Literal["epsilon", "x0", "v"]
InputScale = Literal["none", "linear", "redundant"]


class ConfigError(ValueError):
    """A configuration that can't be used; the message names the key and the cure."""


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The working grid of a model and what its voxels mean.

    Attributes:
        spatial_dims: 2 (images), 3 (volumes, and 2D+t with time as the last axis).
        shape: working grid in voxels, one entry per axis.
        spacing_mm: working voxel size; None keeps each case's own spacing.
        fit: "pad" resamples to `spacing_mm` and pads (training crops) to `shape`;
            "stretch" resamples each whole case to `shape`, as the authors do.
        in_channels: image channels (3 for RGB).
        label_values: the labels' values in the files, background first; position = class index.
        structures: a name for each foreground value.
        foreground_only: read every label > 0 as the one foreground structure (instance maps).
        flip_axes: working-grid axes that training may mirror.
        intensity: "zscore" after clipping to the 0.5 and 99.5 percentiles, or "minmax" to [0, 1], as the authors do.
        axes: order of the working grid's axes in 3D: "canonical" (right, anterior, superior) or "itk", the file's own
            axes from last to first, as the arrays of SimpleITK have them and the authors use them.
        augment: draw a random affine and flips for each training item.
        augment_intensity: change contrast, gamma and noise too; False where contrast carries the meaning.
    """

    spatial_dims: int = 3
    shape: tuple[int, ...] = (48, 64, 48)
    spacing_mm: tuple[float, ...] | None = None
    fit: Literal["pad", "stretch"] = "pad"
    in_channels: int = 1
    label_values: tuple[int, ...] = (0, 1)
    structures: tuple[str, ...] = ("foreground",)
    foreground_only: bool = False
    flip_axes: tuple[int, ...] = ()
    intensity: Literal["zscore", "minmax"] = "zscore"
    axes: Literal["canonical", "itk"] = "canonical"
    augment: bool = True
    augment_intensity: bool = True

    def __post_init__(self) -> None:
        _check(self.spatial_dims in (2, 3), f"data.spatial_dims must be 2 or 3 (2D+t is 3), got {self.spatial_dims}")
        _check(
            len(self.shape) == self.spatial_dims and min(self.shape) >= 1,
            f"data.shape needs {self.spatial_dims} positive entries, got {self.shape}",
        )
        if self.spacing_mm is not None:
            _check(
                len(self.spacing_mm) == self.spatial_dims and min(self.spacing_mm) > 0,
                f"data.spacing_mm needs {self.spatial_dims} positive entries, got {self.spacing_mm}",
            )
        _check(
            len(self.structures) == len(self.label_values) - 1,
            f"data.structures {self.structures} must name each foreground value of {self.label_values}",
        )
        _check(self.fit in ("pad", "stretch"), f"data.fit must be pad or stretch, got {self.fit!r}")
        _check(
            self.intensity in ("zscore", "minmax"), f"data.intensity must be zscore or minmax, got {self.intensity!r}"
        )
        _check(self.axes in ("canonical", "itk"), f"data.axes must be canonical or itk, got {self.axes!r}")
        _check(self.in_channels >= 1, f"data.in_channels must be at least 1, got {self.in_channels}")
        _check(
            all(0 <= axis < self.spatial_dims for axis in self.flip_axes),
            f"data.flip_axes {self.flip_axes} must lie in [0, {self.spatial_dims})",
        )

    @property
    def num_classes(self) -> int:
        """Background and structures."""
        return len(self.label_values)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes of the four networks.

    Attributes:
        family: "ldseg", the networks described here, or "authors", those of `ldseg.networks.authors`, for which
            `latent_channels` is 1, `patch` is 1 and `autoencoder_widths` are the label encoder's.
        downsampling: working grid / latent grid per axis, powers of two (1 on the time axis of 2D+t).
        patch: how much of `downsampling` is done by space-to-depth before the first convolution and undone
            by depth-to-space after the last one, per axis; 1 works at full resolution as the authors do.
        latent_channels: channels of the label latent z.
        embedding_channels: channels of the image embedding; 0 takes `latent_channels`, as the paper does.
        autoencoder_widths: label encoder and decoder, finest first; one more than the halvings left after `patch`.
        image_widths: image encoder, finest first; entries beyond the latent grid go deeper and come back (a U-Net).
        denoiser_widths: denoiser levels from the latent grid down.
        blocks: residual blocks per level (the image encoder has one more below its finest).
        denoiser_attention: self-attention at the denoiser's coarsest level.
        label_input: the label encoder's input: "one_hot", or "value" as the authors do, the class index as one channel.
        denoiser_context: a filter matched to the image reads what z_t says as a whole (see `MatchedFilter`).
        decoder_skips: channels that the image encoder hands to the label decoder at each level finer than the latent
            grid, beside the embedding; 0 decodes the latent alone, as the paper does.
    """

    family: Literal["ldseg", "authors"] = "ldseg"
    downsampling: tuple[int, ...] = (4, 4, 4)
    patch: tuple[int, ...] = (2, 2, 2)
    latent_channels: int = 4
    embedding_channels: int = 32
    autoencoder_widths: tuple[int, ...] = (24, 48)
    image_widths: tuple[int, ...] = (24, 64, 96)
    denoiser_widths: tuple[int, ...] = (48, 96)
    blocks: int = 1
    denoiser_attention: bool = True
    denoiser_context: bool = False
    decoder_skips: int = 0
    label_input: Literal["one_hot", "value"] = "one_hot"

    def __post_init__(self) -> None:
        _check(
            len(self.patch) == len(self.downsampling),
            f"model.patch {self.patch} and model.downsampling {self.downsampling} need one entry per axis",
        )
        for factor, patch in zip(self.downsampling, self.patch, strict=True):
            _check(
                factor >= 1 and factor & (factor - 1) == 0,
                f"model.downsampling entries must be powers of two, got {self.downsampling}",
            )
            _check(patch >= 1 and factor % patch == 0, f"model.patch {self.patch} must divide {self.downsampling}")
        _check(
            len(self.autoencoder_widths) == self.levels + 1,
            f"model.autoencoder_widths {self.autoencoder_widths} needs {self.levels + 1} entries for "
            f"downsampling {self.downsampling} after patch {self.patch}",
        )
        _check(
            len(self.image_widths) >= self.levels + 1,
            f"model.image_widths {self.image_widths} needs at least {self.levels + 1} entries",
        )
        _check(self.latent_channels >= 1, f"model.latent_channels must be at least 1, got {self.latent_channels}")
        _check(
            self.embedding_channels >= 0, f"model.embedding_channels must be at least 0, got {self.embedding_channels}"
        )
        _check(self.blocks >= 1, f"model.blocks must be at least 1, got {self.blocks}")
        _check(self.decoder_skips >= 0, f"model.decoder_skips must be at least 0, got {self.decoder_skips}")
        _check(
            self.label_input in ("one_hot", "value"),
            f"model.label_input must be one_hot or value, got {self.label_input!r}",
        )
        widths = (*self.autoencoder_widths, *self.image_widths, *self.denoiser_widths)
        _check(self.family in ("ldseg", "authors"), f"model.family must be ldseg or authors, got {self.family!r}")
        unit = 8 if self.family == "ldseg" else 4
        _check(
            bool(self.denoiser_widths) and all(w >= unit and w % unit == 0 for w in widths),
            f"widths must be multiples of {unit}, got {widths}",
        )
        _check(
            self.family == "ldseg" or (self.latent_channels == 1 and set(self.patch) == {1}),
            "model.family authors needs model.latent_channels 1 and model.patch 1",
        )

    @property
    def levels(self) -> int:
        """Halvings between the patch grid and the latent grid."""
        return max(int(math.log2(d // p)) for d, p in zip(self.downsampling, self.patch, strict=True))

    @property
    def multiple(self) -> tuple[int, ...]:
        """What each axis of a working grid must be a multiple of."""
        deeper = max(len(self.denoiser_widths) - 1, len(self.image_widths) - 1 - self.levels)
        return tuple(d * (2**deeper if d > 1 else 1) for d in self.downsampling)


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
        _check(
            self.schedule in typing.get_args(Schedule),
            f"diffusion.schedule must be one of {typing.get_args(Schedule)}, got {self.schedule!r}",
        )
        _check(
            self.prediction_type in typing.get_args(PredictionType),
            f"diffusion.prediction_type must be one of {typing.get_args(PredictionType)}, got {self.prediction_type!r}",
        )
        _check(
            self.input_scale in typing.get_args(InputScale),
            f"diffusion.input_scale must be one of {typing.get_args(InputScale)}, got {self.input_scale!r}",
        )
        _check(self.num_train_steps >= 2, f"diffusion.num_train_steps must be at least 2, got {self.num_train_steps}")
        _check(self.noise_shift > 0, f"diffusion.noise_shift must be positive, got {self.noise_shift}")
        _check(0 < self.beta_start <= self.beta_end < 1, "diffusion needs 0 < beta_start <= beta_end < 1")


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the one loss that trains all four networks.

    Attributes:
        cross_entropy, dice: on the decoded estimate and, times `reconstruction`, on the decoded clean latent.
        denoising: mean squared error of the denoiser's output (lambda in the paper).
        reconstruction: keeps the label autoencoder from collapsing; 0 is the paper's loss.
        timestep_weight: how the decoded estimate's terms weigh at step t: "uniform" as the paper, "alphas_cumprod"
            (the share of signal in z_t), which leaves the noisy steps to the denoising term, or "never": the networks
            still train together, but nothing that is decoded reaches the denoiser and the image encoder.
        detach_target: no gradient of the denoising term into the label encoder (its clean latent as a constant).
        latent_noise: standard deviation of Gaussian noise added to the clean latent before it is decoded.
        shared_noise: one draw of the noise for a whole batch, as the authors do, in place of one for each item.
        decoded_estimate: what the segmentation terms decode: the estimate of the clean latent ("x0"), or z_t minus the
            predicted noise without its scales, as the authors do ("difference").
        embedding_dropout: probability of hiding the image embedding of a training item.
        deterministic: the no-diffusion control: the image embedding is decoded directly, nothing is sampled.
    """

    cross_entropy: float = 1.0
    dice: float = 2.0
    denoising: float = 1.0
    reconstruction: float = 1.0
    timestep_weight: Literal["uniform", "alphas_cumprod", "never"] = "uniform"
    detach_target: bool = True
    latent_noise: float = 0.1
    shared_noise: bool = False
    decoded_estimate: Literal["x0", "difference"] = "x0"
    embedding_dropout: float = 0.0
    deterministic: bool = False

    def __post_init__(self) -> None:
        for name in ("cross_entropy", "dice", "denoising", "reconstruction", "latent_noise"):
            _check(getattr(self, name) >= 0, f"loss.{name} must not be negative, got {getattr(self, name)}")
        _check(
            self.timestep_weight in ("uniform", "alphas_cumprod", "never"),
            f"loss.timestep_weight must be uniform, alphas_cumprod or never, got {self.timestep_weight!r}",
        )
        _check(
            self.decoded_estimate in ("x0", "difference"),
            f"loss.decoded_estimate must be x0 or difference, got {self.decoded_estimate!r}",
        )
        _check(
            0 <= self.embedding_dropout < 1, f"loss.embedding_dropout must lie in [0, 1), got {self.embedding_dropout}"
        )


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimisation: AdamW with warm-up and cosine decay, a moving average of the weights (EMA).

    `ema_scope` is what the average covers: "all" four networks, or the "denoiser" alone as the authors do. `shuffle`
    draws the cases in a new order each epoch; the authors keep the order of the files. `batch_size` is per worker.
    `amp` takes bfloat16 autocast where the device computes it natively. Validation, with `validation_samples` samples
    of each case, follows the first, the last and every `validate_every`-th epoch.
    """

    epochs: int = 100
    batch_size: int = 4
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
        for name in ("epochs", "batch_size", "validate_every", "validation_samples"):
            _check(getattr(self, name) >= 1, f"optim.{name} must be at least 1, got {getattr(self, name)}")
        _check(self.learning_rate > 0, f"optim.learning_rate must be positive, got {self.learning_rate}")
        _check(
            self.ema_scope in ("all", "denoiser"), f"optim.ema_scope must be all or denoiser, got {self.ema_scope!r}"
        )
        _check(0 <= self.ema_decay < 1, f"optim.ema_decay must lie in [0, 1), got {self.ema_decay}")
        _check(0 <= self.warmup_fraction < 1, f"optim.warmup_fraction must lie in [0, 1), got {self.warmup_fraction}")


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How latents are drawn: DDIM (eta 0) or DDPM (eta 1), `num_sample_steps` denoiser calls.

    `standardise` brings the latents to mean 0 and deviation 1 before the first step and after each: "none"; "sample",
    each on its own; "batch", all that are drawn in one call together, as the authors do, so that a sample depends on
    its neighbours (`Posterior` then draws one at a time). `schedule` "authors" takes the steps of the authors' code:
    times that are no integers, a first step that may be large, a last one that does nothing.
    """

    method: Literal["ddim", "ddpm"] = "ddim"
    num_sample_steps: int = 10
    standardise: Literal["none", "sample", "batch"] = "none"
    schedule: Literal["even", "authors"] = "even"

    def __post_init__(self) -> None:
        _check(self.method in ("ddim", "ddpm"), f"sampler.method must be ddim or ddpm, got {self.method!r}")
        _check(
            self.standardise in ("none", "sample", "batch"),
            f"sampler.standardise must be none, sample or batch, got {self.standardise!r}",
        )
        _check(self.schedule in ("even", "authors"), f"sampler.schedule must be even or authors, got {self.schedule!r}")
        _check(self.num_sample_steps >= 1, f"sampler.num_sample_steps must be at least 1, got {self.num_sample_steps}")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that makes a model what it is; stored in its bundle and logged with its run."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)

    def __post_init__(self) -> None:
        _check(
            len(self.model.downsampling) == self.data.spatial_dims,
            f"model.downsampling {self.model.downsampling} needs {self.data.spatial_dims} entries (data.spatial_dims)",
        )
        for axis, (size, multiple) in enumerate(zip(self.data.shape, self.model.multiple, strict=True)):
            _check(
                size % multiple == 0,
                f"data.shape[{axis}] = {size} must be a multiple of {multiple} for this model; "
                f"{math.ceil(size / multiple) * multiple} would do",
            )
        _check(
            self.sampler.num_sample_steps <= self.diffusion.num_train_steps,
            f"sampler.num_sample_steps {self.sampler.num_sample_steps} exceeds "
            f"diffusion.num_train_steps {self.diffusion.num_train_steps}",
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain, JSON-ready values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Config:
        """Rebuild from `to_dict` (or parsed JSON); missing keys take their defaults.

        Raises:
            ConfigError: a key is unknown (the nearest right one is named) or a value is out of range.
        """
        return typing.cast(Config, _build(cls, values, ""))

    def with_overrides(self, overrides: dict[str, Any]) -> Config:
        """A copy with dotted keys replaced, for example {"model.latent_channels": 8}."""
        values = self.to_dict()
        for key, value in overrides.items():
            section, _, name = key.partition(".")
            if section not in values or not name or name not in values[section]:
                raise ConfigError(f"unknown configuration key {key!r}{_nearest(key, self.keys())}")
            values[section][name] = value
        return Config.from_dict(values)

    @classmethod
    def keys(cls) -> list[str]:
        """All dotted keys."""
        return [f"{section}.{name}" for section, values in cls().to_dict().items() for name in values]


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings to dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _nearest(key: str, keys: list[str]) -> str:
    close = difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known keys: {', '.join(keys)}"


def _build(cls: type, values: Any, prefix: str) -> Any:
    if not isinstance(values, dict):
        raise ConfigError(f"{prefix or 'the configuration'} must be a mapping, got {type(values).__name__}")
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in hints:
            raise ConfigError(f"unknown configuration key {prefix + str(key)!r}{_nearest(str(key), list(hints))}")
    return cls(**{key: _coerce(hints[key], value, prefix + key) for key, value in values.items()})


def _coerce(hint: Any, value: Any, key: str) -> Any:
    """JSON has no tuples and writes 1.0 as 1; nothing else is converted."""
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type, hint), value, key + ".")
    origin = typing.get_origin(hint)
    if origin is types.UnionType:
        options = [o for o in typing.get_args(hint) if o is not type(None)]
        return None if value is None else _coerce(options[0], value, key)
    if origin is Literal:
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{key} must be a list, got {value!r}")
        return tuple(_coerce(typing.get_args(hint)[0], v, key) for v in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{key} must be of type {hint.__name__}, got {value!r}")
    if hint is float and not math.isfinite(value):
        raise ConfigError(f"{key} must be finite, got {value!r}")
    return value
