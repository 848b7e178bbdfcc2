"""One case -> K samples in chunks -> a streaming accumulator -> a summary on the native grid."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ldseg.bundle import Bundle
from ldseg.calibration.familiarity import Judgement
from ldseg.calibration.temperature import scale_probability
from ldseg.config import SamplerConfig
from ldseg.data.grid import GridCase, find_geometry, prepare
from ldseg.data.volume import Volume
from ldseg.memory.cost import bytes_per_voxel, check_memory, needed_bytes
from ldseg.model import Handed, LDSeg
from ldseg.posterior.accumulator import PosteriorAccumulator, arg_max, entropy, soft_dice_confidence
from ldseg.posterior.draws import Drawn, Draws, partition
from ldseg.posterior.stopwatch import Stopwatch
from ldseg.posterior.summary import PosteriorSummary, by_structure, kept_samples, label_dtype
from ldseg.precision import Precision, choose

_CHOSEN: dict[tuple[str, str, str], Precision] = {}  # one trial of a model serves all its cases
_COSTS: dict[tuple[str, str, str, int], float] = {}  # and so does one measurement of its memory
ON_DEVICE = 2**25  # native values; of a larger image a GPU's memory would hold too many maps


def steps_config(model: LDSeg, num_steps: int | None) -> SamplerConfig:
    """The model's sampler, with another number of steps if one is given."""
    sampler = model.config.sampler
    return sampler if num_steps is None else dataclasses.replace(sampler, num_sample_steps=num_steps)


def sample_probabilities(
    model: LDSeg, embedding: Tensor, starts: Tensor, generator: torch.Generator, num_steps: int | None = None
) -> Tensor:
    """Samples of one case from given starting noise.

    Args:
        embedding: (1, embedding_channels, *latent).
        starts: standard normal (K, latent_channels, *latent).
        generator: CPU source of the further noise that DDPM needs.

    Returns:
        Class probabilities (K, C, *grid) float32.
    """

    def noise() -> Iterator[Tensor]:
        yield starts
        while True:
            yield torch.randn(starts.shape, generator=generator).to(starts.device)

    expanded = embedding.expand(len(starts), *embedding.shape[1:])
    latents = model.sample_latents(expanded, noise(), steps_config(model, num_steps))
    seen = model.hand_over(embedding)
    return torch.cat([model.decode(z[None], seen).float().softmax(1) for z in latents])


class Posterior:
    """Draws from a model's posterior over segmentations of a case.

    A sample is a function of (content of the case, model digest, seed, sample index) alone: the same four give the
    same sample alone, in any chunk, in any order and in any process that prepares the case on the same kind of device
    and computes with the same precision.

    Args:
        precision: of the networks (`ldseg.precision`): "float32", "bfloat16" or "auto"; None takes
            LDSEG_PRECISION from the environment, else "auto".
        before_step: called before each step of the denoiser and each sample that is decoded; what it raises ends the
            drawing there.

    Attributes:
        encoder_calls: how often the image encoder ran; once per case whatever K.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: str = "cpu",
        chunk_size: int = 4,
        precision: str | None = None,
        before_step: Callable[[], None] = lambda: None,
    ) -> None:
        if chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
        self.bundle, self.device, self.chunk_size, self.before_step = bundle, device, chunk_size, before_step
        self.config = bundle.config
        self.model = bundle.model.to(device)
        self.asked_precision = precision or os.environ.get("LDSEG_PRECISION") or "auto"
        self.encoder_calls = 0

    @property
    def precision(self) -> Precision:
        """What the networks are computed in; "auto" is decided here, by a trial with this model."""
        key = self.bundle.digest, self.device, self.asked_precision
        if key not in _CHOSEN:
            _CHOSEN[key] = choose(self.model, self.device, self.asked_precision)
        return _CHOSEN[key]

    @property
    def bytes_per_voxel(self) -> float:
        """Memory that the networks take for each voxel of the working grid; measured here, with this model."""
        key = self.bundle.digest, self.device, self.asked_precision, self.chunk_size
        if key not in _COSTS:
            _COSTS[key] = bytes_per_voxel(
                self.model, self.device, self.precision.arithmetic(self.device), self.chunk_size
            )
        return _COSTS[key]

    def check_memory(self, volume: Volume, samples: int = 1, limit: int | None = None) -> None:
        """See that a case takes no more memory than it may.

        Args:
            samples: that will be drawn of it, by all models.
            limit: in bytes; None is `ldseg.config.memory.case_bytes`.

        Raises:
            CaseError: it would take more; nothing of it was made yet.
        """
        grid = find_geometry(volume, self.config.data, self.config.model.multiple).grid
        sizes = {"voxels": math.prod(volume.shape), "grid_voxels": math.prod(grid), "samples": samples}
        needed = needed_bytes(self.config.data, self.bytes_per_voxel, **sizes)
        check_memory(volume.case, needed, limit, self.device, grid=grid, samples=samples)

    def prepare(
        self, volume: Volume, watch: Stopwatch | None = None, *, samples: int = 1, limit: int | None = None
    ) -> GridCase:
        """Bring a volume onto the working grid; see `check_memory` for what is refused."""
        self.check_memory(volume, samples, limit)
        with (watch or Stopwatch()).stage("read"):
            device = self.device if volume.array.size <= ON_DEVICE else "cpu"
            return prepare(volume, self.config.data, self.config.model.multiple, device)

    @torch.inference_mode()
    def encode(self, grid: GridCase, watch: Stopwatch | None = None) -> Tensor:
        """Image embedding (1, embedding_channels, *latent)."""
        arithmetic = self.precision.arithmetic(self.device)
        with (watch or Stopwatch()).stage("encode"), arithmetic:
            self.encoder_calls += 1
            return self.model.encode_image(grid.image[None].to(self.device)).float()

    def _generator(self, content_digest: str, seed: int, index: int) -> torch.Generator:
        name = f"{content_digest}|{self.bundle.digest}|{seed}|{index}".encode()
        return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(name).digest()[:8], "big") % 2**63)

    @torch.inference_mode()
    def latents(
        self,
        grid: GridCase,
        embedding: Tensor,
        *,
        seed: int,
        indices: Sequence[int],
        num_steps: int | None = None,
        watch: Stopwatch | None = None,
    ) -> Tensor:
        """Clean latents of the named samples, (K, latent_channels, *latent).

        The denoiser always sees `chunk_size` of them (a cut chunk is filled up with its first), so that a sample's bits
        don't depend on how many are drawn with it.
        """
        # statistics over a batch would tie its samples together
        size = 1 if self.config.sampler.standardise == "batch" else self.chunk_size
        chunks = [indices[start : start + size] for start in range(0, len(indices), size)]
        with (watch or Stopwatch()).stage("denoise"):
            return torch.cat([self._latents(grid, embedding, seed, chunk, size, num_steps) for chunk in chunks])

    def _latents(
        self, grid: GridCase, embedding: Tensor, seed: int, indices: Sequence[int], size: int, num_steps: int | None
    ) -> Tensor:
        shape = self.model.latent_shape(tuple(grid.image.shape[1:]))
        generators = [self._generator(grid.volume.content_digest, seed, index) for index in indices]

        def noise() -> Iterator[Tensor]:
            while True:
                drawn = [torch.randn(shape, generator=g) for g in generators]
                yield torch.stack(drawn + drawn[:1] * (size - len(drawn))).to(self.device)

        expanded = embedding.to(self.device).expand(size, *embedding.shape[1:])
        with self.precision.denoising(self.device, shape[1:]):
            sampler = steps_config(self.model, num_steps)
            filled = self.model.sample_latents(expanded, noise(), sampler, self.before_step)
        return filled[: len(indices)]

    @torch.inference_mode()
    def hand_over(self, embedding: Tensor, watch: Stopwatch | None = None) -> Tensor | Handed:
        """What `decode` needs of a case's embedding, made once for many samples."""
        with (watch or Stopwatch()).stage("decode"), self.precision.arithmetic(self.device):
            return self.model.hand_over(embedding.to(self.device))

    @torch.inference_mode()
    def decode(self, latent: Tensor, seen: Tensor | Handed, watch: Stopwatch | None = None) -> Tensor:
        """Class probabilities (1, C, *grid) of one latent (latent_channels, *latent).

        `seen` is the case's embedding or what `hand_over` makes of it: both give the same numbers. One sample at a
        time: memory does not grow with the chunk, and a sample's numbers don't depend on it.
        """
        self.before_step()
        arithmetic = self.precision.arithmetic(self.device)
        with (watch or Stopwatch()).stage("decode"), arithmetic:
            seen = seen.to(self.device) if isinstance(seen, Tensor) else seen
            return self.model.decode(latent[None], seen).softmax(1, dtype=torch.float32)

    @torch.inference_mode()
    def image_probability(self, embedding: Tensor) -> Tensor:
        """What the image alone says, nothing drawn: class probabilities (C, *grid).

        From the image encoder's own logits, or from one step, at which the denoiser sees nothing of the noise.
        """
        embedding = embedding.to(self.device)
        if self.config.model.image_logits:
            with self.precision.arithmetic(self.device):
                return self.model.image_logits(embedding).softmax(1, dtype=torch.float32)[0]
        shape = (self.config.model.latent_channels, *embedding.shape[2:])
        sampler = dataclasses.replace(self.config.sampler, method="ddim", num_sample_steps=1, schedule="even")
        with self.precision.denoising(self.device, shape[1:]):
            latent = self.model.sample_latents(embedding, iter([torch.zeros(1, *shape, device=self.device)]), sampler)
        return self.decode(latent[0], embedding)[0]

    @torch.inference_mode()
    def accumulate(
        self,
        grid: GridCase,
        embedding: Tensor,
        *,
        seed: int,
        indices: Sequence[int],
        num_steps: int | None = None,
        watch: Stopwatch | None = None,
    ) -> PosteriorAccumulator:
        """Draw the samples with the given indices and add them up, one after the other."""
        watch = watch or Stopwatch()
        classes, shape = self.config.data.num_classes, tuple(grid.image.shape[1:])
        total = PosteriorAccumulator.create(classes, shape, grid.inside, self.device)
        seen = self.hand_over(embedding, watch)
        for start in range(0, len(indices), self.chunk_size):
            chunk = indices[start : start + self.chunk_size]
            for latent in self.latents(grid, embedding, seed=seed, indices=chunk, num_steps=num_steps, watch=watch):
                probabilities = self.decode(latent, seen, watch)
                with watch.stage("aggregate"):
                    total.add(probabilities)
        return total

    @torch.inference_mode()
    def draw(self, volume: Volume, draws: Draws, watch: Stopwatch | None = None) -> Drawn:
        """Draw a case's samples; they are added up in chunks, in the order in which a service adds them.

        Args:
            watch: that has been running for the case already.
        """
        watch = watch or Stopwatch()
        grid = self.prepare(volume, watch, samples=draws.samples)
        embedding = self.encode(grid, watch)
        total: PosteriorAccumulator | None = None
        for indices in partition(draws.samples, self.chunk_size):
            part = self.accumulate(
                grid, embedding, seed=draws.seed, indices=indices, num_steps=draws.steps, watch=watch
            )
            total = part if total is None else total.include(part)
        assert total is not None  # there is at least one sample
        return Drawn(grid, embedding, total, draws, watch.seconds)

    @torch.inference_mode()
    def summarise(self, drawn: Drawn, *, keep_samples: int = 0) -> PosteriorSummary:
        """Maps on the native grid and numbers.

        A calibrated bundle's temperature is applied to the mean probability of all classes on the working grid, from
        which the maps of probability and entropy come. The label map is the arg max of the mean as it was drawn, in
        which the image's own probabilities may have a share (`sampler.image_share`); sample variance, volumes and
        agreement are those of the samples. A bundle whose calibration knows the training cases also judges whether the
        case is like them. `keep_samples` of the samples (all, if there are fewer) come along as label maps.
        """
        data, calibration = self.config.data, self.bundle.calibration
        grid, accumulator, num_steps, watch = drawn.grid, drawn.total, drawn.draws.steps, Stopwatch(drawn.seconds)
        with watch.stage("aggregate"):
            mean, predictive_entropy = accumulator.mean_probability(), accumulator.predictive_entropy()
            scaled = mean
            if calibration is not None:
                scaled = scale_probability(mean, calibration.temperature.temperature)
                predictive_entropy = entropy(scaled.clamp(0, 1), dim=0).clamp(min=0)
            extra = torch.stack([predictive_entropy, accumulator.sample_variance()])
            counts, agreement = accumulator.voxel_counts(), accumulator.pairwise_dice()
            confidence = soft_dice_confidence(scaled, accumulator.inside)
            segmented = mean
            share = self.config.sampler.image_share
            if share and not self.config.loss.deterministic:  # whose own logits nothing trains
                segmented = torch.lerp(mean, self.image_probability(drawn.embedding).to(mean), share)
        with watch.stage("resample"):
            where = mean.device if grid.volume.array.size <= ON_DEVICE else "cpu"
            maps = grid.native(torch.cat([scaled, extra]).to(where))
            shares = maps[: data.num_classes] if scaled is mean else grid.native(mean.to(where))
            values = np.asarray(data.label_values, dtype=label_dtype(data.label_values))
            label = values[arg_max(shares if segmented is mean else grid.native(segmented.to(where))).cpu().numpy()]
            native = maps.cpu().numpy()
            kept = kept_samples(grid, accumulator, keep_samples, data.label_values)
        return PosteriorSummary(
            case=grid.case,
            label=label,
            mean_probability=native[1 : data.num_classes],
            predictive_entropy=native[-2],
            sample_variance=native[-1],
            volumes={name: counts[:, k] * grid.voxel_size for k, name in enumerate(data.structures)},
            unit=grid.unit,
            agreement=by_structure(data.structures, agreement),
            seconds=watch.seconds,
            precision=self.precision.name,
            confidence=by_structure(data.structures, confidence),
            num_samples=accumulator.num_samples,
            num_steps=steps_config(self.model, num_steps).num_sample_steps,
            seed=drawn.draws.seed,
            model_digest=self.bundle.digest,
            intervals=None if calibration is None else calibration.intervals,
            cautious=self._cautious(shares[1:], accumulator.num_samples, num_steps),
            judgement=self._judge(grid, drawn.embedding),
            samples=kept,
            label_values=data.label_values,
            notes=grid.volume.notes,
        )

    def _cautious(self, mean: Tensor, samples: int, num_steps: int | None) -> np.ndarray | None:
        """Masks (S, *native) that miss little, of a bundle that was calibrated to have them and drawn like then."""
        control = None if self.bundle.calibration is None else self.bundle.calibration.risk_control
        steps = steps_config(self.model, num_steps).num_sample_steps
        return None if control is None else control.cautious(mean.cpu().numpy(), samples, steps)

    def _judge(self, grid: GridCase, embedding: Tensor) -> Judgement | None:
        calibration = self.bundle.calibration
        if calibration is None or calibration.familiarity is None:
            return None
        return calibration.familiarity.judge(self.model.context(embedding), blank=not np.ptp(grid.volume.array))

    def segment(
        self, volume: Volume, *, samples: int = 8, seed: int = 0, num_steps: int | None = None
    ) -> PosteriorSummary:
        """Everything for one case.

        Raises:
            ValueError: `samples` is below 1.
        """
        return self.summarise(self.draw(volume, Draws(samples, num_steps, seed)))
