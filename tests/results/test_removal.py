"""Publishing and removing at the same time: nothing stays, whatever the instant, whoever is killed."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from publishing import NAMES, fault, image, summary_of

from ldseg.data.volume import Volume
from ldseg.results import publication
from ldseg.results.publication import publish, sweep
from ldseg.results.removal import REMOVED, Removed, is_removed, remove, removed, unmark

STEPS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.scandir", "os.utime", "ctypes.dlsym")


class Steps:
    """Counts what this process does to files, and does something itself at one of these steps: before it happens.

    Python's audit hooks tell of each; one can't be taken away again, so there is one for all tests.
    """

    def __init__(self) -> None:
        self.root, self.at, self.count, self.inside = "", 0, 0, False
        self.action: Callable[[], None] | None = None
        self.lock = threading.RLock()
        sys.addaudithook(self.hear)

    def hear(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.action is None or event not in STEPS:
            return
        with self.lock:  # files are written by several threads
            if self.inside or not (event.startswith("ctypes") or self.root in str(arguments)):
                return
            self.count += 1
            if self.count == self.at:
                self.inside = True
                try:
                    self.action()
                finally:
                    self.inside = False

    @contextmanager
    def before(self, step: int, root: Path, action: Callable[[], None]) -> Iterator[None]:
        self.root, self.at, self.count, self.action = str(root), step, 0, action
        try:
            yield
        finally:
            self.action = None


@pytest.fixture(scope="module")
def steps() -> Steps:
    return Steps()


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Volume:
    return image(tmp_path_factory.mktemp("image"), (6, 5, 4))


def put(volume: Volume, folder: Path, seed: int = 0) -> None:
    publish(summary_of(volume, folder.name, seed), volume, NAMES, folder)


def nothing_but_the_mark(results: Path) -> bool:
    mark = results / f"{REMOVED}cohort"
    return list(results.iterdir()) == [mark] and not list(mark.iterdir())


@pytest.mark.parametrize(
    ("there", "exchange"), [("nothing", True), ("the same", True), ("another", True), ("another", False)]
)
def test_a_removal_at_every_step_of_a_publication_leaves_nothing(
    steps: Steps, volume: Volume, tmp_path: Path, there: str, exchange: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchange:
        monkeypatch.setattr(publication, "_exchange", lambda one, other: False)
    step, ended = 0, False
    while not ended:
        step += 1
        results = tmp_path / str(step)
        if there != "nothing":
            put(volume, results / "cohort" / "a", seed=0 if there == "the same" else 1)
            put(volume, results / "cohort" / "b")
        results.mkdir(exist_ok=True)
        told = False
        with steps.before(step, results, lambda folder=results / "cohort": remove(folder)):
            try:
                put(volume, results / "cohort" / "a")
            except Removed:
                told = True
        ended = steps.count < step  # the publication was through before
        assert told != ended
        if ended:
            assert fault(results / "cohort" / "a") == ""
            remove(results / "cohort")
        assert nothing_but_the_mark(results), step
        with pytest.raises(Removed):
            put(volume, results / "cohort" / "b")
        assert nothing_but_the_mark(results), step
    assert step > 20, "each file that is written is a step, and more"


def run_and_die(steps: Steps, step: int, volume: Volume, results: Path, dies: str) -> None:
    """The end of this process: at a step with status 1, or through with 0."""

    def die() -> None:
        if dies == "who publishes":
            remove(results / "cohort")
        os._exit(1)

    with steps.before(step, results, die):
        if dies == "who publishes":
            put(volume, results / "cohort" / "a")
        else:
            remove(results / "cohort")
    os._exit(0)


@pytest.mark.parametrize("dies", ["who publishes", "who removes"])
def test_who_is_killed_at_any_step_leaves_nothing_after_the_next_start(
    steps: Steps, volume: Volume, tmp_path: Path, dies: str
) -> None:
    """Either the one that publishes dies when the other one has removed, or the one that removes dies amid it."""
    step, ended = 0, False
    while not ended:
        step += 1
        results = tmp_path / str(step)
        put(volume, results / "cohort" / "a", seed=1)
        child = os.fork()
        if child == 0:
            run_and_die(steps, step, volume, results, dies)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        if dies == "who publishes" and ended:
            remove(results / "cohort")
        if not is_removed(results / "cohort"):  # it died before it had said so: nothing has happened
            assert dies == "who removes" and fault(results / "cohort" / "a") == ""
            continue
        sweep(results, older_than_s=0)
        assert nothing_but_the_mark(results), step
        assert removed(results) == [results / "cohort"]
        assert not unmark(results / "cohort") and unmark(results / "cohort", older_than_s=0)
        assert not list(results.iterdir())
    assert step > 5


def test_several_that_publish_while_several_remove_leave_nothing(volume: Volume, tmp_path: Path) -> None:
    """Threads and their own instants; each round is another cohort."""
    for number in range(15):
        results = tmp_path / str(number)
        results.mkdir()
        begun, errors = threading.Event(), []

        def publishing(case: str, results: Path = results, begun: threading.Event = begun) -> None:
            try:
                for seed in range(200):
                    put(volume, results / "cohort" / case, seed)
                    begun.set()
            except Removed:
                return
            except OSError as error:
                errors.append(error)  # noqa: B023

        def removing(delay: float, results: Path = results, begun: threading.Event = begun) -> None:
            begun.wait(60)
            time.sleep(delay)
            remove(results / "cohort")

        tasks = [threading.Thread(target=publishing, args=(case,)) for case in "aab"]
        tasks += [threading.Thread(target=removing, args=(0.001 * number,)) for _ in range(2)]
        for task in tasks:
            task.start()
        for task in tasks:
            task.join()
        assert not errors and nothing_but_the_mark(results)


def test_a_removal_that_can_not_be_done_is_told(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        remove(tmp_path / "gone" / "cohort")
    assert not (tmp_path / "gone").exists()
