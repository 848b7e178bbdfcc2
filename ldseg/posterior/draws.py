"""How a posterior is drawn, and on what."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from ldseg.data.grid import GridCase
    from ldseg.posterior.accumulator import PosteriorAccumulator


@dataclass(frozen=True)
class Draws:
    """How samples are drawn, and where.

    Attributes:
        samples: of each case.
        steps: denoiser calls a sample; None takes the model's own.
        seed: of the samples.
        device: where the model runs, such as "cpu" or "cuda".
        precision: of the networks, see `ldseg.precision`; None takes LDSEG_PRECISION from the environment, else "auto".

    Raises:
        ValueError: `samples` is below 1.
    """

    samples: int = 8
    steps: int | None = None
    seed: int = 0
    device: str = "cpu"
    precision: str | None = None

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, got {self.samples}")


DRAWS = Draws()


@dataclass(frozen=True)
class Drawn:
    """A case's samples, added up.

    Attributes:
        grid: the case on the working grid.
        embedding: of its image, (1, embedding_channels, *latent).
        total: the sums over its samples.
        draws: how they were drawn.
        seconds: wall time by stage.
    """

    grid: GridCase
    embedding: Tensor
    total: PosteriorAccumulator
    draws: Draws
    seconds: dict[str, float] = field(default_factory=dict)


def partition(samples: int, chunk_size: int) -> Iterator[list[int]]:
    """Sample indices in chunks of a fixed size: the order of addition, whoever draws them."""
    for start in range(0, samples, chunk_size):
        yield list(range(start, min(start + chunk_size, samples)))
