"""One case -> K samples in chunks -> a streaming accumulator -> a summary on the native grid."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldseg.bundle import Bundle
from ldseg.config import SamplerConfig
from ldseg.data.grid import GridCase, prepare
from ldseg.data.volume import Volume, write_map
from ldseg.model import LDSeg
from ldseg.uncertainty import PosteriorAccumulator

STAGES = ("read", "encode", "denoise", "decode", "aggregate", "resample", "write")


class Cancelled(RuntimeError):
    """Sampling was told to stop; what was drawn so far is dropped."""


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
    return torch.cat([model.decode(z[None]).float().softmax(1) for z in latents])


@dataclass(frozen=True)
class PosteriorSummary:
    """What the samples of one case say, on the native grid.

    Attributes:
        label: (*native), the input's label values; arg max of the mean probability.
        mean_probability: (S, *native) float32, one map for each structure.
        predictive_entropy: (*native) float32, nats, of the mean probability. Over samples of one model it mixes what
            the image leaves open with what the model does not know.
        sample_variance: (*native) float32, variance of the probability over the samples, summed over the classes.
        volumes: for each structure its size in each sample, (K,), in `unit` ("ml", or "mm2" in 2D).
        agreement: mean pairwise Dice of the samples for each structure, and their mean under "mean".
        seconds: wall time by stage.
    """

    case: str
    label: np.ndarray
    mean_probability: np.ndarray
    predictive_entropy: np.ndarray
    sample_variance: np.ndarray
    volumes: dict[str, np.ndarray]
    unit: str
    agreement: dict[str, float]
    seconds: dict[str, float]
    num_samples: int
    num_steps: int
    seed: int
    model_digest: str

    def numbers(self) -> dict[str, float | int | str]:
        """One flat row of a table: sizes with their 5th, 50th and 95th percentile, agreement, seconds."""
        row: dict[str, float | int | str] = {"case": self.case}
        for name, values in self.volumes.items():
            for percentile in (5, 50, 95):
                row[f"{name}_volume_{self.unit}_p{percentile:02d}"] = float(np.percentile(values, percentile))
            row[f"{name}_agreement"] = self.agreement[name]
        row["agreement"] = self.agreement["mean"]
        row["mean_entropy"] = float(self.predictive_entropy.mean(dtype=np.float64))
        row["seconds"] = sum(self.seconds.values())
        return row | {
            "samples": self.num_samples,
            "steps": self.num_steps,
            "seed": self.seed,
            "model_digest": self.model_digest,
        }


class Posterior:
    """Draws from a model's posterior over segmentations of a case.

    A sample is a function of (content of the case, model digest, seed, sample index) alone: the same four give the
    same sample alone, in any chunk, in any order and in any process.

    Attributes:
        encoder_calls: how often the image encoder ran; once per case whatever K.
    """

    def __init__(self, bundle: Bundle, *, device: str = "cpu", chunk_size: int = 4) -> None:
        if chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
        self.bundle, self.device, self.chunk_size = bundle, device, chunk_size
        self.config = bundle.config
        self.model = bundle.model.to(device)
        self.encoder_calls = 0
        self.seconds = dict.fromkeys(STAGES, 0.0)

    def prepare(self, volume: Volume) -> GridCase:
        """Bring a volume onto the working grid."""
        with self._stage("read"):
            return prepare(volume, self.config.data, self.config.model.multiple)

    @torch.inference_mode()
    def encode(self, grid: GridCase) -> Tensor:
        """Image embedding (1, embedding_channels, *latent)."""
        with self._stage("encode"):
            self.encoder_calls += 1
            return self.model.encode_image(grid.image[None].to(self.device))

    def _generator(self, content_digest: str, seed: int, index: int) -> torch.Generator:
        name = f"{content_digest}|{self.bundle.digest}|{seed}|{index}".encode()
        return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(name).digest()[:8], "big") % 2**63)

    @torch.inference_mode()
    def latents(
        self, grid: GridCase, embedding: Tensor, *, seed: int, indices: Sequence[int], num_steps: int | None = None
    ) -> Tensor:
        """Clean latents of the named samples, (K, latent_channels, *latent)."""
        if self.config.sampler.standardise == "batch" and len(indices) > 1:  # a sample never depends on its neighbours
            draw = functools.partial(self.latents, grid, embedding, seed=seed, num_steps=num_steps)
            return torch.cat([draw(indices=[index]) for index in indices])
        with self._stage("denoise"):
            shape = self.model.latent_shape(tuple(grid.image.shape[1:]))
            generators = [self._generator(grid.volume.content_digest, seed, index) for index in indices]

            def noise() -> Iterator[Tensor]:
                while True:
                    yield torch.stack([torch.randn(shape, generator=g) for g in generators]).to(self.device)

            expanded = embedding.to(self.device).expand(len(indices), *embedding.shape[1:])
            return self.model.sample_latents(expanded, noise(), steps_config(self.model, num_steps))

    @torch.inference_mode()
    def decode(self, latent: Tensor) -> Tensor:
        """Class probabilities (1, C, *grid) of one latent (latent_channels, *latent).

        One sample at a time: memory does not grow with the chunk, and a sample's numbers don't depend on it.
        """
        with self._stage("decode"):
            return self.model.decode(latent[None]).float().softmax(1)

    @torch.inference_mode()
    def accumulate(
        self,
        grid: GridCase,
        embedding: Tensor,
        *,
        seed: int,
        indices: Sequence[int],
        num_steps: int | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> PosteriorAccumulator:
        """Draw the samples with the given indices and add them up.

        Raises:
            Cancelled: `should_stop` answered True between two chunks.
        """
        classes, shape = self.config.data.num_classes, tuple(grid.image.shape[1:])
        total = PosteriorAccumulator.create(classes, shape, grid.inside, self.device)
        for start in range(0, len(indices), self.chunk_size):
            if should_stop is not None and should_stop():
                raise Cancelled(f"{grid.case}: sampling was cancelled after {total.num_samples} samples")
            chunk = indices[start : start + self.chunk_size]
            for latent in self.latents(grid, embedding, seed=seed, indices=chunk, num_steps=num_steps):
                probabilities = self.decode(latent)
                with self._stage("aggregate"):
                    total.add(probabilities)
        return total

    @torch.inference_mode()
    def samples(
        self, grid: GridCase, embedding: Tensor, *, seed: int, indices: Sequence[int], num_steps: int | None = None
    ) -> Tensor:
        """The samples themselves as class indices, (K, *grid) int64, for measures that need each one."""
        latents = self.latents(grid, embedding, seed=seed, indices=indices, num_steps=num_steps)
        return torch.cat([self.decode(latent).argmax(1) for latent in latents])

    @torch.inference_mode()
    def summarise(
        self, grid: GridCase, accumulator: PosteriorAccumulator, *, seed: int, num_steps: int | None = None
    ) -> PosteriorSummary:
        """Maps on the native grid and numbers; resets the clock of the stages."""
        data = self.config.data
        with self._stage("aggregate"):
            mean = accumulator.mean_probability()
            extra = torch.stack([accumulator.predictive_entropy(), accumulator.sample_variance()])
            counts, agreement = accumulator.voxel_counts(), accumulator.pairwise_dice()
        with self._stage("resample"):
            native = grid.to_native(torch.cat([mean, extra]).cpu())
            values = np.asarray(data.label_values, dtype=_label_dtype(data.label_values))
            label = values[native[: data.num_classes].argmax(0)]
        seconds, self.seconds = self.seconds, dict.fromkeys(STAGES, 0.0)
        named = dict(zip(data.structures, agreement, strict=True))
        return PosteriorSummary(
            case=grid.case,
            label=label,
            mean_probability=native[1 : data.num_classes],
            predictive_entropy=native[-2],
            sample_variance=native[-1],
            volumes={name: counts[:, k] * grid.voxel_size for k, name in enumerate(data.structures)},
            unit=grid.unit,
            agreement=named | {"mean": float(np.mean(agreement))},
            seconds=seconds,
            num_samples=accumulator.num_samples,
            num_steps=steps_config(self.model, num_steps).num_sample_steps,
            seed=seed,
            model_digest=self.bundle.digest,
        )

    def segment(
        self, volume: Volume, *, samples: int = 8, seed: int = 0, num_steps: int | None = None
    ) -> PosteriorSummary:
        """Everything for one case.

        Raises:
            ValueError: `samples` is below 1.
        """
        if samples < 1:
            raise ValueError(f"samples must be at least 1, got {samples}")
        grid = self.prepare(volume)
        embedding = self.encode(grid)
        accumulator = self.accumulate(grid, embedding, seed=seed, indices=range(samples), num_steps=num_steps)
        return self.summarise(grid, accumulator, seed=seed, num_steps=num_steps)

    def _stage(self, name: str) -> _Clock:
        return _Clock(self.seconds, name)


class _Clock:
    """Adds the time of a block to a stage."""

    def __init__(self, seconds: dict[str, float], name: str) -> None:
        self.seconds, self.name = seconds, name

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds[self.name] += time.perf_counter() - self.start


def _label_dtype(values: tuple[int, ...]) -> type[np.generic]:
    return np.uint8 if 0 <= min(values) and max(values) < 256 else np.int16


def write_summary(summary: PosteriorSummary, folder: Path, like: Volume, structures: Sequence[str]) -> dict[str, Path]:
    """Write a case's maps with the geometry of its input.

    Returns:
        Paths by "label", "prob-{structure}", "entropy", "variance".
    """
    start = time.perf_counter()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    suffix = ".nii.gz" if like.header is not None else ".tif"
    maps = {"label": summary.label, "entropy": summary.predictive_entropy, "variance": summary.sample_variance}
    maps |= {f"prob-{name}": summary.mean_probability[k] for k, name in enumerate(structures)}
    paths = {}
    for name, array in maps.items():
        end = ".png" if name == "label" and like.header is None else suffix
        paths[name] = write_map(folder / f"{summary.case}_{name}{end}", array, like)
    summary.seconds["write"] = time.perf_counter() - start
    return paths
