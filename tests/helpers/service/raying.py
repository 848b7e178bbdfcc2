"""A Ray of its own for a test module, and an event loop beside the tests; a plugin: it brings the fixture `loop`."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from service import environment

from ldseg.orchestration.cluster import connection
from serve.sampling.actors import Actors

SILENCE_S, WAIT_S = 8.0, 240.0


class Loop:
    """An event loop in a thread: the actors' keepers go on between the tests."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(WAIT_S)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()


@pytest.fixture(scope="module")
def loop() -> Iterator[Loop]:
    connection.shutdown()  # other tests of the same process may have left theirs
    os.environ.update(environment())
    connection.connect(num_cpus=4, object_store_mb=100, dashboard=False)
    made = Loop()
    yield made
    made.close()
    connection.shutdown()


async def make(count: int, spawn: Callable[[], Any], **options: Any) -> Actors:
    return Actors(spawn, count, silence_s=SILENCE_S, **options)


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        await asyncio.sleep(0.02)
