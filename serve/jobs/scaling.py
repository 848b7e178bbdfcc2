"""How many samplers there are: more while work waits, fewer when they are idle."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import ray

from serve.jobs.runner import Runner
from serve.redaction import describe_exception
from serve.sampling.actors import Actors
from serve.sampling.pool import Pool
from serve.settings import Settings
from serve.store import StoreAway

log = logging.getLogger("ray.serve")

PERIOD_S = 2.0  # between two looks; work that is gone at the second one was not worth a sampler


class Scaler:
    """Adds samplers while work waits, and gives them back when they are idle.

    Only what has room in the cluster is started, and one more: that one waits for a node to join, and tells a cluster
    that can grow by itself that it should. Samplers of a lost node are wanted again, and wait in the same way.

    Args:
        least, most: samplers.
        idle_s: a sampler goes when it had nothing to do for so long.
        room: how many more samplers the cluster has resources for; it may block.
    """

    def __init__(self, actors: Actors, *, least: int, most: int, idle_s: float, room: Callable[[], int]) -> None:
        self.actors, self.least, self.most, self.idle_s, self._room = actors, least, most, idle_s, room
        self._waited = False

    async def adapt(self, waiting: int) -> None:
        """Adapt the number of samplers.

        Args:
            waiting: cases and chunks that more samplers could take at once.
        """
        waited, self._waited = self._waited, waiting > 0
        if not waiting:
            self.actors.retire(len(self.actors) - self.least, self.idle_s)
        elif waited and not self.actors.starting:
            wanted = min(waiting, self.most - len(self.actors))
            if wanted > 0:
                self.actors.grow(min(wanted, max(await asyncio.to_thread(self._room), 1)))


def room(cpus: float, gpus: float) -> int:
    """How many actors of this size the free resources of all nodes together suffice for.

    What is free lies on several nodes, so there may be room for fewer; those that are too many wait.
    """
    free = ray.available_resources()
    fits = [(free.get(name, 0.0) + 1e-6) // size for name, size in (("CPU", cpus), ("GPU", gpus)) if size > 0]
    return int(min(fits))


async def autoscale(settings: Settings, pool: Pool, runner: Runner) -> None:
    """Let the samplers follow the work, and the cases that are worked on at once the samplers, for ever."""

    def fits() -> int:
        return room(settings.cpus_per_replica, settings.gpus_per_replica)

    least, most = settings.replicas, settings.most_replicas
    scaler = Scaler(pool.actors, least=least, most=most, idle_s=settings.idle_replica_s, room=fits)
    while True:
        await asyncio.sleep(PERIOD_S)
        try:
            queue = await asyncio.to_thread(runner.store.queue)
            await scaler.adapt(queue.queued + pool.waiting)
            runner.resize(max(least, pool.actors.alive))
        except StoreAway:
            continue
        except Exception as error:  # the samplers that there are go on
            log.error("the number of samplers could not be adapted: %s", describe_exception(error))
