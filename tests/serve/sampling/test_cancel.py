"""Cancel means stopped: a sampler that is in the midst of a long sample is free after the step that it is at."""

from __future__ import annotations

import asyncio
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import ray
from drawn import CHUNK, alone, case, ref, same
from raying import Loop, make, until
from tiny import random_bundle, tiny_config

from ldseg.posterior.plan import SamplePlan
from serve.sampling.actors import Actors
from serve.sampling.pool import Cancelled, Drawn, Pool
from serve.sampling.sampler import Sampler

pytest_plugins = ("raying",)
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers can't import a test
STEPS = 1000  # of one sample: minutes on a volume of a usual size


class Gated(Sampler):
    """Makes a step of the denoiser for each one that was permitted, and counts them."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._permits, self._steps = threading.Semaphore(0), 0

    def _before_step(self) -> None:
        super()._before_step()
        self._steps += 1
        self._permits.acquire()

    async def permit(self, steps: int) -> None:
        self._permits.release(steps)

    async def seen(self) -> tuple[int, bool]:
        """Steps begun, and whether the thread has been told to stop."""
        return self._steps, self._cancelled.is_set()


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "spread"])
def test_a_cancelled_case_frees_its_sampler_after_the_step_that_it_is_at(
    loop: Loop, tmp_path: Path, whole: bool
) -> None:
    model = random_bundle(tmp_path / "model", tiny_config())
    grid, plan = case(model), SamplePlan.fixed(CHUNK)
    spawn = ray.remote(Gated).options(num_cpus=0.2, max_concurrency=100)
    actors = loop.run(make(1, lambda: spawn.remote("cpu", CHUNK, 1, 1)))
    pool, draws = Pool(actors, chunk_size=CHUNK), {"seed": 0, "models": [ref(model)], "whole": whole}

    async def scenario() -> Drawn:
        event = asyncio.Event()
        long = asyncio.create_task(pool.draw(grid, plan=plan, num_steps=STEPS, cancelled=event, **draws))
        (life,) = await _until_busy(actors)
        await life.actor.permit.remote(3)
        while (await life.actor.seen.remote())[0] < 4:
            await asyncio.sleep(0.05)
        event.set()
        with pytest.raises(Cancelled):
            await long
        while not (await life.actor.seen.remote())[1]:
            await asyncio.sleep(0.05)
        await life.actor.permit.remote(3 * STEPS)  # nothing else holds it back any more
        await until(lambda: not life.calls)
        assert (await life.actor.seen.remote())[0] == 4, "it went on after the step that it was at"
        return await pool.draw(grid, plan=plan, num_steps=3, **draws)

    try:
        drawn = loop.run(scenario())
    finally:
        loop.run(actors.close())
    assert same(drawn.totals, alone([model], grid, plan, num_steps=3))


async def _until_busy(actors: Actors) -> list[Any]:
    found: list[Any] = []

    def busy() -> bool:
        found[:] = [life for life in actors._lives.values() if life.calls]
        return bool(found)

    await until(busy)
    return found
