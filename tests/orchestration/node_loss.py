"""A search on a cluster of several node processes, of which one joins and one is killed; prints what was seen as JSON.

python node_loss.py HOME DATA EPOCHS
"""

import json
import sys
import threading
import time
from pathlib import Path

from ldseg.orchestration import cluster, reach
from ldseg.orchestration.places import Place
from ldseg.orchestration.search import search
from ldseg.orchestration.study import Study
from ldseg.orchestration.train import HISTORY

from ray.cluster_utils import Cluster  # isort: skip  after the environment is set

SPACE = """
from tiny import tiny_config

BASE = {k: v for k, v in tiny_config(2).to_dict().items() if k in ("model", "sampler")}
BASE |= {"data": {"spatial_dims": 2, "shape": [16, 16]}, "optim": {"batch_size": 1, "validate_every": 1000}}
SPACE = {"optim.learning_rate": ("choice", [1e-3, 2e-3])}
METRIC = ("val_nll", "min")
"""
QUICK = {
    "health_check_initial_delay_ms": 1000, "health_check_period_ms": 500, "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}  # fmt: skip


class Watch:
    """The search's histories."""

    def __init__(self, study: Study) -> None:
        self.study, self.start, self.seen = study, time.monotonic(), {}

    def epochs(self, number: int) -> list[int]:
        path = Path(self.study.home) / "train" / self.study.run_name(number) / HISTORY
        return [int(json.loads(line)["epoch"]) for line in path.read_text().splitlines()] if path.exists() else []

    def until(self, what: str, true, seconds: float = 240) -> None:
        while not true():
            if time.monotonic() - self.start > seconds:
                raise TimeoutError(f"not {what} after {seconds} s; so far {self.seen}")
            time.sleep(0.02)
        self.note(what)

    def note(self, what: str) -> None:
        after = round(time.monotonic() - self.start, 1)
        self.seen[what] = {"after": after, "epochs": [len(self.epochs(0)), len(self.epochs(1))]}
        print(what, self.seen[what], file=sys.stderr, flush=True)


def main() -> None:
    home, data, epochs = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    (home / "space.py").write_text(SPACE)
    head = {"num_cpus": 0, "object_store_memory": 80_000_000, "_system_config": QUICK, "include_dashboard": False}
    nodes = Cluster(initialize_head=True, head_node_args=head)
    node = {"num_cpus": 1, "object_store_memory": 80_000_000}
    first = nodes.add_node(**node)
    place = Place(kind="node", reason="test", address=nodes.address)
    cluster.connect(place)
    said = reach.check(place, data, home)
    study = Study(
        name="s", home=str(home), data=data, space=str(home / "space.py"), trials=2, epochs=epochs, trials_at_once=2,
        front=True,
    )  # fmt: skip
    watch, found = Watch(study), []
    thread = threading.Thread(target=lambda: found.extend(search(study, say=None)))
    thread.start()
    watch.until("the first trial trains", lambda: len(watch.epochs(0)) > 1)
    nodes.add_node(**node)
    watch.note("a node joined")
    watch.until("the second trial trains", lambda: len(watch.epochs(1)) > 1)
    nodes.remove_node(first, allow_graceful=False)
    watch.note("a node was killed")
    nodes.add_node(**node)
    thread.join()
    watch.note("the search has ended")
    result = {"said": said, "seen": watch.seen, "epochs": [watch.epochs(0), watch.epochs(1)]}
    print(json.dumps(result | {"reasons": [trial.reason for trial in found]}))
    cluster.shutdown()
    nodes.shutdown()


if __name__ == "__main__":
    main()
