"""The sampler: an actor that holds models and draws chunks or whole cases, one thing at a time."""

from __future__ import annotations

import asyncio
import functools
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ldseg.data.grid import GridCase
from ldseg.posterior.accumulator import PosteriorAccumulator
from ldseg.posterior.adaptive import Drawing
from ldseg.posterior.chunks import draw_chunk, encode_case
from ldseg.posterior.plan import SamplePlan
from ldseg.posterior.sampling import Posterior
from serve.sampling.messages import GridParts, Reply
from serve.sampling.models import ModelRef, Models, release

T = TypeVar("T")


class Stopped(Exception):
    """The call that this was computed for has been cancelled."""


class Sampler:
    """Models on one device. Calls are taken one after the other; a cancelled one ends with the step it is at.

    All computing is done in one thread of its own, which looks between two steps of the denoiser whether its call has
    been cancelled. The next call's work waits behind it: two never compute at the same time.

    Args:
        device: "cpu" or "cuda".
        threads: of torch; the same number gives the same bytes.
        held: models kept.
    """

    def __init__(self, device: str, chunk_size: int, threads: int, held: int) -> None:
        # arrays of the object store are read-only, and torch warns of each; nothing here writes to them
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        self.models = Models(device, chunk_size, held, before_step=self._before_step)
        self._turn = asyncio.Lock()
        self._beats = 0
        self._cancelled = threading.Event()  # of the work that the thread is at
        # the number of threads counts for the thread that sets it
        self._thread = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(threads,))

    async def pulse(self, wait: float) -> int:
        """Steps done so far, told after a while: a sign of life, and whether work goes on."""
        await asyncio.sleep(wait)
        return self._beats

    async def load(self, models: Sequence[ModelRef]) -> None:
        """Have these models ready; each is tested when it is loaded.

        Raises:
            ModelError: one can't be used.
        """
        async with self._turn:
            await self._posteriors(models)

    async def encode(self, parts: GridParts, models: Sequence[ModelRef]) -> Reply:
        """The image's embedding by each model.

        Raises:
            ModelError, CaseTooLarge: as `sample`.
        """
        async with self._turn:
            reply = Reply()
            for posterior in await self._posteriors(models):
                reply.embeddings.append(_array(await self._encode(posterior, parts.to_grid(), reply)))
            return reply

    async def sample(
        self,
        parts: GridParts,
        embedding: np.ndarray,
        seed: int,
        indices: Sequence[int],
        num_steps: int | None,
        model: ModelRef,
    ) -> Reply:
        """One chunk of one model's samples, added up.

        Raises:
            ModelError: the model can't be used.
            CaseTooLarge: the memory does not suffice.
        """
        async with self._turn:
            (posterior,) = await self._posteriors([model])
            case = _Case(parts.to_grid(), seed, num_steps, Reply())
            part = await self._draw(case, posterior, torch.from_numpy(embedding), indices)
            case.reply.totals.append(part.to_arrays())
            return case.reply

    async def segment_case(
        self, parts: GridParts, seed: int, plan: SamplePlan, num_steps: int | None, models: Sequence[ModelRef]
    ) -> Reply:
        """A whole case: the same chunks in the same order as when they are spread, until the plan has enough.

        Raises:
            ModelError, CaseTooLarge: as `sample`.
        """
        async with self._turn:
            posteriors = await self._posteriors(models)
            case = _Case(parts.to_grid(), seed, num_steps, Reply())
            embeddings = [await self._encode(posterior, case.grid, case.reply) for posterior in posteriors]
            drawing = Drawing(plan, self.models.chunk_size, len(models))
            for k, indices in drawing.chunks():
                part = await self._draw(case, posteriors[k], embeddings[k], indices)
                if await self._work(functools.partial(drawing.take, part)):
                    break
            case.reply.errors = drawing.errors() if plan.adaptive else None
            case.reply.embeddings = [_array(embedding) for embedding in embeddings]
            case.reply.totals = [total.to_arrays() for total in drawing.totals]
            return case.reply

    async def _posteriors(self, models: Sequence[ModelRef]) -> list[Posterior]:
        return [await self._work(functools.partial(self.models.get, model)) for model in models]

    async def _encode(self, posterior: Posterior, grid: GridCase, reply: Reply) -> Tensor:
        embedding, seconds = await self._work(lambda: encode_case(posterior, grid, self._make_room))
        reply.add_seconds(seconds)
        reply.precision = posterior.precision.name
        return embedding

    async def _draw(
        self, case: _Case, posterior: Posterior, embedding: Tensor, indices: Sequence[int]
    ) -> PosteriorAccumulator:
        draw = functools.partial(draw_chunk, posterior, case.grid, embedding, make_room=self._make_room)
        part, seconds = await self._work(lambda: draw(seed=case.seed, indices=indices, num_steps=case.num_steps))
        case.reply.add_seconds(seconds)
        return part

    async def _work(self, function: Callable[[], T]) -> T:
        """Compute in the one thread; the event loop goes on, so that a cancellation arrives between two of these.

        A cancelled call ends when the thread has: who waits for it knows that the sampler is free.
        """
        cancelled = threading.Event()

        def compute() -> T:
            self._cancelled = cancelled
            return function()

        work = asyncio.get_running_loop().run_in_executor(self._thread, compute)
        try:
            result = await asyncio.shield(work)
        except asyncio.CancelledError:
            cancelled.set()
            await asyncio.wait([work])
            raise
        finally:
            self._beats += 1
        return result

    def _before_step(self) -> None:
        """Called in the thread before each step of the denoiser.

        Raises:
            Stopped: nobody waits for the rest.
        """
        self._beats += 1
        if self._cancelled.is_set():
            raise Stopped

    def _make_room(self) -> None:
        self.models.shed(1)
        release(self.models.device)


@dataclass(frozen=True)
class _Case:
    grid: GridCase
    seed: int
    num_steps: int | None
    reply: Reply


def _array(embedding: Tensor) -> np.ndarray:
    return embedding.cpu().numpy()
