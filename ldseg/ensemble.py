"""Several models: how much of the uncertainty is theirs (epistemic) and how much the image's (aleatoric)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldseg.uncertainty import PosteriorAccumulator, entropy


@dataclass(frozen=True)
class Decomposition:
    """Maps in nats, (*grid) float64, that add up: total = epistemic + within_samples + between_samples.

    Attributes:
        total: entropy of the mean probability over all models and samples.
        epistemic: mutual information of prediction and model (Depeweg et al. 2018): 0 for one model, and at most the
            logarithm of their number.
        within_samples: mean entropy of the single samples.
        between_samples: mutual information of prediction and sample within a model, averaged over the models.
    """

    total: Tensor
    epistemic: Tensor
    within_samples: Tensor
    between_samples: Tensor

    @property
    def aleatoric(self) -> Tensor:
        """What the models agree is open: within and between their samples."""
        return self.within_samples + self.between_samples


def decompose(models: Sequence[PosteriorAccumulator]) -> Decomposition:
    """Split the uncertainty of M models, each with K >= 1 samples of one case on one grid; memory does not grow with K.

    Samples of ONE model say nothing about what it does not know: for a single accumulator the epistemic part is 0.

    Raises:
        ValueError: there is no model, or one has no samples, or their grids differ.
    """
    if not models or not all(model.num_samples for model in models):
        raise ValueError("give at least one model, each with at least one sample")
    shapes = {tuple(model.probability_sum.shape) for model in models}
    if len(shapes) > 1:
        raise ValueError(f"the models must be on one grid with the same classes, got {sorted(shapes)}")
    means = torch.stack([_normalised(model) for model in models])
    own = entropy(means, dim=1)
    within = torch.stack([model.entropy_sum.double() / model.num_samples for model in models]).mean(0)
    total = entropy(means.mean(0), dim=0)
    return Decomposition(total, total - own.mean(0), within, own.mean(0) - within)


def _normalised(model: PosteriorAccumulator) -> Tensor:
    """Mean probability in float64, free of the rounding of float32 sums."""
    mean = (model.probability_sum.double() / model.num_samples).clamp(min=0)
    return mean / mean.sum(0, keepdim=True)
