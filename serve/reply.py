"""What a sampler answers; importing it does not import torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ldseg.adaptive import MonteCarloError


@dataclass
class Reply:
    """What a sampler gives back.

    Attributes:
        totals: arrays of one PosteriorAccumulator for each model.
        embeddings: of the image by each model, (1, channels, *latent).
        errors: of each model, where the plan hangs on them.
        seconds: by stage.
        precision: in which the image was encoded, see `ldseg.precision`.
    """

    totals: list[dict[str, np.ndarray]] = field(default_factory=list)
    embeddings: list[np.ndarray] = field(default_factory=list)
    errors: list[MonteCarloError] | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    precision: str = "float32"

    def add_seconds(self, seconds: dict[str, float]) -> None:
        """Add times by stage."""
        for stage, value in seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + value
