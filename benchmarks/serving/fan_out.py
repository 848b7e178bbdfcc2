"""What spreading a case over samplers costs, with samplers that sleep.

Pool, actors and the adding of the parts are those of the service; a sampler sleeps a fixed time for each chunk instead
of computing, so that 64 of them fit on two cores. A number of whole cases is drawn, or one case spread over all. In
the table, efficiency is the time that was to be slept over actors x wall time; overhead is the median time from the
begin of a chunk to the begin of the next one on the same actor, and call that from giving out a chunk to an idle
sampler to its answer, both less the service time.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.common import ROOT, table

CHUNK, CHUNKS_PER_ACTOR = 4, 20


@dataclass(frozen=True)
class Plan:
    """A SamplePlan that actors can read without torch, which 64 processes would not find room for."""

    min: int
    max: int
    adaptive = False
    tolerance = 0.0


class Sleeper:
    """A sampler that sleeps."""

    def __init__(self, service_s: float) -> None:
        self.service_s, self.beats = service_s, 0
        self.begins: list[float] = []
        self.turn, self.thread = asyncio.Lock(), ThreadPoolExecutor(1)

    async def pulse(self, wait: float) -> int:
        await asyncio.sleep(wait)
        return self.beats

    async def taken(self) -> list[float]:
        """When the chunks began since this was asked last."""
        begins, self.begins = self.begins, []
        return begins

    async def encode(self, parts: Any, models: Any) -> Any:
        return self._reply(0)

    async def sample(self, parts: Any, embedding: Any, seed: int, indices: list[int], *_: Any) -> Any:
        async with self.turn:
            await self._chunk()
            return self._reply(len(indices))

    async def segment_case(self, parts: Any, seed: int, plan: Any, *_: Any) -> Any:
        async with self.turn:
            for _ in range(0, plan.max, CHUNK):
                await self._chunk()
            return self._reply(plan.max)

    async def _chunk(self) -> None:
        self.begins.append(time.time())
        # in a thread, as the real one computes: the sleep of an event loop is up to 1 ms late
        await asyncio.get_running_loop().run_in_executor(self.thread, time.sleep, self.service_s)
        self.beats += 1

    def _reply(self, samples: int) -> Any:
        from serve.sampling.messages import Reply

        grid = (16, 16, 16)
        maps = {"probability_sum": (3, *grid), "square_sum": (3, *grid), "entropy_sum": grid}
        arrays = {name: np.zeros(shape, np.float32) for name, shape in maps.items()}
        masks = np.zeros((samples, 2, 16**3 // 8), np.uint8)
        arrays |= {"inside": np.ones(grid, bool), "masks": masks}
        return Reply([arrays], [np.zeros((1, 8, 4, 4, 4), np.float32)])


async def measure(count: int, service_s: float) -> list[dict[str, Any]]:
    """A row for each way, with `count` sleeping samplers."""
    import ray

    from serve.sampling.actors import Actors
    from serve.sampling.pool import Pool

    class Sleeping(Pool):
        async def _put(self, grid: Any) -> Any:
            return await asyncio.to_thread(ray.put, np.zeros((1, 16, 16, 16), np.float32))

    spawn = ray.remote(Sleeper).options(num_cpus=0, max_concurrency=100)
    actors = Actors(lambda: spawn.remote(service_s), count)
    while actors.alive < count:
        await asyncio.sleep(0.2)
    pool, rows = Sleeping(actors, chunk_size=CHUNK), []

    async def draw(chunks: int, whole: bool) -> None:
        plan, case = Plan(chunks * CHUNK, chunks * CHUNK), SimpleNamespace(case="sleep")
        drawn = await pool.draw(case, seed=0, plan=plan, num_steps=None, models=["sleeper"], whole=whole)
        assert drawn.totals[0].num_samples == chunks * CHUNK

    await draw(2 * count, whole=False)  # what a first call sets up is no part of it
    call = statistics.median([await _call_seconds(pool) - service_s for _ in range(20)])
    chunks = CHUNKS_PER_ACTOR * count
    for whole in (True, False):
        cases = 2 * count if whole else 1
        await actors.each("taken")
        start = time.perf_counter()
        await asyncio.gather(*(draw(chunks // cases, whole) for _ in range(cases)))
        wall = time.perf_counter() - start
        begins = await actors.each("taken")
        steps = [b - a - service_s for line in begins for a, b in itertools.pairwise(sorted(line))]
        row = {"actors": count, "way": "whole cases" if whole else "one case spread", "chunks": chunks, "wall s": wall}
        row |= {"efficiency": CHUNKS_PER_ACTOR * service_s / wall, "overhead ms": statistics.median(steps) * 1000}
        rows.append(row | {"call ms": call * 1000})
    await actors.close()
    return rows


async def _call_seconds(pool: Any) -> float:
    start = time.perf_counter()
    await pool._call("sample", None, None, 0, [0, 1, 2, 3])
    return time.perf_counter() - start


def fan_out(actors: list[int], service: float) -> str:
    """The table: every number of actors in both ways."""
    from ldseg.orchestration.cluster import connection

    os.environ["PYTHONPATH"] = str(ROOT)  # for Ray's workers, which load the samplers from here
    connection.connect(num_cpus=4, object_store_mb=200, dashboard=False)
    rows = [row for count in actors for row in asyncio.run(measure(count, service))]
    connection.shutdown()
    return table(rows)
