"""One case from its file to its published results."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, TypeVar

from ldseg.data.cohort import Case
from ldseg.data.grid import GridCase
from ldseg.data.reading import read_image
from ldseg.memory.cost import most_voxels
from ldseg.posterior.draws import Drawn as DrawnCase
from ldseg.posterior.draws import Draws
from ldseg.posterior.ensemble import EnsembleSummary, summarise_ensemble
from ldseg.posterior.sampling import Posterior, steps_config
from ldseg.posterior.stopwatch import Stopwatch
from ldseg.posterior.summary import PosteriorSummary
from ldseg.results.publication import publish
from serve.intake.originals import describe_original, identity
from serve.intake.paths import is_url, local_image
from serve.jobs.storage import Storage
from serve.sampling.catalog import Catalog, Served
from serve.sampling.pool import Drawn, Pool
from serve.settings import Settings
from serve.store import Work

T = TypeVar("T")


class Casework:
    """Reads, draws and exports cases; callable for many at once, so that these overlap.

    Args:
        storage: of the results; what can't be kept there is not written.
        slots: cases that are read and exported at the same time; they have threads of their own, so that no request
            waits for them.
    """

    def __init__(self, settings: Settings, catalog: Catalog, pool: Pool, storage: Storage, *, slots: int = 4) -> None:
        self.settings, self.catalog, self.pool, self.storage = settings, catalog, pool, storage
        self._threads = ThreadPoolExecutor(slots, "case")

    def folder(self, cohort: str, name: str) -> Path:
        """Of a case's files."""
        return self.settings.results / cohort / name

    def measure(self, model: Served) -> float:
        """What a case of a model takes of the memory, found out now and not with its first case; in bytes a voxel."""
        return Posterior(model.bundle, chunk_size=self.settings.chunk_size).bytes_per_voxel

    async def segment(self, work: Work, *, whole: bool) -> tuple[dict[str, Any], str]:
        """Do one case.

        Args:
            whole: draw it on one sampler; else spread it over all.

        Returns:
            `ldseg.results.publication.describe` of it, with `serve.intake.originals.describe_original` of its image
            where that lies here, and the digest of its model (of several, with spaces between).

        Raises:
            CaseError: its image can't be used.
            UnknownModel, UnusableModel, ModelError, SamplingFailed, CaseTooLarge, DiskFull: as their names say.
            Removed: its cohort was removed meanwhile.
            OSError: its results can't be kept just now.
        """
        watch = Stopwatch()
        models, grid, original = await self._in_thread(self._begin, work, watch)
        drawn = await self.pool.draw(
            grid,
            seed=work.seed,
            plan=work.plan,
            num_steps=work.steps,
            models=[model.ref for model in models],
            whole=whole,
        )
        watch.add(drawn.seconds)
        result = await self._in_thread(self._export, work, models, grid, drawn, watch)
        return result | original, " ".join(model.bundle.digest for model in models)

    async def _in_thread(self, function: Callable[..., T], *args: Any) -> T:
        """Who is cancelled waits for what has begun, so that nothing of a case is written when its task has ended."""
        job = self._threads.submit(function, *args)
        try:
            return await asyncio.wrap_future(job)
        except asyncio.CancelledError:
            if not job.cancel():
                await asyncio.to_thread(wait, [job])
            raise

    def _begin(self, work: Work, watch: Stopwatch) -> tuple[list[Served], GridCase, dict[str, Any]]:
        models = self.catalog.resolve(work.models)
        return models, *self._read(work, models, watch)

    def _read(self, work: Work, models: list[Served], watch: Stopwatch) -> tuple[GridCase, dict[str, Any]]:
        posteriors = [Posterior(model.bundle, chunk_size=self.settings.chunk_size) for model in models]
        data, limit = models[0].bundle.config.data, self.settings.case_bytes
        most, samples = min(self.settings.max_voxels, most_voxels(data, limit)), work.plan.max * len(models)
        opening = local_image(work.image, self.settings, work.name, upload=work.upload)
        with watch.stage("read"), opening as image:
            before = identity(image) if image.is_file() else ()
            volume = read_image(Case(name=work.name, image=image), data, max_voxels=most)
            for posterior in posteriors[1:]:  # any of them may be the dearest
                posterior.check_memory(volume, samples, limit)
            grid = posteriors[0].prepare(volume, samples=samples, limit=limit)
            stays = work.upload or not is_url(work.image)
            return grid, {"image": describe_original(image, work.name, before)} if stays else {}

    def _export(
        self, work: Work, models: list[Served], grid: GridCase, drawn: Drawn, watch: Stopwatch
    ) -> dict[str, Any]:
        summary: PosteriorSummary | EnsembleSummary
        bundle = models[0].bundle
        if len(models) == 1:
            draws = Draws(drawn.totals[0].num_samples, work.steps, work.seed)
            one = DrawnCase(grid, drawn.embeddings[0], drawn.totals[0], draws, watch.seconds)
            keep = self.settings.keep_samples
            summary = Posterior(bundle, precision=drawn.precision).summarise(one, keep_samples=keep)
        else:
            summary = summarise_ensemble(
                grid,
                drawn.totals,
                [model.bundle.digest for model in models],
                bundle.config.data,
                seed=work.seed,
                num_steps=steps_config(bundle.model, work.steps).num_sample_steps,
            )
            summary.seconds.update({s: v + summary.seconds.get(s, 0.0) for s, v in watch.seconds.items()})
        if (fault := self.storage.fault()) is not None:
            raise OSError(fault.sentence)
        return publish(summary, grid.volume, bundle.config.data.structures, self.folder(work.cohort, work.name))
