"""The methods that `baselines.py` compares: each has a loss to train by and a way to draw segmentations."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from monai.losses import DiceCELoss
from monai.networks.nets import UNet
from torch import Tensor, nn

from ldseg.config import Config
from ldseg.model import LDSeg
from ldseg.posterior.sampling import sample_probabilities
from ldseg.training.losses import TrainingLoss, draw_training

CHANNELS = (24, 48, 96, 192)
DROPOUT = 0.2
LATENTS = 6  # of the Probabilistic U-Net, as in its paper


def unet(config: Config, outputs: int, dropout: float = 0.0) -> nn.Module:
    """MONAI's residual U-Net; an axis that LDSeg does not downsample (time) keeps its length here too."""
    halving = tuple(2 if factor > 1 else 1 for factor in config.model.downsampling)
    return UNet(
        spatial_dims=config.data.spatial_dims, in_channels=config.data.in_channels, out_channels=outputs,
        channels=CHANNELS, strides=[halving] * (len(CHANNELS) - 1), num_res_units=2, dropout=dropout,
    )  # fmt: skip


class Method(nn.Module):
    """What all of them have in common: nothing is said of an image but by `draw`."""

    def direct(self, image: Tensor) -> Tensor | None:
        """Class probabilities (C, *grid) that a network which samples gives beside its samples, if it does."""
        return None


class LatentDiffusion(Method):
    """LDSeg in the configuration given: as shipped, its no-diffusion control, or not trained end to end."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.network = LDSeg(config).channels_last()
        self.objective = TrainingLoss(self.network)

    def loss(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """The one loss at random steps."""
        return self.objective(images, labels, *draw_training(self.network, images, generator))["loss"]

    def draw(self, image: Tensor, samples: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Class probabilities (C, *grid) of each sample."""
        embedding = self.network.encode_image(image)
        starts = torch.randn((samples, *self.network.latent_shape(tuple(image.shape[2:]))), generator=generator)
        yield from sample_probabilities(self.network, embedding, starts.to(image.device), generator)

    def direct(self, image: Tensor) -> Tensor | None:
        """Of the image encoder's own logits, or of one step, which draws nothing; the control does not have either."""
        config, network = self.network.config, self.network
        if config.loss.deterministic or (config.diffusion.input_scale == "none" and not config.model.image_logits):
            return None
        embedding = network.encode_image(image)
        if config.model.image_logits:
            return network.image_logits(embedding).softmax(1)[0]
        start = torch.zeros((1, *network.latent_shape(tuple(image.shape[2:]))), device=image.device)
        return sample_probabilities(network, embedding, start, torch.Generator(), num_steps=1)[0]


class Deterministic(Method):
    """A U-Net by cross-entropy and Dice; with dropout it is sampled with its dropout on (Gal & Ghahramani 2016)."""

    def __init__(self, config: Config, dropout: float = 0.0) -> None:
        super().__init__()
        self.network, self.dropout = unet(config, config.data.num_classes, dropout), dropout
        self.objective = segmentation_loss(config)

    def loss(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Cross-entropy and Dice, weighed as LDSeg's."""
        return self.objective(self.network(images).float(), labels[:, None])

    def draw(self, image: Tensor, samples: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Class probabilities (C, *grid) of each sample; without dropout one answer, however many are asked for."""
        self.train(self.dropout > 0)  # its normalisation is by instance and the same in both modes
        for _ in range(samples if self.dropout else 1):
            yield self.network(image).softmax(1)[0]


class Ensemble(Method):
    """Members that were trained apart; samples go round them."""

    def __init__(self, members: list[Deterministic]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def draw(self, image: Tensor, samples: int, generator: torch.Generator) -> Iterator[Tensor]:
        """The members' answers."""
        for member in self.members:
            yield from member.draw(image, samples, generator)


class ProbabilisticUNet(Method):
    """U-Net features and a Gaussian latent of the whole image, joined by 1x1 convolutions (Kohl et al. 2018)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        dims, classes = config.data.spatial_dims, config.data.num_classes
        self.features = unet(config, CHANNELS[0])
        self.prior = gaussian(dims, config.data.in_channels)
        self.posterior = gaussian(dims, config.data.in_channels + classes)
        conv = {2: nn.Conv2d, 3: nn.Conv3d}[dims]
        widths = (CHANNELS[0] + LATENTS, CHANNELS[0], CHANNELS[0])
        layers = [layer for a, b in zip(widths, widths[1:], strict=False) for layer in (conv(a, b, 1), nn.ReLU())]
        self.join = nn.Sequential(*layers, conv(CHANNELS[0], classes, 1))
        self.classes = classes

    def loss(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """The evidence lower bound per voxel: cross-entropy and the divergence of posterior from prior."""
        one_hot = F.one_hot(labels, self.classes).movedim(-1, 1).to(images.dtype)
        prior = distribution(self.prior(images))
        posterior = distribution(self.posterior(torch.cat([images, one_hot], dim=1)))
        logits = self._decode(self.features(images), posterior.rsample())
        divergence = torch.distributions.kl_divergence(posterior, prior).sum(1).mean()
        return F.cross_entropy(logits.float(), labels) + divergence / labels[0].numel()

    def draw(self, image: Tensor, samples: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Class probabilities (C, *grid) of each sample from the prior."""
        features, prior = self.features(image), distribution(self.prior(image))
        for _ in range(samples):
            noise = torch.randn(prior.mean.shape, generator=generator).to(image.device)
            z = prior.mean + prior.stddev * noise
            yield self._decode(features, z).softmax(1)[0]

    def _decode(self, features: Tensor, z: Tensor) -> Tensor:
        spread = z.view(*z.shape, *[1] * (features.ndim - 2)).expand(-1, -1, *features.shape[2:])
        return self.join(torch.cat([features, spread], dim=1))


def gaussian(dims: int, inputs: int) -> nn.Module:
    """An image -> mean and logarithm of the standard deviation of a latent (B, 2 LATENTS)."""
    conv, pool, mean = {
        2: (nn.Conv2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d), 3: (nn.Conv3d, nn.AvgPool3d, nn.AdaptiveAvgPool3d)
    }[dims]  # fmt: skip
    layers: list[nn.Module] = []
    for width in CHANNELS[:3]:
        layers += [conv(inputs, width, 3, padding=1), nn.ReLU(), conv(width, width, 3, padding=1), nn.ReLU(), pool(2)]
        inputs = width
    return nn.Sequential(*layers, mean(1), nn.Flatten(), nn.Linear(inputs, 2 * LATENTS))


def distribution(parameters: Tensor) -> torch.distributions.Normal:
    """The normal distribution that a network's output means."""
    mean, log_deviation = parameters.float().chunk(2, dim=1)
    return torch.distributions.Normal(mean, log_deviation.clamp(-10, 5).exp())


def segmentation_loss(config: Config) -> nn.Module:
    """Cross-entropy and foreground Dice with LDSeg's weights."""
    return DiceCELoss(
        include_background=False, softmax=True, to_onehot_y=True, smooth_nr=1.0, smooth_dr=1.0,
        lambda_dice=config.loss.dice, lambda_ce=config.loss.cross_entropy,
    )  # fmt: skip
