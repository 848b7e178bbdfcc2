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
        decoder_skips: channels that the image encoder hands to the label decoder at each level finer than the latent
            grid, beside the embedding; 0 decodes the latent alone, as the paper does.
        image_patch: what `patch` is for the image encoder; empty: the same. It runs once a case whatever the number of
            samples, so it may work at full resolution (1) where the decoder does not; with decoder_skips its finest
            features enter the decoder's last convolution.
        image_climb: with decoder_skips the image encoder comes back up to its finest grid, as a U-Net does, so that the
            decoder is handed features that have seen the whole image; False hands over those of the way down.
        image_logits: the image encoder is a residual U-Net and gives class logits of its own, once a case; the label
            decoder adds to them a residual that it makes of the latent and of that network's features on the grid of
            the patches. It takes the place of the three keys above; `blocks` does not reach it.
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
    decoder_skips: int = 0
    image_patch: tuple[int, ...] = ()
    image_climb: bool = False
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
        check(
            len(self.image_patch) in (0, len(self.patch)) and all(p >= 1 for p in self.image_patch),
            f"model.image_patch {self.image_patch} needs one entry per axis of at least 1, or none",
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
            len(self.image_widths) >= self.image_levels + 1,
            f"model.image_widths {self.image_widths} needs at least {self.image_levels + 1} entries",
        )
        check(
            not self.image_logits or not (self.decoder_skips or self.image_climb or self.image_levels > self.levels),
            "model.image_logits takes the place of model.decoder_skips, model.image_patch and model.image_climb",
        )
        finer = self.image_levels - self.levels
        ratio = tuple(p // q for p, q in zip(self.patch, self.image_patch or self.patch, strict=True))
        check(
            all(r in (1, 2**finer) for r in ratio) and (finer > 0 or set(ratio) == {1}),
            f"model.image_patch {self.image_patch} must divide model.patch {self.patch} by the same power of two "
            "on every axis that it divides",
        )

    def _check_numbers(self) -> None:
        check(self.latent_channels >= 1, f"model.latent_channels must be at least 1, got {self.latent_channels}")
        check(
            self.embedding_channels >= 0, f"model.embedding_channels must be at least 0, got {self.embedding_channels}"
        )
        check(self.blocks >= 1, f"model.blocks must be at least 1, got {self.blocks}")
        check(self.decoder_skips >= 0, f"model.decoder_skips must be at least 0, got {self.decoder_skips}")
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
        return _halvings(self.downsampling, self.patch)

    @property
    def image_levels(self) -> int:
        """The same for the image encoder."""
        return _halvings(self.downsampling, self.image_patch or self.patch)

    @property
    def multiple(self) -> tuple[int, ...]:
        """What each axis of a working grid must be a multiple of."""
        deeper = max(len(self.denoiser_widths) - 1, len(self.image_widths) - 1 - self.image_levels)
        return tuple(d * (2**deeper if d > 1 else 1) for d in self.downsampling)


def _halvings(downsampling: tuple[int, ...], patch: tuple[int, ...]) -> int:
    return max(int(math.log2(d // p)) for d, p in zip(downsampling, patch, strict=True))
