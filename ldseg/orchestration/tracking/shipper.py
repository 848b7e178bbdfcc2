"""Brings the folders of runs to MLflow whenever it can be reached; a training never waits for it."""

from __future__ import annotations

import fcntl
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ldseg.files import locked
from ldseg.orchestration.home import without_password
from ldseg.orchestration.tracking.mlflow_client import Tracker, connect, logs
from ldseg.orchestration.tracking.run_log import RUN
from ldseg.orchestration.tracking.shipment import Look, Shipment, first_line, is_disconnection, is_refusal

logger = logging.getLogger(__name__)
LAST_TRY = 20.0  # seconds for what is unsent when a program ends
LONGEST_PAUSE = 60.0  # seconds between tries while MLflow is away


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
        self._away = False
        self._said: set[str] = set()
        self._shipments: dict[Path, Shipment] = {}
        self._turn, self._stop = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, interval: float = 2.0) -> None:
        """Send in the background every `interval` seconds; while MLflow is away the pauses grow to a minute."""
        if self._thread is None:
            self._stop.clear()
            self._thread = threading.Thread(target=self._run, args=(interval,), daemon=True, name="shipper")
            self._thread.start()

    def stop(self, timeout: float = 30.0) -> None:
        """End the background thread, after the request it is in; what is unsent stays on the disk."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout)
            self._thread = None

    def _run(self, interval: float) -> None:
        pause = interval
        while not self._stop.wait(pause):
            try:
                stuck = not self._pass() and self.unsent() > 0
            except (OSError, ValueError) as error:  # the folders, not MLflow
                stuck = True
                self._say_once(f"the runs in {self.root} can't be read, it will be tried again: {first_line(error)}")
            pause = min(2 * pause, max(interval, LONGEST_PAUSE)) if stuck else interval

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
        return sum(look.unsent for shipment, look in self._runs() if not shipment.refused)

    def run_id(self, name: str, timeout: float = 60.0, *, experiment: str = "") -> str:
        """MLflow's id of a run, waiting for MLflow to know it.

        Raises:
            ValueError: there is no run of that name, or several experiments have one.
            TimeoutError: MLflow could not be told in time.
        """
        deadline = time.monotonic() + timeout
        while True:
            named = [
                (shipment.refused, look.state.run_id)
                for shipment, look in self._runs()
                if look.info.name == name and experiment in ("", look.info.experiment)
            ]
            if len(named) != 1:
                raise ValueError(f"{self.root} has {len(named)} runs named {name}, not one; give its experiment")
            refused, run = named[0]
            if run:
                return run
            if refused or time.monotonic() >= deadline:
                raise TimeoutError(f"MLflow at {self._address()} does not know the run {name} after {timeout:g} s")
            if self.sync(max(0.0, deadline - time.monotonic())):
                time.sleep(0.1)

    def sync(self, patience: float = -1) -> int:
        """One pass over all runs; returns what is still unsent. MLflow's absence is told and not raised.

        Args:
            patience: seconds to wait for a pass of another thread; -1 waits for its end.
        """
        self._pass(patience)
        return self.unsent()

    def _pass(self, patience: float = -1) -> bool:
        """Whether MLflow took something."""
        if not self._turn.acquire(timeout=patience):
            return False
        try:
            sent = self._send_all()
            if sent and self._away:
                self._away = False
                self.say(f"MLflow at {self._address()} is back")
            return sent
        except _Away as error:
            if not self._away:
                self._away = True
                what = f"what it is to know waits in {self.root}"
                self.say(f"MLflow at {self._address()} can't be reached ({error}); {what}")
            return False
        finally:
            self._turn.release()

    def _address(self) -> str:
        return without_password(self.tracker.uri)

    def _runs(self) -> list[tuple[Shipment, Look]]:
        """All runs: those without a parent first, then the oldest."""
        found = []
        for path in self.root.rglob(RUN):
            if path.parent not in self._shipments:
                self._shipments[path.parent] = Shipment(self.tracker, path.parent, self.say)
            shipment = self._shipments[path.parent]
            if look := shipment.look():
                found.append((shipment, look))
        return sorted(found, key=lambda run: (run[1].info.parent != "", run[1].info.start, run[0].folder))

    def _send_all(self) -> bool:
        """Send what each run lacks."""
        runs, sent = self._runs(), False
        shipments = {(look.info.experiment, look.info.name): shipment for shipment, look in runs}
        for shipment, look in runs:
            if self._stop.is_set() and self._thread is threading.current_thread():
                break
            above = shipments.get((look.info.experiment, look.info.parent))
            parent = above.look() if above else None
            sent |= self._send(shipment, parent.state.run_id if parent else "")
        return sent

    def _send(self, shipment: Shipment, parent: str) -> bool:
        look = shipment.look()
        if look is None or shipment.refused or (not look.unsent and parent in ("", look.state.parent)):
            return False
        try:
            with locked(shipment.folder / ".ship.lock", fcntl.LOCK_EX | fcntl.LOCK_NB):
                shipment.send(parent)
                return True
        except BlockingIOError:
            return False  # another process is at it
        except Exception as error:  # a database, a proxy and a socket each raise their own; none may end a training
            self._explain(shipment, error)
            return False

    def _explain(self, shipment: Shipment, error: Exception) -> None:
        """Is it about this run, or is MLflow away?"""
        if is_refusal(error, self.tracker.uri):
            shipment.refused = True
            self.say(f"MLflow refuses the run in {shipment.folder}: {first_line(error)}")
            return
        try:
            if is_disconnection(error):
                raise error
            self.tracker.client.search_experiments(max_results=1)
        except Exception as away:  # as above
            raise _Away(first_line(away)) from away
        self._say_once(
            f"MLflow did not take all of the run in {shipment.folder}, it will be tried again: {first_line(error)}"
        )

    def _say_once(self, sentence: str) -> None:
        if sentence not in self._said:
            self._said.add(sentence)
            self.say(sentence)


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
