"""Samplers: actors that hold the model, and the fan-out of a case's samples over them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.handle import DeploymentHandle

from ldseg.bundle import load_bundle
from ldseg.data.grid import Geometry, GridCase
from ldseg.data.volume import Volume
from ldseg.posterior import Posterior
from ldseg.uncertainty import PosteriorAccumulator

Arrays = dict[str, np.ndarray]


class SamplingFailed(RuntimeError):
    """Samplers died again and again over the same chunk."""


@dataclass(frozen=True)
class GridParts:
    """What a sampler needs of a prepared case, as arrays that the object store holds once for all samplers.

    Attributes:
        image: (C, *grid) float32.
        inside: (*grid) bool.
        content_digest: of the case; with model, seed and index it names the noise.
    """

    case: str
    image: np.ndarray
    inside: np.ndarray
    content_digest: str
    geometry: Geometry

    @classmethod
    def of(cls, grid: GridCase) -> GridParts:
        """From a prepared case."""
        return cls(grid.case, grid.image.numpy(), grid.inside.numpy(), grid.volume.content_digest, grid.geometry)

    def to_grid(self) -> GridCase:
        """A case that can be encoded and sampled, not summarised; arrays of the object store are read-only: copied."""
        dims = self.inside.ndim
        empty = np.empty((0,) * (dims + 1), np.float32)
        volume = Volume(self.case, empty, np.eye(4), Path(), None, dims, self.content_digest)
        image, inside = torch.from_numpy(self.image.copy()), torch.from_numpy(self.inside.copy())
        return GridCase(self.case, image, inside, 1.0, "", volume, self.geometry)


class Sampler:
    """One model on one device. It does one thing at a time; Serve queues the rest."""

    def __init__(self, bundle: str, device: str, chunk_size: int, threads: int) -> None:
        self.threads = threads
        self.posterior = Posterior(load_bundle(Path(bundle)), device=device, chunk_size=chunk_size)
        self._test()

    async def encode(self, parts: GridParts) -> dict[str, Any]:
        """The image embedding (1, channels, *latent), and the seconds it took."""
        return await asyncio.to_thread(self._encode, parts)

    async def sample(
        self, parts: GridParts, embedding: np.ndarray, seed: int, indices: list[int], num_steps: int | None
    ) -> dict[str, Any]:
        """Samples with the given indices, added up: the arrays of a PosteriorAccumulator, and the seconds by stage."""
        return await asyncio.to_thread(self._sample, parts, embedding, seed, indices, num_steps)

    async def self_test(self) -> bool:
        """Whether the model gives probabilities."""
        await asyncio.to_thread(self._test)
        return True

    def _encode(self, parts: GridParts) -> dict[str, Any]:
        torch.set_num_threads(self.threads)  # it counts for the calling thread
        embedding = self.posterior.encode(parts.to_grid()).cpu().numpy()
        return {"embedding": embedding, "seconds": self._clock()}

    def _sample(
        self, parts: GridParts, embedding: np.ndarray, seed: int, indices: list[int], num_steps: int | None
    ) -> dict[str, Any]:
        torch.set_num_threads(self.threads)
        condition = torch.from_numpy(embedding.copy())
        part = self.posterior.accumulate(
            parts.to_grid(), condition, seed=seed, indices=indices, num_steps=num_steps
        )  # fmt: skip
        return {"arrays": part.to_arrays(), "seconds": self._clock()}

    def _clock(self) -> dict[str, float]:
        seconds, self.posterior.seconds = self.posterior.seconds, dict.fromkeys(self.posterior.seconds, 0.0)
        return seconds

    @torch.inference_mode()
    def _test(self) -> None:
        data = self.posterior.config.data
        model, shape = self.posterior.model, tuple(data.shape)
        image = torch.zeros((1, data.in_channels, *shape), device=self.posterior.device)
        latent = torch.zeros((1, *model.latent_shape(shape)), device=self.posterior.device)
        embedding = model.encode_image(image)
        probabilities = model.decode(latent, embedding).float().softmax(1)
        if not torch.isfinite(embedding).all() or not torch.isfinite(probabilities).all():
            raise RuntimeError(f"{self.posterior.bundle.path}: the model gives numbers that are not finite")


def deployment(replicas: int, cpus: float, gpus: float) -> Any:
    """The deployment of `replicas` samplers."""
    return serve.deployment(
        Sampler,
        name="Sampler",
        num_replicas=replicas,
        max_ongoing_requests=1,
        ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
        graceful_shutdown_timeout_s=2,
        graceful_shutdown_wait_loop_s=0.2,
        health_check_period_s=2,
    )


class Pool:
    """The samplers as seen by a caller.

    Args:
        handle: of the Sampler deployment.
        attempts: how often a call is made when samplers die.
        window: chunks of one case that are under way at the same time.
    """

    def __init__(self, handle: DeploymentHandle, *, attempts: int, window: int) -> None:
        self._handle, self._attempts, self._window = handle, attempts, window

    async def self_test(self) -> None:
        """Wait for a sampler, and for its model to give probabilities."""
        await self._retry(lambda: self._handle.self_test.remote())

    async def draw(
        self, grid: GridCase, *, seed: int, chunks: Iterator[list[int]], num_steps: int | None
    ) -> tuple[PosteriorAccumulator, torch.Tensor, dict[str, float]]:
        """Encode a case once and draw its samples on all samplers.

        Returns:
            The samples added up in the order of the chunks, the embedding, and the samplers' seconds by stage.

        Raises:
            SamplingFailed: samplers died over it again and again.
        """
        parts = await asyncio.to_thread(ray.put, GridParts.of(grid))
        encoded = await self._retry(lambda: self._handle.encode.remote(parts))
        seconds = dict(encoded["seconds"])
        embedding = await asyncio.to_thread(ray.put, encoded["embedding"])
        total: PosteriorAccumulator | None = None
        waiting: deque[asyncio.Task[Any]] = deque()

        def submit() -> None:
            indices = next(chunks, None)
            if indices is not None:
                call = self._retry(lambda: self._handle.sample.remote(parts, embedding, seed, indices, num_steps))
                waiting.append(asyncio.ensure_future(call))

        try:
            for _ in range(self._window):
                submit()
            while waiting:
                reply = await waiting[0]
                waiting.popleft()
                submit()
                part = await asyncio.to_thread(PosteriorAccumulator.from_arrays, reply["arrays"])
                total = part if total is None else await asyncio.to_thread(PosteriorAccumulator.merge, [total, part])
                for stage, value in reply["seconds"].items():
                    seconds[stage] += value
        finally:
            for task in waiting:
                task.cancel()
        if total is None:
            raise ValueError("there are no chunks to draw")
        return total, torch.from_numpy(encoded["embedding"].copy()), seconds

    async def _retry(self, call: Callable[[], Awaitable[Any]]) -> Any:
        for attempt in range(1, self._attempts + 1):
            response = call()
            try:
                return await response
            except RayActorError as error:
                if attempt == self._attempts:
                    raise SamplingFailed(f"samplers died {attempt} times over it") from error
                await asyncio.sleep(0.5 * attempt)
            except asyncio.CancelledError:
                response.cancel()  # type: ignore[attr-defined]
                raise
        raise AssertionError("unreachable")
