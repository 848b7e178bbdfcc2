"""Models of an ensemble that are sure, that doubt, and that are random."""

from __future__ import annotations

import torch

from ldseg.posterior.accumulator import PosteriorAccumulator


def _model(probabilities):
    total = PosteriorAccumulator.create(probabilities.shape[1], tuple(probabilities.shape[2:]))
    total.add(probabilities)
    return total


def _random(grid, seed, samples=6):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(samples, 3, *grid, generator=generator).mul(2).softmax(1)


def _certain(grid, winner, samples=4):
    probabilities = torch.zeros(samples, 3, *grid)
    probabilities[:, winner] = 1
    return probabilities
