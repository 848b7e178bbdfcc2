"""What the two parts of the uncertainty grow with: distance from the training data, and disagreement of the raters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import digamma, entr
from tiny import tiny_config
from torch import Tensor

from ldseg.model import LDSeg
from ldseg.posterior.accumulator import PosteriorAccumulator
from ldseg.posterior.ensemble import Decomposition, decompose
from ldseg.posterior.sampling import sample_probabilities
from ldseg.training.fit import TrainingState, fit

MODELS = 3
AXIS = torch.arange(16.0) - 7.5


def bayesian(ones: np.ndarray, votes: np.ndarray, models: int = 4000) -> Decomposition:
    """Models drawn from what `votes` raters, of whom `ones` drew a voxel, leave open: Beta(1 + ones, 1 + votes - ones).

    Each has two samples whose mean is its probability, so that all of its own uncertainty is between the samples or
    within them, and none is lost.
    """
    p = np.random.default_rng(0).beta(1 + ones, 1 + votes - ones, (models, *ones.shape))
    shift = np.minimum(p, 1 - p) / 2
    samples = torch.from_numpy(np.stack([p - shift, p + shift], 1)).float()
    totals = []
    for own in torch.stack([1 - samples, samples], 2):
        totals.append(PosteriorAccumulator.create(2, ones.shape))
        totals[-1].add(own)
    return decompose(totals)


def known(ones: np.ndarray, votes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mutual information and expected entropy of a Beta-Bernoulli model, in nats."""
    a, b = 1 + ones, 1 + votes - ones
    expected = digamma(a + b + 1) - a / (a + b) * digamma(a + 1) - b / (a + b) * digamma(b + 1)
    return entr(a / (a + b)) + entr(b / (a + b)) - expected, expected


def test_with_a_known_posterior_the_parts_are_its_mutual_information_and_its_expected_entropy() -> None:
    """4000 models: means of at most log 2 with a standard error below 0.011, mostly far below."""
    distance = np.arange(4.0)
    votes = 40 * np.exp(-(distance**2) / 2)  # fewer and fewer cases like this one
    parts = bayesian(votes / 2, votes)
    epistemic, aleatoric = known(votes / 2, votes)
    assert np.abs(parts.epistemic.numpy() - epistemic).max() < 0.01
    assert np.abs(parts.aleatoric.numpy() - aleatoric).max() < 0.01
    assert grows(parts.epistemic.numpy(), 1.3), "grows with the distance from the cases"
    assert (np.diff(parts.aleatoric.numpy()) < 0).all(), "what the models agree is open does not"
    ones = np.arange(0.0, 21, 5)
    parts = bayesian(ones, np.full_like(ones, 40))
    assert np.abs(parts.aleatoric.numpy() - known(ones, np.full_like(ones, 40))[1]).max() < 0.01
    assert (np.diff(parts.aleatoric.numpy()) > 0.02).all(), "grows with the raters' disagreement"
    assert parts.epistemic.max() < 0.02


def discs(count: int, doubt: Tensor, generator: torch.Generator, noise: float = 0.1) -> tuple[Tensor, Tensor]:
    """Images (N, 1, 16, 16) and labels of discs that a rater leaves out with probability `doubt` (N,).

    The image shows how doubtful a disc is: its brightness is 1 - 2 doubt on a ground of -1. Trained is a noise of 0.1.
    """
    centre = torch.rand(count, 2, 1, 1, generator=generator) * 4 - 2
    disc = (AXIS[:, None] - centre[:, 0]) ** 2 + (AXIS[None] - centre[:, 1]) ** 2 < 16
    image = torch.where(disc, (1 - 2 * doubt)[:, None, None], torch.tensor(-1.0))
    image = image + noise * torch.randn(image.shape, generator=generator)
    drawn = torch.rand(count, generator=generator) >= doubt
    return image[:, None], (disc & drawn[:, None, None]).long()


class Discs(torch.utils.data.Dataset):
    """64 fresh discs an epoch, none of them more doubtful than one half."""

    has_ignored = False

    def __len__(self) -> int:
        return 64

    def set_epoch(self, epoch: int) -> None:
        generator = torch.Generator().manual_seed(epoch)
        self.images, self.labels = discs(64, torch.rand(64, generator=generator) / 2, generator)

    def __getitem__(self, index: int) -> dict[str, object]:
        return {"image": self.images[index], "label": self.labels[index], "case": str(index)}


@pytest.fixture(scope="module")
def ensemble() -> list[LDSeg]:
    """Models that differ in their random start, order and noise alone."""
    models = []
    for seed in range(MODELS):
        config = tiny_config(2, ("disc",)).with_overrides(
            {
                "optim.epochs": 20, "optim.batch_size": 16, "optim.learning_rate": 1e-2, "optim.ema_decay": 0.9,
                "optim.amp": False, "optim.seed": seed,
            }
        )  # fmt: skip
        state = TrainingState.create(config)
        list(fit(state, Discs(), None))
        models.append(state.ema)
    return models


@torch.no_grad()
def mean_parts(models: list[LDSeg], images: Tensor) -> tuple[float, float]:
    """Mean epistemic and aleatoric uncertainty over all voxels of the images, 4 samples a model and image."""
    totals = []
    for model in models:
        generator = torch.Generator().manual_seed(0)
        shape = (4, *model.latent_shape(tuple(images.shape[2:])))
        drawn = [
            sample_probabilities(model, embedding[None], torch.randn(shape, generator=generator), generator)
            for embedding in model.encode_image(images)
        ]
        totals.append(PosteriorAccumulator.create(2, (len(images), *images.shape[2:])))
        totals[-1].add(torch.stack(drawn, 2))
    parts = decompose(totals)
    return float(parts.epistemic.mean()), float(parts.aleatoric.mean())


def grows(values: np.ndarray, margin: float = 1.05) -> bool:
    return bool((values[1:] > margin * values[:-1]).all())


def test_trained_models_know_less_the_farther_an_image_is_from_what_they_were_trained_on(ensemble: list[LDSeg]) -> None:
    """The same discs, none doubtful, under ever more noise than the 0.1 of the training. Four ensembles of
    different seeds were tried, and each grew by 23 % or more from level to level."""
    levels = [discs(8, torch.zeros(8), torch.Generator().manual_seed(999), noise)[0] for noise in (0.1, 1.5, 3.0, 6.0)]
    epistemic, aleatoric = np.array([mean_parts(ensemble, images) for images in levels]).T
    assert grows(epistemic), epistemic
    assert epistemic[-1] / epistemic[0] > 1.5 * aleatoric[-1] / aleatoric[0], "most of what grows is the models'"


def test_trained_models_agree_that_more_is_open_where_the_raters_disagreed_more(ensemble: list[LDSeg]) -> None:
    """The same discs, as doubtful as in the training. Each of the four ensembles grew by 5.7 % or more."""
    levels = [discs(8, torch.full((8,), doubt), torch.Generator().manual_seed(999))[0] for doubt in (0, 0.3, 0.5)]
    aleatoric = np.array([mean_parts(ensemble, images)[1] for images in levels])
    assert grows(aleatoric, 1.02), aleatoric
