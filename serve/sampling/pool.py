"""The samplers as seen by a caller: a case goes to one of them whole, or its chunks are spread over all."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import torch

from ldseg.data.grid import GridCase
from ldseg.posterior.accumulator import PosteriorAccumulator
from ldseg.posterior.adaptive import Drawing, MonteCarloError
from ldseg.posterior.plan import SamplePlan
from serve.sampling.actors import ActorLost, Actors
from serve.sampling.messages import GridParts, Reply
from serve.sampling.models import ModelRef
from serve.sampling.sampler import Sampler


class Cancelled(RuntimeError):
    """Sampling was told to stop; what was drawn so far is dropped."""


class SamplingFailed(RuntimeError):
    """A case that can't be drawn.

    Attributes:
        reason: "worker-died": samplers died again and again over the same work.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Drawn:
    """A case's samples.

    Attributes:
        totals: of each model, all with the same number of samples.
        embeddings: of the image by each model.
        errors: Monte Carlo errors of each model; None where the number of samples was fixed and nothing hung on them.
        seconds: of the samplers, by stage.
        precision: of the samplers.
    """

    totals: list[PosteriorAccumulator]
    embeddings: list[torch.Tensor]
    errors: list[MonteCarloError] | None
    seconds: dict[str, float]
    precision: str = "float32"


def spawner(
    sampler: type[Sampler] = Sampler,
    *,
    device: str,
    chunk_size: int,
    threads: int,
    held: int,
    cpus: float,
    gpus: float,
) -> Callable[[], Any]:
    """What makes a sampler actor; see `Sampler`.

    Args:
        sampler: its class.
        cpus, gpus: that Ray counts for it.
    """
    # over all nodes, so that the loss of one takes as few of them as can be
    actor = ray.remote(sampler).options(
        num_cpus=cpus, num_gpus=gpus, max_concurrency=100, scheduling_strategy="SPREAD"
    )  # fmt: skip
    return lambda: actor.remote(device, chunk_size, threads, held)


class Pool:
    """Draws cases on samplers.

    Both ways of spreading, any number of samplers and any window give the same bytes: the same chunks are added in the
    same order, up to the same one.

    Args:
        chunk_size: of the samplers.
        attempts: how often samplers may die over a piece of work that each had to itself.
        window: chunks of one case that are given out and not yet added, at most; what they hold is in memory. By
            default as many as the samplers take just then.
    """

    def __init__(self, actors: Actors, *, chunk_size: int, attempts: int = 3, window: int | None = None) -> None:
        self.actors, self._chunk_size, self._attempts = actors, chunk_size, attempts
        self._window = window
        self._held_back: dict[object, int] = {}

    @property
    def waiting(self) -> int:
        """Calls that more samplers could take at once: no sampler has room for them, or the window is full."""
        return self.actors.waiting + sum(self._held_back.values())

    async def load(self, models: Sequence[ModelRef]) -> None:
        """Have a sampler load and test models; the others load them when they need them.

        Raises:
            ModelError: one can't be used.
            SamplingFailed: samplers died over it.
        """
        await self._call("load", tuple(models))

    async def draw(
        self,
        grid: GridCase,
        *,
        seed: int,
        plan: SamplePlan,
        num_steps: int | None,
        models: Sequence[ModelRef],
        whole: bool,
        cancelled: asyncio.Event | None = None,
    ) -> Drawn:
        """Draw a case until its plan has enough.

        Args:
            models: several are an ensemble: each draws the same number of samples.
            whole: on one sampler; else its chunks are spread over all.
            cancelled: once set, the samplers stop after the step that they are at. Cancelling the task does the same.

        Raises:
            Cancelled: `cancelled` was set.
            ModelError, CaseTooLarge: as `Sampler.sample`.
            SamplingFailed: samplers died over it again and again.
        """
        way = self._whole if whole else self._spread
        work = asyncio.ensure_future(way(grid, seed, plan, num_steps, tuple(models)))
        stop = asyncio.ensure_future((cancelled or asyncio.Event()).wait())
        try:
            await asyncio.wait({work, stop}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise Cancelled(f"{grid.case}: drawing it was cancelled")
            return work.result()
        finally:
            work.cancel()
            stop.cancel()
            await asyncio.gather(work, stop, return_exceptions=True)

    async def _put(self, grid: GridCase) -> Any:
        """The case in the object store, once for all calls."""
        return await asyncio.to_thread(ray.put, GridParts.of(grid))

    async def _whole(
        self, grid: GridCase, seed: int, plan: SamplePlan, num_steps: int | None, models: tuple[ModelRef, ...]
    ) -> Drawn:
        parts = await self._put(grid)
        reply = await self._call("segment_case", parts, seed, plan, num_steps, models, whole=True)
        totals = await asyncio.to_thread(_totals, reply)
        return Drawn(totals, _embeddings(reply), reply.errors, reply.seconds, reply.precision)

    async def _spread(
        self, grid: GridCase, seed: int, plan: SamplePlan, num_steps: int | None, models: tuple[ModelRef, ...]
    ) -> Drawn:
        parts = await self._put(grid)
        encoded = await self._call("encode", parts, models)
        conditions = [await asyncio.to_thread(ray.put, embedding) for embedding in encoded.embeddings]
        drawing, sure = Drawing(plan, self._chunk_size, len(models)), -(-plan.min // self._chunk_size) * len(models)
        chunks, given, drawn = drawing.chunks(), deque[asyncio.Task[Any]](), object()

        def give() -> None:
            """What the window has room for; it grows with the number of samplers."""
            nonlocal sure
            room = (self._window or self.actors.depth * len(self.actors)) - len(given)
            for k, indices in itertools.islice(chunks, max(room, 0)):
                call = self._call("sample", parts, conditions[k], seed, indices, num_steps, models[k])
                given.append(asyncio.create_task(call))
                sure -= 1
            self._held_back[drawn] = max(sure, 0)

        try:
            give()
            complete = False
            while not complete:
                reply = await given[0]
                given.popleft()
                give()  # before adding, which takes its time: the samplers go on
                complete = await asyncio.to_thread(_take, drawing, reply)
                encoded.add_seconds(reply.seconds)
        finally:
            del self._held_back[drawn]
            for task in given:
                task.cancel()
            await asyncio.gather(*given, return_exceptions=True)
        errors = await asyncio.to_thread(drawing.errors) if plan.adaptive else None
        return Drawn(drawing.totals, _embeddings(encoded), errors, encoded.seconds, encoded.precision)

    async def _call(self, method: str, *args: Any, whole: bool = False) -> Any:
        """Have a sampler do it, and another one if it dies over it.

        After a death it has a sampler to itself: who dies over a call is then beyond doubt, and who was beside it is
        not blamed.
        """
        deaths = 0
        while True:
            try:
                return await self.actors.call(method, *args, whole=whole)
            except ActorLost as error:
                deaths, whole = deaths + error.alone, True
                if deaths >= self._attempts:
                    raise SamplingFailed("worker-died", f"samplers died {deaths} times over it ({error})") from error


def _take(drawing: Drawing, reply: Reply) -> bool:
    return drawing.take(PosteriorAccumulator.from_arrays(reply.totals[0]))


def _totals(reply: Reply) -> list[PosteriorAccumulator]:
    return [PosteriorAccumulator.from_arrays(arrays) for arrays in reply.totals]


def _embeddings(reply: Reply) -> list[torch.Tensor]:
    return [torch.from_numpy(embedding.copy()) for embedding in reply.embeddings]
