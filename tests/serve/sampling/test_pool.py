"""The pool on real actors: the same bytes however a case is spread, through deaths, stops and cancellations."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from drawn import CHUNK, TOLERANCE, alone, case, ref, same
from raying import Loop, make, until
from service import descendants
from tiny import random_bundle, tiny_config

from ldseg.bundle import Bundle
from ldseg.posterior.accumulator import PosteriorAccumulator
from ldseg.posterior.plan import SamplePlan
from serve.sampling.actors import Actors
from serve.sampling.models import ModelError, ModelRef
from serve.sampling.pool import Cancelled, Drawn, Pool, SamplingFailed, spawner
from serve.sampling.sampler import Sampler

pytest_plugins = ("raying",)
pytestmark = pytest.mark.slow  # minutes: processes are killed, stopped and replaced
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers can't import a test

BOTH_WAYS = pytest.mark.parametrize("whole", [True, False], ids=["whole", "spread"])
LONG = {"plan": SamplePlan.fixed(96), "num_steps": 150}  # seconds, so that something can happen meanwhile
SPAWN = {"device": "cpu", "chunk_size": CHUNK, "threads": 1, "held": 2, "cpus": 0.2, "gpus": 0}


@pytest.fixture(scope="module")
def actors(loop: Loop) -> Iterator[Actors]:
    made = loop.run(make(2, spawner(**SPAWN)))
    loop.run(until(lambda: made.alive == 2))
    yield made
    loop.run(made.close())


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Bundle]]:
    folder = tmp_path_factory.mktemp("models")
    return {d: [random_bundle(folder / f"{d}d_{s}", tiny_config(d), s) for s in range(2)] for d in (2, 3)}


@pytest.fixture(scope="module")
def long(bundles: dict[int, list[Bundle]]) -> list[PosteriorAccumulator]:
    model = bundles[3][0]
    return alone([model], case(model), LONG["plan"], seed=3, num_steps=LONG["num_steps"])


def samplers() -> list[int]:
    found = []
    for process in descendants(os.getpid()):
        try:
            name = Path(f"/proc/{process}/cmdline").read_bytes()
        except OSError:
            continue
        if name.startswith(b"ray::Sampler"):
            found.append(process)
    return found


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("models", [1, 2])
def test_whole_or_spread_with_any_window_the_bytes_are_those_of_one_process(
    loop: Loop, actors: Actors, bundles: dict[int, list[Bundle]], dims: int, models: int
) -> None:
    used = bundles[dims][:models]
    grid = case(used[0])
    for halved in range(4):  # the model's digest decides the noise, and so how soon the case settles
        plan = SamplePlan(min=3, max=40, tolerance=TOLERANCE[dims] / 2**halved)
        expected = alone(used, grid, plan, seed=7)
        if expected[0].num_samples > CHUNK:
            break
    assert CHUNK < expected[0].num_samples < 40, "else this shows nothing"
    draws = {"seed": 7, "plan": plan, "num_steps": None, "models": [ref(bundle) for bundle in used]}
    for window, whole in ((None, True), (1, False), (3, False), (16, False)):
        pool = Pool(actors, chunk_size=CHUNK, window=window)
        drawn = loop.run(pool.draw(grid, **draws, whole=whole))
        assert same(drawn.totals, expected)
        assert drawn.errors is not None and max(error.largest for error in drawn.errors) <= plan.tolerance
        assert len(drawn.embeddings) == models and drawn.seconds["decode"] > 0


def test_one_sampler_gives_the_bytes_of_two(loop: Loop, actors: Actors, bundles: dict[int, list[Bundle]]) -> None:
    model, plan = bundles[3][0], SamplePlan.fixed(10)
    grid = case(model)
    one = loop.run(make(1, spawner(**SPAWN)))
    try:
        for whole in (True, False):
            pool = Pool(one, chunk_size=CHUNK)
            drawn = loop.run(pool.draw(grid, seed=1, plan=plan, num_steps=None, models=[ref(model)], whole=whole))
            assert same(drawn.totals, alone([model], grid, plan, seed=1)) and drawn.errors is None
    finally:
        loop.run(one.close())


@BOTH_WAYS
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_sampler_killed_or_stopped_in_mid_case_changes_no_byte_and_comes_back(
    loop: Loop,
    actors: Actors,
    bundles: dict[int, list[Bundle]],
    long: list[PosteriorAccumulator],
    whole: bool,
    number: int,
) -> None:
    model = bundles[3][0]
    grid, pool = case(model), Pool(actors, chunk_size=CHUNK)
    loop.run(until(lambda: actors.alive == 2))

    async def scenario() -> tuple[Drawn, int]:
        work = asyncio.create_task(pool.draw(grid, seed=3, models=[ref(model)], whole=whole, **LONG))
        await until(lambda: bool(busy(actors)))
        await asyncio.sleep(1)
        before = await asyncio.gather(*(life.actor.pulse.remote(0.0) for life in busy(actors)))
        assert not work.done() and max(before) > 1
        killed = await asyncio.to_thread(at_work)
        os.kill(killed, number)
        return await work, killed

    drawn, killed = loop.run(scenario())
    assert same(drawn.totals, long)
    loop.run(until(lambda: actors.alive == 2))
    loop.run(until(lambda: len(set(samplers()) - {killed}) == 2))


def busy(actors: Actors) -> list[Any]:
    return [life for life in actors._lives.values() if life.calls]


def at_work() -> int:
    """The sampler that computes most."""

    def used(process: int) -> int:
        return sum(map(int, Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]))

    before = {process: used(process) for process in samplers()}
    time.sleep(0.5)
    return max(before, key=lambda process: used(process) - before[process])


@BOTH_WAYS
@pytest.mark.parametrize("way", ["event", "task"])
def test_a_cancelled_case_frees_the_samplers_and_no_step_is_made_after_that(
    loop: Loop, actors: Actors, bundles: dict[int, list[Bundle]], whole: bool, way: str
) -> None:
    model = bundles[3][0]
    grid, pool = case(model), Pool(actors, chunk_size=CHUNK)
    endless = {"seed": 0, "plan": SamplePlan.fixed(100_000), "num_steps": 50, "models": [ref(model)]}

    async def steps() -> list[int]:
        return await actors.each("pulse", 0.0)

    async def scenario() -> None:
        await until(lambda: actors.alive == 2)
        event, start = asyncio.Event(), await steps()
        work = asyncio.create_task(pool.draw(grid, **endless, whole=whole, cancelled=event))
        while sum(await steps()) < sum(start) + 8:
            await asyncio.sleep(0.05)
        if way == "event":
            event.set()
        else:
            work.cancel()
        with pytest.raises(Cancelled if way == "event" else asyncio.CancelledError):
            await work
        await until(lambda: not busy(actors))
        rest = await steps()
        await asyncio.sleep(1)
        assert await steps() == rest

    loop.run(scenario())


def test_a_damaged_model_fails_its_case_alone(
    loop: Loop, actors: Actors, bundles: dict[int, list[Bundle]], tmp_path: Path
) -> None:
    good = bundles[2][0]
    shutil.copytree(bundles[2][1].path, tmp_path / "bad")
    (tmp_path / "bad" / "weights.safetensors").write_bytes(b"nothing")
    bad = ModelRef(str(tmp_path / "bad"), bundles[2][1].digest)
    grid, plan, pool = case(good), SamplePlan.fixed(12), Pool(actors, chunk_size=CHUNK)

    async def scenario() -> list[Any]:
        draws = {"seed": 0, "plan": plan, "num_steps": None}
        calls = [
            pool.draw(grid, **draws, models=[model], whole=whole)
            for model in (bad, ref(good))
            for whole in (True, False)
        ]
        return await asyncio.gather(*calls, return_exceptions=True)

    *failed, whole, spread = loop.run(scenario())
    for error in failed:
        assert type(error) is ModelError and "don't match the digest" in str(error)
    expected = alone([good], grid, plan)
    assert same(whole.totals, expected) and same(spread.totals, expected)
    assert actors.alive == 2


def test_cases_of_two_models_at_once_do_not_mix(loop: Loop, actors: Actors, bundles: dict[int, list[Bundle]]) -> None:
    """As when an alias moves while cases are running: each ends on the model that it began with."""
    grid, plan, pool = case(bundles[2][0]), SamplePlan.fixed(24), Pool(actors, chunk_size=CHUNK)

    async def scenario() -> list[Drawn]:
        draws = {"seed": 5, "plan": plan, "num_steps": 20, "whole": False}
        return await asyncio.gather(*(pool.draw(grid, **draws, models=[ref(bundle)]) for bundle in bundles[2]))

    for bundle, drawn in zip(bundles[2], loop.run(scenario()), strict=True):
        assert same(drawn.totals, alone([bundle], grid, plan, seed=5, num_steps=20))


class Mortal(Sampler):
    """Dies over one case, when it is that case's turn."""

    async def sample(self, parts: Any, *args: Any) -> Any:
        if parts.case == "case_13":
            async with self._turn:
                os._exit(1)
        return await super().sample(parts, *args)


def test_a_case_that_kills_every_sampler_is_given_up_and_its_neighbour_is_not(
    loop: Loop, bundles: dict[int, list[Bundle]]
) -> None:
    model, plan = bundles[2][0], SamplePlan.fixed(12)
    spawn = ray.remote(Mortal).options(num_cpus=0.2, max_concurrency=100)
    mortals = loop.run(make(2, lambda: spawn.remote("cpu", CHUNK, 1, 1)))
    pool, draws = Pool(mortals, chunk_size=CHUNK), {"seed": 0, "plan": plan, "num_steps": None, "models": [ref(model)]}
    fatal, harmless = case(model, seed=13), case(model)

    async def scenario() -> list[Any]:
        calls = [pool.draw(grid, **draws, whole=False) for grid in (fatal, harmless)]
        return await asyncio.gather(*calls, return_exceptions=True)

    try:
        error, drawn = loop.run(scenario())
    finally:
        loop.run(mortals.close())
    assert isinstance(error, SamplingFailed) and error.reason == "worker-died" and "3 times" in str(error)
    assert same(drawn.totals, alone([model], harmless, plan))


def test_nothing_of_a_case_stays_in_the_object_store(
    loop: Loop, actors: Actors, bundles: dict[int, list[Bundle]]
) -> None:
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    def used() -> int:
        reply = get_memory_info_reply(get_state_from_address(ray.get_runtime_context().gcs_address))
        return int(reply.store_stats.object_store_bytes_used)

    model = bundles[2][0]
    grid, pool, before = case(model, shape=(320, 320)), Pool(actors, chunk_size=CHUNK), used()
    draws = {"seed": 0, "num_steps": 1, "models": [ref(model)]}
    for whole in (True, False):
        drawn = loop.run(pool.draw(grid, **draws, plan=SamplePlan.fixed(8), whole=whole))
        assert drawn.totals[0].num_samples == 8
    event = asyncio.Event()
    endless = pool.draw(grid, **draws, plan=SamplePlan.fixed(10_000), whole=False, cancelled=event)
    loop.loop.call_soon_threadsafe(loop.loop.call_later, 2, event.set)
    with pytest.raises(Cancelled):
        loop.run(endless)
    # what only the collector of cycles can free is not held by anything
    loop.run(until(lambda: not busy(actors) and gc.collect() >= 0 and used() <= before))
