"""The processes of a Ray that was started here, found by their parents: no other Ray of the machine is touched."""

import os
import signal
import time
from pathlib import Path


def _parents() -> dict[int, int]:
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            found[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue
    return found


def train_workers(ancestor: int) -> list[int]:
    """Process numbers of those that train, below a process."""
    return below(ancestor, b"ray::RayTrainWorker", b"ray::TrialTrainer")


def below(ancestor: int, *names: bytes) -> list[int]:
    """Process numbers of those below a process whose command begins with one of the names."""
    parents, found = _parents(), []
    for process in parents:
        line = [process]
        while line[-1] in parents and line[-1] > 1:
            line.append(parents[line[-1]])
        try:
            name = Path(f"/proc/{process}/cmdline").read_bytes()
        except OSError:
            continue
        if ancestor in line and name.startswith(names):
            found.append(process)
    return found


def kill_train_workers(ancestor: int, history: Path, epochs: int, patience: float = 600) -> int:
    """Kill (-9) the train workers below a process once a history has so many epochs; returns how many it had then."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        workers = train_workers(ancestor)  # before the epochs are counted: on a busy machine it takes as long as one
        done = len(history.read_text().splitlines()) if history.exists() else 0
        if done >= epochs and workers:
            for process in workers:
                os.kill(process, signal.SIGKILL)
            return done
        if not Path(f"/proc/{ancestor}/cmdline").read_bytes():
            raise ChildProcessError(f"the search has ended, with {done} epochs in {history}")
        time.sleep(0.005)
    raise TimeoutError(f"{history} has not come to {epochs} epochs in {patience:.0f} s")
