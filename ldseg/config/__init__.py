"""One frozen dataclass per component; unknown keys are errors that name the nearest right one."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, cast

from ldseg.config.data import IGNORED as IGNORED
from ldseg.config.data import DataConfig as DataConfig
from ldseg.config.model import ModelConfig as ModelConfig
from ldseg.config.parsing import ConfigError as ConfigError
from ldseg.config.parsing import build, check, nearest
from ldseg.config.parsing import flatten as flatten
from ldseg.config.training import DiffusionConfig as DiffusionConfig
from ldseg.config.training import InputScale as InputScale
from ldseg.config.training import LossConfig as LossConfig
from ldseg.config.training import OptimConfig as OptimConfig
from ldseg.config.training import PredictionType as PredictionType
from ldseg.config.training import SamplerConfig as SamplerConfig
from ldseg.config.training import Schedule as Schedule


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
        check(
            len(self.model.downsampling) == self.data.spatial_dims,
            f"model.downsampling {self.model.downsampling} needs {self.data.spatial_dims} entries (data.spatial_dims)",
        )
        for axis, (size, multiple) in enumerate(zip(self.data.shape, self.model.multiple, strict=True)):
            check(
                size % multiple == 0,
                f"data.shape[{axis}] = {size} must be a multiple of {multiple} for this model; "
                f"{math.ceil(size / multiple) * multiple} would do",
            )
        check(
            self.sampler.num_sample_steps <= self.diffusion.num_train_steps,
            f"sampler.num_sample_steps {self.sampler.num_sample_steps} exceeds "
            f"diffusion.num_train_steps {self.diffusion.num_train_steps}",
        )
        check(
            self.model.image_logits or not self.loss.image_alone,
            "loss.image_alone needs model.image_logits, the only logits that the image encoder gives alone",
        )
        check(
            self.model.image_logits or self.diffusion.input_scale != "none" or not self.sampler.image_share,
            "sampler.image_share needs model.image_logits, or a diffusion.input_scale so that one step draws nothing",
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain, JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Config:
        """Rebuild from `to_dict` (or parsed JSON); missing keys take their defaults.

        Raises:
            ConfigError: a key is unknown (the nearest right one is named) or a value is out of range.
        """
        return cast(Config, build(cls, values, ""))

    def with_overrides(self, overrides: dict[str, Any]) -> Config:
        """A copy with dotted keys replaced, for example {"model.latent_channels": 8}."""
        values = self.to_dict()
        for key, value in overrides.items():
            section, _, name = key.partition(".")
            if section not in values or not name or name not in values[section]:
                raise ConfigError(f"unknown configuration key {key!r}{nearest(key, self.keys())}")
            values[section][name] = value
        return Config.from_dict(values)

    @classmethod
    def keys(cls) -> list[str]:
        """All dotted keys."""
        return [f"{section}.{name}" for section, values in cls().to_dict().items() for name in values]
