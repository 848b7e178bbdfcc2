"""How many samplers there are, on real actors: within what the cluster has room for, down to the least when idle."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any

import pytest
import ray
from raying import Loop, make, until

from serve.jobs.scaling import Scaler, room
from serve.sampling.actors import ActorLost
from serve.settings import Settings, SettingsError

pytest_plugins = ("raying",)
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers can't import a test


class Toy:
    """Takes its calls in order, as a sampler does."""

    def __init__(self) -> None:
        self.turn, self.beats = asyncio.Lock(), 0

    async def pulse(self, wait: float) -> int:
        await asyncio.sleep(wait)
        return self.beats

    async def work(self, seconds: float) -> None:
        async with self.turn:
            await asyncio.sleep(seconds)
            self.beats += 1


def spawner(cpus: float) -> Callable[[], Any]:
    return lambda: ray.remote(Toy).options(num_cpus=cpus).remote()


def test_a_sampler_must_take_a_share_of_something() -> None:
    with pytest.raises(SettingsError, match="take a share"):
        Settings(model="models/some", cpus_per_replica=0)
    assert Settings(model="models/some", replicas=3).most_replicas == 3
    assert Settings(model="models/some", replicas=3, max_replicas=50).most_replicas == 50


@pytest.mark.slow
def test_samplers_grow_within_the_room_and_shrink_when_idle(loop: Loop) -> None:
    async def scenario() -> None:
        toys = await make(1, spawner(0.9))
        await toys.started()
        scaler = Scaler(toys, least=1, most=10, idle_s=1.0, room=lambda: room(0.9, 0))
        await scaler.adapt(20)
        assert len(toys) == 1, "work that is gone the next time is worth no sampler"
        await scaler.adapt(20)
        assert len(toys) == 4, "4 CPUs"
        await toys.started()
        await scaler.adapt(20)
        assert (len(toys), toys.alive) == (5, 4), "one waits for a node"
        for _ in range(3):
            await scaler.adapt(20)
        assert len(toys) == 5, "and no more than one"
        busy = [asyncio.create_task(toys.call("work", 6.0)) for _ in range(2)]
        await asyncio.sleep(1.2)
        await scaler.adapt(0)
        assert (len(toys), toys.starting) == (2, 0), "those that wait for a node and that are idle went"
        await asyncio.gather(*busy)
        await scaler.adapt(0)
        assert len(toys) == 2, "not before they have been idle for long enough"
        await asyncio.sleep(1.2)
        await scaler.adapt(0)
        assert len(toys) == toys.alive == 1, "the least stays"
        await toys.call("work", 0.0)
        await until(lambda: ray.available_resources().get("CPU", 0) > 3.0)
        await toys.close()

    loop.run(scenario())


@pytest.mark.slow
def test_a_call_never_reaches_a_sampler_that_goes(loop: Loop) -> None:
    async def scenario() -> None:
        toys = await make(3, spawner(0.1))
        await toys.started()
        for _ in range(30):
            calls = [asyncio.create_task(toys.call("work", 0.01)) for _ in range(4)]
            await asyncio.sleep(0.005)
            gone = toys.retire(1, 0.0)
            toys.grow(gone)
            ended = await asyncio.gather(*calls, return_exceptions=True)
            assert not any(isinstance(end, ActorLost) for end in ended)
        await toys.close()

    loop.run(scenario())
