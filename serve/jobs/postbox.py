"""Posts that come at the same time go into the store together: one transaction, one flush of the disk."""

from __future__ import annotations

import asyncio

from serve.store import Cohort, JobStore, Post, StoreAway

BATCH_SIZE = 64  # posts in a transaction
Waiting = list[tuple[Post, asyncio.Future[Cohort]]]


class Postbox:
    """Hands posts to the store. What comes while it writes waits, and goes in with the next write."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._waiting: Waiting = []
        self._delivery: asyncio.Task[None] | None = None

    async def put(self, post: Post) -> Cohort:
        """Store a cohort; when this returns, it is on the disk.

        Raises:
            KeyConflict, QueueFull, StoreAway: as `JobStore.add`.
        """
        answer: asyncio.Future[Cohort] = asyncio.get_running_loop().create_future()
        self._waiting.append((post, answer))
        if self._delivery is None or self._delivery.done():
            self._delivery = asyncio.create_task(self._deliver())
        return await answer

    async def _deliver(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:BATCH_SIZE], self._waiting[BATCH_SIZE:]
            try:
                await self._write(batch)
            except StoreAway as error:
                _fail(batch, error)
            except Exception:  # something is wrong with one of them: the others are stored without it
                await self._one_by_one(batch)

    async def _one_by_one(self, batch: Waiting) -> None:
        for one in batch:
            try:
                await self._write([one])
            except Exception as error:  # it belongs to who posted it
                _fail([one], error)

    async def _write(self, batch: Waiting) -> None:
        posts = [post for post, _ in batch]
        for (_, answer), outcome in zip(batch, await asyncio.to_thread(self._store.add_all, posts), strict=True):
            if answer.done():  # who posted it has gone; it is stored
                continue
            if isinstance(outcome, Cohort):
                answer.set_result(outcome)
            else:
                answer.set_exception(outcome)


def _fail(batch: Waiting, error: Exception) -> None:
    for _, answer in batch:
        if not answer.done():
            answer.set_exception(error)
