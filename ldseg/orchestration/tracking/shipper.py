"""Brings the folders of runs to MLflow whenever it can be reached; a training never waits for it."""

from __future__ import annotations

import fcntl
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ldseg.files import locked
from ldseg.orchestration.home import without_password
from ldseg.orchestration.tracking.mlflow_client import Tracker, connect, logs
from ldseg.orchestration.tracking.run_log import END, METRICS, RUN, RunInfo, read_info
from ldseg.orchestration.tracking.shipment import (
    STATE,
    Shipment,
    State,
    disconnected,
    first_line,
    read_state,
    refused,
    unsent,
)

logger = logging.getLogger(__name__)
LAST_TRY = 20.0  # seconds for what is unsent when a program ends
LONGEST_PAUSE = 60.0  # seconds between tries while MLflow is away


@dataclass(frozen=True)
class _Look:
    """A run's folder as it was when its files had this signature."""

    signature: tuple[tuple[int, int, int], ...]
    info: RunInfo
    state: State
    unsent: int


class _Away(Exception):
    """MLflow can't be reached at all."""


class Shipper:
    """Sends what MLflow has not got of all runs below a folder: parents first, each point once and in order.

    Any number of them may look at the same folders, one after the other or at once.

    Args:
        tracker: MLflow; it need not be there yet.
        root: holds folders made by `RunLog.create`, at any depth, also ones that are made later.
        say: told once that MLflow is away, once that it is back, and what it refuses.
    """

    def __init__(self, tracker: Tracker, root: Path, *, say: Callable[[str], None] = logger.warning) -> None:
        self.tracker, self.root, self.say = tracker, Path(root), say
        self._away = self._failed = False
        self._said: set[str] = set()
        self._refused: set[Path] = set()  # runs that MLflow does not take at all, not tried again by this object
        self._taken: dict[Path, set[tuple[str, int]]] = {}
        self._looks: dict[Path, _Look] = {}
        self._turn, self._stop = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, interval: float = 2.0) -> None:
        """Send in the background every `interval` seconds; while MLflow is away the pauses grow to a minute."""
        if self._thread is None:
            self._stop.clear()
            self._thread = threading.Thread(target=self._keep_on, args=(interval,), daemon=True, name="shipper")
            self._thread.start()

    def stop(self, timeout: float = 30.0) -> None:
        """End the background thread, after the request it is in; what is unsent stays on the disk."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout)
            self._thread = None

    def _keep_on(self, interval: float) -> None:
        pause = interval
        while not self._stop.wait(pause):
            try:
                self.sync()
            except (OSError, ValueError) as error:  # the folders, not MLflow
                self._failed = True
                self._once(f"the runs in {self.root} can't be read, it will be tried again: {first_line(error)}")
            pause = min(2 * pause, max(interval, LONGEST_PAUSE)) if self._failed else interval

    def flush(self, timeout: float = 30.0) -> int:
        """Send all, trying again until the timeout; it may be passed by the one request that is under way.

        Returns:
            What is still unsent, see `unsent`.
        """
        deadline, pause = time.monotonic() + timeout, 0.25
        while True:
            left = self.sync(max(0.0, deadline - time.monotonic()))
            if not left or time.monotonic() + pause >= deadline:
                return left
            time.sleep(pause)
            pause = min(2 * pause, 2.0)

    def unsent(self) -> int:
        """Metric lines that MLflow has not acknowledged, and one for each run's description and end that it has not.

        A run that MLflow refuses as a whole does not count.
        """
        return sum(look.unsent for folder, look in self._runs().items() if folder not in self._refused)

    def run_id(self, name: str, timeout: float = 60.0, *, experiment: str = "") -> str:
        """MLflow's id of a run, waiting for MLflow to know it.

        Raises:
            ValueError: there is no run of that name, or several experiments have one.
            TimeoutError: MLflow could not be told in time.
        """
        deadline = time.monotonic() + timeout
        while True:
            of_name = [
                (folder, look.state.run_id)
                for folder, look in self._runs().items()
                if look.info.name == name and experiment in ("", look.info.experiment)
            ]
            if len(of_name) != 1:
                raise ValueError(f"{self.root} has {len(of_name)} runs named {name}, not one; give its experiment")
            folder, identity = of_name[0]
            if identity:
                return identity
            if folder in self._refused or time.monotonic() >= deadline:
                raise TimeoutError(
                    f"MLflow at {without_password(self.tracker.uri)} does not know the run {name} after {timeout:g} s"
                )
            if self.sync(max(0.0, deadline - time.monotonic())):
                time.sleep(0.1)

    def sync(self, patience: float = -1) -> int:
        """One pass over all runs; returns what is still unsent. MLflow's absence is told and not raised.

        Args:
            patience: seconds to wait for a pass of another thread; -1 waits for its end.
        """
        if self._turn.acquire(timeout=patience):
            try:
                self._failed = False
                sent = self._pass()
                if self._away and sent:
                    self._away = False
                    self.say(f"MLflow at {without_password(self.tracker.uri)} is back")
            except _Away as error:
                self._failed = True
                if not self._away:
                    self._away = True
                    self.say(
                        f"MLflow at {without_password(self.tracker.uri)} can't be reached ({error}); "
                        f"what it is to know waits in {self.root}"
                    )
            finally:
                self._turn.release()
        return self.unsent()

    def _runs(self) -> dict[Path, _Look]:
        """All runs, oldest first."""
        looks = {path.parent: self._look(path.parent) for path in sorted(self.root.rglob(RUN))}
        found = {folder: look for folder, look in looks.items() if look is not None}
        return dict(sorted(found.items(), key=lambda item: item[1].info.start))

    def _look(self, folder: Path) -> _Look | None:
        """Reads only what has changed: a pass over hundreds of ended runs costs milliseconds."""
        signature = tuple(_stat(folder / name) for name in (RUN, METRICS, END, STATE))
        known = self._looks.get(folder)
        if known is None or known.signature != signature:
            info = read_info(folder)
            if info is None:
                return None
            uri = self.tracker.uri
            known = self._looks[folder] = _Look(signature, info, read_state(folder, uri), unsent(folder, uri))
        return known

    def _pass(self) -> bool:
        """Send what each run lacks; returns whether MLflow took something."""
        runs, done, sent = self._runs(), set[Path](), False
        by_name = {(look.info.experiment, look.info.name): folder for folder, look in runs.items()}

        def visit(folder: Path) -> None:
            nonlocal sent
            if folder in done or self._stop.is_set() and self._thread is threading.current_thread():
                return
            done.add(folder)
            above = by_name.get((runs[folder].info.experiment, runs[folder].info.parent))
            if above is not None:
                visit(above)
            sent |= self._ship(folder, above)

        for each in runs:
            visit(each)
        return sent

    def _ship(self, folder: Path, above: Path | None) -> bool:
        own, over = self._look(folder), self._look(above) if above is not None else None
        parent = over.state.run_id if over is not None else ""
        if own is None or folder in self._refused or (not own.unsent and parent in ("", own.state.parent)):
            return False
        try:
            with locked(folder / ".ship.lock", fcntl.LOCK_EX | fcntl.LOCK_NB):
                Shipment(self.tracker, folder, self.say, self._taken).send(parent)
                return True
        except BlockingIOError:
            return False  # another process is at it
        except Exception as error:  # a database, a proxy and a socket each raise their own; none may end a training
            self._trouble(folder, error)
            return False

    def _trouble(self, folder: Path, error: Exception) -> None:
        """Is it about this run, or is MLflow away?"""
        if refused(error, self.tracker.uri):
            self._refused.add(folder)
            self.say(f"MLflow refuses the run in {folder}: {first_line(error)}")
            return
        if disconnected(error):
            raise _Away(first_line(error)) from error
        try:
            self.tracker.client.search_experiments(max_results=1)
        except Exception as away:  # as above
            raise _Away(first_line(away)) from away
        self._failed = True
        self._once(f"MLflow did not take all of the run in {folder}, it will be tried again: {first_line(error)}")

    def _once(self, sentence: str) -> None:
        if sentence not in self._said:
            self._said.add(sentence)
            self.say(sentence)


def _stat(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except FileNotFoundError:
        return (0, 0, 0)
    return (found.st_ino, found.st_size, found.st_mtime_ns)


@contextmanager
def shipping(home: Path) -> Iterator[Shipper]:
    """Send the logs of a home while the block runs, and what is left at its end; what MLflow misses then is told."""

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    shipper = Shipper(connect(home), logs(home), say=say)
    shipper.start()
    try:
        yield shipper
    finally:
        shipper.stop()
        if left := shipper.flush(LAST_TRY):
            say(f"MLflow has not got {left} lines of {shipper.root}; the next training or search there sends them")
