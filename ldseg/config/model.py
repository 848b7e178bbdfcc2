"""Sizes of the networks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ldseg.config.parsing import check, check_choices


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes of the four networks.

    Attributes:
        family: "ldseg", the networks described here, or "authors", those of `ldseg.networks.authors`, for which
            `latent_channels` is 1, `patch` is 1 and `autoencoder_widths` are the label encoder's.
        downsampling: working grid / latent grid per axis, powers of two (1 on the time axis of 2D+t).
        patch: how much of `downsampling` is done by space-to-depth before the first convolution and undone
            by depth-to-space after the last one, per axis; 1 works at full resolution as the authors do.
        latent_channels: channels of the label latent z.
        embedding_channels: channels of the image embedding; 0 takes `latent_channels`, as the paper does.
        autoencoder_widths: label encoder and decoder, finest first; one more than the halvings left after `patch`.
        image_widths: image encoder, finest first; entries beyond the latent grid go deeper and come back (a U-Net).
        denoiser_widths: denoiser levels from the latent grid down.
        blocks: residual blocks per level (the image encoder has one more below its finest).
        norm_group: channels that are normalised together; 1 normalises each on its own, as a U-Net's instance
            normalisation does, which learns faster where structures are told by single features.
        denoiser_attention: self-attention at the denoiser's coarsest level.
        label_input: the label encoder's input: "one_hot", or "value" as the authors do, the class index as one channel.
        denoiser_context: a filter matched to the image reads what z_t says as a whole (see `MatchedFilter`).
        image_logits: the image encoder comes back up to the grid of the patches, as a U-Net does, and gives class
            logits of its own, once a case; the label decoder adds to them a residual that it makes of the latent and of
            the features there. False decodes the latent alone, as the paper does.
    """

    family: Literal["ldseg", "authors"] = "ldseg"
    downsampling: tuple[int, ...] = (4, 4, 4)
    patch: tuple[int, ...] = (2, 2, 2)
    latent_channels: int = 4
    embedding_channels: int = 32
    autoencoder_widths: tuple[int, ...] = (24, 48)
    image_widths: tuple[int, ...] = (24, 64, 96)
    denoiser_widths: tuple[int, ...] = (48, 96)
    blocks: int = 1
    norm_group: int = 8
    denoiser_attention: bool = True
    denoiser_context: bool = False
    image_logits: bool = False
    label_input: Literal["one_hot", "value"] = "one_hot"

    def __post_init__(self) -> None:
        self._check_grids()
        self._check_numbers()

    def _check_grids(self) -> None:
        check(
            len(self.patch) == len(self.downsampling),
            f"model.patch {self.patch} and model.downsampling {self.downsampling} need one entry per axis",
        )
        for factor, patch in zip(self.downsampling, self.patch, strict=True):
            check(
                factor >= 1 and factor & (factor - 1) == 0,
                f"model.downsampling entries must be powers of two, got {self.downsampling}",
            )
            check(patch >= 1 and factor % patch == 0, f"model.patch {self.patch} must divide {self.downsampling}")
        check(
            len(self.autoencoder_widths) == self.levels + 1,
            f"model.autoencoder_widths {self.autoencoder_widths} needs {self.levels + 1} entries for "
            f"downsampling {self.downsampling} after patch {self.patch}",
        )
        check(
            len(self.image_widths) >= self.levels + 1,
            f"model.image_widths {self.image_widths} needs at least {self.levels + 1} entries",
        )

    def _check_numbers(self) -> None:
        check(self.latent_channels >= 1, f"model.latent_channels must be at least 1, got {self.latent_channels}")
        check(
            self.embedding_channels >= 0, f"model.embedding_channels must be at least 0, got {self.embedding_channels}"
        )
        check(self.blocks >= 1, f"model.blocks must be at least 1, got {self.blocks}")
        check_choices(self, "model")
        widths = (*self.autoencoder_widths, *self.image_widths, *self.denoiser_widths)
        unit = 8 if self.family == "ldseg" else 4
        check(
            bool(self.denoiser_widths) and all(w >= unit and w % unit == 0 for w in widths),
            f"widths must be multiples of {unit}, got {widths}",
        )
        check(
            self.norm_group >= 1 and (self.family != "ldseg" or all(w % self.norm_group == 0 for w in widths)),
            f"model.norm_group {self.norm_group} must divide every width, got {widths}",
        )
        check(
            self.family == "ldseg" or (self.latent_channels == 1 and set(self.patch) == {1} and not self.image_logits),
            "model.family authors needs model.latent_channels 1, model.patch 1 and no model.image_logits",
        )

    @property
    def levels(self) -> int:
        """Halvings between the patch grid and the latent grid."""
        return max(int(math.log2(d // p)) for d, p in zip(self.downsampling, self.patch, strict=True))

    @property
    def multiple(self) -> tuple[int, ...]:
        """What each axis of a working grid must be a multiple of."""
        deeper = max(len(self.denoiser_widths) - 1, len(self.image_widths) - 1 - self.levels)
        return tuple(d * (2**deeper if d > 1 else 1) for d in self.downsampling)
