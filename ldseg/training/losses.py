"""The one loss that trains the four networks end to end."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from monai.losses import DiceLoss
from torch import Tensor, nn

from ldseg.diffusion import draw_steps, predict_epsilon, predict_x0, prediction_target, q_sample
from ldseg.model import LDSeg


class TrainingLoss(nn.Module):
    """LDSeg's training objective as a module, so that data-parallel training wraps one forward pass.

    L = w(t) [CE + gamma Dice](decode(x0_hat), y) + lambda ||f(z_t, t, z_i) - target||^2
        + reconstruction [CE + gamma Dice](decode(z_0 + noise), y)
        + image [CE + gamma Dice](the image encoder's own logits, y)

    The first line is the paper's loss; the second keeps the label encoder from a constant latent, for which
    denoising would be trivial; the last is there with `model.image_logits`. Dice is over the foreground classes of
    each sample (smoothing of one voxel).
    """

    def __init__(self, model: LDSeg) -> None:
        super().__init__()
        self.model = model
        self.soft_dice = DiceLoss(
            softmax=True, include_background=False, reduction="none", smooth_nr=1.0, smooth_dr=1.0
        )

    def forward(
        self,
        images: Tensor,
        labels: Tensor,
        t: Tensor,
        noise: Tensor,
        perturbation: Tensor,
        decode_clean: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """All terms and their weighted sum.

        Args:
            images: (B, in_channels, *grid).
            labels: class indices (B, *grid), int64.
            t: steps (B,), int64.
            noise: standard normal (B, latent_channels, *latent), its own draw for each item.
            perturbation: standard normal like `noise`, scaled by loss.latent_noise.
            decode_clean: (B,) bool, the items that decode their clean latent, the others their estimate; None: both.

        Returns:
            "loss" and its parts "cross_entropy", "dice_loss", "denoising", "reconstruction" and with
            `model.image_logits` "image" (scalars), and "latent_std": spread over the batch of the clean latents, 0
            when the label encoder has collapsed.
        """
        model, weights = self.model, self.model.config.loss
        one_hot = F.one_hot(labels, model.config.data.num_classes).movedim(-1, 1).to(images.dtype)
        noise = noise[:1].expand_as(noise) if weights.shared_noise else noise
        embedding = model.encode_image(images)
        if weights.deterministic:
            cross_entropy, dice = self._segmentation(
                model.decode(model.direct_latents(embedding), embedding), one_hot, labels
            )
            loss = (weights.cross_entropy * cross_entropy + weights.dice * dice).mean()
            return {"loss": loss, "cross_entropy": cross_entropy.mean().detach(), "dice_loss": dice.mean().detach()}

        kind, alphas = model.config.diffusion.prediction_type, model.alphas_cumprod
        z0 = model.encode_label(one_hot)
        z_t = q_sample(z0, t, noise, alphas)
        if self.training and weights.embedding_dropout:
            kept = torch.rand(len(images), device=images.device) >= weights.embedding_dropout
            embedding = embedding * kept.view(-1, *[1] * (embedding.ndim - 1))
        output = model.denoise(z_t, t, embedding)
        target = prediction_target(z0.detach() if weights.detach_target else z0, t, noise, alphas, kind)
        denoising = F.mse_loss(output.float(), target.float())
        x0_hat = predict_x0(z_t, t, output, alphas, kind)
        if weights.decoded_estimate == "difference":
            x0_hat = z_t - (output if kind == "epsilon" else predict_epsilon(z_t, t, x0_hat, alphas))
        clean = z0 + weights.latent_noise * perturbation
        by_kind = {"uniform": torch.ones_like(alphas), "alphas_cumprod": alphas, "never": torch.zeros_like(alphas)}
        by_step = by_kind[weights.timestep_weight][t].float()
        if decode_clean is None:
            latents, seen = torch.cat([x0_hat, clean]), torch.cat([embedding, embedding])
            is_clean = torch.arange(len(latents), device=t.device) >= len(images)
            truth, wanted = torch.cat([one_hot, one_hot]), torch.cat([labels, labels])
            by_step, share = torch.cat([by_step, by_step]), 1.0
        else:
            is_clean, share = decode_clean, 2.0
            latents = torch.where(is_clean.view(-1, *[1] * (z0.ndim - 1)), clean, x0_hat)
            seen, truth, wanted = embedding, one_hot, labels
        cross_entropy, dice = self._segmentation(model.decode(latents, seen), truth, wanted)
        estimated, cleanly = (share * ~is_clean).float() / len(images), (share * is_clean).float() / len(images)
        by_dice = weights.dice if weights.estimate_dice else 0.0
        segmentation = (estimated * by_step * (weights.cross_entropy * cross_entropy + by_dice * dice)).sum()
        reconstruction = (cleanly * (weights.cross_entropy * cross_entropy + weights.dice * dice)).sum()
        loss = segmentation + weights.denoising * denoising + weights.reconstruction * reconstruction
        terms = {
            "cross_entropy": (estimated * cross_entropy).sum().detach(),
            "dice_loss": (estimated * dice).sum().detach(),
            "denoising": denoising.detach(),
            "reconstruction": reconstruction.detach(),
            "latent_std": z0.detach().float().std(0, correction=0).mean(),
        }
        if model.config.model.image_logits:
            alone = self._segmentation(model.image_logits(embedding), one_hot, labels)
            image = (weights.cross_entropy * alone[0] + weights.dice * alone[1]).mean()
            loss, terms["image"] = loss + weights.image * image, image.detach()
        return {"loss": loss, **terms}

    def _segmentation(self, logits: Tensor, one_hot: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy and soft Dice loss of each sample, both (B,)."""
        logits = logits.float()
        cross_entropy = F.cross_entropy(logits, labels, reduction="none").flatten(1).mean(1)
        return cross_entropy, self.soft_dice(logits, one_hot.float()).flatten(1).mean(1)


def draw_training(model: LDSeg, images: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Steps, noise, perturbation and which items decode their clean latent, for `TrainingLoss`, on the images' device.

    Args:
        images: (B, in_channels, *grid).
        generator: a CPU generator: the same numbers on every device.
    """
    config, shape = model.config, (len(images), *model.latent_shape(tuple(images.shape[2:])))
    t = draw_steps(len(images), config.diffusion.num_train_steps, config.loss.noisiest_share, generator)
    noise, perturbation = (torch.randn(shape, generator=generator) for _ in range(2))
    drawn = [t, noise, perturbation]
    if config.loss.decodings == "one":  # every other item, so that a batch has both
        drawn.append((torch.arange(len(images)) + torch.randint(2, (1,), generator=generator)) % 2 == 0)
    return tuple(one.to(images.device) for one in drawn)
