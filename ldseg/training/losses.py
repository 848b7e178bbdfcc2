"""The one loss that trains the four networks end to end."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from monai.losses import DiceLoss
from torch import Tensor, nn

from ldseg.config import IGNORED
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

    Voxels that nobody judged (`ldseg.config.IGNORED`) are background to the label encoder and in no term that compares
    with the label.

    Args:
        has_ignored: labels may have such voxels; without them nothing is looked for.
    """

    def __init__(self, model: LDSeg, *, has_ignored: bool = False) -> None:
        super().__init__()
        self.model = model
        self.has_ignored = has_ignored
        self.soft_dice = DiceLoss(
            softmax=True, include_background=False, reduction="none", smooth_nr=1.0, smooth_dr=1.0
        )
        self.soft_dice_of_shares = DiceLoss(include_background=False, reduction="none", smooth_nr=1.0, smooth_dr=1.0)

    def forward(
        self,
        images: Tensor,
        labels: Tensor,
        t: Tensor | None = None,
        noise: Tensor | None = None,
        perturbation: Tensor | None = None,
        decode_clean: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """All terms and their weighted sum; of the image encoder's own logits alone where nothing is drawn.

        Args:
            images: (B, in_channels, *grid).
            labels: class indices (B, *grid), int64; IGNORED where nobody judged.
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
        classes = labels.masked_fill(labels == IGNORED, 0) if self.has_ignored else labels
        one_hot = F.one_hot(classes, model.config.data.num_classes).movedim(-1, 1).to(images.dtype)
        embedding = model.encode_image(images)
        if t is None or noise is None or perturbation is None:
            image = self._image(embedding, one_hot, labels)
            return {"loss": weights.image * image, "image": image.detach()}
        noise = noise[:1].expand_as(noise) if weights.shared_noise else noise
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
        estimated, cleanly = self._decoded(x0_hat, clean, embedding, (one_hot, labels), decode_clean)
        by_kind = {"uniform": torch.ones_like(alphas), "alphas_cumprod": alphas, "never": torch.zeros_like(alphas)}
        by_step, by_dice = by_kind[weights.timestep_weight][t].float(), weights.dice * weights.estimate_dice
        segmentation = (by_step * (weights.cross_entropy * estimated[0] + by_dice * estimated[1])).mean()
        reconstruction = (weights.cross_entropy * cleanly[0] + weights.dice * cleanly[1]).mean()
        loss = segmentation + weights.denoising * denoising + weights.reconstruction * reconstruction
        terms = {
            "cross_entropy": estimated[0].mean().detach(),
            "dice_loss": estimated[1].mean().detach(),
            "denoising": denoising.detach(),
            "reconstruction": reconstruction.detach(),
            "latent_std": z0.detach().float().std(0, correction=0).mean(),
        }
        if model.config.model.image_logits:
            image = self._image(embedding, one_hot, labels)
            loss, terms["image"] = loss + weights.image * image, image.detach()
        return {"loss": loss, **terms}

    def _image(self, embedding: Tensor, one_hot: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy and Dice loss of the image encoder's own logits."""
        weights = self.model.config.loss
        cross_entropy, dice = self._segmentation(self.model.image_logits(embedding), one_hot, labels)
        return (weights.cross_entropy * cross_entropy + weights.dice * dice).mean()

    def _decoded(
        self,
        estimate: Tensor,
        clean: Tensor,
        embedding: Tensor,
        truth: tuple[Tensor, Tensor],
        decode_clean: Tensor | None,
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Cross-entropy and Dice loss, each (B,), of the decoded estimates and of the decoded clean latents.

        Where an item decodes one of the two, that one counts twice and the other is 0: the same in the mean.
        """
        if decode_clean is None:
            twice = [torch.cat([part, part]) for part in (embedding, *truth)]
            found = self._segmentation(self.model.decode(torch.cat([estimate, clean]), twice[0]), *twice[1:])
            (cross_entropy, clean_cross_entropy), (dice, clean_dice) = (values.chunk(2) for values in found)
            return (cross_entropy, dice), (clean_cross_entropy, clean_dice)
        latents = torch.where(decode_clean.view(-1, *[1] * (clean.ndim - 1)), clean, estimate)
        cross_entropy, dice = self._segmentation(self.model.decode(latents, embedding), *truth)
        cleanly, estimated = 2.0 * decode_clean, 2.0 * ~decode_clean
        return (estimated * cross_entropy, estimated * dice), (cleanly * cross_entropy, cleanly * dice)

    def _segmentation(self, logits: Tensor, one_hot: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy and soft Dice loss of each sample, both (B,)."""
        logits = logits.float()
        if self.has_ignored:
            return self._judged(logits, one_hot, labels)
        cross_entropy = F.cross_entropy(logits, labels, reduction="none").flatten(1).mean(1)
        return cross_entropy, self.soft_dice(logits, one_hot.float()).flatten(1).mean(1)

    def _judged(self, logits: Tensor, one_hot: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The same over the voxels that somebody judged; 0 for a sample that has none."""
        known = (labels != IGNORED)[:, None]
        voxels = F.cross_entropy(logits, labels * known[:, 0], reduction="none") * known[:, 0]
        cross_entropy = voxels.flatten(1).sum(1) / known.flatten(1).sum(1).clamp(min=1)
        # of classes without a voxel on either side the Dice loss is 0
        dice = self.soft_dice_of_shares(logits.softmax(1) * known, one_hot.float() * known)
        return cross_entropy, dice.flatten(1).mean(1)


def draw_training(model: LDSeg, images: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Steps, noise, perturbation and which items decode their clean latent, for `TrainingLoss`, on the images' device.

    Nothing with probability `loss.image_alone`.

    Args:
        images: (B, in_channels, *grid).
        generator: a CPU generator: the same numbers on every device.
    """
    config, shape = model.config, (len(images), *model.latent_shape(tuple(images.shape[2:])))
    if config.loss.image_alone and torch.rand((), generator=generator) < config.loss.image_alone:
        return ()
    t = draw_steps(len(images), config.diffusion.num_train_steps, config.loss.noisiest_share, generator)
    noise, perturbation = (torch.randn(shape, generator=generator) for _ in range(2))
    drawn = [t, noise, perturbation]
    if config.loss.decodings == "one":  # every other item, so that a batch has both
        drawn.append((torch.arange(len(images)) + torch.randint(2, (1,), generator=generator)) % 2 == 0)
    return tuple(one.to(images.device) for one in drawn)
