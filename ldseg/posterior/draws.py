"""How a posterior is drawn, and on what."""

from __future__ import annotations

from dataclasses import dataclass


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
