"""LDSeg: the four networks and the ways through them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from ldseg.config import Config, SamplerConfig
from ldseg.diffusion import make_alphas_cumprod, make_input_scale, standardise
from ldseg.networks import authors
from ldseg.networks.autoencoder import LabelDecoder, LabelEncoder
from ldseg.networks.blocks import conv
from ldseg.networks.denoiser import Denoiser, Seen
from ldseg.networks.image_encoder import ImageEncoder
from ldseg.networks.residual import Handed as Handed
from ldseg.networks.residual import ResidualDecoder
from ldseg.networks.unet import UNetEncoder
from ldseg.samplers import sample, sample_authors


class LDSeg(nn.Module):
    """Label encoder, image encoder, denoiser and label decoder (Zaman et al., arXiv 2407.12952, figure 2).

    Every method treats the items of a batch independently: a case's answer does not depend on its neighbours.
    """

    alphas_cumprod: Tensor
    input_scale: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.label_encoder, self.image_encoder, self.label_decoder, self.denoiser = _networks(config)
        self.register_buffer("alphas_cumprod", make_alphas_cumprod(config.diffusion), persistent=False)
        self.register_buffer("input_scale", make_input_scale(config.diffusion), persistent=False)
        self.direct: nn.Module | None = None
        if config.loss.deterministic:
            embedding = config.model.embedding_channels or config.model.latent_channels
            self.direct = conv(config.data.spatial_dims, embedding, config.model.latent_channels, kernel=1)

    @property
    def memory_format(self) -> torch.memory_format:
        """Channels last: up to twice as fast on CPUs, and what tensor cores want."""
        return torch.channels_last if self.config.data.spatial_dims == 2 else torch.channels_last_3d

    def channels_last(self) -> LDSeg:
        """This model with its weights laid out as `memory_format`."""
        return cast(LDSeg, cast(Any, self).to(memory_format=self.memory_format))

    def latent_shape(self, grid: tuple[int, ...]) -> tuple[int, ...]:
        """(latent_channels, *latent) for a working grid."""
        factors = self.config.model.downsampling
        return (self.config.model.latent_channels, *[g // f for g, f in zip(grid, factors, strict=True)])

    def encode_image(self, images: Tensor) -> Tensor:
        """(B, in_channels, *grid), normalised -> embedding (B, channels, *latent).

        The first `embedding_channels` are what the denoiser sees (`context`); the rest goes to the decoder.
        """
        return self.image_encoder(images.contiguous(memory_format=self.memory_format))

    def encode_label(self, labels: Tensor) -> Tensor:
        """(B, num_classes, *grid) one-hot -> standardised latents (B, latent_channels, *latent)."""
        return self.label_encoder(labels.contiguous(memory_format=self.memory_format))

    def context(self, embedding: Tensor) -> Tensor:
        """What the denoiser sees of an embedding, (B, embedding_channels, *latent)."""
        return embedding[:, : self.config.model.embedding_channels or self.config.model.latent_channels]

    def decode(self, latents: Tensor, seen: Tensor | Handed | None = None) -> Tensor:
        """Class logits (B, num_classes, *grid).

        Args:
            latents: (B, latent_channels, *latent).
            seen: the embedding of their images (B, channels, *latent), or what `hand_over` makes of it once for many
                samples; a decoder without skips and `image_logits` does not look at it.
        """
        image = (seen,) if self.config.model.image_logits or self.config.model.decoder_skips else ()
        return self.label_decoder(latents.contiguous(memory_format=self.memory_format), *image)

    def hand_over(self, embedding: Tensor) -> Tensor | Handed:
        """What `decode` needs of an embedding, made once for many samples."""
        if not self.config.model.image_logits:
            return embedding
        return cast(ResidualDecoder, self.label_decoder).hand_over(embedding)

    def image_logits(self, embedding: Tensor) -> Tensor:
        """What the image encoder alone says: class logits (B, num_classes, *grid); with `image_logits`."""
        return cast(ResidualDecoder, self.label_decoder).image_logits(embedding)

    def denoise(self, latents: Tensor, t: Tensor, embedding: Tensor | Seen) -> Tensor:
        """The denoiser's output at step t, like `latents`.

        With an input scale the network sees nothing but the image where z_t is all noise, and does not have to learn
        to look away.

        Args:
            latents: z_t (B, latent_channels, *latent).
            t: (B,) int64.
            embedding: (B, embedding_channels, *latent), or what the denoiser sees of it, made once for many steps.
        """
        scale = self.input_scale[t].to(latents.dtype).view(-1, *[1] * (latents.ndim - 1))
        seen = self.context(embedding) if isinstance(embedding, Tensor) else embedding
        return self.denoiser(scale * latents, t, seen)

    def direct_latents(self, embedding: Tensor) -> Tensor:
        """The no-diffusion control: latents from the embedding alone, (B, latent_channels, *latent).

        Raises:
            ValueError: the model was not built with loss.deterministic.
        """
        if self.direct is None:
            raise ValueError("this model samples; only one trained with loss.deterministic decodes its embedding")
        return standardise(self.direct(self.context(embedding)))

    def sample_latents(
        self,
        embedding: Tensor,
        noise: Iterator[Tensor],
        sampler: SamplerConfig,
        before_step: Callable[[], None] = lambda: None,
    ) -> Tensor:
        """Draw one latent for each item of `embedding`.

        Args:
            embedding: (B, embedding_channels, *latent); expand one case's for several samples of it.
            noise: standard normal tensors (B, latent_channels, *latent): one for DDIM, one a step for DDPM.
            before_step: called before each step of the denoiser; what it raises ends the drawing.

        Returns:
            (B, latent_channels, *latent).
        """
        if self.direct is not None:
            return self.direct_latents(embedding)
        seen: Tensor | Seen
        if isinstance(self.denoiser, Denoiser):
            # an expanded embedding is one image's, looked at once for all of its samples
            once = self.context(embedding if embedding.stride(0) else embedding[:1])
            seen = self.denoiser.see(once.contiguous(memory_format=self.memory_format))
        else:
            seen = self.context(embedding).contiguous(memory_format=self.memory_format)
        call = self.denoiser if sampler.schedule == "authors" else self.denoise

        def step(x: Tensor, t: Tensor) -> Tensor:
            before_step()
            return cast(Tensor, call(x, t, seen)).to(x.dtype)

        if sampler.schedule == "authors":
            return sample_authors(step, noise, self.config.diffusion.num_train_steps, sampler)
        return sample(step, noise, self.alphas_cumprod.cpu(), self.config.diffusion.prediction_type, sampler)


def _networks(config: Config) -> tuple[nn.Module, nn.Module, nn.Module, nn.Module]:
    """Label encoder, image encoder, label decoder and denoiser of the family."""
    model, data = config.model, config.data
    if model.family == "ldseg":
        label_encoder, denoiser = LabelEncoder(model, data.num_classes), Denoiser(model)
        if model.image_logits:
            unet = UNetEncoder(model, data.in_channels, data.num_classes)
            return label_encoder, unet, ResidualDecoder(model, data.num_classes), denoiser
        image_encoder = ImageEncoder(model, data.in_channels)
        return label_encoder, image_encoder, LabelDecoder(model, data.num_classes), denoiser
    latent = tuple(n // factor for n, factor in zip(data.shape, model.downsampling, strict=True))
    return (
        authors.LabelEncoder(data.spatial_dims, model.autoencoder_widths, latent),
        authors.ImageEncoder(data.spatial_dims, data.in_channels, model.image_widths),
        authors.LabelDecoder(data.spatial_dims, model.autoencoder_widths[:0:-1], data.num_classes),
        authors.Denoiser(data.spatial_dims, model.denoiser_widths),
    )
