"""The runner: leases cases from the job store, has them done, writes down how they ended."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import shutil
import socket
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from ldseg.data.errors import CaseError
from ldseg.posterior.chunks import CaseTooLarge
from ldseg.results.publication import DiskFull
from ldseg.results.removal import Removed
from serve.intake.paths import without_folders
from serve.jobs.casework import Casework
from serve.jobs.removal import Removal
from serve.redaction import describe_exception
from serve.sampling.catalog import UnknownModel, UnusableModel
from serve.sampling.models import ModelError
from serve.sampling.pool import SamplingFailed
from serve.settings import Settings
from serve.store import UNFINISHED, JobStore, StoreAway, Work
from serve.telemetry import Metrics

log = logging.getLogger("ray.serve")
T = TypeVar("T")

IDLE_S = 1.0  # how long a runner without work waits before it asks again; its other workers ask less often
LONGEST_IDLE_S = 30.0
RETRY_S = 1.0  # and one whose database does not answer
CLEANUP_PERIOD_S = 600.0  # between two rounds of tidying up
REASONS: dict[type[BaseException], str] = {
    CaseError: "invalid-image",
    UnknownModel: "unknown-model",
    UnusableModel: "unusable-model",
    ModelError: "unusable-model",
    CaseTooLarge: "out-of-memory",
    DiskFull: "disk-full",
}


class Runner:
    """Some cases in flight at once, until there are none left; then it waits for more.

    A case is this runner's for the length of a lease, which its heartbeat extends. Whatever ends it (kill -9, a stopped
    machine), its leases run out and any runner on the same store goes on. A result is published before the case is
    done, and done again it is the same bytes, so no instant is a bad one to die at.
    """

    def __init__(self, settings: Settings, store: JobStore, casework: Casework, metrics: Metrics) -> None:
        self.settings, self.store, self.casework, self.metrics = settings, store, casework, metrics
        self.storage, self.removal = casework.storage, Removal(settings, store)
        self.name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self.samplers = settings.replicas
        self._wake, self._rows_left = asyncio.Event(), asyncio.Event()
        # of its own: a heartbeat must not wait behind files that are read and written
        self._heartbeat_thread = ThreadPoolExecutor(1, thread_name_prefix="heartbeat")
        self._running: dict[tuple[str, str], asyncio.Task[Any]] = {}
        self._changed = asyncio.Condition()
        self._workers: dict[int, asyncio.Task[None]] = {}
        self._background: list[asyncio.Task[None]] = []

    @property
    def slots(self) -> int:
        """Cases that are worked on at once."""
        return self.settings.cases_in_flight or self.samplers + 2

    def start(self) -> None:
        """Begin to work."""
        self._background = [asyncio.create_task(self._heartbeat_loop()), asyncio.create_task(self._cleanup_loop())]
        self.resize(self.samplers)

    def resize(self, samplers: int) -> None:
        """There are so many samplers now; workers that are too many end with the case that they are at."""
        self.samplers = samplers
        for number in range(self.slots):
            worker = self._workers.get(number)
            if worker is None or (worker.done() and not worker.cancelled() and worker.exception() is None):
                self._workers[number] = asyncio.create_task(self._work(number))

    async def stop(self) -> None:
        """Stop at once and give the cases back, so that another runner need not wait for their leases."""
        tasks = [*self._workers.values(), *self._background, *self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        try:
            await asyncio.to_thread(self.store.release, self.name)
        except StoreAway:
            log.warning("the database does not answer: what was begun goes on when its leases have run out")

    @property
    def alive(self) -> bool:
        """Whether every worker is at work."""
        workers = [self._workers.get(number) for number in range(self.slots)]
        return not any(worker is None or worker.done() for worker in (*workers, *self._background))

    def wake(self) -> None:
        """There is something new to do."""
        self._wake.set()

    async def cancel(self, cohort: str) -> None:
        """Cancel what is unfinished of a cohort; what another runner has at work it learns by its heartbeat."""
        for name in await asyncio.to_thread(self.store.cancel, cohort):
            self._stop_case(cohort, name)
        await asyncio.to_thread(self.removal.remove_cancelled, cohort)

    async def forget(self, cohort: str) -> None:
        """Remove a cohort with its files and uploads; its row goes later if the database has no room for that.

        Raises:
            StoreAway: nothing was removed.
            OSError: its results can't be removed.
        """
        for running, name in list(self._running):
            if running == cohort:
                self._stop_case(cohort, name)
        await asyncio.to_thread(self.removal.remove_files, cohort)
        try:
            await asyncio.to_thread(self.removal.remove_row, cohort)
        except StoreAway:
            self._rows_left.set()

    async def wait(self, cohort: str, seconds: float) -> bool:
        """Wait for a cohort to end, whoever does it; False if it takes longer."""
        deadline = asyncio.get_running_loop().time() + seconds
        while True:
            found = await asyncio.to_thread(self.store.cohort, cohort, None)
            if found is None or found.finished is not None:
                return True
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                return False
            try:
                async with self._changed:
                    async with asyncio.timeout(min(left, IDLE_S)):
                        await self._changed.wait()
            except TimeoutError:
                continue

    async def _work(self, number: int) -> None:
        idle = min(IDLE_S * (1 + number), LONGEST_IDLE_S)  # whoever finds work wakes the others
        while number < self.slots:
            try:
                self._wake.clear()
                if await asyncio.to_thread(self.storage.fault) is not None:
                    await asyncio.sleep(RETRY_S)
                    continue
                work = await asyncio.to_thread(self.store.claim, self.name, self.settings.lease_s)
                if work is not None:
                    self._wake.set()  # for the other workers: there may be more
                    await self._run_case(work)
                else:
                    async with asyncio.timeout(idle):  # asyncio.wait_for may lose a cancellation
                        await self._wake.wait()
            except TimeoutError:
                continue
            except StoreAway:
                await asyncio.sleep(RETRY_S)
            except Exception as error:  # a worker must outlive whatever one case brings
                log.error("a worker of the runner failed and goes on: %s", describe_exception(error))
                await asyncio.sleep(RETRY_S)

    async def _heartbeat_loop(self) -> None:
        """Extend the leases, and stop what is no longer ours: cancelled elsewhere, or taken over."""
        while True:
            await asyncio.sleep(self.settings.lease_s / 10)
            try:
                held = list(self._running)
                if held:
                    beat = functools.partial(self.store.heartbeat, self.name, held, self.settings.lease_s)
                    answer = await asyncio.get_running_loop().run_in_executor(self._heartbeat_thread, beat)
                    for cohort, name in answer.lost:
                        self._stop_case(cohort, name)
            except StoreAway:
                continue
            except Exception as error:
                log.error("a heartbeat failed: %s", describe_exception(error))

    async def _cleanup_loop(self) -> None:
        """Remove what nobody will ask for again: what was forgotten, what a crash has left, old events."""
        while True:
            try:
                self._rows_left.clear()
                for work in (self.removal.finish, self.removal.sweep, self.store.purge_events):
                    await asyncio.to_thread(work)
                async with asyncio.timeout(CLEANUP_PERIOD_S):
                    await self._rows_left.wait()
            except TimeoutError:
                continue
            except StoreAway:
                await asyncio.sleep(RETRY_S)
            except Exception as error:
                log.error("keeping house failed: %s", describe_exception(error))
                await asyncio.sleep(CLEANUP_PERIOD_S)

    def _stop_case(self, cohort: str, name: str) -> None:
        task = self._running.get((cohort, name))
        if task is not None and not task.cancelling():  # a second time would end its wait for what it is writing
            task.cancel()

    async def _run_case(self, work: Work) -> None:
        """Do a case and write down how it ended; a failure never reaches other cases."""
        # a case that is alone gets all samplers; in a queue each sampler does a case of its own
        whole = len(self._running) >= self.samplers
        task = asyncio.create_task(self.casework.segment(work, whole=whole))
        self._running[work.cohort, work.name] = task
        end: dict[str, Any] = {"state": "queued"}
        try:
            await asyncio.wait([task])
            counted = await self._counts_as_attempt(work, task)
            if counted is not None:
                write = functools.partial(self.store.give_back, work, self.name, counted=counted)
            else:
                end = self._end(work, task)
                write = functools.partial(self.store.finish, work, self.name, **end)
            stored = await self._retry_while_away(write)
        finally:
            task.cancel()
            if self._running.get((work.cohort, work.name)) is task:  # its lease ran out and it was claimed again here
                del self._running[work.cohort, work.name]
        await self._after_case(work, end, stored)

    def _end(self, work: Work, task: asyncio.Task[Any]) -> dict[str, Any]:
        """How a case ended, as the store takes it."""
        if task.cancelled() or isinstance(task.exception(), Removed):
            return {"state": "cancelled"}
        if (error := task.exception()) is not None:
            return {"state": "failed", "error": self._sentence(work, error), "reason": _reason(error)}
        result, model_digest = task.result()
        return {"state": "done", "result": result, "model_digest": model_digest}

    async def _counts_as_attempt(self, work: Work, task: asyncio.Task[Any]) -> bool | None:
        """Of a case that goes back to the queue because nothing can be kept just now; None of one that has ended.

        Where there is room again, or still, it may be this case that is too large: then it is an attempt.
        """
        if task.cancelled() or not isinstance(error := task.exception(), OSError):
            return None
        if await asyncio.to_thread(self.storage.fault) is not None:
            return False
        return True if isinstance(error, DiskFull) and work.attempts < self.store.max_attempts else None

    async def _after_case(self, work: Work, end: dict[str, Any], stored: bool) -> None:
        """After a case's end is in the store."""
        if stored and end["state"] != "queued":
            self.metrics.case_finished(end["state"], end.get("reason", ""))
            if "result" in end:
                self.metrics.stages(end["result"]["seconds"])
        state = end["state"] if stored else await self._retry_while_away(lambda: self._state(work))
        if state == "cancelled":  # its task has ended, so nothing of it is written any more
            await asyncio.to_thread(shutil.rmtree, self.casework.folder(work.cohort, work.name), True)
        if work.upload and state not in UNFINISHED and not self.settings.keep_uploads:
            await asyncio.to_thread(shutil.rmtree, Path(work.image).parent, True)
        async with self._changed:
            self._changed.notify_all()

    def _state(self, work: Work) -> str:
        """Of a case that ended otherwise; one that was removed was cancelled before."""
        found = self.store.case(work.cohort, work.name, owner=None)
        return "cancelled" if found is None else found.state

    async def _retry_while_away(self, call: Callable[[], T]) -> T:
        """Until the database answers: what is done is done, it only has to be written down."""
        while True:
            try:
                return await asyncio.to_thread(call)
            except StoreAway:
                await asyncio.sleep(RETRY_S)

    def _sentence(self, work: Work, error: BaseException) -> str:
        if isinstance(error, (SamplingFailed, *REASONS)):
            text = str(error)
        else:
            log.error("a case of %s failed: %s", work.cohort, describe_exception(error))
            cure = "try it again, the service's log says more"
            text = f"{work.name}: segmenting it failed ({type(error).__name__}); {cure}"
        return without_folders(text, work.image, self.settings)


def _reason(error: BaseException) -> str:
    """A short word that metrics may carry."""
    if isinstance(error, SamplingFailed):
        return error.reason
    return next((word for kind, word in REASONS.items() if isinstance(error, kind)), "internal")
