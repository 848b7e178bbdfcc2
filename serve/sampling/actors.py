"""Actors that are kept alive, and calls given to the least busy of them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)

log = logging.getLogger("ray.serve")

# the last is Ray's: it kills processes
DIED = (RayActorError, WorkerCrashedError, NodeDiedError, ObjectLostError, OutOfMemoryError)
START_S = 600.0  # importing torch on a busy machine, or waiting for a place in the cluster


class ActorLost(RuntimeError):
    """The actor ended before it answered.

    Attributes:
        alone: it had no other call, so it ended over this one. Of several the one that it was at can't be told: an
            answer may be lost on its way when the next call ends the actor.
    """

    def __init__(self, message: str, *, alone: bool) -> None:
        super().__init__(message)
        self.alone = alone


@dataclass(eq=False)
class _Life:
    """One actor, until it ends.

    Attributes:
        calls: given to it and not ended, in the order in which it takes them; and how much of its depth each fills.
        lost: is done when it has ended.
        culprit: the call that it had then, if it had one only.
        idle: since when it has had no call.
    """

    actor: Any
    alive: bool = False
    calls: dict[object, int] = field(default_factory=dict)
    lost: asyncio.Event = field(default_factory=asyncio.Event)
    culprit: object = None
    idle: float = field(default_factory=time.monotonic)

    @property
    def filled(self) -> int:
        return sum(self.calls.values())

    def end(self) -> None:
        """It has ended, or is to end."""
        if not self.lost.is_set():
            self.culprit = next(iter(self.calls)) if len(self.calls) == 1 else None
            self.alive = False
            self.lost.set()
            ray.kill(self.actor)  # a stopped process is killed, too


class Actors:
    """Actors behind one caller on one event loop; their number is changed by `grow` and `retire` alone.

    An actor that dies, does not answer or makes no progress is replaced, without being asked for. Calls wait here,
    first come first served, until an actor has room. The actors end with the process that made them.

    Args:
        spawn: makes an actor; it has `pulse(wait)`, which tells after a while how many steps it has done, and takes
            its calls one after the other in the order of their arrival.
        count: of actors at first.
        depth: calls that an actor is given at once, so that the next one is there when it has done one.
        silence_s: an actor whose pulse is late by so much is given up.
        step_s: so is one that is at work and makes no step for so long.

    Attributes:
        trouble: why the last of those that ended did.
    """

    def __init__(
        self, spawn: Callable[[], Any], count: int, *, depth: int = 2, silence_s: float = 60, step_s: float = 600
    ) -> None:
        self._spawn, self.depth, self._silence_s, self._step_s = spawn, depth, silence_s, step_s
        self._period = min(5.0, silence_s / 4, step_s / 4)
        self.trouble = ""
        self._lives: dict[int, _Life] = {}
        self._waiting: deque[tuple[int, object, asyncio.Future[_Life]]] = deque()
        self._ending: set[asyncio.Task[None]] = set()
        self._supervisors: dict[int, asyncio.Task[None]] = {}
        self._number = 0
        self.grow(count)

    def __len__(self) -> int:
        return len(self._supervisors)

    @property
    def alive(self) -> int:
        """Actors that answer."""
        return sum(life.alive for life in self._lives.values())

    @property
    def waiting(self) -> int:
        """Calls that no actor has room for."""
        return len(self._waiting)

    @property
    def starting(self) -> int:
        """Actors that are wanted and do not answer yet: they are being made, or wait for room in the cluster."""
        return len(self) - self.alive

    def grow(self, count: int) -> None:
        """Have so many more."""
        for _ in range(count):
            self._supervisors[self._number] = asyncio.get_running_loop().create_task(self._supervise(self._number))
            self._number += 1

    def retire(self, most: int, idle_s: float) -> int:
        """End actors that have no work, the youngest first; how many were ended.

        Args:
            most: ended, at most.
            idle_s: those that answer have had no call for so long; those that do not answer yet are ended at once.
        """
        unused = [number for number in sorted(self._supervisors, reverse=True) if self._unused(number, idle_s)][:most]
        for number in unused:
            supervisor, life = self._supervisors.pop(number), self._lives.pop(number, None)
            if life is not None:
                life.end()  # before anything else happens: no call may reach it any more
            supervisor.cancel()
            self._ending.add(supervisor)
            supervisor.add_done_callback(self._ending.discard)
        return len(unused)

    def _unused(self, number: int, idle_s: float) -> bool:
        life = self._lives.get(number)
        return life is None or not life.alive or (not life.calls and time.monotonic() - life.idle >= idle_s)

    async def started(self, count: int | None = None) -> None:
        """Wait until so many of them answer; by default all."""
        while self.alive < (len(self) if count is None else count):
            await asyncio.sleep(0.1)

    async def close(self) -> None:
        """End the actors."""
        tasks = [*self._supervisors.values(), *self._ending]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def each(self, method: str, *args: Any) -> list[Any]:
        """Have every actor that is alive do it; errors are returned like answers."""
        calls = (_ask(life, method, args) for life in self._lives.values() if life.alive)
        return await asyncio.gather(*calls, return_exceptions=True)

    async def call(self, method: str, *args: Any, whole: bool = False) -> Any:
        """Have the least busy actor do it; where the caller is cancelled, so is the call.

        Args:
            whole: wait for an actor that has nothing else to do, and give it nothing else.

        Raises:
            ActorLost: the actor ended. What the method raises comes as it is.
        """
        token = object()
        life = await self._acquire(token, self.depth if whole else 1)
        try:
            ref = getattr(life.actor, method).remote(*args)
        except BaseException:
            self._release(life, token)
            raise
        answer = asyncio.ensure_future(_get(ref))
        lost = asyncio.ensure_future(life.lost.wait())
        try:
            await asyncio.wait({answer, lost}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            ray.cancel(ref)
            ending = asyncio.ensure_future(self._until_ended(life, token, answer, lost))
            self._ending.add(ending)  # the actor is busy until then
            ending.add_done_callback(self._ending.discard)
            raise
        return self._result(life, token, answer, lost)

    def _result(self, life: _Life, token: object, answer: asyncio.Future[Any], lost: asyncio.Future[Any]) -> Any:
        lost.cancel()
        try:
            if not answer.done():
                answer.cancel()
                raise ActorLost("the actor was given up", alone=life.culprit is token)
            return answer.result()
        except DIED as error:
            life.end()
            raise ActorLost(str(error).strip().splitlines()[0], alone=life.culprit is token) from error
        except RayTaskError as error:
            raise (error.cause if isinstance(error.cause, Exception) else error) from None
        finally:
            self._release(life, token)

    async def _until_ended(
        self, life: _Life, token: object, answer: asyncio.Future[Any], lost: asyncio.Future[Any]
    ) -> None:
        await asyncio.wait({answer, lost}, return_when=asyncio.FIRST_COMPLETED)
        try:
            self._result(life, token, answer, lost)
        except Exception as error:  # nobody waits for it any more
            log.debug("a cancelled call ended with %s", error)

    async def _acquire(self, token: object, weight: int) -> _Life:
        """A place at an actor, taken."""
        place: asyncio.Future[_Life] = asyncio.get_running_loop().create_future()
        self._waiting.append((weight, token, place))
        self._assign_waiting()
        try:
            return await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self._release(place.result(), token)
            else:
                self._assign_waiting()  # the next in line may find room where this one did not
            raise

    def _assign_waiting(self) -> None:
        """Give calls that wait to actors that have room."""
        while self._waiting:
            weight, token, place = self._waiting[0]
            if not place.done():
                free = [life for life in self._lives.values() if life.alive and life.filled + weight <= self.depth]
                if not free:
                    return
                life = min(free, key=lambda life: life.filled)
                life.calls[token] = weight
                place.set_result(life)
            self._waiting.popleft()

    def _release(self, life: _Life, token: object) -> None:
        life.calls.pop(token, None)
        if not life.calls:
            life.idle = time.monotonic()
        self._assign_waiting()

    async def _supervise(self, number: int) -> None:
        """Have an actor in this place, again and again."""
        wait = 0.0
        while True:
            await asyncio.sleep(wait)
            life = self._lives[number] = _Life(self._spawn())
            start = time.monotonic()
            try:
                await self._watch(life)
            except Exception as error:  # whatever ended it, there is to be another one
                self.trouble = (str(error).strip() or repr(error)).splitlines()[0]
                log.warning("sampler %d is replaced: %s", number, self.trouble)
            finally:
                life.end()
            wait = 0.0 if time.monotonic() - start > 60 else min(10.0, 2 * wait + 0.1)

    async def _watch(self, life: _Life) -> None:
        """Return when the actor is lost, raise when it has died or has to be given up."""
        beats = await _pulse(life, 0.0, START_S)
        life.alive, life.idle = True, time.monotonic()
        self._assign_waiting()
        last = time.monotonic()
        while not life.lost.is_set():
            seen = await _pulse(life, self._period, self._period + self._silence_s)
            if seen != beats or not life.calls:
                beats, last = seen, time.monotonic()
            elif time.monotonic() - last > self._step_s:
                raise TimeoutError(f"it has made no step for {self._step_s:.0f} s")


async def _pulse(life: _Life, wait: float, patience: float) -> int:
    async with asyncio.timeout(patience):  # asyncio.wait_for loses a cancellation that comes with the answer
        beats: int = await _ask(life, "pulse", (wait,))
        return beats


async def _ask(life: _Life, method: str, args: tuple[Any, ...]) -> Any:
    return await getattr(life.actor, method).remote(*args)


async def _get(ref: Any) -> Any:
    return await ref
