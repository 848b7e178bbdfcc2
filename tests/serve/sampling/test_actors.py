"""Actors kept alive: who is to blame for a death, who is replaced, who is served when."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from typing import Any

import pytest
import ray
from raying import Loop, make, until

from serve.sampling.actors import ActorLost

pytest_plugins = ("raying",)
pytestmark = pytest.mark.slow  # minutes: processes are killed, stopped and replaced
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers can't import a test


class Toy:
    """Takes its calls in order, as a sampler does."""

    def __init__(self) -> None:
        self.turn, self.beats = asyncio.Lock(), 0

    async def pulse(self, wait: float) -> int:
        await asyncio.sleep(wait)
        return self.beats

    async def work(self, seconds: float, deadly: bool = False) -> int:
        async with self.turn:
            await asyncio.sleep(seconds)
            if deadly:
                os._exit(1)
            self.beats += 1
            return self.beats


def test_a_call_is_blamed_for_a_death_if_there_was_no_other(loop: Loop) -> None:
    async def scenario() -> list[Any]:
        toys = await make(1, lambda: ray.remote(Toy).options(num_cpus=0).remote())
        deadly = asyncio.create_task(toys.call("work", 3.0, True))
        await until(lambda: toys.alive == 1)
        await asyncio.sleep(1)  # it is at work
        ended = await asyncio.gather(deadly, toys.call("work", 0.0), return_exceptions=True)
        ended += await asyncio.gather(toys.call("work", 0.0, True, whole=True), return_exceptions=True)
        await toys.close()
        return ended

    *together, alone = loop.run(scenario())
    assert all(isinstance(error, ActorLost) and not error.alone for error in together)
    assert isinstance(alone, ActorLost) and alone.alone


def test_an_actor_without_progress_is_replaced_and_long_work_in_steps_is_not(loop: Loop) -> None:
    async def scenario() -> None:
        toys = await make(1, lambda: ray.remote(Toy).options(num_cpus=0).remote(), step_s=4)
        assert [await toys.call("work", 1.0) for _ in range(6)] == [1, 2, 3, 4, 5, 6]
        with pytest.raises(ActorLost):
            await toys.call("work", 60.0)
        assert await toys.call("work", 0.0) == 1
        await toys.close()

    loop.run(scenario())


def test_a_whole_case_has_an_actor_to_itself_and_calls_are_served_in_their_order(loop: Loop) -> None:
    async def scenario() -> None:
        toys, ended = await make(2, lambda: ray.remote(Toy).options(num_cpus=0).remote()), []
        await until(lambda: toys.alive == 2)

        async def call(name: str, seconds: float, whole: bool) -> None:
            await toys.call("work", seconds, whole=whole)
            ended.append(name)

        started = time.monotonic()
        calls = [call("whole", 4.0, True), *(call(f"part {k}", 0.1, False) for k in range(6))]
        await asyncio.gather(*calls)
        # two answers may be heard in the same turn of the loop, so neighbours may change places here
        assert sorted(ended[:6]) == [f"part {k}" for k in range(6)] and ended[6] == "whole"
        assert time.monotonic() - started < 60 and toys.waiting == 0
        await toys.close()

    loop.run(scenario())
