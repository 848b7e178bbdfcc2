"""The runner: takes cases from the job store, has them sampled, publishes their results."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from pathlib import Path
from typing import Any

from torch import Tensor

from ldseg.adaptive import SamplePlan
from ldseg.bundle import Bundle
from ldseg.data.errors import CaseError
from ldseg.data.grid import GridCase
from ldseg.data.volume import read_volume
from ldseg.posterior import Posterior
from ldseg.uncertainty import PosteriorAccumulator
from serve.models import ModelRef
from serve.pool import Pool
from serve.results import publish, sweep
from serve.settings import Settings, resolve_image
from serve.store import JobStore, Work

log = logging.getLogger("ray.serve")


class Runner:
    """Some cases in flight at once, until there are none left; then it waits for more.

    What was unfinished when the service stopped goes on at its next start.
    """

    def __init__(self, settings: Settings, bundle: Bundle, store: JobStore, pool: Pool) -> None:
        self.settings, self.bundle, self.store, self.pool = settings, bundle, store, pool
        self.results = settings.folder / "results"
        self.uploads = settings.folder / "uploads"
        self._wake = asyncio.Event()
        self._running: dict[tuple[str, str], asyncio.Task[dict[str, Any]]] = {}
        self._ended: dict[str, asyncio.Event] = {}
        self._workers: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Take up what is unfinished, and work."""
        sweep(self.results)
        self.store.recover()
        self._workers = [asyncio.create_task(self._work()) for _ in range(self.settings.cases_in_flight)]

    @property
    def alive(self) -> bool:
        """Whether every worker is at work."""
        return bool(self._workers) and not any(worker.done() for worker in self._workers)

    def wake(self) -> None:
        """There is something new to do."""
        self._wake.set()

    async def cancel(self, cohort: str) -> None:
        """Cancel what is unfinished of a cohort."""
        for name in await asyncio.to_thread(self.store.cancel, cohort):
            task = self._running.get((cohort, name))
            if task is not None:
                task.cancel()

    async def wait(self, cohort: str, seconds: float) -> bool:
        """Wait for a one-case cohort to end; False if it takes longer."""
        event = self._ended.setdefault(cohort, asyncio.Event())
        try:
            found = await asyncio.to_thread(self.store.cohort, cohort)
            if found is None or not (found["counts"]["queued"] or found["counts"]["running"]):
                return True
            await asyncio.wait_for(event.wait(), seconds)
            return True
        except TimeoutError:
            return False
        finally:
            self._ended.pop(cohort, None)

    async def _work(self) -> None:
        while True:
            try:
                self._wake.clear()
                work = await asyncio.to_thread(self.store.claim)
                if work is not None:
                    self._wake.set()  # for the other workers: there may be more
                    await self._do(work)
                else:
                    await asyncio.wait_for(self._wake.wait(), 2)
            except TimeoutError:
                continue
            except Exception:  # a worker must outlive a full disk or a locked store
                log.exception("a worker of the runner failed and goes on")
                await asyncio.sleep(1)

    async def _do(self, work: Work) -> None:
        """Segment a case and write down how it ended; a failure never reaches other cases."""
        task = asyncio.create_task(self._segment(work))
        self._running[work.cohort, work.name] = task
        state, error, result = "done", None, None
        try:
            await asyncio.wait([task])
            if task.cancelled():
                state = "cancelled"
            elif task.exception() is not None:
                state, error = "failed", self._sentence(work, task.exception())
            else:
                result = task.result()
        finally:
            task.cancel()
            del self._running[work.cohort, work.name]
        kept = await asyncio.to_thread(self.store.finish, work.cohort, work.name, state, error=error, result=result)
        if not kept and state == "done":  # cancelled at the last moment
            await asyncio.to_thread(shutil.rmtree, self.folder(work.cohort, work.name), True)
        if work.upload:
            await asyncio.to_thread(shutil.rmtree, work.image.parent, True)
        if work.cohort in self._ended:
            self._ended[work.cohort].set()

    def folder(self, cohort: str, name: str) -> Path:
        """Of a case's maps."""
        return self.results / cohort / name

    async def _segment(self, work: Work) -> dict[str, Any]:
        posterior = Posterior(self.bundle, chunk_size=self.settings.chunk_size)
        grid = await asyncio.to_thread(self._read, posterior, work)
        plan, models = SamplePlan.fixed(work.samples), [ModelRef(str(self.bundle.path), self.bundle.digest)]
        drawn = await self.pool.draw(
            grid, seed=work.seed, plan=plan, num_steps=work.steps, models=models, whole=False
        )  # fmt: skip
        for stage, value in drawn.seconds.items():
            posterior.seconds[stage] += value
        return await asyncio.to_thread(self._export, posterior, work, grid, drawn.totals[0], drawn.embeddings[0])

    def _read(self, posterior: Posterior, work: Work) -> GridCase:
        data, start = self.bundle.config.data, time.perf_counter()
        try:
            image = work.image if work.upload else resolve_image(str(work.image), self.settings.readable_roots)
        except ValueError as error:
            raise CaseError(work.name, str(error), "post the cohort again") from error
        volume = read_volume(
            image,
            case=work.name,
            spatial_dims=data.spatial_dims,
            in_channels=data.in_channels,
            max_voxels=self.settings.max_voxels,
        )
        posterior.seconds["read"] += time.perf_counter() - start
        return posterior.prepare(volume)

    def _export(
        self, posterior: Posterior, work: Work, grid: GridCase, total: PosteriorAccumulator, embedding: Tensor
    ) -> dict[str, Any]:
        summary = posterior.summarise(grid, total, seed=work.seed, num_steps=work.steps, embedding=embedding)
        structures = self.bundle.config.data.structures
        return publish(summary, grid.volume, structures, self.folder(work.cohort, work.name))

    def _sentence(self, work: Work, error: BaseException | None) -> str:
        if isinstance(error, CaseError):
            text = str(error)
        else:
            log.error("case %s of %s failed", work.name, work.cohort, exc_info=error)
            lines = [line for line in str(error).strip().splitlines() if line] or [type(error).__name__]
            text = f"{work.name}: segmenting it failed ({lines[-1][:300]}); try it again, the service's log says more"
        return text.replace(str(work.image), work.image.name) if work.upload else text
