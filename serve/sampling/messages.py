"""What a sampler is given and answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ldseg.data.grid import Geometry, GridCase
from ldseg.data.volume import Volume

if TYPE_CHECKING:
    from ldseg.posterior.adaptive import MonteCarloError


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


@dataclass(frozen=True)
class GridParts:
    """What a sampler needs of a prepared case, as arrays that the object store holds once for all samplers.

    Attributes:
        image: (C, *grid) float32.
        inside: (*grid) bool.
        content_digest: of the case; with model, seed and index it names the noise.
    """

    case: str
    image: np.ndarray
    inside: np.ndarray
    content_digest: str
    geometry: Geometry

    @classmethod
    def of(cls, grid: GridCase) -> GridParts:
        """From a prepared case."""
        return cls(grid.case, grid.image.numpy(), grid.inside.numpy(), grid.volume.content_digest, grid.geometry)

    def to_grid(self) -> GridCase:
        """A case that can be encoded and sampled, not summarised; it shares these arrays, and nobody writes them."""
        dims = self.inside.ndim
        empty = np.empty((0,) * (dims + 1), np.float32)
        volume = Volume(self.case, empty, np.eye(4), Path(), None, dims, self.content_digest)
        image, inside = torch.from_numpy(self.image), torch.from_numpy(self.inside)
        return GridCase(self.case, image, inside, 1.0, "", volume, self.geometry)
