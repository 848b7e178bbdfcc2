"""A search on a cluster of several node processes, of which one joins and one is killed.

What was seen is written to HOME/seen.json: python node_loss.py HOME DATA EPOCHS
"""

import json
import sys
import threading
import time
from pathlib import Path

from ldseg.orchestration.cluster import connection, preflight
from ldseg.orchestration.cluster.place import Place
from ldseg.orchestration.search.search import search
from ldseg.orchestration.search.study import Study
from ldseg.orchestration.training.run import HISTORY

SPACE = """
from tiny import tiny_config

BASE = {k: v for k, v in tiny_config(2).to_dict().items() if k in ("model", "sampler")}
BASE |= {"data": {"spatial_dims": 2, "shape": [16, 16]}, "optim": {"batch_size": 1, "validate_every": 1000}}
SPACE = {"optim.learning_rate": ("choice", [1e-3, 2e-3])}
METRIC = ("val_nll", "min")
"""
QUICK = {
    "health_check_initial_delay_ms": 1000, "health_check_period_ms": 500, "health_check_timeout_ms": 10000,
    "health_check_failure_threshold": 3,
}  # fmt: skip


class Watch:
    """The search's histories."""

    def __init__(self, study: Study) -> None:
        self.study, self.start, self.seen = study, time.monotonic(), {}

    def epochs(self, number: int) -> list[int]:
        path = Path(self.study.home) / "train" / self.study.run_name(number) / HISTORY
        return [int(json.loads(line)["epoch"]) for line in path.read_text().splitlines()] if path.exists() else []

    def until(self, what: str, true, seconds: float = 900) -> None:
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
    from ray.cluster_utils import Cluster  # after ldseg.orchestration has set the environment

    home, data, epochs = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    (home / "space.py").write_text(SPACE)
    head = {"num_cpus": 0, "object_store_memory": 80_000_000, "_system_config": QUICK, "include_dashboard": False}
    nodes = Cluster(initialize_head=True, head_node_args=head)
    node = {"num_cpus": 1, "object_store_memory": 80_000_000}
    first = nodes.add_node(**node)
    place = Place(kind="node", reason="test", address=nodes.address)
    connection.connect(place)
    said = preflight.check(place, data, home)
    study = Study(
        name="s", home=str(home), data=data, space=str(home / "space.py"), trials=2, epochs=epochs, front=True
    )
    watch, found = Watch(study), []
    thread = threading.Thread(target=lambda: found.extend(search(study, say=None)))
    thread.start()
    watch.until("the first trial trains", lambda: len(watch.epochs(0)) > 0)
    nodes.add_node(**node)  # nothing is free to be trained there
    watch.note("a node joined")
    nodes.remove_node(first, allow_graceful=False)
    watch.note("the first node was killed")
    thread.join()
    watch.note("the search has ended")
    result = {"said": said, "seen": watch.seen, "epochs": [watch.epochs(0), watch.epochs(1)]}
    (home / "seen.json").write_text(json.dumps(result | {"reasons": [trial.reason for trial in found]}))
    connection.shutdown()
    nodes.shutdown()


if __name__ == "__main__":
    main()
